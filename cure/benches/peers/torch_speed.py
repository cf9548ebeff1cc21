"""EAP-IG and training of PyTorch eager and TransformerLens at the sizes of examples/speed_bench.rs: the same protocol.

Usage: python torch_speed.py [--threads N], then lines `CASE SECONDS` on stdin. Needs torch (2.15 was used), and
transformer-lens (4.3.0) for the case `eap_lens`, its `attribution_patch` over all edges.

The decoder of `eap_ig` and `eap` keeps one residual input per head and port, as TransformerLens does with split
inputs, but batches all heads of a port in one operation.
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

V, D, L, H, T, PAIR_TOKENS, N, STEPS, TRAIN_STEPS = 2629, 64, 2, 4, 82, 22, 64, 5, 4
EDGES = sum(3 * H * (1 + l * (H + 1)) + 1 + l * (H + 1) + H for l in range(L)) + 1 + L * (H + 1)
torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.o = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, H, D // H).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, D)
        x = x + self.o(mixed)
        return x + self.down(F.gelu(self.up(self.n2(x)), approximate="tanh"))

    def split(self, x, readers, writers):
        """The same pass; keeps the inputs of all readers and the outputs of all heads and the MLP."""
        b, t, _ = x.shape
        seen = x[:, :, None, None].expand(b, t, 3, H, D).clone() if x.requires_grad else x[:, :, None, None].expand(b, t, 3, H, D)
        if seen.requires_grad:
            seen.retain_grad()
        readers.append(seen)
        weight, bias = self.qkv.weight.view(3, H, D // H, D), self.qkv.bias.view(3, H, D // H)
        q, k, v = (torch.einsum("btphd,phed->btphe", self.n1(seen), weight) + bias).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        heads = torch.einsum("bhte,dhe->bthd", mixed, self.o.weight.view(D, H, D // H))
        writers.extend(heads.unbind(2))
        x = x + heads.sum(2) + self.o.bias
        inner = x.clone()
        if inner.requires_grad:
            inner.retain_grad()
        readers.append(inner)
        out = self.down(F.gelu(self.up(self.n2(inner)), approximate="tanh"))
        writers.append(out)
        return x + out


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(V, D), nn.Embedding(T, D)
        self.blocks, self.norm = nn.ModuleList([Block() for _ in range(L)]), nn.LayerNorm(D)

    def embed(self, ids):
        return self.tokens(ids) + self.places(torch.arange(ids.shape[1]))

    def hidden(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def split(self, x):
        readers, writers = [], [x]
        for block in self.blocks:
            x = block.split(x, readers, writers)
        last = x.clone()
        if last.requires_grad:
            last.retain_grad()
        readers.append(last)
        return self.norm(last)[:, -1] @ (self.tokens.weight[3] - self.tokens.weight[2]), readers, writers


def eap_ig(model, clean, corrupt, steps):
    """Eq. 2, all writers against all readers (edges are a part of this matrix)."""
    with torch.no_grad():
        here, there = model.embed(clean), model.embed(corrupt)
        difference = torch.stack(model.split(there)[2], 1) - torch.stack(model.split(here)[2], 1)
    sums = None
    for k in range(steps):
        x = (there + k / steps * (here - there)).requires_grad_()
        metric, readers, _ = model.split(x)
        metric.sum().backward()
        grads = torch.cat([r.grad.reshape(*clean.shape, -1, D).transpose(1, 2) for r in readers], 1) / steps
        sums = grads if sums is None else sums + grads
    return torch.einsum("brtd,bwtd->brw", sums, difference)


def attribution(steps):
    model = Model().requires_grad_(False)
    clean, corrupt = torch.randint(V, (N, PAIR_TOKENS)), torch.randint(V, (N, PAIR_TOKENS))
    return lambda: eap_ig(model, clean, corrupt, steps)


def training():
    model = Model()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.3)
    ids = torch.randint(V, (64 * TRAIN_STEPS, T))
    places = torch.arange(41) * 2 + 1
    targets = (torch.arange(41) % 2 == 0).long() + 2

    def run():
        for batch in ids.split(64):
            states = model.hidden(batch)[:, places].reshape(-1, D)
            loss = F.cross_entropy(states @ model.tokens.weight.T, targets.repeat(len(batch)))
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()

    return run


def lens():
    """TransformerLens: a random GPT-2 of the same sizes, its edge attribution of one pair after the other."""
    import tempfile

    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    config = GPT2Config(vocab_size=V, n_embd=D, n_layer=L, n_head=H, n_positions=T)
    config._attn_implementation = "eager"
    model = GPT2LMHeadModel(config).eval()
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(V)}, unk_token="t0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="t0", eos_token="t0", pad_token="t0", unk_token="t0")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(folder, hf_model=model, tokenizer=None)
    clean, corrupt = torch.randint(V, (N, PAIR_TOKENS)), torch.randint(V, (N, PAIR_TOKENS))
    options = EdgeAttributionConfig(granularity="edge")

    def run():
        for x, y in zip(clean.split(1), corrupt.split(1)):
            attribution_patch(bridge, y, x, lambda logits: logits[0, -1, 3] - logits[0, -1, 2], options)

    return run


CASES = {
    "eap_ig": lambda: (attribution(STEPS), ("edges_x_pairs_per_second", EDGES * N)),
    "eap": lambda: (attribution(1), ("edges_x_pairs_per_second", EDGES * N)),
    "train": lambda: (training(), ("steps_per_second", TRAIN_STEPS)),
    "eap_lens": lambda: (lens(), ("edges_x_pairs_per_second", EDGES * N)),
}


def measure(run, seconds):
    wall, start, cpu = [], time.perf_counter(), time.process_time()
    while not wall or (time.perf_counter() - start < seconds or len(wall) < 3) and time.perf_counter() - start < 4 * seconds:
        before = time.perf_counter()
        run()
        wall.append((time.perf_counter() - before) * 1e3)
    return {
        "runs": len(wall),
        "wall_min_ms": min(wall),
        "wall_median_ms": statistics.median(wall),
        "cpu_median_ms": (time.process_time() - cpu) * 1e3 / len(wall),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    current, run, field = None, None, None
    for line in sys.stdin:
        name, seconds = line.split()
        if name not in CASES:
            print(json.dumps({"case": name, "error": f"unknown case {name}"}), flush=True)
            continue
        if current != name:
            run, field = CASES[name]()
            run()
            current = name
        reply = {"case": name} | measure(run, float(seconds))
        reply[field[0]] = field[1] / reply["wall_median_ms"] * 1e3
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
