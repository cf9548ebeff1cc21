"""Cosines of all-MiniLM-L6-v2 by an own forward pass in float64.

`python make_golden.py FOLDER` reads tokenizer.json and model.safetensors (the asset all-minilm-l6-v2) and writes
cosines.json beside itself. Made with Python 3.11, numpy 2.4 and tokenizers 0.23; no torch.
"""

import json
import struct
import sys
from math import erf, sqrt
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

FOLDER = Path(sys.argv[1])
TEXTS = ["dress", "floral dress", "drill", "cordless drill", "", "Soft & warm; fits true to size!",
         "I love this sweater, but the sleeves are too long for me. " * 40]
HEADS, LAYERS, TOKENS = 12, 6, 256

raw = (FOLDER / "model.safetensors").read_bytes()
size = struct.unpack("<Q", raw[:8])[0]
weights = {}
for name, info in json.loads(raw[8:8 + size]).items():
    if name != "__metadata__" and info["dtype"] == "F32":
        start, end = (8 + size + offset for offset in info["data_offsets"])
        weights[name] = np.frombuffer(raw[start:end], np.float32).reshape(info["shape"]).astype(np.float64)
tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
tokenizer.no_padding()
tokenizer.enable_truncation(TOKENS)
gelu = np.vectorize(lambda x: 0.5 * x * (1 + erf(x / sqrt(2))))


def linear(x, name):
    return x @ weights[name + ".weight"].T + weights[name + ".bias"]


def norm(x, name):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * weights[name + ".weight"] + weights[name + ".bias"]


def encode(text):
    ids = tokenizer.encode(text).ids
    x = (weights["embeddings.word_embeddings.weight"][ids]
         + weights["embeddings.position_embeddings.weight"][:len(ids)]
         + weights["embeddings.token_type_embeddings.weight"][0])
    x = norm(x, "embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        q, k, v = (linear(x, f"{at}attention.self.{part}").reshape(len(ids), HEADS, -1).transpose(1, 0, 2)
                   for part in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(len(ids), -1)
        x = norm(x + linear(mixed, at + "attention.output.dense"), at + "attention.output.LayerNorm")
        inner = gelu(linear(x, at + "intermediate.dense"))
        x = norm(x + linear(inner, at + "output.dense"), at + "output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


vectors = np.stack([encode(text) for text in TEXTS])
golden = {"texts": TEXTS, "cosines": (vectors @ vectors.T).tolist()}
(Path(__file__).parent / "cosines.json").write_text(json.dumps(golden, indent=1) + "\n")
