"""A tiny ImageReward (`image_reward/`): BLIP's vision and text towers from transformers under the checkpoint's names, rewards and d reward / d picture."""

from __future__ import annotations

import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "common/tests/golden"))
from golden_common import arguments, generator, randomise, setup

PROMPTS = ["two white doves", "An old man, <b>with</b> wisdom " * 12]
SIZES = {"image_size": 16, "patch_size": 8, "vision_width": 24, "vision_layers": 2, "vision_heads": 3, "hidden_size": 16, "num_hidden_layers": 2,
         "num_attention_heads": 2, "intermediate_size": 20, "max_position_embeddings": 40, "layer_norm_eps": 1e-12, "reward_widths": [12, 8, 6, 4, 1]}
LENGTH, MEAN, SD = 35, 0.16717, 1.03334


def vision_name(name: str) -> str:
    """The checkpoint's name of a tensor of transformers' vision model."""
    for old, new in [("embeddings.class_embedding", "cls_token"), ("embeddings.position_embedding", "pos_embed"),
                     ("embeddings.patch_embedding", "patch_embed.proj"), ("encoder.layers", "blocks"), ("self_attn.qkv", "attn.qkv"),
                     ("self_attn.projection", "attn.proj"), ("layer_norm", "norm"), ("post_layernorm", "norm")]:
        name = name.replace(old, new)
    return "blip.visual_encoder." + name


def main() -> None:
    """Write the folder."""
    args = arguments(__doc__, "image_reward")
    setup()
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir()
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.train_from_iterator(PROMPTS * 4, trainer)
    tokenizer.save(str(args.folder / "tokenizer.json"))
    sizes = SIZES | {"vocab_size": tokenizer.get_vocab_size() + 2}
    (args.folder / "config.json").write_text(json.dumps(sizes, indent=1) + "\n")
    vision = BlipVisionModel(BlipVisionConfig(
        hidden_size=24, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3, image_size=16, patch_size=8, layer_norm_eps=1e-6,
        hidden_act="gelu", attn_implementation="eager")).eval()
    text = BlipTextModel(BlipTextConfig(
        vocab_size=sizes["vocab_size"], hidden_size=16, encoder_hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=40, layer_norm_eps=1e-12, hidden_act="gelu", is_decoder=True, attn_implementation="eager"),
        add_pooling_layer=False).eval()
    widths = [16, *SIZES["reward_widths"]]
    head = torch.nn.ModuleDict({str(at): torch.nn.Linear(a, b) for at, a, b in zip([0, 2, 4, 6, 7], widths, widths[1:])})
    for stream, model in enumerate([vision, text, head]):
        randomise(model, generator(args.seed, 51 + stream), gain=2.0)
    tensors = {vision_name(name): t for name, t in vision.state_dict().items()}
    tensors |= {"blip.text_encoder." + name: t for name, t in text.state_dict().items() if "position_ids" not in name}
    tensors |= {"mlp.layers." + name: t for name, t in head.state_dict().items()}
    save_file({name: t.detach().contiguous() for name, t in tensors.items()}, args.folder / "model.safetensors")

    rows = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids[:LENGTH - 2]
        rows.append([tokenizer.token_to_id("[CLS]"), *ids, tokenizer.token_to_id("[SEP]")])
    mask = torch.tensor([[1] * len(row) + [0] * (LENGTH - len(row)) for row in rows])
    ids = torch.tensor([row + [tokenizer.token_to_id("[PAD]")] * (LENGTH - len(row)) for row in rows])
    pictures = torch.rand(2, 3, 24, 20, generator=generator(args.seed, 61)).requires_grad_()
    x = torch.nn.functional.interpolate(pictures, size=(24 * 16 // 20, 16), mode="bicubic", align_corners=False)
    top = (x.shape[2] - 16) // 2
    x = x[:, :, top:top + 16]
    x = (x - torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)) / torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    seen = vision(pixel_values=x).last_hidden_state
    out = text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen, encoder_attention_mask=torch.ones(seen.shape[:2]),
               is_decoder=False).last_hidden_state[:, 0]
    for layer in head.values():
        out = layer(out)
    reward = (out[:, 0] - MEAN) / SD
    reward.sum().backward()
    save_file({"pictures": pictures.detach(), "ids": ids.float(), "reward": reward.detach(), "grad_pictures": pictures.grad},
              args.folder / "expected.safetensors")
    (args.folder / "prompts.json").write_text(json.dumps(PROMPTS) + "\n")


if __name__ == "__main__":
    main()
