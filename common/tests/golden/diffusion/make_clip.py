"""Features, logits, hidden states and gradients of tiny transformers CLIP models."""

from __future__ import annotations

import copy
import pathlib
import sys

import torch
import torch.nn.functional as F
import transformers
from transformers import CLIPTextModel

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import tiny_models
from golden_common import arguments, generator, gradients, max_abs, relative_to_max, save_json, save_tensors, setup


def clean_config(config) -> dict:
    """Configuration as written by the package, without private entries."""
    return {k: v for k, v in config.to_dict().items() if not k.startswith("_")}


def evaluate(model, pixels, ids):
    """Outputs of CLIPModel and the gradients of the mean image-text cosine of matching rows."""
    model = copy.deepcopy(model)
    pixels = pixels.clone().requires_grad_(True)
    out = model(input_ids=ids, pixel_values=pixels)
    text = model.get_text_features(ids).pooler_output
    image = model.get_image_features(pixels).pooler_output
    cosine = F.cosine_similarity(image, text, dim=-1)
    cosine.mean().backward()
    values = {
        "text_features": text, "image_features": image, "text_embeds": out.text_embeds, "image_embeds": out.image_embeds,
        "logits_per_image": out.logits_per_image, "logits_per_text": out.logits_per_text, "cosine": cosine,
        "vision_last_hidden_state": out.vision_model_output.last_hidden_state,
        "vision_pooler_output": out.vision_model_output.pooler_output,
    }
    return {k: v.detach() for k, v in values.items()}, gradients(model) , pixels.grad


def main() -> None:
    """Write the folder ``clip_tiny``."""
    args = arguments(__doc__, "clip_tiny")
    setup()
    gen = generator(args.seed, 4)
    model = tiny_models.clip(args.seed)
    pixels = torch.randn((2, 3, 32, 32), generator=gen)
    ids = tiny_models.token_ids()
    values, grads, pixel_grad = evaluate(model, pixels, ids)
    values64, grads64, pixel64 = evaluate(copy.deepcopy(model).double(), pixels.double(), ids)

    text_model = CLIPTextModel(model.config.text_config).eval()
    prefix = "text_model."
    text_model.load_state_dict({k[len(prefix):]: v for k, v in model.state_dict().items() if k.startswith(prefix)})
    with torch.no_grad():
        hidden = text_model(ids, output_hidden_states=True)
        norm = text_model.final_layer_norm(hidden.hidden_states[-2])
    values |= {
        "text_model/last_hidden_state": hidden.last_hidden_state, "text_model/pooler_output": hidden.pooler_output,
        "text_model/penultimate": hidden.hidden_states[-2], "text_model/penultimate_final_norm": norm,
    }
    save_tensors(args.folder / "model.safetensors", model.state_dict())
    save_json(args.folder / "config.json", clean_config(model.config))
    save_tensors(args.folder / "io.safetensors", {"input_ids": ids, "pixel_values": pixels, **values, "grad/pixel_values": pixel_grad})
    save_tensors(args.folder / "grads.safetensors", grads)

    projected = tiny_models.clip_text_projected(args.seed)
    ids_zero = tiny_models.token_ids(pad=0)
    with torch.no_grad():
        out = projected(ids_zero, output_hidden_states=True)
    save_tensors(args.folder / "text_with_projection.safetensors", projected.state_dict())
    save_json(args.folder / "text_with_projection_config.json", clean_config(projected.config))
    save_tensors(args.folder / "text_with_projection_io.safetensors", {
        "input_ids": ids_zero, "text_embeds": out.text_embeds, "last_hidden_state": out.last_hidden_state,
        "penultimate": out.hidden_states[-2],
    })
    save_json(args.folder / "check.json", {
        "forward_max_abs_f32_vs_f64": max(max_abs(values[k], values64[k]) for k in values64),
        "gradient_relative_to_max_f32_vs_f64": relative_to_max(grads | {"p": pixel_grad}, grads64 | {"p": pixel64}),
        "cosine": values["cosine"].tolist(), "parameters_without_gradient": sorted(set(dict(model.named_parameters())) - set(grads)),
        "transformers": transformers.__version__, "torch": torch.__version__.split("+")[0],
    })


if __name__ == "__main__":
    main()
