"""Any transformer of pre-norm blocks, such as Hugging Face's ViT and DINO towers and timm's vision transformers."""

from __future__ import annotations

from typing import Any, Callable

from torch import nn

from utils.cam.towers.family import AttentionModules, Grid, TowerFamily
from utils.errors import InputError

# The first norm of a block, as CLIP, Hugging Face's ViT and timm name it.
FIRST_NORMS = ("layer_norm1", "layernorm_before", "norm1")


class PreNormTransformer(TowerFamily):
    """Modules that hold blocks with a first norm. How many tokens precede the patches is read from the tensor."""

    name = "pre-norm transformers"
    signs = f"blocks with {', '.join(FIRST_NORMS[:-1])} or {FIRST_NORMS[-1]}"

    def recognises(self, module: nn.Module) -> bool:
        return any(_first_norm(inner) is not None for inner in module.modules())

    def grid(self, tower: nn.Module, height: int, width: int) -> Grid:
        rows, columns = _patch_size(tower)
        return Grid(height // rows, width // columns, prefix=self.prefix(tower))

    def block_names(self, tower: nn.Module) -> list[str]:
        return [name for name, module in tower.named_modules() if _first_norm(module) is not None]

    def first_norm(self, block: nn.Module) -> nn.Module:
        norm = _first_norm(block)
        assert norm is not None, "a block of block_names"
        return norm

    def attention(self, block: nn.Module) -> AttentionModules | None:
        return None

    def default_layer(self, tower: nn.Module, run: Callable[[], object]) -> str:
        return self.block_names(tower)[-1]


def _first_norm(module: nn.Module) -> nn.Module | None:
    return next((child for name, child in module.named_children() if name in FIRST_NORMS), None)


def _patch_size(tower: nn.Module) -> tuple[int, int]:
    """The stride of the convolution that cuts the image into patches. Raises InputError where there is none."""
    for module in tower.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.kernel_size == module.stride:
            stride: Any = module.stride
            return stride
    raise InputError(
        f"{type(tower).__name__} cuts images into patches by no convolution: the patch size is not known; override"
        " patch_grid in the detector, or write a tower family"
    )
