"""A tiny BERT with random weights: token ids in, unit-length mean-pooled vectors out.

Made with torch 2.15 and transformers 5.23 on one thread: `python make_golden.py` writes model.safetensors, config.json
and expected.safetensors beside itself. The model has 2 layers of width 32 with 4 heads; rows have 11, 6 and 1 tokens.
"""

import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

HERE = Path(__file__).resolve().parent


def generator(name):
    return torch.Generator().manual_seed(20261122 + zlib.crc32(name.encode()) % 1_000_003)


torch.set_num_threads(1)
config = BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                    max_position_embeddings=40, type_vocab_size=2, hidden_dropout_prob=0.0,
                    attention_probs_dropout_prob=0.0, attn_implementation="eager")
model = BertModel(config).eval()
weights = generator("bert_tiny/weights")
with torch.no_grad():
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=weights)
        if parameter.ndim > 1:
            parameter.copy_(0.2 * noise)
        else:
            parameter.copy_((1.0 if name.endswith("weight") else 0.0) + 0.1 * noise)
model.save_pretrained(HERE)

lengths = (11, 6, 1)
ids = torch.randint(1, 100, (3, 11), generator=generator("bert_tiny/forward"))
mask = torch.tensor([[int(i < n) for i in range(11)] for n in lengths])
ids = ids * mask
types = torch.zeros_like(ids)
types[0, 5:] = 1
with torch.no_grad():
    hidden = model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state
weight = mask[..., None].to(hidden.dtype)
mean = (hidden * weight).sum(1) / weight.sum(1)
expected = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "last_hidden_state": hidden,
            "mean_pooled": mean, "embedding": F.normalize(mean, p=2, dim=1)}
save_file({name: tensor.contiguous() for name, tensor in expected.items()}, HERE / "expected.safetensors")
