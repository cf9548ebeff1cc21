"""Noise schedules, time steps, sigmas and deterministic trajectories of diffusers' schedulers.

The fake model is ``eps(x, t) = 0.1 * x + sin(t)``; ``sin`` is taken in double
precision of the scheduler's time step and rounded to f32. Its output is handed
to ``step`` as it is, whatever the prediction type. EulerDiscrete scales the
model input first (``scale_model_input``), as pipelines do.
"""

from __future__ import annotations

import pathlib
import sys
import math

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.schedulers import scheduling_ddpm

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from golden_common import arguments, generator, replayed_noise, save_json, save_tensors, setup

BETAS = ("scaled_linear", "linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
STEPS = (10, 50)
SHAPE = (1, 4, 2, 2)


def make(kind: str, beta: str, prediction: str, spacing: str = "leading", clip: bool = False):
    """Build one scheduler with Stable Diffusion's settings."""
    base = dict(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule=beta,
        prediction_type=prediction, timestep_spacing=spacing, steps_offset=1,
    )
    if kind == "ddpm":
        return DDPMScheduler(**base, clip_sample=clip, variance_type="fixed_small")
    if kind == "ddim":
        return DDIMScheduler(**base, clip_sample=clip, set_alpha_to_one=False)
    if kind == "euler":
        return EulerDiscreteScheduler(**base)
    return DPMSolverMultistepScheduler(
        **base, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", lower_order_final=True,
        use_karras_sigmas=kind == "dpmpp_2m_karras",
    )


KINDS = ("ddpm", "ddim", "euler", "dpmpp_2m", "dpmpp_2m_karras")


def fake_model(x: torch.Tensor, t) -> torch.Tensor:
    """The deterministic stand-in for a denoiser."""
    return 0.1 * x + torch.tensor(math.sin(float(t)), dtype=x.dtype)


def trajectory(scheduler, start: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """All states from the scaled start to the last step, stacked.

    ``set_begin_index(0)`` is needed because Karras sigmas can map the first two
    steps to the same time step; without it diffusers starts at the second.
    """
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    x = start * scheduler.init_noise_sigma
    states = [x]
    with replayed_noise(scheduling_ddpm, noise):
        for t in scheduler.timesteps:
            model_input = scheduler.scale_model_input(x, t)
            x = scheduler.step(fake_model(model_input, t), t, x).prev_sample
            states.append(x)
    return torch.stack(states)


def main() -> None:
    """Write ``schedules.safetensors`` and ``configs.json``."""
    args = arguments(__doc__, "schedules")
    setup()
    gen = generator(args.seed, 1)
    start = torch.randn(SHAPE, generator=gen)
    noise = torch.randn((50, *SHAPE), generator=gen)
    tensors = {"noise/start": start, "noise/ddpm": noise}
    configs = {}
    for beta in BETAS:
        plain = make("ddpm", beta, "epsilon")
        tensors[f"{beta}/betas"] = plain.betas
        tensors[f"{beta}/alphas_cumprod"] = plain.alphas_cumprod
        picks = torch.tensor([0, 1, 250, 500, 998, 999])
        clean = start.expand(6, 4, 2, 2)
        tensors["pointwise/timesteps"] = picks
        tensors[f"{beta}/pointwise/add_noise"] = plain.add_noise(clean, noise[:6, 0], picks)
        tensors[f"{beta}/pointwise/velocity"] = plain.get_velocity(clean, noise[:6, 0], picks)
        for kind in KINDS:
            for spacing in ("leading", "linspace", "trailing"):
                for steps in STEPS:
                    scheduler = make(kind, beta, "epsilon", spacing)
                    scheduler.set_timesteps(steps)
                    key = f"{beta}/{kind}/{spacing}/{steps}"
                    tensors[f"{key}/timesteps"] = scheduler.timesteps.float()
                    if hasattr(scheduler, "sigmas"):
                        tensors[f"{key}/sigmas"] = scheduler.sigmas
            for prediction in PREDICTIONS:
                for steps in STEPS:
                    scheduler = make(kind, beta, prediction)
                    scheduler.set_timesteps(steps)
                    tensors[f"{beta}/{kind}/leading/{steps}/trajectory/{prediction}"] = trajectory(scheduler, start, noise)
            configs[kind] = {k: v for k, v in make(kind, "scaled_linear", "epsilon").config.items() if not k.startswith("_")}
    for kind in ("ddpm", "ddim"):
        scheduler = make(kind, "squaredcos_cap_v2", "epsilon", clip=True)
        scheduler.set_timesteps(10)
        tensors[f"clipped/squaredcos_cap_v2/{kind}/leading/10/trajectory/epsilon"] = trajectory(scheduler, start, noise)
    save_tensors(args.folder / "schedules.safetensors", tensors)
    save_json(args.folder / "configs.json", {"diffusers": diffusers.__version__, "configs": configs})


if __name__ == "__main__":
    main()
