"""Map a layer's tensor to the clip: in which frame each cell lies, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..layers import LayerError

THW, HWT = "thw", "hwt"  # tokens: frame after frame, or patch after patch with its frames beside each other
WHOLE, FRAMES, THUMBNAIL = "whole", "frames", "thumbnail"  # a row of the tensor is a clip, a frame, a picture of frames


class ClipShape(NamedTuple):
    """The shape of a batch (B, T, 3, H, W)."""

    clips: int
    frames: int
    height: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipGrid:
    """The cells of one layer: `times` steps of `rows` × `columns` cells, over `frames` frames.

    `order`: of the tokens; `prefix` of them come before the cells. `fold`: what a row of the tensor is. `thumbnail`:
    rows and columns of frames in one picture. `covers`: as in `Grid`.
    """

    frames: int
    times: int
    rows: int
    columns: int
    order: str = THW
    prefix: int = 0
    fold: str = WHOLE
    thumbnail: tuple[int, int] = (1, 1)
    covers: tuple[float, float] = (1.0, 1.0)

    def to_clip(self, tensor: Tensor, clips: int) -> Tensor:
        """Return the layer's tensor as (B, C, t, h, w), a view if possible.

        Args:
            tensor: (B, C, t, h, w); (B·T, C, h, w) or (B·T, N, C), a row for each frame; (B, N, C), tokens of the whole
                clip; or (B, C, H, W) or (B, N, C), a thumbnail of all frames.
            clips: B.
        """
        if tensor.ndim == 5:
            return tensor
        if tensor.ndim == 3:
            tensor = tensor[:, self.prefix : self.prefix + self._cells].transpose(1, 2)
        if self.fold == FRAMES:
            on_frame = tensor if tensor.ndim == 4 else tensor.unflatten(2, (self.rows, self.columns))
            return on_frame.unflatten(0, (clips, self.frames)).transpose(1, 2)
        if self.fold == THUMBNAIL:
            return self._cut(tensor)
        if self.order == HWT:
            return tensor.unflatten(2, (self.rows, self.columns, self.times)).permute(0, 1, 4, 2, 3)
        return tensor.unflatten(2, (self.times, self.rows, self.columns))

    @property
    def _cells(self) -> int:
        """Return the number of cells in one row of the tensor."""
        return self.rows * self.columns * (1 if self.fold == FRAMES else self.times)

    def _cut(self, tensor: Tensor) -> Tensor:
        """Cut a picture of frames, row by row, into its frames."""
        down, across = self.thumbnail
        if tensor.ndim == 3:
            tensor = tensor.unflatten(2, (down * self.rows, across * self.columns))
        cut = tensor.unflatten(3, (across, self.columns)).unflatten(2, (down, self.rows))
        return cut.permute(0, 1, 2, 4, 3, 5).flatten(2, 3)


def steps_of(times: int, frames: int) -> Tensor:
    """Return the time step, of `times`, that each frame belongs to, (frames,) int64. It does not interpolate."""
    return torch.arange(frames) * times // frames


def thumbnail_grid(cells: tuple[int, int], arrangement: tuple[int, int], frames: int, layer: str) -> ClipGrid:
    """Return the grid of a picture with `cells` (rows, columns) that shows `arrangement` (rows, columns) frames.

    Raises LayerError if a cell lies on more than one frame.
    """
    (rows, columns), (down, across) = cells, arrangement
    if rows % down or columns % across:
        raise LayerError(
            f"layer {layer!r} has {rows} x {columns} cells for {down} x {across} frames of a thumbnail: some cells lie"
            " on several frames; name a block of an earlier stage"
        )
    return ClipGrid(
        frames=frames,
        times=down * across,
        rows=rows // down,
        columns=columns // across,
        fold=THUMBNAIL,
        thumbnail=arrangement,
    )
