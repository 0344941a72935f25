"""Networks whose blocks mix patches by other means than attention over the image, or keep them in another order."""

from __future__ import annotations

import math

from torch import nn

from .families import NamedTransformer
from .family import TowerFamily, part, stride_of


class Hiera(TowerFamily):
    """Hiera (Ryali et al. 2023) of timm and Hugging Face; no token comes before the patches.

    Tokens that later stages pool together lie together. Only behind the last pooling are they in row order, so only the
    blocks there are explained.
    """

    name = "Hiera of timm and Hugging Face"
    signs = "reroll.schedule or encoder.schedule, and blocks with norm1 or layernorm_before and a query stride"
    blocks_give_tokens = False
    norms = ("norm1", "layernorm_before")
    cuts = ("patch_embed.proj", "embeddings.patch_embeddings.projection")

    def recognises(self, module: nn.Module) -> bool:
        return self.patch_size(module) is not None and bool(self.block_names(module))

    def patch_size(self, tower: nn.Module) -> tuple[int, int] | None:
        """Return the pixels of a token behind the last pooling; None if the order is not yet undone there."""
        schedule = part(tower, "reroll.schedule") or part(tower, "encoder.schedule")
        stride = next((size for size in (stride_of(part(tower, path)) for path in self.cuts) if size), None)
        if not isinstance(schedule, dict) or stride is None or schedule[max(schedule)][0]:
            return None
        rows, columns = (math.prod(pool[i] for pool in schedule[min(schedule)][0]) for i in range(2))
        return stride[0] * rows, stride[1] * columns

    def block_names(self, tower: nn.Module) -> list[str]:
        found: list[str] = []
        for name, module in tower.named_modules():
            stride = part(module, "attn.q_stride") or part(module, "attn.query_stride")
            if isinstance(stride, int) and any(part(module, norm) is not None for norm in self.norms):
                found = [] if stride > 1 else [*found, name]
        return found

    def prefix(self, tower: nn.Module) -> int:
        return 0

    def first_norm(self, block: nn.Module) -> nn.Module:
        return next(norm for norm in (part(block, name) for name in self.norms) if norm is not None)

    def attention(self, block: nn.Module) -> None:
        return None


HIERA = Hiera()
# Liu et al. 2021: a gate that is a linear layer over the places mixes the patches.
GMLP = NamedTransformer(
    name="timm's gMLP",
    signs="stem.proj, and blocks with norm and mlp_channels.gate",
    patches="stem.proj",
    blocks=("blocks",),
    norms=("norm",),
    having=("mlp_channels.gate",),
)
