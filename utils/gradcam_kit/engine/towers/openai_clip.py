"""The vision tower of OpenAI's `clip` package and of open_clip.

Tokens: the class token, then the patches; within the blocks (T, B, C), or (B, T, C) in an open_clip that says so.
Gradient checkpointing is open_clip's `transformer.grad_checkpointing`, which counts in evaluation, too.
"""

from __future__ import annotations

from torch import nn

from .attention import BlockAttention
from .family import TowerFamily, blocks_at, stride_of, submodule
from .torch_attention import torch_attention


class OpenAICLIP(TowerFamily):
    """The module that holds `conv1` and `transformer`, called `visual` in both packages."""

    name = "OpenAI clip and open_clip vision towers"
    signs = "conv1, class_embedding, and transformer.resblocks with ln_1 and attn"

    def recognises(self, module: nn.Module) -> bool:
        has_token = submodule(module, "class_embedding") is not None and self.patch_size(module) is not None
        return has_token and blocks_at(module, "transformer", "resblocks", having=("ln_1", "attn"))

    def patch_size(self, tower: nn.Module) -> tuple[int, int] | None:
        return stride_of(submodule(tower, "conv1"))

    def prefix(self, tower: nn.Module) -> int:
        return 1

    def batch_axis(self, tower: nn.Module, layer: str) -> int | None:
        if not layer.startswith("transformer"):
            return 0
        if not layer.startswith("transformer.resblocks"):
            return None  # what `transformer` returns is turned back within it in one package, after it in the other
        batch_first = submodule(tower, "transformer", "batch_first")
        if batch_first is None:
            batch_first = submodule(submodule(tower, "transformer", "resblocks")[0], "attn", "batch_first")
        return None if batch_first is None else int(not batch_first)

    def block_names(self, tower: nn.Module) -> list[str]:
        return [f"transformer.resblocks.{i}" for i in range(len(submodule(tower, "transformer", "resblocks")))]

    def first_norm(self, block: nn.Module) -> nn.Module:
        return block.get_submodule("ln_1")

    def attention(self, block: nn.Module) -> BlockAttention | None:
        return torch_attention(block)
