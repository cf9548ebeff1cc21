"""A tiny GPT-2 with a byte-level tokenizer (`promptist/`), and the eight beams that transformers finds for two prompts."""

from __future__ import annotations

import json
import pathlib
import shutil
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "common/tests/golden"))
from golden_common import arguments, generator, randomise, setup

PROMPTS = ["an old man with wisdom", "peace, <b>now</b> caf\u00e9"]
TEXTS = ["an old man with wisdom and a book Rephrase: two white doves", "peace and freedom in watercolor, an olive branch"] * 4


def main() -> None:
    """Write the folder."""
    args = arguments(__doc__, "promptist")
    setup()
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(args.folder / "tokenizer.json"))
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=tokenizer.get_vocab_size(), n_positions=96, bos_token_id=0, eos_token_id=0,
                        pad_token_id=0, attn_implementation="eager")
    model = GPT2LMHeadModel(config).eval()
    randomise(model, generator(args.seed, 41), gain=2.0)
    model.save_pretrained(args.folder)
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt + " Rephrase:").ids])
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=8, num_return_sequences=8, max_new_tokens=75,
                                 length_penalty=-1.0, eos_token_id=0, pad_token_id=0, return_dict_in_generate=True, output_scores=True)
        texts = [tokenizer.decode(row[ids.shape[1]:].tolist(), skip_special_tokens=True).strip() for row in out.sequences]
        found.append({"prompt": prompt, "texts": texts, "scores": out.sequences_scores.tolist()})
    (args.folder / "expected.json").write_text(json.dumps(found, indent=1) + "\n")
    for name in ("generation_config.json",):
        (args.folder / name).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
