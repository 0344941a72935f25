"""Hugging Face's CLIP and SigLIP vision towers, as transformers 4 and 5 build them.

Tokens (B, T, C): the class token (SigLIP: none), then the patches. Gradient checkpointing is for training alone.
"""

from __future__ import annotations

from torch import nn

from .attention import AttentionModules
from .family import TowerFamily, blocks_at, stride_of, submodule


class HuggingFaceCLIP(TowerFamily):
    """The module that holds `embeddings` and `encoder`.

    That is `CLIPVisionModel` itself in transformers 5, and its `vision_model` in transformers 4.
    """

    name = "Hugging Face CLIP and SigLIP vision towers"
    signs = "embeddings.patch_embedding, and encoder.layers with layer_norm1 and self_attn"

    def recognises(self, module: nn.Module) -> bool:
        return self.patch_size(module) is not None and blocks_at(
            module, "encoder", "layers", having=("layer_norm1", "self_attn")
        )

    def patch_size(self, tower: nn.Module) -> tuple[int, int] | None:
        return stride_of(submodule(tower, "embeddings", "patch_embedding"))

    def prefix(self, tower: nn.Module) -> int | None:
        # SigLIP's tower is built alike, but has no class token; one's own may have it elsewhere.
        return 1 if submodule(tower, "embeddings", "class_embedding") is not None else None

    def block_names(self, tower: nn.Module) -> list[str]:
        return [f"encoder.layers.{i}" for i in range(len(submodule(tower, "encoder", "layers")))]

    def first_norm(self, block: nn.Module) -> nn.Module:
        return block.get_submodule("layer_norm1")

    def attention(self, block: nn.Module) -> AttentionModules | None:
        attention = submodule(block, "self_attn")
        projections = [submodule(attention, f"{name}_proj") for name in ("q", "k", "v", "out")]
        if any(projection is None for projection in projections):
            return None
        return AttentionModules(int(attention.num_heads), *projections)
