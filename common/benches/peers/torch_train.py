"""PyTorch benchmark server: training steps, forward passes and single operations on the CPU.

Reads lines `CASE SECONDS` from stdin and prints one JSON line per request (see bench_protocol.py).
All tensors are f32 and random; every training step is zero_grad, forward, backward, AdamW
(learning rate 1e-3, weight decay 0.01, all parameters) on one fixed batch.

gpt, gpt_forward
    Decoder: 4 pre-LN blocks, width 128, 4 heads of 32, MLP 128-512-128 with tanh-GELU, one fused
    128-384 projection for q, k, v, biases everywhere, causal mask, no dropout. Learned positions
    (64), vocabulary 2000, final LayerNorm, untied output layer with bias. Batch 64 x 64 tokens,
    mean cross-entropy over all 4096 positions.
gpt:T:D
    A training step of the same with context T, width D (D / 32 heads, MLP of 4 D), 4096 / T texts.
rqvae
    Encoder 768-512-256-128-32 and its mirror image, ReLU between layers, none after the last.
    4 codebooks of 256 x 32 on the residual, nearest code by squared distance, straight-through
    gradient. Loss: reconstruction MSE + per level (codebook MSE + 0.25 x commitment MSE).
    Batch 1024.
unet, unet_forward
    Input 32 x 3 x 32 x 32 and a time embedding 32 x 64. All convolutions 3x3, padding 1, bias.
    conv 3-32, block(32), conv 32-64 stride 2, block(64), conv 64-64 stride 2, block(64);
    nearest x2, concatenate the 64-channel skip, conv 128-64, block(64);
    nearest x2, concatenate the 32-channel skip, conv 96-32, block(32); conv 32-3.
    block(c): x + conv(SiLU(GN(conv(SiLU(GN(x))) + linear 64-c of the time))), GN with 8 groups;
    the time embedding first goes through linear 64-64 and SiLU. Loss: mean squared error.

Operations (`_bwd` = forward and backward with fresh gradients, of a sum weighted by a fixed
random tensor; conv3x3_bwd of the sum of squares)
    softmax_bwd        64 x 4 x 64 x 64, last axis
    layer_norm_bwd     4096 x 128, with weight and bias
    gelu, gelu_bwd     4096 x 512, tanh form
    cross_entropy_bwd  4096 x 2000, mean
    column_sum         4096 x 512, sum over axis 0
    adamw              one step over 16 matrices of 256 x 256
    matmul:M:K:N       (M x K) times (K x N)
    conv3x3:N:C:H:O    input N x C x H x H, O output channels, padding 1, stride 1, no bias
    conv3x3_bwd:N:C:H:O
"""

import argparse
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench_protocol import Case, serve

GPT_LAYERS, GPT_HEAD_WIDTH, GPT_VOCABULARY, GPT_TOKENS = 4, 32, 2000, 4096
RQVAE_WIDTHS, RQVAE_LEVELS, RQVAE_CODES, RQVAE_BATCH = (768, 512, 256, 128, 32), 4, 256, 1024
UNET_NARROW, UNET_WIDE, UNET_TIME, UNET_GROUPS, UNET_BATCH, UNET_SIDE = 32, 64, 64, 8, 32, 32


