"""Golden loss curves: 50 training steps of the generator and of the RQ-VAE from given weights.

    python make_training.py        # writes training/{generator,rqvae}.safetensors and training/losses.json

Reference: the models of benches/peers/torch_generator.py with torch.optim.AdamW (weight decay 0.01
on matrices only for the generator, 1e-4 on everything for the RQ-VAE) and clip_grad_norm_ 1.0 for
the generator. Made with torch 2.15.0, one thread.
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benches" / "peers"))
from torch_generator import Generator, RqVae  # noqa: E402

STEPS, RATES = 50, {"generator": 1e-2, "rqvae": 1e-3}
SIZES, ITEMS, ROWS = [7, 6, 9], 4, 12


def generator() -> list[float]:
    model = Generator(SIZES, width=16, layers=2, heads=2, inner=24, dropout=0.0, history=ITEMS - 1)
    windows = torch.stack([torch.randint(size, (STEPS, ROWS, ITEMS)) for size in SIZES], -1)
    windows[:, :, 1:, 0] = windows[:, :, :-1, 0]  # something to learn
    tensors = {name: tensor.detach().clone() for name, tensor in model.named().items()}
    tensors["windows"] = windows.to(torch.uint32)
    save_file(tensors, HERE / "training" / "generator.safetensors")
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=RATES["generator"])
    losses = []
    for step in range(STEPS):
        optimiser.zero_grad()
        loss = model(windows[step])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


def rqvae() -> list[float]:
    model = RqVae([12, 16, 6], [8, 8])
    items = torch.randn(STEPS, 16, 12)
    tensors = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    save_file({**tensors, "items": items}, HERE / "training" / "rqvae.safetensors")
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATES["rqvae"], weight_decay=1e-4)
    losses = []
    for step in range(STEPS):
        optimiser.zero_grad()
        loss = model(items[step])
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(20260405)
    (HERE / "training").mkdir(exist_ok=True)
    curves = {"rates": RATES, "generator": generator(), "rqvae": rqvae()}
    (HERE / "training" / "losses.json").write_text(json.dumps(curves) + "\n", encoding="utf-8")
