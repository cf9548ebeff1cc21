"""Inpainting inputs as StableDiffusionInpaintPipeline builds them, and blended-latent steps.

Both pipelines run for four DDIM steps with guidance 7.5 on a 32 x 32 image
(latent 16 x 16). In the pipeline a mask value of 1 means "repaint".
"""

from __future__ import annotations

import pathlib
import sys

import diffusers
import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline
from diffusers.models.autoencoders import vae as vae_module

GOLDEN = pathlib.Path(__file__).resolve().parents[3] / "common/tests/golden"
sys.path[:0] = [str(GOLDEN), str(GOLDEN / "diffusion")]
import tiny_models
from golden_common import arguments, generator, replayed_noise, save_json, save_tensors, setup

GUIDANCE = 7.5
STEPS = 4


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's DDIM settings."""
    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )


def run(unet, vae, data: dict, posterior_noise: list[torch.Tensor]) -> dict:
    """Run the pipeline and record every UNet input and output and the latents after each step."""
    pipeline = StableDiffusionInpaintPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    inputs, outputs, times, states = [], [], [], []

    def before(_module, positional):
        inputs.append(positional[0].clone())
        times.append(int(positional[1]))

    def after(_module, _positional, result):
        outputs.append(result[0].clone())

    def at_step_end(_pipeline, _index, _t, values):
        states.append(values["latents"].clone())
        return values

    handles = [unet.register_forward_pre_hook(before), unet.register_forward_hook(after)]
    with replayed_noise(vae_module, posterior_noise):
        final = pipeline(
            prompt_embeds=data["prompt_embeds"], negative_prompt_embeds=data["negative_prompt_embeds"],
            image=data["image"], mask_image=data["mask"], height=32, width=32, num_inference_steps=STEPS,
            guidance_scale=GUIDANCE, strength=1.0, latents=data["start"], output_type="latent",
            callback_on_step_end=at_step_end, callback_on_step_end_tensor_inputs=["latents"],
        ).images
    for handle in handles:
        handle.remove()
    assert torch.equal(final, states[-1])
    return {"unet_inputs": torch.stack(inputs), "unet_outputs": torch.stack(outputs), "timesteps": torch.tensor(times), "latents": torch.stack(states)}


def main() -> None:
    """Write the folder ``refiners``."""
    args = arguments(__doc__, "refiners")
    setup()
    gen = generator(args.seed, 7)

    def noise(*shape):
        return torch.randn(shape, generator=gen)

    vae = tiny_models.vae(args.seed)
    data = {
        "image": torch.rand((1, 3, 32, 32), generator=gen), "prompt_embeds": noise(1, 7, 32),
        "negative_prompt_embeds": noise(1, 7, 32), "start": noise(1, 4, 16, 16),
    }
    rows = torch.arange(32).view(32, 1).expand(32, 32)
    columns = torch.arange(32).view(1, 32).expand(32, 32)
    data["mask"] = (((rows - 13) ** 2 + (columns - 18) ** 2) < 90).float().view(1, 1, 32, 32) * 0.8
    posterior = [noise(1, 4, 16, 16), noise(1, 4, 16, 16)]
    tensors = {f"given/{k}": v for k, v in data.items()}
    with torch.no_grad():
        nine = run(tiny_models.unet_inpaint(args.seed), vae, data, posterior[:1])
        four = run(tiny_models.unet_small(args.seed), vae, data, posterior)
        binary = (data["mask"] >= 0.5).float()
        pixels = data["image"] * 2 - 1
        masked = pixels * (binary < 0.5)
        code = vae.encode(masked).latent_dist
        masked_latents = 0.18215 * (code.mean + code.std * posterior[0])
        small_mask = torch.nn.functional.interpolate(binary, size=(16, 16))
        rebuilt = torch.cat([data["start"], small_mask, masked_latents], dim=1)
        assert torch.equal(rebuilt, nine["unet_inputs"][0][:1]), "the pipeline builds another tensor"
        assert torch.equal(nine["unet_inputs"][0][:1], nine["unet_inputs"][0][1:])
        full = vae.encode(pixels).latent_dist
        image_latents = 0.18215 * (full.mean + full.std * posterior[0])
        plan = scheduler()
        plan.set_timesteps(STEPS)
        for i, state in enumerate(four["latents"]):
            unconditional, conditional = four["unet_outputs"][i].chunk(2)
            guided = unconditional + GUIDANCE * (conditional - unconditional)
            before = four["unet_inputs"][i][:1]
            moved = plan.step(guided, plan.timesteps[i], before).prev_sample
            proper = image_latents
            if i + 1 < STEPS:
                proper = plan.add_noise(image_latents, data["start"], plan.timesteps[i + 1].view(1))
            assert torch.equal((1 - small_mask) * proper + small_mask * moved, state)
            tensors[f"blend/step{i}/before_blend"] = moved
            tensors[f"blend/step{i}/known"] = proper
        soft = torch.rand((1, 1, 16, 16), generator=gen)
        z, foreground, xi = noise(1, 4, 16, 16), noise(1, 4, 16, 16), noise(1, 4, 16, 16)
        abar = plan.alphas_cumprod[501]
        equation = (1 - soft) * z + soft * (abar.sqrt() * foreground + (1 - abar).sqrt() * xi)
    tensors |= {
        "given/posterior_noise": torch.cat(posterior[:1]), "expect/binary_mask": binary, "expect/masked_image": masked,
        "expect/latent_mask": small_mask, "expect/masked_image_latents": masked_latents, "expect/image_latents": image_latents,
        "eq7/keep_mask": soft, "eq7/z": z, "eq7/foreground": foreground, "eq7/noise": xi, "eq7/out": equation,
    }
    for name, result in (("nine", nine), ("four", four)):
        result["unet_inputs"] = result["unet_inputs"][:, :1]
        tensors |= {f"{name}/{k}": v for k, v in result.items()}
    save_tensors(args.folder / "refiners.safetensors", tensors)
    save_json(args.folder / "refiners.json", {
        "guidance_scale": GUIDANCE, "steps": STEPS, "eq7_timestep": 501, "eq7_alpha_cumprod": float(abar),
        "channel_order": ["latents 0-3", "mask 4", "masked image latents 5-8"], "guidance_batch_order": ["negative", "positive"],
        "largest_latent": float(max(nine["latents"].abs().max(), four["latents"].abs().max())),
        "diffusers": diffusers.__version__, "torch": torch.__version__.split("+")[0],
    })


if __name__ == "__main__":
    main()
