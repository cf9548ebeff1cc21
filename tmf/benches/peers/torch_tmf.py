"""PyTorch peer of examples/fusion_bench.rs, case `train`: 5 training steps of the same model.

Run with torch 2.15: python torch_tmf.py --threads 2
Reads lines `CASE SECONDS` and answers each with one line of JSON; eager mode, f32, the attention is
PyTorch's fused one. Batches are drawn beforehand, which the Rust side does inside its time.
"""

import argparse
import json
import resource
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

ITEMS, HIDDEN, INNER, LAYERS, HEADS, WIDTH, FUSION_HEADS = 1682, 64, 128, 2, 2, 64, 2
TEXT, GRAPH, BEHAVIOURS, EVENTS, BATCH, VOCABULARY, STEPS = 384, 64, 3, 50, 64, 1800, 5
DROPOUT, FUSION_DROPOUT, HIDDEN_TOKENS = 0.3, 0.2, 0.2


def mlp(inputs, inner, outputs):
    return nn.Sequential(nn.Linear(inputs, inner), nn.GELU(), nn.Linear(inner, outputs))


class Heads(nn.Module):
    def __init__(self, width, heads, bias=True):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=bias) for _ in range(4))

    def forward(self, x, y, causal, rope=None):
        def split(z):
            return z.view(*z.shape[:2], self.heads, -1).transpose(1, 2)

        q, k, v = split(self.q(x)), split(self.k(y)), split(self.v(y))
        if rope is not None:
            q, k = turn(q, rope), turn(k, rope)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.o(mixed.transpose(1, 2).reshape(x.shape))


def turn(x, rope):
    cos, sin = rope
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(HIDDEN, eps=1e-6), nn.RMSNorm(HIDDEN, eps=1e-6)
        self.attention = Heads(HIDDEN, HEADS, bias=False)
        self.gate, self.up = (nn.Linear(HIDDEN, INNER, bias=False) for _ in range(2))
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x, rope):
        y = self.norm1(x)
        x = x + F.dropout(self.attention(y, y, True, rope), DROPOUT)
        y = self.norm2(x)
        return x + F.dropout(self.down(F.silu(self.gate(y)) * self.up(y)), DROPOUT)


class Tmf(nn.Module):
    def __init__(self):
        super().__init__()
        self.text, self.graph = torch.randn(ITEMS, TEXT), torch.randn(ITEMS, GRAPH)
        self.adapters = nn.ModuleList([mlp(TEXT, WIDTH, WIDTH), mlp(GRAPH, WIDTH, WIDTH)])
        self.cma, self.amsa = Heads(WIDTH, FUSION_HEADS), Heads(WIDTH, FUSION_HEADS)
        self.kinds = nn.Parameter(torch.randn(2, WIDTH) * 0.02)
        self.positions = nn.Embedding(EVENTS, WIDTH)
        self.behaviours = nn.Embedding(BEHAVIOURS, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.feed_forward = mlp(WIDTH, 2 * WIDTH, WIDTH)
        self.output = mlp(2 * WIDTH, 2 * WIDTH, HIDDEN)
        self.candidate_output = mlp(2 * WIDTH, 2 * WIDTH, HIDDEN)
        self.items = nn.Embedding(ITEMS, HIDDEN)
        self.tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.norm = nn.RMSNorm(HIDDEN, eps=1e-6)
        for table in [self.positions, self.behaviours, self.items, self.tokens]:
            nn.init.normal_(table.weight, std=0.0875)

    def loss(self, ids, behaviours, targets, rope):
        batch, events = ids.shape
        flat = ids.flatten()
        own = self.items.weight * (torch.rand(ITEMS, 1) >= HIDDEN_TOKENS)
        # every item is adapted once, however often it is named
        text = F.dropout(self.adapters[0](self.text), FUSION_DROPOUT)
        graph = F.dropout(self.adapters[1](self.graph), FUSION_DROPOUT)
        crossed = self.cma(graph[:, None], text[:, None], False)[:, 0]
        base = self.behaviours(behaviours.flatten())
        base = base + self.positions(torch.arange(events).repeat(batch))
        both = [base + text[flat] + self.kinds[0], base + graph[flat] + self.kinds[1]]
        x = torch.stack(both, 1).view(batch, 2 * events, WIDTH)
        x = self.norm1(x + F.dropout(self.amsa(x, x, True), FUSION_DROPOUT))
        x = self.norm2(x + F.dropout(self.feed_forward(x), FUSION_DROPOUT))
        x = x.view(-1, 2, WIDTH).mean(1)
        fused = self.output(torch.cat([crossed[flat], x], 1)) + own[flat]
        fused = fused.view(batch, events, HIDDEN)
        # intro of two tokens, then a behaviour token and an item token per event
        intro = self.tokens(torch.zeros(batch, 2, dtype=torch.long))
        pairs = torch.stack([self.tokens(behaviours), fused], 2).view(batch, 2 * events, HIDDEN)
        x = F.dropout(torch.cat([intro, pairs], 1), DROPOUT)
        for block in self.blocks:
            x = block(x, rope)
        rows = self.norm(x)[:, 3::2].reshape(-1, HIDDEN)
        table = self.candidate_output(torch.cat([crossed, (text + graph) / 2], 1)) + own
        return F.cross_entropy(rows @ table.T, targets.flatten())


def train(threads):
    torch.manual_seed(1)
    model = Tmf()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    angles = torch.arange(2 + 2 * EVENTS)[:, None] / 10_000 ** (torch.arange(0, 32, 2) / 32)
    angles = torch.cat([angles, angles], 1)
    rope = (angles.cos(), angles.sin())
    ids = torch.randint(ITEMS, (BATCH, EVENTS + 1))
    behaviours = torch.randint(BEHAVIOURS, (BATCH, EVENTS))

    def run():
        for _ in range(STEPS):
            optimiser.zero_grad()
            model.loss(ids[:, :-1], behaviours, ids[:, 1:], rope).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()

    return run


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    case, run = None, None
    for line in sys.stdin:
        name, seconds = line.split()
        if name != "train":
            print(json.dumps({"case": name, "error": "no such case"}), flush=True)
            continue
        if case != name:
            case, run = name, train(threads)
            run()
        wall, cpu, start = [], [], time.perf_counter()
        while len(wall) < 3 or time.perf_counter() - start < float(seconds):
            before, clock = time.process_time(), time.perf_counter()
            run()
            wall.append((time.perf_counter() - clock) * 1e3)
            cpu.append((time.process_time() - before) * 1e3)
        print(json.dumps({
            "case": name, "runs": len(wall), "wall_min_ms": min(wall),
            "wall_median_ms": statistics.median(wall), "cpu_median_ms": statistics.median(cpu),
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }), flush=True)


main()
