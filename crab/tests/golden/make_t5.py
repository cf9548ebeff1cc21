"""Golden of the encoder-decoder: log-probabilities of items under a T5 of transformers.

    python make_t5.py        # writes t5/t5.safetensors

Names are those of `src/model/generator/encoder_decoder.rs`; `windows` are semantic IDs `[rows, items,
levels]`, `log_probability` `[rows, items]` is that of each item after the ones before it in its row.
Made with transformers 5 and torch 2.15.0, one thread.
"""

import pathlib

import torch
from safetensors.torch import save_file
from transformers import T5Config, T5ForConditionalGeneration

HERE = pathlib.Path(__file__).resolve().parent
SIZES, WIDTH, ROWS, ITEMS = [7, 6, 9], 16, 3, 4
LEVELS = len(SIZES)
OFFSETS = [1 + sum(SIZES[:level]) for level in range(LEVELS)]


def model() -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=1 + sum(SIZES), d_model=WIDTH, d_kv=6, d_ff=24, num_layers=2, num_heads=2,
        feed_forward_proj="relu", dropout_rate=0.0, pad_token_id=0, decoder_start_token_id=0,
    )
    t5 = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, tensor in t5.named_parameters():
            noise = torch.randn_like(tensor)
            tensor.copy_(1 + 0.1 * noise if tensor.dim() == 1 else 0.4 * noise)
    return t5


def named(t5: T5ForConditionalGeneration) -> dict[str, torch.Tensor]:
    table = t5.shared.weight
    tensors = {"start": table[:1]}
    for level, (offset, size) in enumerate(zip(OFFSETS, SIZES)):
        tensors[f"codes.{level}"] = table[offset : offset + size]
    for side, stack in (("encoder", t5.encoder), ("decoder", t5.decoder)):
        first = stack.block[0].layer[0].SelfAttention
        tensors[f"{side}.bias.weight"] = first.relative_attention_bias.weight
        tensors[f"{side}.norm.weight"] = stack.final_layer_norm.weight
        for number, block in enumerate(stack.block):
            parts = {"own": (block.layer[0], block.layer[0].SelfAttention)}
            if side == "decoder":
                parts["cross"] = (block.layer[1], block.layer[1].EncDecAttention)
            for part, (layer, attention) in parts.items():
                prefix = f"{side}.{number}.{part}"
                tensors[f"{prefix}.norm.weight"] = layer.layer_norm.weight
                for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("output", "o")):
                    tensors[f"{prefix}.{ours}.weight"] = getattr(attention, theirs).weight
            last = block.layer[-1]
            tensors[f"{side}.{number}.mlp_norm.weight"] = last.layer_norm.weight
            tensors[f"{side}.{number}.up.weight"] = last.DenseReluDense.wi.weight
            tensors[f"{side}.{number}.down.weight"] = last.DenseReluDense.wo.weight
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def log_probability(t5: T5ForConditionalGeneration, history: list, target: list) -> float:
    tokens = [[offset + code for offset, code in zip(OFFSETS, item)] for item in [*history, target]]
    read = torch.tensor([[0, *sum(tokens[:-1], [])]])
    decoded = torch.tensor([[0, *tokens[-1][:-1]]])
    states = t5.encoder(input_ids=read).last_hidden_state
    hidden = t5.decoder(input_ids=decoded, encoder_hidden_states=states).last_hidden_state[0]
    total = 0.0
    for level, code in enumerate(target):
        table = t5.shared.weight[OFFSETS[level] : OFFSETS[level] + SIZES[level]]
        logits = hidden[level] * WIDTH**-0.5 @ table.T
        total += logits.log_softmax(-1)[code].item()
    return total


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(20260405)
    t5 = model()
    windows = torch.stack([torch.randint(size, (ROWS, ITEMS)) for size in SIZES], -1)
    with torch.no_grad():
        found = [
            [log_probability(t5, row[:at], row[at]) for at in range(ITEMS)] for row in windows.tolist()
        ]
    tensors = named(t5)
    tensors["windows"] = windows.to(torch.uint32)
    tensors["log_probability"] = torch.tensor(found)
    (HERE / "t5").mkdir(exist_ok=True)
    save_file(tensors, HERE / "t5" / "t5.safetensors")
