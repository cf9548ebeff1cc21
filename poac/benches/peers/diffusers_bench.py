"""Benchmark server of diffusers on the CPU, the peer of `examples/stable_bench.rs`: cases `train` and `sample` on the same U-Net.

Usage: `diffusers_bench.py --threads N`, then lines `CASE SECONDS` on stdin; one JSON line each on stdout.
Needs torch and diffusers (run with torch 2.15.0, diffusers 0.42.1).
"""

import argparse
import json
import resource
import statistics
import sys
import time

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

BATCH = 8


def unet() -> UNet2DConditionModel:
    """Channels (64, 128), one residual block a level, attention on the finer one and in the middle."""
    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(64, 128), layers_per_block=1, cross_attention_dim=64,
        attention_head_dim=4, norm_num_groups=16, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))


def build(name: str):
    """The function of a case."""
    model = unet()
    z, text, noise = torch.randn(BATCH, 4, 16, 16), torch.randn(BATCH, 16, 64), torch.randn(BATCH, 4, 16, 16)
    if name == "train":
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
        times = torch.arange(BATCH) * 100

        def step():
            optimiser.zero_grad(set_to_none=True)
            torch.nn.functional.mse_loss(model(z, times, text).sample, noise).backward()
            optimiser.step()
        return step
    if name == "sample":
        model.eval()
        scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
                                  steps_offset=1)
        scheduler.set_timesteps(10)

        def draw():
            with torch.inference_mode():
                x = z
                for t in scheduler.timesteps:
                    x = scheduler.step(model(x, t, text).sample, t, x).prev_sample
        return draw
    raise ValueError(f"no case {name}; train or sample")


def measure(run, seconds: float) -> dict:
    """Repeat for about `seconds`, at least three times."""
    wall, start, cpu = [], time.perf_counter(), time.process_time()
    while len(wall) < 3 or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        run()
        wall.append(1e3 * (time.perf_counter() - before))
        if time.perf_counter() - start > 4 * seconds:
            break
    cpu = 1e3 * (time.process_time() - cpu) / len(wall)
    return {"runs": len(wall), "wall_min_ms": min(wall), "wall_median_ms": statistics.median(wall), "cpu_median_ms": cpu,
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    """Answer requests until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    current = (None, None)
    for line in sys.stdin:
        words = line.split()
        if not words:
            continue
        try:
            if current[0] != words[0]:
                run = build(words[0])
                run()
                current = (words[0], run)
            reply = {"case": words[0]} | measure(current[1], float(words[1]))
        except (ValueError, IndexError) as error:
            reply = {"case": words[0], "error": str(error)}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
