"""Encode, decode and the gradient of decode for a tiny diffusers AutoencoderKL."""

from __future__ import annotations

import copy
import pathlib
import sys

import diffusers
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import tiny_models
from golden_common import arguments, generator, max_abs, relative_to_max, save_config, save_json, save_tensors, setup


def evaluate(model, image, latent, direction):
    """Encode ``image``; decode ``latent``; gradient of mean(decode * direction) with respect to the latent and to the image of encode's mean."""
    image = image.clone().requires_grad_(True)
    posterior = model.encode(image).latent_dist
    posterior.mean.sum().backward()
    latent = latent.clone().requires_grad_(True)
    decoded = model.decode(latent).sample
    loss = (decoded * direction).mean()
    loss.backward()
    return {
        "encode/mean": posterior.mean, "encode/logvar": posterior.logvar, "decode/out": decoded,
    }, {"decode/grad_latent": latent.grad, "encode/grad_image_of_sum_mean": image.grad}, loss


def main() -> None:
    """Write the folder ``vae_tiny``."""
    args = arguments(__doc__, "vae_tiny")
    setup()
    gen = generator(args.seed, 3)
    model = tiny_models.vae(args.seed)
    image = torch.rand((2, 3, 32, 32), generator=gen) * 2 - 1
    latent = torch.randn((2, 4, 16, 16), generator=gen)
    direction = torch.randn((2, 3, 32, 32), generator=gen)
    values, grads, loss = evaluate(model, image, latent, direction)
    values64, grads64, _ = evaluate(copy.deepcopy(model).double(), image.double(), latent.double(), direction.double())
    save_tensors(args.folder / "model.safetensors", model.state_dict())
    save_config(args.folder / "config.json", model.config, "AutoencoderKL")
    save_tensors(args.folder / "io.safetensors", {"image": image, "latent": latent, "direction": direction, **values, **grads})
    save_json(args.folder / "check.json", {
        "forward_max_abs_f32_vs_f64": max(max_abs(values[k], values64[k]) for k in values),
        "gradient_relative_to_max_f32_vs_f64": relative_to_max(grads, grads64),
        "decode_max_abs": values["decode/out"].abs().max().item(), "loss": loss.item(),
        "scaling_factor": model.config.scaling_factor, "diffusers": diffusers.__version__, "torch": torch.__version__.split("+")[0],
    })


if __name__ == "__main__":
    main()
