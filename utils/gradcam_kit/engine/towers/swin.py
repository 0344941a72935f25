"""Swin transformers of Hugging Face, timm and torchvision.

Hugging Face's blocks pass (B, T, C), the others (B, h, w, C); no token precedes the patches. Each stage but the last
halves the grid. A block's attention stays within windows, so that there is none over the whole image to read. Gradient
checkpointing is timm's `grad_checkpointing` of each stage.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ...base.errors import InputError
from .family import Grid, TowerFamily, stride_of, submodule

NORMS = ("norm1", "layernorm_before")
PATCHES = (("embeddings", "patch_embeddings", "projection"), ("patch_embed", "proj"), ("features", "0", "0"))


class Swin(TowerFamily):
    """The module that holds the patch convolution and the stages."""

    name = "Swin transformers of Hugging Face, timm and torchvision"
    signs = "blocks with norm1 or layernorm_before and a window_size"
    blocks_give_tokens = False

    def recognises(self, module: nn.Module) -> bool:
        return self.patch_size(module) is not None and any(map(_is_block, module.modules()))

    def patch_size(self, tower: nn.Module) -> tuple[int, int] | None:
        return next((patch for patch in (stride_of(submodule(tower, *path)) for path in PATCHES) if patch), None)

    def grid(self, tower: nn.Module, height: int, width: int) -> Grid | None:
        stages: Any = submodule(tower, "encoder", "layers")
        if stages is None:
            return None
        patches = super().grid(tower, height, width)
        assert patches is not None
        return patches._replace(halvings=len(stages) - 1)

    def prefix(self, tower: nn.Module) -> int:
        return 0

    def block_names(self, tower: nn.Module) -> list[str]:
        return [name for name, module in tower.named_modules() if _is_block(module)]

    def first_norm(self, block: nn.Module) -> nn.Module:
        name = next(name for name in NORMS if submodule(block, name) is not None)
        if "V2" in type(block).__name__ or "V2" in type(submodule(block, "attn")).__name__:
            raise InputError(f"{type(block).__name__} has its norms after its attention: name site residual")
        return block.get_submodule(name)

    def attention(self, block: nn.Module) -> None:
        return None


def _is_block(module: nn.Module) -> bool:
    windows = submodule(module, "window_size") or submodule(module, "attn", "window_size")
    return bool(windows) and any(submodule(module, name) is not None for name in NORMS)
