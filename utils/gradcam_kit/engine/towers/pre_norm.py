"""Any other transformer of pre-norm blocks, such as `nn.TransformerEncoder` and torchvision's vision transformer."""

from __future__ import annotations

from torch import nn

from .attention import BlockAttention
from .family import TowerFamily, stride_of
from .torch_attention import multihead_attention, torch_attention

# The first norm of a block, as CLIP, Hugging Face's ViT, timm, OpenAI and torchvision name it.
FIRST_NORMS = ("layer_norm1", "layernorm_before", "norm1", "ln_1")


class PreNormTransformer(TowerFamily):
    """Modules that hold blocks with a first norm. How many tokens precede the patches is read from the tensor."""

    name = "pre-norm transformers"
    signs = f"blocks with {', '.join(FIRST_NORMS[:-1])} or {FIRST_NORMS[-1]}"

    def recognises(self, module: nn.Module) -> bool:
        return any(_first_norm(inner) is not None for inner in module.modules())

    def patch_size(self, tower: nn.Module) -> tuple[int, int] | None:
        for module in tower.modules():
            if isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.kernel_size == module.stride:
                return stride_of(module)
        return None

    def batch_axis(self, tower: nn.Module, layer: str) -> int | None:
        """As the attention of the block says in which the layer lies, or which it is."""
        names = layer.split(".")
        for end in range(len(names), 0, -1):
            attention = multihead_attention(tower.get_submodule(".".join(names[:end])))
            if attention is not None:
                return int(not attention.batch_first)
        return None

    def block_names(self, tower: nn.Module) -> list[str]:
        return [name for name, module in tower.named_modules() if _first_norm(module) is not None]

    def first_norm(self, block: nn.Module) -> nn.Module:
        norm = _first_norm(block)
        assert norm is not None, "a block of block_names"
        return norm

    def attention(self, block: nn.Module) -> BlockAttention | None:
        return torch_attention(block)


def _first_norm(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.TransformerEncoderLayer) and not module.norm_first:
        return None  # its norm1 comes after the attention
    return next((child for name, child in module.named_children() if name in FIRST_NORMS), None)
