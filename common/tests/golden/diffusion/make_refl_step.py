"""One reward-feedback (ReFL) step through tiny reference models.

Text encoder -> UNet at one time step t_m -> x0-hat -> VAE decode -> clamp to
[0, 1] -> resize to 32 -> CLIP mean/std -> CLIP cosine r ->
L_reward = lambda * mean(relu(b - r)), plus the noise-prediction loss L_pre on
given clean latents. The decoded image is 48 x 48, so the resize is not an
identity. The resized image is not clamped again.
"""

from __future__ import annotations

import copy
import pathlib
import sys

import diffusers
import peft
import torch
import torch.nn.functional as F
import transformers
from diffusers import DDIMScheduler
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import tiny_models
from golden_common import arguments, generator, gradients, max_abs, relative_to_max, save_config, save_json, save_tensors, setup

LAMBDA = 1e-3
TARGET = 2.0
GAMMA = 0.18215
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
RESIZES = {
    "bicubic": dict(mode="bicubic", antialias=False),
    "bicubic_antialias": dict(mode="bicubic", antialias=True),
    "bilinear": dict(mode="bilinear", antialias=False),
}


def reward_of(clip, image, ids, resize: str):
    """CLIP cosine of each image in [0, 1] with its text."""
    small = F.interpolate(image, size=(32, 32), align_corners=False, **RESIZES[resize])
    mean = torch.tensor(MEAN, dtype=image.dtype).view(1, 3, 1, 1)
    std = torch.tensor(STD, dtype=image.dtype).view(1, 3, 1, 1)
    pixels = (small - mean) / std
    features = clip.get_image_features(pixels).pooler_output
    words = clip.get_text_features(ids).pooler_output
    return F.cosine_similarity(features, words, dim=-1), pixels


def step(unet, vae, clip, data, alphas, resize: str = "bicubic", centre: float = 0.0, scale: float = 1.0) -> dict:
    """Run the forward pass; ``(r - centre) / scale`` is the reward that enters the loss."""
    with torch.no_grad():
        text = clip.text_model(data["input_ids"]).last_hidden_state
    t = data["timestep"]
    abar = alphas[t].to(text.dtype).view(-1, 1, 1, 1)
    eps = unet(data["z"], t, text).sample
    x0 = (data["z"] - (1 - abar).sqrt() * eps) / abar.sqrt()
    decoded = vae.decode(x0 / GAMMA).sample
    image = (decoded / 2 + 0.5).clamp(0, 1)
    reward, pixels = reward_of(clip, image, data["input_ids"], resize)
    reward_loss = LAMBDA * F.relu(TARGET - (reward - centre) / scale).mean()
    t_pre = data["pre/timestep"]
    abar_pre = alphas[t_pre].to(text.dtype).view(-1, 1, 1, 1)
    noisy = abar_pre.sqrt() * data["pre/z0"] + (1 - abar_pre).sqrt() * data["pre/noise"]
    pre_loss = F.mse_loss(unet(noisy, t_pre, text).sample, data["pre/noise"])
    return {
        "text": text, "eps": eps, "x0_hat": x0, "decoded": decoded, "image": image, "pixels": pixels, "reward": reward,
        "reward_loss": reward_loss, "pre_noisy": noisy, "pre_loss": pre_loss, "loss": reward_loss + pre_loss,
    }


def grads_of(unet, loss, keep=lambda name: True) -> dict[str, torch.Tensor]:
    """Gradients of one loss with respect to the trainable parameters."""
    unet.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    found = {n: g for n, g in gradients(unet).items() if keep(n)}
    unet.zero_grad(set_to_none=True)
    return found


def lora_unet(base, gen):
    """Copy of the UNet with LoRA (r 2, alpha 2, so the factor alpha/r is 1) and random A and B."""
    unet = copy.deepcopy(base).requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), unet)
    with torch.no_grad():
        for name, parameter in sorted(unet.named_parameters()):
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=gen) * (0.3 if "lora_A" in name else 0.2))
    return unet


