"""Tiny Stable Diffusion folders in diffusers' layout, SD (`sd_folder`) and SDXL (`sdxl_folder`), a CLIP (`clip_folder`),
and what diffusers' pipelines draw with them (`expected.safetensors` in each). Tokenizers are written as `vocab.json` and `merges.txt`,
as hub repositories have them."""

from __future__ import annotations

import json
import pathlib
import shutil
import sys

import torch
from diffusers import (AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, StableDiffusionPipeline,
                       StableDiffusionXLPipeline, UNet2DConditionModel)
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from golden_common import arguments, generator, randomise, save_tensors, setup

WORDS = ["dove", "olive", "branch", "two", "white", "an", "old", "man", "with", "wisdom", "a", "and"]
PROMPTS = ["Two white  doves and an olive branch", "an old man with wisdom's 7 caf\u00e9s, <b>"]
LENGTH = 24


def byte_symbols() -> list[str]:
    """The printable stand-ins of all bytes, as in GPT-2's byte-level BPE."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    table = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [table[b] for b in (*plain, *others)]


def write_tokenizer(folder: pathlib.Path, padding: str) -> CLIPTokenizer:
    """A byte-level BPE whose merges build a few words from left to right."""
    folder.mkdir(parents=True, exist_ok=True)
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        symbols = [*word[:-1], word[-1] + "</w>"]
        while len(symbols) > 1:
            pair = (symbols[0], symbols[1])
            if pair not in merges:
                merges.append(pair)
            symbols = ["".join(pair), *symbols[2:]]
    tokens = byte_symbols() + [s + "</w>" for s in byte_symbols()] + ["".join(pair) for pair in merges]
    tokens = list(dict.fromkeys(tokens)) + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": padding}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps(special | {"model_max_length": LENGTH, "tokenizer_class": "CLIPTokenizer"}))
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH, **special)


def text_config(vocabulary: int, act: str) -> CLIPTextConfig:
    """Width 16, two layers."""
    return CLIPTextConfig(vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                          max_position_embeddings=LENGTH, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1,
                          projection_dim=12, hidden_act=act)


def unet(**more) -> UNet2DConditionModel:
    """Two levels, channels (8, 16)."""
    return UNet2DConditionModel(sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
                                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **more)


def vae() -> AutoencoderKL:
    """Factor 2."""
    return AutoencoderKL(block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, sample_size=16, layers_per_block=1,
                         down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)


def scheduler(kind=DDIMScheduler, **more):
    """Stable Diffusion's schedule."""
    return kind(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading", **more)


def prepared(models, gen):
    """Random weights for each; weights are halved once more so that pictures stay near their range."""
    for model in models:
        randomise(model, gen, gain=0.7)
        model.eval()
    return models


def draw(pipe, folder: pathlib.Path, gen, kinds: dict) -> None:
    """Store token ids, condition, and latents and pictures by several samplers."""
    start = torch.randn((2, 4, 8, 8), generator=gen)
    out = {"start": start}
    for number in ("", "_2"):
        tokenizer = getattr(pipe, f"tokenizer{number}", None)
        if tokenizer is not None:
            ids = tokenizer(PROMPTS, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids
            out[f"ids{number}"] = ids
    encoded = pipe.encode_prompt(PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    out["text"] = encoded[0]
    if len(encoded) == 4:
        out["pooled"] = encoded[2]
    for name, kind in kinds.items():
        pipe.scheduler = kind
        for guidance in (1.0, 3.0):
            with torch.no_grad():
                latent = pipe(PROMPTS, num_inference_steps=4, guidance_scale=guidance, latents=start.clone(), output_type="latent").images
                out[f"{name}/{guidance}/latent"] = latent
                out[f"{name}/{guidance}/picture"] = pipe.vae.decode(latent / pipe.vae.config.scaling_factor).sample
    save_tensors(folder / "expected.safetensors", {k: v.detach() for k, v in out.items()})


def save(folder: pathlib.Path, index: dict, parts: dict) -> None:
    """Write the parts and `model_index.json`."""
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        for config in (folder / name).glob("*.json"):
            fields = json.loads(config.read_text())
            fields.pop("_name_or_path", None)
            config.write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n")
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def main() -> None:
    """Write the three folders."""
    args = arguments(__doc__, ".")
    setup()
    gen = generator(args.seed, 9)
    kinds = {"ddim": scheduler(clip_sample=False, set_alpha_to_one=False), "euler": scheduler(EulerDiscreteScheduler),
             "dpmpp_2m": scheduler(DPMSolverMultistepScheduler)}
    for name in ("sd_folder", "sdxl_folder", "clip_folder"):
        shutil.rmtree(args.out / name, ignore_errors=True)

    folder = args.out / "sd_folder"
    tokenizer = write_tokenizer(folder / "tokenizer", "<|endoftext|>")
    size = len(tokenizer)
    models = prepared([unet(cross_attention_dim=16, attention_head_dim=2), vae(), CLIPTextModel(text_config(size, "quick_gelu"))], gen)
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
             "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
             "scheduler": ["diffusers", "DDIMScheduler"], "safety_checker": [None, None]}
    save(folder, index, dict(zip(("unet", "vae", "text_encoder", "scheduler"), [*models, kinds["ddim"]])))
    pipe = StableDiffusionPipeline(unet=models[0], vae=models[1], text_encoder=models[2], tokenizer=tokenizer, scheduler=kinds["ddim"],
                                   safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    draw(pipe, folder, gen, kinds)

    folder = args.out / "sdxl_folder"
    tokenizers = [write_tokenizer(folder / "tokenizer", "<|endoftext|>"), write_tokenizer(folder / "tokenizer_2", "!")]
    models = prepared([
        unet(cross_attention_dim=32, attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2), use_linear_projection=True,
             addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=12 + 24),
        vae(), CLIPTextModel(text_config(size, "quick_gelu")), CLIPTextModelWithProjection(text_config(size, "gelu")),
    ], gen)
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True, "unet": ["diffusers", "UNet2DConditionModel"],
             "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
             "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer": ["transformers", "CLIPTokenizer"],
             "tokenizer_2": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "EulerDiscreteScheduler"]}
    save(folder, index, dict(zip(("unet", "vae", "text_encoder", "text_encoder_2", "scheduler"), [*models, kinds["euler"]])))
    pipe = StableDiffusionXLPipeline(unet=models[0], vae=models[1], text_encoder=models[2], text_encoder_2=models[3], tokenizer=tokenizers[0],
                                     tokenizer_2=tokenizers[1], scheduler=kinds["euler"], force_zeros_for_empty_prompt=True, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    draw(pipe, folder, gen, kinds)

    folder = args.out / "clip_folder"
    write_tokenizer(folder, "<|endoftext|>")
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8)
    clip = CLIPModel(CLIPConfig(text_config=text_config(size, "quick_gelu").to_dict(), vision_config=vision, projection_dim=12))
    prepared([clip], gen)
    clip.save_pretrained(folder)
    ids = tokenizer(PROMPTS, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        features = clip.get_text_features(ids)
    save_tensors(folder / "expected.safetensors", {"ids": ids, "text_features": getattr(features, "pooler_output", features)})


if __name__ == "__main__":
    main()
