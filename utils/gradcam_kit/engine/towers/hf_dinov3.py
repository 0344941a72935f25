"""Hugging Face's DINOv3 vision transformer.

Tokens (B, T, C): CLS, registers, then the patches, whose q and k are rotated by their position. Gradient checkpointing
is for training alone.
"""

from __future__ import annotations

from torch import nn

from .attention import AttentionModules
from .family import TowerFamily, blocks_at, stride_of, submodule

BLOCKS = (("model", "layer"), ("layer",))


class HuggingFaceDINOv3(TowerFamily):
    """The module that holds `embeddings`, `rope_embeddings` and the blocks."""

    name = "Hugging Face DINOv3"
    signs = "embeddings.patch_embeddings, rope_embeddings, and layer with norm1 and attention"

    def recognises(self, module: nn.Module) -> bool:
        rotates = submodule(module, "rope_embeddings") is not None
        return rotates and self.patch_size(module) is not None and self._path(module) is not None

    def _path(self, tower: nn.Module) -> tuple[str, ...] | None:
        return next((path for path in BLOCKS if blocks_at(tower, *path, having=("norm1", "attention.o_proj"))), None)

    def patch_size(self, tower: nn.Module) -> tuple[int, int] | None:
        return stride_of(submodule(tower, "embeddings", "patch_embeddings"))

    def prefix(self, tower: nn.Module) -> int:
        return 1 + int(submodule(tower, "embeddings", "register_tokens").shape[1])

    def block_names(self, tower: nn.Module) -> list[str]:
        path = self._path(tower)
        assert path is not None, "a tower that was recognised"
        return [".".join((*path, str(i))) for i in range(len(submodule(tower, *path)))]

    def first_norm(self, block: nn.Module) -> nn.Module:
        return block.get_submodule("norm1")

    def attention(self, block: nn.Module) -> AttentionModules:
        attention = submodule(block, "attention")
        q, k, v, out = (submodule(attention, f"{name}_proj") for name in ("q", "k", "v", "o"))
        return AttentionModules(int(attention.num_heads), q, k, v, out, rotary=attention)