def main() -> None:
    """Write the folder ``refl_step``."""
    args = arguments(__doc__, "refl_step")
    setup()
    gen = generator(args.seed, 5)

    def noise(*shape):
        return torch.randn(shape, generator=gen)

    unet = tiny_models.unet_small(args.seed)
    vae = tiny_models.vae(args.seed).requires_grad_(False)
    clip = tiny_models.clip(args.seed).requires_grad_(False)
    scheduler = DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )
    scheduler.set_timesteps(40)
    index = 35
    t_m = int(scheduler.timesteps[index])
    alphas = scheduler.alphas_cumprod
    data = {
        "input_ids": tiny_models.token_ids(), "timestep": torch.tensor([t_m, t_m]), "z": noise(2, 4, 24, 24),
        "pre/z0": noise(2, 4, 24, 24) * 0.9, "pre/noise": noise(2, 4, 24, 24), "pre/timestep": torch.tensor([77, 640]),
    }
    values = step(unet, vae, clip, data, alphas)
    values["decoded"].retain_grad()
    values["x0_hat"].retain_grad()
    reward_grads = grads_of(unet, values["reward_loss"])
    extra = {"grad_reward_loss/decoded": values["decoded"].grad.clone(), "grad_reward_loss/x0_hat": values["x0_hat"].grad.clone()}
    total_grads = grads_of(unet, values["loss"])

    models64 = [copy.deepcopy(m).double() for m in (unet, vae, clip)]
    data64 = {k: v.double() if v.is_floating_point() else v for k, v in data.items()}
    values64 = step(*models64, data64, alphas)
    reward64 = grads_of(models64[0], values64["reward_loss"])
    total64 = grads_of(models64[0], values64["loss"])

    variants = {}
    for resize in RESIZES:
        decoded = values["decoded"].detach().clone().requires_grad_(True)
        reward, _ = reward_of(clip, (decoded / 2 + 0.5).clamp(0, 1), data["input_ids"], resize)
        reward.sum().backward()
        variants[f"resize/{resize}/reward"] = reward
        if resize != "bicubic":
            variants[f"resize/{resize}/grad_sum_reward/decoded"] = decoded.grad

    lora = lora_unet(unet, gen)
    lora_weights = {n.removeprefix("base_model.model."): v for n, v in get_peft_model_state_dict(lora).items()}
    rename = {n: n.replace(".default", "") for n, _ in lora.named_parameters() if "lora_" in n}
    lora_values = step(lora, vae, clip, data, alphas)
    lora_out = {f"weights/{n}": v for n, v in lora_weights.items()}
    lora_out |= {f"grad_reward_loss/{rename[n]}": g for n, g in grads_of(lora, lora_values["reward_loss"]).items()}
    lora_out |= {f"grad_loss/{rename[n]}": g for n, g in grads_of(lora, lora_values["loss"]).items()}
    r = lora_values["reward"].detach()
    spread = float((r[0] - r[1]).abs())
    centre = round(float(r.max()) - 0.5 * spread, 4)
    scale = round(0.2 * spread, 5)
    standard = step(lora, vae, clip, data, alphas, centre=centre, scale=scale)
    lora_out |= {f"grad_standardised_reward_loss/{rename[n]}": g for n, g in grads_of(lora, standard["reward_loss"]).items()}
    lora_out |= {"eps": lora_values["eps"], "reward": lora_values["reward"]}
    assert set(rename.values()) == set(lora_weights)

    save_tensors(args.folder / "unet.safetensors", unet.state_dict())
    save_config(args.folder / "unet_config.json", unet.config, "UNet2DConditionModel")
    shown = ("text", "eps", "x0_hat", "decoded", "pixels", "reward")
    save_tensors(args.folder / "io.safetensors", {**data, **{k: values[k] for k in shown}, **extra, **variants})
    save_tensors(args.folder / "grads_reward_loss.safetensors", reward_grads)
    save_tensors(args.folder / "grads_loss.safetensors", total_grads)
    save_tensors(args.folder / "lora.safetensors", lora_out)
    raw = values["decoded"].detach() / 2 + 0.5
    save_json(args.folder / "scalars.json", {
        "lambda": LAMBDA, "target_b": TARGET, "vae_scaling_factor": GAMMA, "clip_mean": MEAN, "clip_std": STD,
        "resize": {"mode": "bicubic", "from": 48, "to": 32, "align_corners": False, "antialias": False, "a": -0.75, "clamped_after": False},
        "inference_steps": 40, "step_index_m": index, "t_m": t_m, "alpha_cumprod_t_m": float(alphas[t_m]),
        "alpha_cumprod_pre": [float(alphas[int(t)]) for t in data["pre/timestep"]],
        "full": {k: values[k].item() for k in ("reward_loss", "pre_loss", "loss")} | {"reward": values["reward"].tolist()},
        "lora": {k: lora_values[k].item() for k in ("reward_loss", "pre_loss", "loss")} | {"reward": r.tolist(), "r": 2, "alpha": 2},
        "lora_standardised": {"centre": centre, "scale": scale, "reward_loss": standard["reward_loss"].item(), "standardised_reward": ((r - centre) / scale).tolist()},
        "fraction_of_clamped_values": float(((raw < 0) | (raw > 1)).float().mean()),
        "check": {
            "forward_max_abs_f32_vs_f64": max(max_abs(values[k], values64[k]) for k in shown),
            "grads_reward_loss_relative_to_max_f32_vs_f64": relative_to_max(reward_grads, reward64),
            "grads_loss_relative_to_max_f32_vs_f64": relative_to_max(total_grads, total64),
        },
        "versions": {"diffusers": diffusers.__version__, "transformers": transformers.__version__, "peft": peft.__version__, "torch": torch.__version__.split("+")[0]},
    })


if __name__ == "__main__":
    main()
