"""The generator of `src/model/generator.rs` and the RQ-VAE of `src/tokenizer/rqvae.rs` in PyTorch.

Used by the golden of `tests/golden/training` (loss curves from the same weights) and by the peer
server `torch_crab.py`. Parameter names are those of the Rust side.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Pre-LN attention and MLP with tanh-GELU; dropout of what each adds."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        dim = width // self.heads
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(dim) + mask
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
        x = x + F.dropout(self.output(mixed), self.dropout, self.training)
        inner = F.gelu(self.up(self.mlp_norm(x)), approximate="tanh")
        return x + F.dropout(self.down(inner), self.dropout, self.training)


class Generator(nn.Module):
    """Decoder-only transformer over flattened semantic IDs with one tied table per level."""

    def __init__(
        self, sizes: list[int], width: int, layers: int, heads: int, inner: int, dropout: float, history: int
    ):
        super().__init__()
        self.sizes, self.dropout = sizes, dropout
        self.codes = nn.ParameterList(nn.Parameter(torch.randn(size, width) * 0.02) for size in sizes)
        self.start = nn.Parameter(torch.randn(1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1 + (history + 1) * len(sizes), width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, inner, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def named(self) -> dict[str, Tensor]:
        """Parameters under the names of the Rust side."""
        return {name.removeprefix("blocks."): tensor for name, tensor in self.named_parameters()}

    def forward(self, windows: Tensor) -> Tensor:
        """Loss of an item for windows of codes, [rows, items, levels]; every code is a target."""
        rows, items, levels = windows.shape
        offsets = torch.tensor([1] + self.sizes[:-1]).cumsum(0)
        ids = torch.cat([torch.zeros(rows, 1, dtype=torch.long), (windows + offsets).reshape(rows, -1)], 1)
        length = ids.shape[1]
        mask = torch.full((length, length), -math.inf).triu(1)
        x = F.embedding(ids, torch.cat([self.start, *self.codes])) + self.positions[:length]
        x = F.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)[:, :-1].reshape(rows, items, levels, -1)
        losses = [
            F.cross_entropy((x[:, :, level] @ table.T).flatten(0, 1), windows[:, :, level].flatten())
            for level, table in enumerate(self.codes)
        ]
        return sum(losses)


class RqVae(nn.Module):
    """Autoencoder whose latent is quantised level by level, straight-through."""

    def __init__(self, widths: list[int], codes: list[int], beta: float = 0.25):
        super().__init__()
        self.beta = beta
        self.encoder = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        up = widths[::-1]
        self.decoder = nn.ModuleList(nn.Linear(a, b) for a, b in zip(up, up[1:]))
        self.codes = nn.ParameterList(nn.Parameter(torch.randn(size, widths[-1]) * 0.05) for size in codes)

    @staticmethod
    def through(layers: nn.ModuleList, x: Tensor) -> Tensor:
        for layer in layers[:-1]:
            x = layer(x).relu()
        return layers[-1](x)

    def forward(self, items: Tensor) -> Tensor:
        latent = self.through(self.encoder, items)
        residual, chosen_sum, loss = latent, torch.zeros_like(latent), 0.0
        for codebook in self.codes:
            target = residual.detach()
            distances = codebook.detach().square().sum(1) - 2 * target @ codebook.detach().T
            chosen = codebook[distances.argmin(1)]
            loss = loss + F.mse_loss(chosen, target) + self.beta * F.mse_loss(residual, chosen.detach())
            residual = residual - chosen.detach()
            chosen_sum = chosen_sum + chosen.detach()
        through = latent + (chosen_sum - latent).detach()
        return F.mse_loss(self.through(self.decoder, through), items) + loss
