"""EAP-IG and training speed of PyTorch eager at the sizes of examples/speed.rs; prints the same lines.

Usage: python speed_torch.py [threads]. Needs torch (2.15 was used). The decoder keeps one residual input per head and
port, as TransformerLens does with split inputs, but batches all heads of a port in one operation.
"""

import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

THREADS = int(sys.argv[1]) if len(sys.argv) > 1 else 1
torch.set_num_threads(THREADS)
V, D, L, H, T, N, STEPS = 2365, 64, 2, 4, 44, 64, 5
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
        return self.tokens(ids) + self.places(torch.arange(T))

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


def eap_ig(model, clean, corrupt):
    """Eq. 2, all writers against all readers (edges are a part of this matrix)."""
    with torch.no_grad():
        here, there = model.embed(clean), model.embed(corrupt)
        difference = torch.stack(model.split(there)[2], 1) - torch.stack(model.split(here)[2], 1)
    sums = None
    for k in range(STEPS):
        x = (there + k / STEPS * (here - there)).requires_grad_()
        metric, readers, _ = model.split(x)
        metric.sum().backward()
        grads = torch.cat([r.grad.reshape(len(clean), T, -1, D).transpose(1, 2) for r in readers], 1) / STEPS
        sums = grads if sums is None else sums + grads
    return torch.einsum("brtd,bwtd->brw", sums, difference)


def fastest(run):
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def main():
    model = Model()
    frozen = Model().requires_grad_(False)
    clean, corrupt = torch.randint(V, (N, T)), torch.randint(V, (N, T))
    edges = sum(3 * H * (1 + l * (H + 1)) + 1 + l * (H + 1) + H for l in range(L)) + 1 + L * (H + 1)
    seconds = fastest(lambda: eap_ig(frozen, clean, corrupt))
    print(f"EAP-IG, 5 steps, {edges} edges, {N} pairs: {edges * N / seconds:.0f} edges x pairs / s")
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    ids = torch.randint(V, (640, T))
    places = torch.arange(11) * 4 + 3
    targets = (torch.arange(11) % 2 == 0).long() + 2

    def epoch():
        for batch in ids.split(64):
            states = model.hidden(batch)[:, places].reshape(-1, D)
            loss = F.cross_entropy(states @ model.tokens.weight.T, targets.repeat(len(batch)))
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()

    print(f"training, 64 windows of {T} tokens: {10 / fastest(epoch):.1f} steps / s")


if __name__ == "__main__":
    main()
