"""Hugging Face's ViT, DeiT, DINOv2 (with registers or without) and YOLOS, as transformers 4 and 5 build them.

Tokens (B, T, C): CLS, DeiT's distillation token or DINOv2's registers, the patches, YOLOS' detection tokens. Gradient
checkpointing is for training alone.
"""

from __future__ import annotations

from torch import nn

from .attention import AttentionModules
from .family import TowerFamily, blocks_at, stride_of, submodule

BLOCKS = (("encoder", "layer"), ("layers",), ("encoder", "layers"))
NORMS = ("layernorm_before", "norm1")


class HuggingFaceViT(TowerFamily):
    """The module that holds `embeddings` and the blocks."""

    name = "Hugging Face ViT, DeiT, DINOv2 and YOLOS"
    signs = "embeddings.patch_embeddings.projection, and encoder.layer or layers with layernorm_before or norm1"

    def recognises(self, module: nn.Module) -> bool:
        has_token = any(submodule(module, "embeddings", name) is not None for name in ("cls_token", "class_token"))
        return has_token and self.patch_size(module) is not None and self._path(module) is not None

    def _path(self, tower: nn.Module) -> tuple[str, ...] | None:
        found = (path for path in BLOCKS for norm in NORMS if blocks_at(tower, *path, having=(norm, "attention")))
        return next(found, None)

    def patch_size(self, tower: nn.Module) -> tuple[int, int] | None:
        return stride_of(submodule(tower, "embeddings", "patch_embeddings", "projection"))

    def prefix(self, tower: nn.Module) -> int:
        names = ("cls_token", "distillation_token", "register_tokens")
        return sum(_count(submodule(tower, "embeddings", name)) for name in names)

    def suffix(self, tower: nn.Module) -> int:
        return _count(submodule(tower, "embeddings", "detection_tokens"))

    def block_names(self, tower: nn.Module) -> list[str]:
        path = self._path(tower)
        assert path is not None, "a tower that was recognised"
        return [".".join((*path, str(i))) for i in range(len(submodule(tower, *path)))]

    def first_norm(self, block: nn.Module) -> nn.Module:
        return next(norm for norm in (submodule(block, name) for name in NORMS) if norm is not None)

    def attention(self, block: nn.Module) -> AttentionModules | None:
        attention = submodule(block, "attention")
        heads = submodule(attention, "num_attention_heads") or submodule(attention, "attention", "num_attention_heads")
        of_5 = [submodule(attention, f"{name}_proj") for name in ("q", "k", "v", "o")]
        of_4 = [submodule(attention, "attention", name) for name in ("query", "key", "value")]
        of_4.append(submodule(attention, "output", "dense"))
        for projections in (of_5, of_4):
            if heads and all(projection is not None for projection in projections):
                return AttentionModules(int(heads), *projections)
        return None


def _count(tokens: object) -> int:
    """Of a parameter (1, n, C)."""
    return int(tokens.shape[1]) if isinstance(tokens, nn.Parameter) else 0
