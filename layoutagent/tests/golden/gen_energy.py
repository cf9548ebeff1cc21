"""Eq. 5 by PyTorch: energy of the networks of ``gen_ccsp.py``, the noise as its gradient, and the
gradients of the training loss by a backward pass through that gradient, all in f64.

    PYTHONPATH=../../../common/tests/golden python gen_energy.py

Reads ``ccsp/model.safetensors`` and ``ccsp/ccsp.safetensors``; writes ``ccsp/energy.safetensors``.
"""

from __future__ import annotations

import pathlib

import torch
from safetensors.torch import load_file, save_file

from gen_ccsp import RelationDenoiser

FOLDER = pathlib.Path(__file__).parent / "ccsp"
TIME = 300


def outputs(model, geometry, pose, edges):
    """What the network of every edge says of its two nodes: rows [2 edges, 2], and those nodes."""
    geo, pos = model.geom_encoder(geometry), model.pose_encoder(pose)
    time = model.time_mlp[0](torch.tensor([TIME]), pose.dtype)
    time = model.time_mlp[3](model.time_mlp[2](model.time_mlp[1](time)))[0]
    width = geo.shape[1]
    rows, nodes = [], []
    for k, i, j in edges.tolist():
        both = model.mlps[k](torch.cat([geo[i], geo[j], pos[i], pos[j], time]))
        rows += [model.pose_decoder(both[:width]), model.pose_decoder(both[width:])]
        nodes += [i, j]
    return torch.stack(rows), torch.tensor(nodes)


def main() -> None:
    """Write the file."""
    model = RelationDenoiser()
    model.load_state_dict(load_file(FOLDER / "model.safetensors"))
    model.double()
    golden = load_file(FOLDER / "ccsp.safetensors")
    free = (golden["graph4/masked"] == 0).double()[:, None]
    pose = golden["train/noisy"].double().requires_grad_()
    rows, nodes = outputs(model, golden["graph4/geometry"].double(), pose, golden["graph4/edges"])
    energy = ((rows - pose[nodes]) ** 2).sum()
    (slope,) = torch.autograd.grad(energy, pose, create_graph=True)
    noise = slope * free
    loss = ((noise - golden["train/noise"].double()) ** 2).mean()
    loss.backward()
    tensors = {"energy": energy.detach()[None], "noise": noise.detach(), "loss": loss.detach()[None]}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and (not name.startswith("mlps.") or name.startswith("mlps.6.")):
            tensors[f"grad/{name}"] = parameter.grad
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, FOLDER / "energy.safetensors")


if __name__ == "__main__":
    main()
