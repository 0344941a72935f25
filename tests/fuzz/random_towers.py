"""Small random networks of every kind that is explained, drawn from a seed, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

LOGITS = (1, 2, 5)
ACTIVATIONS: tuple[Any, ...] = (nn.GELU, lambda: nn.GELU(approximate="tanh"), nn.ReLU, nn.SiLU)


def activation(rng: np.random.Generator) -> nn.Module:
    module: nn.Module = ACTIVATIONS[rng.choice(len(ACTIVATIONS))]()
    return module


@dataclass(frozen=True, kw_only=True)
class RandomTower:
    """A detector, and what whoever built it knows of it. Names are relative to `model.backbone`."""

    kind: str
    model: Detector
    size: tuple[int, int]  # (H, W) of its images
    others: Sequence[str]  # modules that are no blocks, and can be explained
    default: str  # what no layer at all means
    blocks: Sequence[str] = ()
    norm: str = ""  # the first norm in a block
    grid: tuple[int, int] = (0, 0)  # rows and columns of patches, of a tower with blocks
    prefix: int = 0  # tokens before the patches


class Detector(nn.Module):
    """A tower, what is made of its tokens, and a head of so many logits, in any of the forms that heads have."""

    def __init__(self, backbone: nn.Module, width: int, pool: str, rng: np.random.Generator) -> None:
        super().__init__()
        logits = int(rng.choice(LOGITS))
        linear: nn.Module = nn.Linear(width, logits)
        hidden = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, logits))
        self.backbone, self.head, self.pool = backbone, hidden if rng.random() < 0.3 else linear, pool
        self.logits, self.form = logits, rng.choice(["tensor", "cls", "logits", "squeezed"])

    def forward(self, images: Tensor) -> Any:
        features: Any = self.backbone(images)
        if not isinstance(features, Tensor):
            tokens = features.last_hidden_state
            features = features.pooler_output if self.pool == "first" else pooled(tokens, self.pool, 1)
        logits = self.head(features)
        if self.form == "squeezed" and self.logits == 1:
            return logits[:, 0]
        return {self.form: logits} if self.form in ("cls", "logits") else logits


def pooled(tokens: Tensor, pool: str, prefix: int) -> Tensor:
    """(B, T, C) → (B, C)."""
    if pool == "first":
        return tokens[:, 0]
    return tokens[:, prefix if pool == "patches" else 0 :].mean(dim=1)


# ---------------------------------------------------------------------------------------------------------------- timm


class Attention(nn.Module):
    """timm's, by a fused kernel or step by step."""

    def __init__(self, width: int, heads: int, bias: bool, normed: bool, fused: bool) -> None:
        super().__init__()
        self.num_heads, self.fused = heads, fused
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width)
        self.q_norm = nn.LayerNorm(width // heads) if normed else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads) if normed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class Scale(nn.Module):
    """timm's LayerScale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """timm's."""

    def __init__(self, width: int, heads: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        bias, normed, fused, scaled = rng.random(4) < (0.7, 0.3, 0.5, 0.3)
        self.attn = Attention(width, heads, bool(bias), bool(normed), bool(fused))
        self.ls1, self.ls2 = (Scale(width) if scaled else nn.Identity() for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), activation(rng), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        mixed: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return mixed


class PatchEmbed(nn.Module):
    """timm's `PatchEmbed`, or with a stem its `HybridEmbed`."""

    def __init__(self, width: int, patch: int, stem: bool) -> None:
        super().__init__()
        if stem:  # halves the image before the patches are cut
            self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
            self.ratio, patch = patch, patch // 2
        self.proj = nn.Conv2d(8 if stem else 3, width, patch, patch)

    def feat_ratio(self) -> int:
        return self.ratio

    def forward(self, images: Tensor) -> Tensor:
        maps = self.backbone(images) if hasattr(self, "backbone") else images
        tokens: Tensor = self.proj(maps).flatten(2).transpose(1, 2)
        return tokens


class TimmLike(nn.Module):
    """timm's VisionTransformer with or without a class token and registers."""

    def __init__(self, width: int, heads: int, places: int, patch_embed: PatchEmbed, rng: np.random.Generator) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if rng.random() < 0.7 else None
        registers = int(rng.choice([0, 0, 1, 4]))
        self.reg_token = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        self.count = registers + int(self.cls_token is not None)
        if rng.random() < 0.7 or hasattr(patch_embed, "backbone"):  # else it has to be seen, which a stem smears
            self.num_prefix_tokens = self.count
        self.pos_embed = nn.Parameter(torch.zeros(1, places + self.count, width))
        self.blocks = nn.Sequential(*(Block(width, heads, rng) for _ in range(rng.integers(1, 5))))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pool = str(rng.choice(["first", "first", "patches", "all"])) if self.count else "all"

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)
        before = [part.expand(len(patches), -1, -1) for part in (self.cls_token, self.reg_token) if part is not None]
        tokens = self.norm(self.blocks(torch.cat([*before, patches], dim=1) + self.pos_embed))
        return pooled(tokens, self.pool, self.count)


def timm_like(rng: np.random.Generator, stem: bool = False) -> RandomTower:
    rows, columns = (int(side) for side in rng.integers(2, 6, 2))
    patch, heads = int(rng.choice([4, 8])), int(rng.choice([1, 2, 4]))
    width, beyond = (
        4 * heads * int(rng.integers(1, 4)),
        0 if stem or rng.random() < 0.7 else 3,
    )  # pixels that no patch has
    backbone = TimmLike(width, heads, rows * columns, PatchEmbed(width, patch, stem), rng)
    blocks = [f"blocks.{i}" for i in range(len(backbone.blocks))]
    return RandomTower(
        kind="hybrid" if stem else "timm",
        model=Detector(backbone, width, "", rng),
        size=(rows * patch + beyond, columns * patch + beyond),
        others=[f"{rng.choice(blocks)}.{part}" for part in ("norm2", "attn", "mlp", "ls1")],
        default=blocks[-1],
        blocks=blocks,
        norm="norm1",
        grid=(rows, columns),
        prefix=backbone.count,
    )


def hybrid(rng: np.random.Generator) -> RandomTower:
    return timm_like(rng, stem=True)


# ---------------------------------------------------------------------------------------------------------- transformers


def clip(rng: np.random.Generator) -> RandomTower:
    side, patch, heads, depth = (int(rng.choice(some)) for some in ((2, 3, 4), (4, 8), (1, 2, 4), (1, 2, 3, 4)))
    width = 4 * heads * int(rng.integers(1, 4))
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        patch_size=patch,
        image_size=side * patch,
        hidden_act=str(rng.choice(["quick_gelu", "gelu"])),
        attn_implementation="sdpa",  # "eager" rounds attention to float32
    )
    whole: Any = CLIPVisionModel(config)
    blocks = [f"encoder.layers.{i}" for i in range(depth)]
    return RandomTower(
        kind="clip",
        model=Detector(getattr(whole, "vision_model", whole), width, str(rng.choice(["first", "patches", "all"])), rng),
        size=(side * patch, side * patch),
        others=[f"{rng.choice(blocks)}.{part}" for part in ("layer_norm2", "mlp", "mlp.fc1", "self_attn.v_proj")],
        default=blocks[-1],
        blocks=blocks,
        norm="layer_norm1",
        grid=(side, side),
        prefix=1,
    )


