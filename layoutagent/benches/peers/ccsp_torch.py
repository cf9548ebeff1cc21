"""The relation networks of layoutagent in PyTorch: a benchmark server beside `examples/speed.rs`.

    cargo run --release -p layoutagent --example speed -- --worlds worlds.json
    python ccsp_torch.py worlds.json --threads 2

Reads lines `CASE SECONDS`, answers with one JSON line each (`common::testing::bench_protocol`). Cases:
`train`, `sample:N`, `reverse:N`. Networks, schedule, problems, number of chains and batches are those
of the Rust server. Written for speed: all chains of all problems in one batch, geometry and time
encoded once per run or step, one matrix product per relation. Versions: torch 2.15.0, numpy 2.4.6.
"""

import argparse
import json
import math
import resource
import statistics
import sys
import time

import torch
from torch import nn

D, STEPS, INNER, CHAINS, RELATIONS = 64, 200, 3, 10, 13


class Denoiser(nn.Module):
    """Specification 3.5."""

    def __init__(self):
        super().__init__()
        two = lambda inputs: nn.Sequential(nn.Linear(inputs, D // 2), nn.SiLU(), nn.Linear(D // 2, D), nn.SiLU())
        self.geom_encoder, self.pose_encoder = two(2), two(2)
        self.time_mlp = nn.Sequential(nn.Linear(D, 4 * D), nn.Mish(), nn.Linear(4 * D, D))
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(5 * D, 2 * D), nn.SiLU()) for _ in range(RELATIONS))
        self.pose_decoder = nn.Sequential(nn.Linear(D, D // 2), nn.SiLU(), nn.Linear(D // 2, 2))

    def time(self, steps):
        """Sinusoidal features of diffusion steps."""
        half = D // 2
        frequencies = torch.exp(torch.arange(half) * -(math.log(10_000) / (half - 1)))
        angles = steps[:, None] * frequencies
        return self.time_mlp(torch.cat([angles.sin(), angles.cos()], 1))

    def forward(self, graph, geometry, pose, time):
        """Composed noise of all nodes (Eq. 3). `time`: one row, or one per edge."""
        encoded = self.pose_encoder(pose)
        outputs = []
        for k, first, second, rows in graph["by_relation"]:
            t = time.expand(len(first), D) if len(time) == 1 else time[rows]
            x = torch.cat([geometry[first], geometry[second], encoded[first], encoded[second], t], 1)
            outputs.append(self.mlps[k](x))
        noise = self.pose_decoder(torch.cat(outputs).view(-1, D))
        total = torch.zeros_like(pose).index_add_(0, graph["targets"], noise)
        return total * graph["scale"]


def batch(worlds, chains):
    """Graphs side by side, each `chains` times; edges sorted by relation."""
    geometry, pose, masked, edges = [], [], [], []
    for world in worlds:
        for _ in range(chains):
            start, number = len(geometry), len(masked)
            rows = torch.tensor(world["geometry"]).view(-1, 2).tolist()
            geometry += rows
            pose += torch.tensor(world["pose"]).view(-1, 2).tolist()
            masked += [True] + [False] * (len(rows) - 1)
            graph = sum(masked) - 1
            edges += [(k, number + i, number + j, graph) for k, i, j in world["edges"]]
            assert start == number
    edges.sort(key=lambda edge: edge[0])
    edges = torch.tensor(edges)
    by_relation, start = [], 0
    for k in range(RELATIONS):
        of_kind = edges[edges[:, 0] == k]
        if len(of_kind):
            rows = torch.arange(start, start + len(of_kind))
            by_relation.append((k, of_kind[:, 1].contiguous(), of_kind[:, 2].contiguous(), rows))
            start += len(of_kind)
    targets = edges[:, 1:3].reshape(-1)
    counts = torch.bincount(targets, minlength=len(masked)).float()
    masked = torch.tensor(masked)
    scale = torch.where(masked | (counts == 0), torch.zeros(()), counts.clamp(min=1).rsqrt())[:, None]
    graph = {"by_relation": by_relation, "targets": targets, "scale": scale, "free": (~masked).float()[:, None], "edge_graph": edges[:, 3]}
    return graph, torch.tensor(geometry), torch.tensor(pose)


def schedule():
    """Cosine, s = 0.008, clipped at 0.999."""
    x = torch.arange(STEPS + 1, dtype=torch.float64) / STEPS
    curve = torch.cos((x + 0.008) / 1.008 * math.pi / 2) ** 2
    beta = (1 - curve[1:] / curve[:-1]).clamp(0, 0.999)
    bar = torch.cumprod(1 - beta, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    values = {
        "beta": beta, "noise": (1 - bar).sqrt(), "sd": (beta * (1 - before) / (1 - bar)).sqrt(), "from_pose": (1 / bar).sqrt(),
        "from_noise": (1 / bar - 1).sqrt(), "clean": beta * before.sqrt() / (1 - bar), "pose": (1 - before) * (1 - beta).sqrt() / (1 - bar),
    }
    return {name: value.tolist() for name, value in values.items()}


def sampling(worlds, inner):
    """Algorithm 2 on all problems at once."""
    model = Denoiser().eval()
    graph, geometry, _ = batch(worlds, CHAINS)
    s = schedule()

    @torch.inference_mode()
    def run():
        free = graph["free"]
        encoded = model.geom_encoder(geometry)
        times = model.time(torch.arange(STEPS).float())
        pose = 0.5 * torch.randn(len(free), 2) * free
        for t in reversed(range(STEPS)):
            eps = model(graph, encoded, pose, times[t : t + 1])
            clean = s["from_pose"][t] * pose - s["from_noise"][t] * eps
            pose = s["clean"][t] * clean + s["pose"][t] * pose
            if t > 0:
                pose = pose + s["sd"][t] * torch.randn_like(pose)
            pose = pose * free
            for _ in range(inner if t > 0 else 0):
                eps = model(graph, encoded, pose, times[t : t + 1])
                size = 2 * s["beta"][t]
                pose = pose - size / s["noise"][t] * eps + math.sqrt(2 * size) * torch.randn_like(pose)
                pose = pose * free
        return pose.clamp(-1, 1)

    return run


def training(worlds):
    """A step on one fixed batch: forward, backward, clipping, Adam."""
    model = Denoiser()
    graph, geometry, pose = batch(worlds, 1)
    noise = torch.randn_like(pose)
    steps = torch.arange(len(worlds)).float() * 3
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)

    def run():
        optimiser.zero_grad(set_to_none=True)
        time_rows = model.time(steps)[graph["edge_graph"]]
        loss = nn.functional.mse_loss(model(graph, model.geom_encoder(geometry), pose, time_rows), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return run


def measure(run, seconds):
    """At least 3 runs, about `seconds`."""
    wall, cpu, start = [], time.process_time(), time.perf_counter()
    while not (len(wall) >= 3 and time.perf_counter() - start >= seconds):
        if wall and time.perf_counter() - start >= 4 * seconds:
            break
        at = time.perf_counter()
        run()
        wall.append((time.perf_counter() - at) * 1e3)
    return {
        "runs": len(wall), "wall_min_ms": round(min(wall), 4), "wall_median_ms": round(statistics.median(wall), 4),
        "cpu_median_ms": round((time.process_time() - cpu) / len(wall) * 1e3, 4),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def main():
    """Serve until the input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("worlds")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with open(args.worlds, encoding="utf-8") as file:
        data = json.load(file)
    current = (None, None)
    for line in sys.stdin:
        name, seconds = line.split()
        try:
            if current[0] != name:
                kind, _, objects = name.partition(":")
                if kind == "train":
                    run = training(data["training"])
                elif kind in ("sample", "reverse"):
                    run = sampling(data["problems"][objects], INNER if kind == "sample" else 0)
                else:
                    raise ValueError(f"no case {name}")
                run()
                current = (name, run)
            reply = {"case": name, **measure(current[1], float(seconds))}
            if name != "train":
                reply["layouts_per_second"] = 8 * CHAINS / reply["wall_median_ms"] * 1e3
        except (ValueError, KeyError) as problem:
            reply = {"case": name, "error": str(problem)}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
