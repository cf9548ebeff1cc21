"""Golden values of the fusion (Eqs. 1 to 6) by PyTorch: forward and gradients.

Run with torch 2.15: python make_golden.py
The weights are drawn here under the crate's parameter names, so the crate loads them.
"""

import json
import pathlib
import struct

import torch
import torch.nn.functional as F

torch.manual_seed(7)
WIDTH, HEADS, HIDDEN, BEHAVIOURS, HISTORY = 8, 2, 12, 3, 4
WIDTHS = {"image": 6, "text": 5, "graph": 7}
ITEMS, BATCH, LENGTH = 9, 2, 4
NAMES = ["image", "text", "graph"]

w = {}


def tensor(name, *shape):
    w[name] = (torch.randn(*shape) * 0.4).requires_grad_()


def linear(name, inputs, outputs):
    tensor(f"{name}.weight", outputs, inputs)
    tensor(f"{name}.bias", outputs)


def mlp(name, inputs, inner, outputs):
    linear(f"{name}.up", inputs, inner)
    linear(f"{name}.down", inner, outputs)


def heads(name):
    for part in ["q_proj", "k_proj", "v_proj", "o_proj"]:
        linear(f"{name}.{part}", WIDTH, WIDTH)


def norm(name):
    tensor(f"{name}.weight", WIDTH)
    tensor(f"{name}.bias", WIDTH)


for name, inputs in WIDTHS.items():
    mlp(f"adapter.{name}", inputs, WIDTH, WIDTH)
heads("cma.item")
for side in ["text", "image"]:
    heads(f"cma.{side}")
    norm(f"cma.{side}.norm")
tensor("amsa.kinds", 3, WIDTH)
tensor("amsa.positions.weight", HISTORY, WIDTH)
heads("amsa.attention")
norm("amsa.norm1")
mlp("amsa.feed_forward", WIDTH, 2 * WIDTH, WIDTH)
norm("amsa.norm2")
tensor("behaviours.weight", BEHAVIOURS, WIDTH)
mlp("output", 2 * WIDTH, 2 * WIDTH, HIDDEN)
mlp("candidate_output", 2 * WIDTH, 2 * WIDTH, HIDDEN)

vectors = {name: torch.randn(ITEMS, inputs) for name, inputs in WIDTHS.items()}
present = {name: torch.ones(ITEMS) for name in NAMES}
present["image"][2] = present["text"][3] = present["graph"][4] = present["image"][5] = 0
items = torch.tensor([[0, 2, 4, 1], [3, 6, 5, 0]])
behaviours = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
real = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 0]])
candidates = torch.tensor([7, 2, 3, 8, 4])


def apply_linear(name, x):
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def apply_mlp(name, x):
    return apply_linear(f"{name}.down", F.gelu(apply_linear(f"{name}.up", x)))


def apply_norm(name, x):
    return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


def attention(name, q, kv, mask, causal):
    def split(part, x):
        return apply_linear(f"{name}.{part}", x).view(*x.shape[:2], HEADS, -1).transpose(1, 2)

    scores = split("q_proj", q) @ split("k_proj", kv).transpose(2, 3) / (WIDTH / HEADS) ** 0.5
    seen = mask[:, None, None, :].bool().expand_as(scores)
    if causal:
        seen = seen & torch.ones(scores.shape[2:]).tril().bool()
    # a query without keys gives zeros; -1e9 instead of -inf keeps its gradient finite
    weights = torch.softmax(scores.masked_fill(~seen, -1e9), -1) * seen.any(-1, keepdim=True)
    mixed = (weights @ split("v_proj", kv)).transpose(1, 2).reshape(q.shape)
    return apply_linear(f"{name}.o_proj", mixed)


def adapt(ids):
    return {n: apply_mlp(f"adapter.{n}", vectors[n][ids]) * present[n][ids][:, None] for n in NAMES}


def mean(m, ids):
    count = sum(present[n][ids] for n in NAMES).clamp(min=1)
    return sum(m[n] * present[n][ids][:, None] for n in NAMES) / count[:, None]


def cross_item(m, ids):
    query = m["graph"] + mean(m, ids) * (1 - present["graph"][ids])[:, None]
    keys = torch.stack([m["image"], m["text"]], 1)
    mask = torch.stack([present["image"][ids], present["text"][ids]], 1)
    return attention("cma.item", query[:, None], keys, mask, False)[:, 0]


def cross_sequence(m, ids):
    text, image = (m[n].view(BATCH, LENGTH, WIDTH) for n in ["text", "image"])
    seen = {n: present[n][ids].view(BATCH, LENGTH) * real for n in NAMES}
    a = apply_norm("cma.text.norm", text + attention("cma.text", text, image, seen["image"], True))
    b = apply_norm("cma.image.norm", image + attention("cma.image", image, text, seen["text"], True))
    return ((a + b) / 2).reshape(-1, WIDTH)


def all_modality(m, ids):
    base = F.embedding(behaviours.flatten(), w["behaviours.weight"])
    base = base + F.embedding(torch.arange(LENGTH).repeat(BATCH), w["amsa.positions.weight"])
    x = torch.stack([base + m[n] + w["amsa.kinds"][at] for at, n in enumerate(NAMES)], 1)
    x = x.view(BATCH, 3 * LENGTH, WIDTH)
    mask = torch.stack([present[n][ids] * real.flatten() for n in NAMES], 1).view(BATCH, -1)
    x = apply_norm("amsa.norm1", x + attention("amsa.attention", x, x, mask, True))
    x = apply_norm("amsa.norm2", x + apply_mlp("amsa.feed_forward", x)).view(-1, 3, WIDTH)
    return mean({n: x[:, at] for at, n in enumerate(NAMES)}, ids)


out = {}
ids = items.flatten()
for scope, cross in [("item", cross_item), ("sequence", cross_sequence)]:
    for value in w.values():
        value.grad = None
    m = adapt(ids)
    events = apply_mlp("output", torch.cat([cross(m, ids), all_modality(m, ids)], 1))
    m = adapt(candidates)
    listed = torch.cat([cross_item(m, candidates), mean(m, candidates)], 1)
    listed = apply_mlp("candidate_output", listed)
    loss = ((events * real.flatten()[:, None]) ** 2).mean() + (listed**2).mean()
    loss.backward()
    out[f"{scope}/events"] = (events * real.flatten()[:, None]).detach()
    out[f"{scope}/candidates"] = listed.detach()
    for name, value in w.items():
        if value.grad is not None:
            out[f"{scope}/grad/{name}"] = value.grad.clone()
for name in NAMES:
    out[f"vectors/{name}"] = vectors[name]
    out[f"present/{name}"] = present[name]
for name, value in w.items():
    out[f"weights/{name}"] = value.detach()
folder = pathlib.Path(__file__).parent / "fusion"
folder.mkdir(exist_ok=True)
header, data = {}, b""
for name, value in sorted(out.items()):
    part = struct.pack(f"<{value.numel()}f", *value.flatten().tolist())
    header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(part)]}
    data += part
text = json.dumps(header).encode()
(folder / "fusion.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