class GptBlock(nn.Module):
    """Pre-LN attention and MLP; attention as two matmuls or as torch's fused kernel."""

    def __init__(self, width: int, fused_attention: bool):
        super().__init__()
        self.fused_attention = fused_attention
        self.attention_norm = nn.LayerNorm(width)
        self.mlp_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def attend(self, hidden: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        heads = self.qkv(hidden).view(batch, length, 3, width // GPT_HEAD_WIDTH, GPT_HEAD_WIDTH)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        if self.fused_attention:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            scores = query @ key.transpose(-1, -2) / math.sqrt(GPT_HEAD_WIDTH) + mask
            mixed = scores.softmax(-1) @ value
        return self.projection(mixed.transpose(1, 2).reshape(batch, length, width))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        hidden = hidden + self.attend(self.attention_norm(hidden), mask)
        inner = F.gelu(self.up(self.mlp_norm(hidden)), approximate="tanh")
        return hidden + self.down(inner)


class Gpt(nn.Module):
    def __init__(self, context: int, width: int, fused_attention: bool):
        super().__init__()
        self.tokens = nn.Embedding(GPT_VOCABULARY, width)
        self.positions = nn.Parameter(torch.randn(context, width) * 0.02)
        self.blocks = nn.ModuleList(GptBlock(width, fused_attention) for _ in range(GPT_LAYERS))
        self.final_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, GPT_VOCABULARY)
        nn.init.normal_(self.tokens.weight, std=0.02)
        mask = torch.full((context, context), float("-inf")).triu(1)
        self.register_buffer("mask", mask)

    def forward(self, token_ids: Tensor) -> Tensor:
        hidden = self.tokens(token_ids) + self.positions
        for block in self.blocks:
            hidden = block(hidden, self.mask)
        return self.output(self.final_norm(hidden))


class RqVae(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = self.layers(RQVAE_WIDTHS)
        self.decoder = self.layers(RQVAE_WIDTHS[::-1])
        shape = (RQVAE_CODES, RQVAE_WIDTHS[-1])
        self.codebooks = nn.ParameterList(
            nn.Parameter(torch.randn(shape) * 0.05) for _ in range(RQVAE_LEVELS)
        )

    @staticmethod
    def layers(widths: tuple[int, ...]) -> nn.Sequential:
        modules = []
        for inputs, outputs in zip(widths, widths[1:]):
            modules += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*modules[:-1])

    def loss(self, batch: Tensor) -> Tensor:
        latent = self.encoder(batch)
        residual, quantised, level_losses = latent, torch.zeros_like(latent), 0.0
        for codebook in self.codebooks:
            target, codes = residual.detach(), codebook.detach()
            distance = codes.square().sum(1) - 2 * target @ codes.t()
            chosen = codebook[distance.argmin(1)]
            codebook_loss = (chosen - target).square().mean()
            commitment_loss = (residual - chosen.detach()).square().mean()
            level_losses = level_losses + codebook_loss + 0.25 * commitment_loss
            residual = residual - chosen.detach()
            quantised = quantised + chosen.detach()
        straight_through = latent + (quantised - latent).detach()
        return (self.decoder(straight_through) - batch).square().mean() + level_losses


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first_norm = nn.GroupNorm(UNET_GROUPS, channels)
        self.first_conv = conv3x3(channels, channels)
        self.second_norm = nn.GroupNorm(UNET_GROUPS, channels)
        self.second_conv = conv3x3(channels, channels)
        self.time = nn.Linear(UNET_TIME, channels)

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        hidden = self.first_conv(F.silu(self.first_norm(image)))
        hidden = hidden + self.time(time)[:, :, None, None]
        return image + self.second_conv(F.silu(self.second_norm(hidden)))


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        narrow, wide = UNET_NARROW, UNET_WIDE
        self.time = nn.Linear(UNET_TIME, UNET_TIME)
        self.input = conv3x3(3, narrow)
        self.down_block1, self.down1 = ResidualBlock(narrow), conv3x3(narrow, wide, stride=2)
        self.down_block2, self.down2 = ResidualBlock(wide), conv3x3(wide, wide, stride=2)
        self.middle = ResidualBlock(wide)
        self.up2, self.up_block2 = conv3x3(2 * wide, wide), ResidualBlock(wide)
        self.up1, self.up_block1 = conv3x3(wide + narrow, narrow), ResidualBlock(narrow)
        self.output = conv3x3(narrow, 3)

    @staticmethod
    def upsample_and_join(hidden: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([F.interpolate(hidden, scale_factor=2, mode="nearest"), skip], dim=1)

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        time = F.silu(self.time(time))
        skip1 = self.down_block1(self.input(image), time)
        skip2 = self.down_block2(self.down1(skip1), time)
        hidden = self.middle(self.down2(skip2), time)
        hidden = self.up_block2(self.up2(self.upsample_and_join(hidden, skip2)), time)
        hidden = self.up_block1(self.up1(self.upsample_and_join(hidden, skip1)), time)
        return self.output(hidden)


def training_step(model: nn.Module, loss: Callable[[], Tensor]) -> Case:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return Case(step)


def without_gradient(compute: Callable[[], Tensor]) -> Case:
    def run():
        with torch.no_grad():
            compute()

    return Case(run)


def with_gradient(loss: Callable[[], Tensor], *variables: Tensor) -> Case:
    def run():
        for variable in variables:
            variable.grad = None
        loss().backward()

    return Case(run)


def variable(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def gpt_case(train: bool, fused_attention: bool, context: int = 64, width: int = 128) -> Case:
    model = Gpt(context, width, fused_attention)
    token_ids = torch.randint(GPT_VOCABULARY, (GPT_TOKENS // context, context))
    targets = torch.randint(GPT_VOCABULARY, (GPT_TOKENS,))
    if not train:
        return without_gradient(lambda: model(token_ids))
    return training_step(
        model, lambda: F.cross_entropy(model(token_ids).view(-1, GPT_VOCABULARY), targets)
    )


def rqvae_case() -> Case:
    model, batch = RqVae(), torch.randn(RQVAE_BATCH, RQVAE_WIDTHS[0])
    return training_step(model, lambda: model.loss(batch))


def unet_case(train: bool) -> Case:
    model = Unet()
    image = torch.randn(UNET_BATCH, 3, UNET_SIDE, UNET_SIDE)
    time, target = torch.randn(UNET_BATCH, UNET_TIME), torch.randn_like(image)
    if not train:
        return without_gradient(lambda: model(image, time))
    return training_step(model, lambda: (model(image, time) - target).square().mean())


def softmax_bwd_case() -> Case:
    logits, weights = variable(64, 4, 64, 64), torch.randn(64, 4, 64, 64)
    return with_gradient(lambda: (logits.softmax(-1) * weights).sum(), logits)


def layer_norm_bwd_case() -> Case:
    rows, scale, shift = variable(4096, 128), variable(128), variable(128)
    weights = torch.randn(4096, 128)
    return with_gradient(
        lambda: (F.layer_norm(rows, (128,), scale, shift) * weights).sum(), rows, scale, shift
    )


def gelu_case(backward: bool) -> Case:
    if not backward:
        rows = torch.randn(4096, 512)
        return without_gradient(lambda: F.gelu(rows, approximate="tanh"))
    rows, weights = variable(4096, 512), torch.randn(4096, 512)
    return with_gradient(lambda: (F.gelu(rows, approximate="tanh") * weights).sum(), rows)


def cross_entropy_bwd_case() -> Case:
    logits, targets = variable(4096, 2000), torch.randint(2000, (4096,))
    return with_gradient(lambda: F.cross_entropy(logits, targets), logits)


def column_sum_case() -> Case:
    rows = torch.randn(4096, 512)
    return without_gradient(lambda: rows.sum(0))


def adamw_case() -> Case:
    matrices = [variable(256, 256) for _ in range(16)]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    return Case(torch.optim.AdamW(matrices, lr=1e-3, weight_decay=0.01).step)


def matmul_case(rows: int, inner: int, columns: int) -> Case:
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    return without_gradient(lambda: left @ right)


def conv3x3_case(backward: bool, batch: int, channels: int, side: int, outputs: int) -> Case:
    image_shape, kernel_shape = (batch, channels, side, side), (outputs, channels, 3, 3)
    if not backward:
        image, kernel = torch.randn(image_shape), torch.randn(kernel_shape)
        return without_gradient(lambda: F.conv2d(image, kernel, padding=1))
    image, kernel = variable(*image_shape), variable(*kernel_shape)
    return with_gradient(lambda: F.conv2d(image, kernel, padding=1).square().sum(), image, kernel)


def build_case(name: str, fused_attention: bool) -> Case:
    """Prepare a case such as `gpt` or `matmul:256:512:128`."""
    kind, *numbers = name.split(":")
    sizes = [int(number) for number in numbers]
    builders = {
        "gpt": (0, lambda: gpt_case(True, fused_attention)),
        "gpt_forward": (0, lambda: gpt_case(False, fused_attention)),
        "rqvae": (0, rqvae_case),
        "unet": (0, lambda: unet_case(True)),
        "unet_forward": (0, lambda: unet_case(False)),
        "softmax_bwd": (0, softmax_bwd_case),
        "layer_norm_bwd": (0, layer_norm_bwd_case),
        "gelu": (0, lambda: gelu_case(False)),
        "gelu_bwd": (0, lambda: gelu_case(True)),
        "cross_entropy_bwd": (0, cross_entropy_bwd_case),
        "column_sum": (0, column_sum_case),
        "adamw": (0, adamw_case),
        "matmul": (3, lambda: matmul_case(*sizes)),
        "conv3x3": (4, lambda: conv3x3_case(False, *sizes)),
        "conv3x3_bwd": (4, lambda: conv3x3_case(True, *sizes)),
    }
    if kind == "gpt" and len(sizes) == 2:
        return gpt_case(True, fused_attention, *sizes)
    if kind not in builders:
        raise ValueError(f"unknown case {kind}; known: {', '.join(builders)}")
    expected_sizes, builder = builders[kind]
    if len(sizes) != expected_sizes:
        raise ValueError(f"{kind} takes {expected_sizes} sizes, got {len(sizes)}")
    return builder()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--attention",
        choices=("matmul", "fused"),
        default="matmul",
        help="GPT attention: two matmuls and a softmax, or scaled_dot_product_attention",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    serve(lambda name: build_case(name, arguments.attention == "fused"))


if __name__ == "__main__":
    main()
