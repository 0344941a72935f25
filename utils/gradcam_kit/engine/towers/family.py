"""What the engine has to know of a kind of network: where its blocks, norms, patches and attention are."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

from torch import nn

from ...base.errors import InputError
from .attention import BlockAttention, HeldAttention

# What to do about tokens that no family can know of.
SAY_WHERE = (
    "where tokens are added, merged, dropped or moved, name a layer before that, or say by token_grid of a detector how"
    " they lie (docs/how_to/add_a_tower_family.md)"
)


class Grid(NamedTuple):
    """How a layer's tokens lie on the image: `prefix` tokens of no patch (CLS, registers), the patches by rows, and
    `suffix` tokens of no patch."""

    rows: int
    columns: int
    prefix: int | None  # None: whatever the tensor has beside the patches
    suffix: int = 0
    covers: tuple[float, float] = (1.0, 1.0)  # shares of height and width, from the top left; > 1 where it is padded
    halvings: int = 0  # how often later stages halve rows and columns, rounding up

    def covering(self, patch: tuple[int, int] | None, size: tuple[int, int]) -> Grid:
        """The same grid on an image of `size` (H, W): patches at its left and top edge, maybe not on all of it."""
        if patch is None:
            return self
        return self._replace(covers=(self.rows * patch[0] / size[0], self.columns * patch[1] / size[1]))

    def of_tokens(self, count: int) -> Grid:
        """The grid of a tensor of `count` tokens: of the stage that has as many, where stages halve it."""
        grid = self
        for _ in range(self.halvings):
            if grid.rows * grid.columns == count:
                break
            grid = grid._replace(rows=-(-grid.rows // 2), columns=-(-grid.columns // 2))
        return grid


class TowerFamily(abc.ABC):
    """One kind of network. `name` and `signs` (what it is recognised by) are for error messages.

    Tokens are (B, T, C) unless `batch_axis` says otherwise. Activations of four axes are (B, C, h, w) or (B, h, w, C):
    which, is followed through the forward pass (`engine.channel_axis`), in a network whose blocks give such.
    """

    name: str
    signs: str
    blocks_give_tokens = True  # False: blocks pass on four axes

    @abc.abstractmethod
    def recognises(self, module: nn.Module) -> bool:
        """Whether `module` is a tower of this family; layer names are relative to it."""

    def patch_size(self, tower: nn.Module) -> tuple[int, int] | None:
        """Height and width of a patch in pixels; None where that is not known, or there are no patches."""
        return None

    def grid(self, tower: nn.Module, height: int, width: int) -> Grid | None:
        """The patches of an image of that size; None for a network whose activations have rows and columns already.

        Raises InputError where the size of a patch is not known.
        """
        patch = self.patch_size(tower)
        if patch is None:
            raise InputError(
                f"{type(tower).__name__} cuts images into patches by no convolution: the patch size is not known;"
                " override patch_grid in the detector, or write a tower family (docs/how_to/add_a_tower_family.md)"
            )
        patches = Grid(height // patch[0], width // patch[1], self.prefix(tower), self.suffix(tower))
        return patches.covering(patch, (height, width))

    def prefix(self, tower: nn.Module) -> int | None:
        """How many tokens precede the patches (CLS, registers); None: whatever the tensor has beside the patches."""
        return None

    def suffix(self, tower: nn.Module) -> int:
        """How many tokens follow the patches."""
        return 0

    def batch_axis(self, tower: nn.Module, layer: str) -> int | None:
        """Which axis of the tokens that module `layer` reads and returns is the batch: 0 of (B, T, C), 1 of (T, B, C).

        None: the network does not tell; then the sizes have to, or the layer is refused.
        """
        return 0

    @abc.abstractmethod
    def block_names(self, tower: nn.Module) -> list[str]:
        """Names of the blocks that mix tokens, first to last; empty for a network without any."""

    @abc.abstractmethod
    def first_norm(self, block: nn.Module) -> nn.Module | None:
        """The norm through which a block reads its tokens; None where it reads them as they are."""

    @abc.abstractmethod
    def attention(self, block: nn.Module) -> BlockAttention | None:
        """The attention of a block, None where its queries, keys and values cannot be read."""

    def held_attention(self, block: nn.Module) -> HeldAttention | None:
        """All attention of a block, as the balanced rule holds it; None where its queries and keys cannot be held."""
        return self.attention(block)


def part(module: Any, path: str) -> Any:
    """Follow a dotted path of attributes; None if one of them is missing or `path` is ""."""
    for name in path.split("."):
        module = getattr(module, name, None) if name else None
    return module


def stride_of(convolution: Any) -> tuple[int, int] | None:
    """The patch size of a convolution that cuts the image into patches, None where it is no convolution."""
    if not isinstance(convolution, nn.Conv2d):
        return None
    rows, columns = convolution.stride
    return int(rows), int(columns)
