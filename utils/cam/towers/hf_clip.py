"""Hugging Face's CLIP vision tower, as transformers 4 and 5 build it, and SigLIP's."""

from __future__ import annotations

from typing import Any, Callable

from torch import nn

from utils.cam.towers.family import AttentionModules, Grid, TowerFamily


class HuggingFaceCLIP(TowerFamily):
    """The module that holds `embeddings` and `encoder`.

    That is `CLIPVisionModel` itself in transformers 5, and its `vision_model` in transformers 4.
    """

    name = "Hugging Face CLIP and SigLIP vision towers"
    signs = "embeddings.patch_embedding, and encoder.layers with layer_norm1 and self_attn"

    def recognises(self, module: nn.Module) -> bool:
        layers = _submodule(module, "encoder", "layers")
        patches = _submodule(module, "embeddings", "patch_embedding")
        if not isinstance(patches, nn.Conv2d) or not isinstance(layers, nn.ModuleList) or not len(layers):
            return False
        return hasattr(layers[0], "layer_norm1") and hasattr(layers[0], "self_attn")

    def grid(self, tower: nn.Module, height: int, width: int) -> Grid:
        patches: Any = _submodule(tower, "embeddings", "patch_embedding")
        rows, columns = patches.stride
        return Grid(height // rows, width // columns, prefix=self.prefix(tower))

    def prefix(self, tower: nn.Module) -> int | None:
        # SigLIP's tower is built alike, but has no class token.
        return 1 if _submodule(tower, "embeddings", "class_embedding") is not None else None

    def block_names(self, tower: nn.Module) -> list[str]:
        layers: Any = _submodule(tower, "encoder", "layers")
        return [f"encoder.layers.{i}" for i in range(len(layers))]

    def first_norm(self, block: nn.Module) -> nn.Module:
        return block.get_submodule("layer_norm1")

    def attention(self, block: nn.Module) -> AttentionModules | None:
        attention: Any = block.get_submodule("self_attn")
        projections = [_submodule(attention, f"{name}_proj") for name in ("q", "k", "v", "out")]
        if any(projection is None for projection in projections):
            return None
        return AttentionModules(int(attention.num_heads), *projections)

    def default_layer(self, tower: nn.Module, run: Callable[[], object]) -> str:
        return self.block_names(tower)[-1]


def _submodule(module: nn.Module, *path: str) -> Any:
    """The module at the end of `path`, or None where one of them is missing."""
    inner: Any = module
    for name in path:
        inner = getattr(inner, name, None)
    return inner
