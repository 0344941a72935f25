"""What the engine has to know of a kind of network: where its blocks, norms, patches and attention are."""

from __future__ import annotations

import abc
from typing import Callable, NamedTuple

from torch import nn


class Grid(NamedTuple):
    """How a layer's tokens lie on the image: `prefix` tokens of no patch (CLS, registers), then the patches by rows."""

    rows: int
    columns: int
    prefix: int | None  # None: whatever the tensor has beside the patches


class AttentionModules(NamedTuple):
    """The attention of one block.

    `q`, `k` and `v` return (B, T, heads · d); `out` reads the heads' outputs side by side, of the same shape.
    """

    heads: int
    q: nn.Module
    k: nn.Module
    v: nn.Module
    out: nn.Module


class TowerFamily(abc.ABC):
    """One kind of network. `name` and `signs` (what it is recognised by) are for error messages."""

    name: str
    signs: str

    @abc.abstractmethod
    def recognises(self, module: nn.Module) -> bool:
        """Whether `module` is a tower of this family; layer names are relative to it."""

    @abc.abstractmethod
    def grid(self, tower: nn.Module, height: int, width: int) -> Grid | None:
        """The patches of an image of that size; None for a network whose activations are (B, C, h, w)."""

    def prefix(self, tower: nn.Module) -> int | None:
        """How many tokens precede the patches (CLS, registers); None: whatever the tensor has beside the patches."""
        return None

    @abc.abstractmethod
    def block_names(self, tower: nn.Module) -> list[str]:
        """Names of the blocks that mix tokens, first to last; empty for a network without any."""

    @abc.abstractmethod
    def first_norm(self, block: nn.Module) -> nn.Module:
        """The norm through which a block reads its tokens."""

    @abc.abstractmethod
    def attention(self, block: nn.Module) -> AttentionModules | None:
        """The attention of a block, None where its projections cannot be read one by one."""

    @abc.abstractmethod
    def default_layer(self, tower: nn.Module, run: Callable[[], object]) -> str:
        """The layer to explain where none is named. `run` runs the whole model once, for a family that has to look."""
