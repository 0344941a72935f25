"""The interface of a family of networks: where its blocks, norms, patches and attention are."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

from torch import nn

from ...base.errors import InputError
from .attention import BlockAttention, HeldAttention

# What a user can do about tokens that no family knows.
SAY_WHERE = (
    "where tokens are added, merged, dropped or moved, name a layer before that, or say by token_grid of a detector how"
    " they lie (docs/how_to/add_a_tower_family.md)"
)


class Grid(NamedTuple):
    """The order of a layer's tokens: `prefix` tokens without a patch (CLS, registers), the patches row by row, then
    `suffix` tokens without a patch."""

    rows: int
    columns: int
    prefix: int | None  # None: all tokens that are not patches
    suffix: int = 0
    covers: tuple[float, float] = (1.0, 1.0)  # shares of height and width, from the top left; > 1 if padded
    halvings: int = 0  # how often later stages halve rows and columns, rounding up

    def covering(self, patch: tuple[int, int] | None, size: tuple[int, int]) -> Grid:
        """Return the grid for an image of `size` (H, W): patches start at the top left and may not cover all of it."""
        if patch is None:
            return self
        return self._replace(covers=(self.rows * patch[0] / size[0], self.columns * patch[1] / size[1]))

    def of_tokens(self, count: int) -> Grid:
        """Return the grid for `count` tokens: of the stage with this many, if stages halve the grid."""
        grid = self
        for _ in range(self.halvings):
            if grid.rows * grid.columns == count:
                break
            grid = grid._replace(rows=-(-grid.rows // 2), columns=-(-grid.columns // 2))
        return grid


class TowerFamily(abc.ABC):
    """A family of networks. `name` and `signs` (how it is recognised) appear in error messages.

    Tokens are (B, T, C) unless `batch_axis` says otherwise. Activations with four axes are (B, C, h, w) or
    (B, h, w, C); the engine follows the channels through the forward pass (`towers.channel_axis`).
    """

    name: str
    signs: str
    blocks_give_tokens = True  # False: blocks pass on four axes

    @abc.abstractmethod
    def recognises(self, module: nn.Module) -> bool:
        """True if `module` is a tower of this family; layer names are relative to it."""

    def patch_size(self, tower: nn.Module) -> tuple[int, int] | None:
        """Return height and width of a patch in pixels; None if unknown, or if there are no patches."""
        return None

    def grid(self, tower: nn.Module, height: int, width: int) -> Grid | None:
        """Return the patch grid for an image of this size; None if the network's activations have rows and columns.

        Raises InputError if the patch size is unknown.
        """
        patch = self.patch_size(tower)
        if patch is None:
            raise InputError(
                f"{type(tower).__name__} does not cut images into patches with a convolution, so the patch size is"
                " unknown; override patch_grid in the detector, or write a tower family"
                " (docs/how_to/add_a_tower_family.md)"
            )
        patches = Grid(height // patch[0], width // patch[1], self.prefix(tower), self.suffix(tower))
        return patches.covering(patch, (height, width))

    def prefix(self, tower: nn.Module) -> int | None:
        """Return the number of tokens before the patches (CLS, registers); None: all tokens that are not patches."""
        return None

    def suffix(self, tower: nn.Module) -> int:
        """Return the number of tokens after the patches."""
        return 0

    def batch_axis(self, tower: nn.Module, layer: str) -> int | None:
        """Return the batch axis of the tokens of module `layer`: 0 for (B, T, C), 1 for (T, B, C).

        None: unknown; then the sizes must decide, or the layer is refused.
        """
        return 0

    @abc.abstractmethod
    def block_names(self, tower: nn.Module) -> list[str]:
        """Return the names of the blocks that mix tokens, in order; empty if there are none."""

    @abc.abstractmethod
    def first_norm(self, block: nn.Module) -> nn.Module | None:
        """Return the norm on a block's input; None if the block reads its tokens without a norm."""

    @abc.abstractmethod
    def attention(self, block: nn.Module) -> BlockAttention | None:
        """Return the attention of a block; None if its queries, keys and values cannot be read."""

    def held_attention(self, block: nn.Module) -> HeldAttention | None:
        """Return a block's attention for the balanced rule; None if its queries and keys cannot be held constant."""
        return self.attention(block)


def part(module: Any, path: str) -> Any:
    """Follow a dotted path of attributes; return None if one is missing or `path` is ""."""
    for name in path.split("."):
        module = getattr(module, name, None) if name else None
    return module


def stride_of(convolution: Any) -> tuple[int, int] | None:
    """Return the patch size of a convolution that cuts the image into patches; None if it is not a convolution."""
    if not isinstance(convolution, nn.Conv2d):
        return None
    rows, columns = convolution.stride
    return int(rows), int(columns)
