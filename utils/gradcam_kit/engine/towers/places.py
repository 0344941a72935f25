"""Where the patches lie among a tower's tokens: seen by changing some patches of an image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...base.errors import InputError
from ...base.threads import in_this_thread
from .family import SAY_WHERE, Grid
from .tower import Tower


class _Seen(BaseException):
    """Ends a forward pass of which enough was seen: no `except Exception` of a model's own code takes it."""


def places_of_patches(tower: Tower, run: Callable[[Tensor], Any], images: Tensor, grid: Grid) -> tuple[int, int] | None:
    """How many tokens the first block reads before the patches of `grid` and behind them, seen in a forward pass.

    In copies of `images` (B, 3, H, W) three corners of the grid are changed. The three tokens that change most have to
    lie as far from each other as patches in rows do. None where no tokens were seen, or where many change: what a
    network makes of all the image before its first block cannot be told apart.

    Raises InputError where few change, and lie otherwise: no map of them is one of the image.
    """
    changed = images.clone()
    height, width = (size * share for size, share in zip(images.shape[2:], grid.covers, strict=True))
    for row, column in ((0, 0), (0, grid.columns - 1), (grid.rows - 1, grid.columns - 1)):
        rows = slice(round(row * height / grid.rows), round((row + 1) * height / grid.rows))
        columns = slice(round(column * width / grid.columns), round((column + 1) * width / grid.columns))
        changed[:, :, rows, columns] = 1 - images[:, :, rows, columns]
    block = tower.blocks[0]
    before, after = (_first_read(tower, partial(run, some)) for some in (images, changed))
    axis = tower.batch_axis(block)
    if before is None or after is None or before.shape != after.shape or before.ndim != 3:
        return None
    axis = int(before.shape[0] != len(images)) if axis is None else axis
    if before.shape[axis] != len(images):
        return None
    tokens = torch.stack([part.select(axis, 0) for part in (before, after)])
    last = grid.rows * grid.columns - 1
    if tokens.shape[1] <= last:
        return None
    moved = (tokens[1].float() - tokens[0].float()).norm(dim=1)
    corners = sorted({0, grid.columns - 1, last})
    most = sorted(moved.topk(len(corners)).indices.tolist())
    if [place - most[0] for place in most] == corners and bool(moved[most].gt(0).all()):
        return most[0], tokens.shape[1] - 1 - most[-1]
    if 0 < int(moved.gt(0).sum()) <= len(corners):
        raise InputError(
            f"layer {block!r}: three patches of the image, the first, its row's last and the last, are tokens {most} of"
            f" {tokens.shape[1]}, so the {grid.rows}x{grid.columns} patches do not stand in rows; {SAY_WHERE}"
        )
    return None


def _first_read(tower: Tower, run: Callable[[], Any]) -> Tensor | None:
    """What the first block reads in a forward pass, which ends there, unless something waits for its end."""
    seen: list[Any] = []
    through = tower.modules_that(_waits)

    def see(module: nn.Module, inputs: Any) -> None:
        seen.extend(inputs[:1])
        if not through:
            raise _Seen

    handle = tower.named[tower.blocks[0]].register_forward_pre_hook(in_this_thread(see))
    try:
        run()
    except _Seen:
        pass
    finally:
        handle.remove()
    return seen[0] if len(seen) == 1 and isinstance(seen[0], Tensor) else None


def _waits(module: nn.Module) -> bool:
    """Whether what was made ready for the pass of a module is put away behind it: accelerate's offloading, FSDP."""
    return hasattr(module, "_hf_hook") or "FSDP" in type(module).__name__ or "FullyShard" in type(module).__name__
