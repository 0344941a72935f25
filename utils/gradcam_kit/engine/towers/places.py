"""Find the patches among a tower's tokens by changing some patches of an image."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...base.errors import InputError
from ...base.threads import in_this_thread
from .family import SAY_WHERE, Grid
from .tower import Tower

MIRRORED = (
    "the network reads each image mirrored (left and right exchanged, by a hook or its own code): its maps lie on the"
    " mirrored image; explain images.flip(-1) to see them where they belong"
)


class _Seen(BaseException):
    """Ends a forward pass early; not an Exception, so that no `except Exception` in the model's code catches it."""


def places_of_patches(tower: Tower, run: Callable[[Tensor], Any], images: Tensor, grid: Grid) -> tuple[int, int] | None:
    """Count the tokens before and after the patches of `grid` in the first block's input, by forward passes.

    It changes three corners of the grid in copies of `images` (B, 3, H, W). The three tokens that change most must lie
    as far apart as patches in row order do; it warns if they do so in a mirrored image. Returns None if it sees no
    tokens, or if many change because the network mixes the whole image before its first block.

    Raises InputError if few change but lie elsewhere: their map would not be a map of the image.
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
    mirrored = sorted({0, grid.columns - 1, last - grid.columns + 1})
    if [place - most[0] for place in most] == mirrored and bool(moved[most].gt(0).all()):
        warnings.warn(MIRRORED, stacklevel=2)
        return most[0], tokens.shape[1] - 1 - last - most[0]
    if 0 < int(moved.gt(0).sum()) <= len(corners):
        raise InputError(
            f"layer {block!r}: the image's first patch, the last of its row and the last of all are tokens {most} of"
            f" {tokens.shape[1]}, so the {grid.rows}x{grid.columns} patches are not in row order; {SAY_WHERE}"
        )
    return None


def _first_read(tower: Tower, run: Callable[[], Any]) -> Tensor | None:
    """Return the first block's input in a forward pass, and end the pass there unless something waits for its end."""
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
    """True if something cleans up after a module's pass: accelerate's offloading, FSDP."""
    return hasattr(module, "_hf_hook") or "FSDP" in type(module).__name__ or "FullyShard" in type(module).__name__
