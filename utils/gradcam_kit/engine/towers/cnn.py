"""Convolutional networks, ConvNeXt among them: their activations are maps already.

(B, C, h, w), in parts of ConvNeXt (B, h, w, C). Gradient checkpointing is timm's `grad_checkpointing` of each stage.
"""

from __future__ import annotations

from torch import nn

from .family import TowerFamily


class CNN(TowerFamily):
    """Any module with a convolution whose windows overlap, unlike those that cut an image into patches."""

    name = "convolutional networks"
    signs = "an nn.Conv2d with a kernel larger than its stride"
    blocks_give_tokens = False

    def recognises(self, module: nn.Module) -> bool:
        return any(
            isinstance(inner, nn.Conv2d) and any(k > s for k, s in zip(inner.kernel_size, inner.stride, strict=True))
            for inner in module.modules()
        )

    def grid(self, tower: nn.Module, height: int, width: int) -> None:
        return None

    def block_names(self, tower: nn.Module) -> list[str]:
        return []

    def first_norm(self, block: nn.Module) -> nn.Module:
        raise NotImplementedError("a convolutional network has no blocks")

    def attention(self, block: nn.Module) -> None:
        return None
