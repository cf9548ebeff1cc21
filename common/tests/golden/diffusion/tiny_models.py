"""Configurations of the tiny reference models, used by several generators."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

from golden_common import generator, randomise

TEXT_WIDTH = 32
PROJECTION = 24
EOS = 63

SD15_BLOCKS = dict(
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)


def unet_sd(seed: int, channels: tuple[int, int] = (16, 32), salt: int = 11) -> UNet2DConditionModel:
    """SD 1.5 layout with two levels; ``attention_head_dim`` is the number of heads, as in SD 1.5."""
    model = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=channels, layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH, attention_head_dim=8, norm_num_groups=8, **SD15_BLOCKS,
    )
    randomise(model, generator(seed, salt))
    return model.eval()


def unet_small(seed: int) -> UNet2DConditionModel:
    """SD 1.5 layout with channels (16, 24): the UNet of ``refl_step`` and of the blended pipeline."""
    return unet_sd(seed, channels=(16, 24), salt=14)


def unet_inpaint(seed: int) -> UNet2DConditionModel:
    """Nine input channels (latent 4, mask 1, masked latent 4)."""
    model = UNet2DConditionModel(
        sample_size=16, in_channels=9, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH, attention_head_dim=4, norm_num_groups=4, **SD15_BLOCKS,
    )
    randomise(model, generator(seed, 12))
    return model.eval()


def unet_sdxl(seed: int) -> UNet2DConditionModel:
    """SDXL layout: attention on the lower level only, linear projections, text_time embedding."""
    model = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH, attention_head_dim=(2, 4), norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=PROJECTION + 6 * 8,
    )
    randomise(model, generator(seed, 13))
    return model.eval()


def vae(seed: int) -> AutoencoderKL:
    """AutoencoderKL with two levels (factor 2) and SD's scaling factor 0.18215."""
    model = AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(16, 32), latent_channels=4, norm_num_groups=8,
        sample_size=32, layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    randomise(model, generator(seed, 21))
    return model.eval()


def clip(seed: int) -> CLIPModel:
    """CLIPModel with quick_gelu, text length 16 and 17 vision tokens."""
    text = dict(
        vocab_size=64, hidden_size=TEXT_WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, bos_token_id=62, eos_token_id=EOS, pad_token_id=EOS, projection_dim=PROJECTION,
        hidden_act="quick_gelu",
    )
    vision = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32,
        patch_size=8, projection_dim=PROJECTION, hidden_act="quick_gelu",
    )
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION))
    randomise(model, generator(seed, 31))
    return model.eval()


def clip_text_projected(seed: int) -> CLIPTextModelWithProjection:
    """SDXL's second text encoder in small: gelu and a projection."""
    model = CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=64, hidden_size=TEXT_WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, bos_token_id=62, eos_token_id=EOS, pad_token_id=0, projection_dim=PROJECTION,
        hidden_act="gelu",
    ))
    randomise(model, generator(seed, 32))
    return model.eval()


def token_ids(pad: int = EOS) -> torch.Tensor:
    """Two token rows of length 16: begin, words, end, padding."""
    rows = [[62, 5, 17, 33, 8, EOS], [62, 40, 2, 51, 29, 11, 7, 60, 3, EOS]]
    return torch.tensor([row + [pad] * (16 - len(row)) for row in rows])
