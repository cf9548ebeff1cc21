"""Forward and gradient values of tiny diffusers UNets: SD 1.5 layout, 9-channel inpainting, SDXL layout."""

from __future__ import annotations

import copy
import pathlib
import sys

import diffusers
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import tiny_models
from golden_common import arguments, generator, gradients, max_abs, relative_to_max, save_config, save_json, save_tensors, setup


def evaluate(model, inputs: dict, direction: torch.Tensor):
    """Return output, loss, parameter gradients and input gradients for loss = mean(out * direction)."""
    model = copy.deepcopy(model)
    x = inputs["sample"].clone().requires_grad_(True)
    text = inputs["encoder_hidden_states"].clone().requires_grad_(True)
    added = inputs.get("added_cond_kwargs")
    out = model(x, inputs["timestep"], text, added_cond_kwargs=added).sample
    loss = (out * direction).mean()
    loss.backward()
    return out.detach(), loss.detach(), gradients(model), {"sample": x.grad, "encoder_hidden_states": text.grad}


def to_double(inputs: dict) -> dict:
    """Double-precision copy of a nested input dictionary."""
    return {k: to_double(v) if isinstance(v, dict) else v.double() if v.is_floating_point() else v for k, v in inputs.items()}


def checked(model, inputs, direction):
    """Evaluate in f32 and compare with an f64 run of the same model."""
    out, loss, grads, input_grads = evaluate(model, inputs, direction)
    out64, _, grads64, input64 = evaluate(copy.deepcopy(model).double(), to_double(inputs), direction.double())
    check = {
        "forward_max_abs_f32_vs_f64": max_abs(out, out64),
        "gradient_relative_to_max_f32_vs_f64": relative_to_max(grads | input_grads, grads64 | input64),
        "output_max_abs": float(out.abs().max()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": float(loss),
        "diffusers": diffusers.__version__,
        "torch": torch.__version__.split("+")[0],
    }
    return out, grads, input_grads, check


def main() -> None:
    """Write the three sub-folders."""
    args = arguments(__doc__, ".")
    setup()
    gen = generator(args.seed, 2)

    def noise(*shape):
        return torch.randn(shape, generator=gen)

    timesteps = torch.tensor([37, 801])

    folder = args.out / "unet_sd_tiny"
    folder.mkdir(exist_ok=True)
    model = tiny_models.unet_sd(args.seed)
    inputs = {"sample": noise(2, 4, 16, 16), "timestep": timesteps, "encoder_hidden_states": noise(2, 7, 32)}
    direction = noise(2, 4, 16, 16)
    out, grads, input_grads, check = checked(model, inputs, direction)
    save_tensors(folder / "model.safetensors", model.state_dict())
    save_config(folder / "config.json", model.config, "UNet2DConditionModel")
    save_tensors(folder / "io.safetensors", {
        **inputs, "direction": direction, "out": out,
        "grad/sample": input_grads["sample"], "grad/encoder_hidden_states": input_grads["encoder_hidden_states"],
    })
    save_tensors(folder / "grads.safetensors", grads)
    save_json(folder / "check.json", check)

    folder = args.out / "unet_inpaint_tiny"
    folder.mkdir(exist_ok=True)
    model = tiny_models.unet_inpaint(args.seed)
    inputs = {"sample": noise(2, 9, 16, 16), "timestep": timesteps, "encoder_hidden_states": noise(2, 7, 32)}
    out, _, _, check = checked(model, inputs, noise(2, 4, 16, 16))
    check.pop("loss")
    save_tensors(folder / "model.safetensors", model.state_dict())
    save_config(folder / "config.json", model.config, "UNet2DConditionModel")
    save_tensors(folder / "io.safetensors", {**inputs, "out": out})
    save_json(folder / "check.json", check)

    folder = args.out / "unet_sdxl_tiny"
    folder.mkdir(exist_ok=True)
    model = tiny_models.unet_sdxl(args.seed)
    added = {
        "text_embeds": noise(2, tiny_models.PROJECTION),
        "time_ids": torch.tensor([[32.0, 48.0, 0.0, 4.0, 32.0, 32.0], [64.0, 64.0, 8.0, 0.0, 32.0, 32.0]]),
    }
    inputs = {"sample": noise(2, 4, 16, 16), "timestep": timesteps, "encoder_hidden_states": noise(2, 7, 32), "added_cond_kwargs": added}
    direction = noise(2, 4, 16, 16)
    out, grads, input_grads, check = checked(model, inputs, direction)
    keep = {n: g for n, g in grads.items() if n.startswith("add_embedding") or ".attn1." in n or ".attn2." in n}
    save_tensors(folder / "model.safetensors", model.state_dict())
    save_config(folder / "config.json", model.config, "UNet2DConditionModel")
    save_tensors(folder / "io.safetensors", {
        "sample": inputs["sample"], "timestep": timesteps, "encoder_hidden_states": inputs["encoder_hidden_states"], **added,
        "direction": direction, "out": out,
        "grad/sample": input_grads["sample"], "grad/encoder_hidden_states": input_grads["encoder_hidden_states"],
    })
    save_tensors(folder / "grads.safetensors", keep)
    save_json(folder / "check.json", check)


if __name__ == "__main__":
    main()
