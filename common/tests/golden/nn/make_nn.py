"""Golden values of transformer encoders that no language model of the crate covers: BERT (post-norm, key mask) and T5
(relative bias, RMSNorm, gated GELU). Weights, inputs, outputs and gradients of a linear probe, one file per model.

    python make_nn.py [--out DIR] [--seed N]
"""

import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, T5Config, T5EncoderModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import fill_parameters, generator, parse_args, randint, save_tensors  # noqa: E402


def padded(vocabulary, lengths, gen):
    """Token ids padded on the right with 0, and their mask."""
    ids = randint(1, vocabulary, (len(lengths), max(lengths)), gen)
    mask = torch.tensor([[int(i < n) for i in range(max(lengths))] for n in lengths])
    return ids * mask, mask


def write(args, name, model, lengths):
    """Hidden states where the mask is 1 (0 elsewhere), and the gradients of sum(hidden · probe)."""
    fill_parameters(model, generator(args.seed, f"{name}/weights"), std=0.2).eval()
    gen = generator(args.seed, f"{name}/forward")
    ids, mask = padded(model.config.vocab_size, lengths, gen)
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
    probe = torch.randn(hidden.shape, generator=gen)
    (hidden * probe).sum().backward()
    values = {"input_ids": ids, "attention_mask": mask, "hidden": hidden, "probe": probe * mask[..., None]}
    for parameter, tensor in model.named_parameters():
        if tensor.grad is not None:
            values |= {f"model.{parameter}": tensor, f"grad.{parameter}": tensor.grad}
    save_tensors(args.out / f"{name}.safetensors", values)
    print(name, "norm of hidden states", hidden.norm().item())


def main():
    """Write bert.safetensors and t5.safetensors."""
    args = parse_args(__doc__)
    bert = BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                      max_position_embeddings=16, type_vocab_size=1, hidden_dropout_prob=0.0,
                      attention_probs_dropout_prob=0.0, attn_implementation="eager")
    write(args, "bert", BertModel(bert, add_pooling_layer=False), (11, 6, 1))
    t5 = T5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, relative_attention_num_buckets=8,
                  relative_attention_max_distance=16, dropout_rate=0.0, feed_forward_proj="gated-gelu",
                  attn_implementation="eager")
    write(args, "t5", T5EncoderModel(t5), (20, 13, 17))


if __name__ == "__main__":
    main()