# ------------------------------------------------------------------------------------------- PyTorch's own transformer


class Encoder(nn.Module):
    """Patches, or the maps of a convolutional stem, for an `nn.TransformerEncoder`."""

    def __init__(self, stem: nn.Module, width: int, heads: int, first: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.stem, self.first = stem, nn.Parameter(torch.zeros(1, first, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, 0.0, str(rng.choice(["gelu", "relu"])), batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, int(rng.integers(1, 4)), enable_nested_tensor=False)
        self.pool = str(rng.choice(["first", "patches"])) if first else "all"

    def forward(self, images: Tensor) -> Tensor:
        patches = self.stem(images).flatten(2).transpose(1, 2)
        tokens = self.encoder(torch.cat([self.first.expand(len(patches), -1, -1), patches], dim=1))
        return pooled(tokens, self.pool, self.first.shape[1])


def torch_encoder(rng: np.random.Generator) -> RandomTower:
    rows, columns = (int(side) for side in rng.integers(2, 6, 2))
    first, heads = int(rng.integers(0, 3)), int(rng.choice([1, 2, 4]))
    width = 4 * heads * int(rng.integers(1, 4))
    backbone = Encoder(nn.Conv2d(3, width, 4, 4), width, heads, first, rng)
    blocks = [f"encoder.layers.{i}" for i in range(len(backbone.encoder.layers))]
    return RandomTower(
        kind="torch",
        model=Detector(backbone, width, "", rng),
        size=(rows * 4, columns * 4),
        others=[f"{rng.choice(blocks)}.{part}" for part in ("norm2", "linear1", "linear2")],
        default=blocks[-1],
        blocks=blocks,
        norm="norm1",
        grid=(rows, columns),
        prefix=first,
    )


# ----------------------------------------------------------------------------------------------------------------- maps


class Residual(nn.Module):
    """A convolution with a norm, and around them a shortcut."""

    def __init__(self, before: int, width: int, rng: np.random.Generator) -> None:
        super().__init__()
        stride = int(rng.integers(1, 3))
        self.conv = nn.Conv2d(before, width, 3, stride, 1)
        self.norm = nn.BatchNorm2d(width) if rng.random() < 0.7 else nn.GroupNorm(2, width)
        self.short, self.act = nn.Conv2d(before, width, 1, stride), activation(rng)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.norm(self.conv(x)) + self.short(x))
        return out


def stages(rng: np.random.Generator) -> tuple[nn.Sequential, int]:
    widths = [3, *(2 * int(half) for half in rng.integers(4, 9, rng.integers(1, 4)))]
    return nn.Sequential(*(Residual(*pair, rng) for pair in itertools.pairwise(widths))), widths[-1]


def cnn(rng: np.random.Generator) -> RandomTower:
    convolutions, width = stages(rng)
    backbone = nn.Sequential(convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    height, columns = (16 + 4 * rng.integers(0, 4, 2)).tolist()
    last = f"0.{len(convolutions) - 1}"
    others = [f"0.{i}{part}" for i in range(len(convolutions)) for part in ("", ".conv", ".norm", ".act")]
    model = Detector(backbone, width, "", rng)
    return RandomTower(kind="cnn", model=model, size=(height, columns), others=others, default=last)


def maps_before_transformer(rng: np.random.Generator) -> RandomTower:
    """A hybrid whose maps are explained, since nothing tells what they are to the transformer."""
    convolutions, width = stages(rng)
    backbone = Encoder(convolutions, width, 2, int(rng.integers(0, 2)), rng)
    others = [f"stem.{i}{part}" for i in range(len(convolutions)) for part in ("", ".conv", ".norm")]
    last = f"stem.{len(convolutions) - 1}"
    return RandomTower(
        kind="maps", model=Detector(backbone, width, "", rng), size=(16, 24), others=others, default=last
    )


KINDS = (clip, timm_like, torch_encoder, hybrid, cnn, maps_before_transformer)


def random_tower(rng: np.random.Generator) -> RandomTower:
    """With weights, running means and tokens that are spread widely enough that every part of it counts."""
    tower = KINDS[rng.choice(len(KINDS), p=(0.25, 0.3, 0.15, 0.1, 0.15, 0.05))](rng)
    with torch.no_grad():
        for parameter in tower.model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for name, tensor in tower.model.named_buffers():
            if name.endswith("running_mean"):
                tensor.add_(torch.randn_like(tensor))
    tower.model.double().eval()
    return tower
