"""Find the patches among a tower's tokens, and the part of an image that a network reads, by changing some patches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
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

CROPPED = (
    "{network} does not read the outer {border} pixels of its {height}x{width} images, because its own code crops them:"
    " maps are drawn on the whole image, but show the part that it reads; crop the images first and explain those"
)
OF_A_PATCH = 4  # a border is tested that is this part of a patch wide: a smaller crop hardly moves a map

GridOf = Callable[[int, int], Grid | None]


class PassEnds(BaseException):
    """Ends a forward pass early; not an Exception, so that no `except Exception` in the model's code catches it."""


def find_patches(tower: Tower, run: Callable[[Tensor], Any], images: Tensor, grid_of: GridOf) -> Grid | None:
    """Find the grid of the patches in the first block's input, with its tokens before and after, by forward passes.

    `run`: a forward pass of `images` (B, 3, H, W). `grid_of`: height and width → the tower's grid. A network that
    resizes its images by its own code has the grid of the size that its first convolution reads. Returns None if the
    test sees no tokens, or if many change because the network mixes the whole image before its first block.

    Raises InputError if few change but lie elsewhere: their map would not be a map of the image.
    """
    usual = _first_read(tower, partial(run, images))
    outer, inner = tuple(images.shape[2:]), image_read(tower, partial(run, images))
    for height, width in dict.fromkeys([outer, outer if inner is None else tuple(inner.shape[2:])]):
        grid = grid_of(height, width)
        places = None if grid is None else _places(tower, usual, run, images, grid)
        if grid is not None and places is not None:
            return grid._replace(prefix=places[0], suffix=places[1])
    return None


def _places(
    tower: Tower, before: Tensor | None, run: Callable[[Tensor], Any], images: Tensor, grid: Grid
) -> tuple[int, int] | None:
    """Count the tokens before and after the patches of `grid`; `before`: the first block's input on `images`.

    It changes three corners of the grid in copies of the images. The three tokens that change most must lie as far
    apart as patches in row order do; it warns if they do so in a mirrored image.
    """
    block = tower.blocks[0]
    axis, last = tower.batch_axis(block), grid.rows * grid.columns - 1
    if before is None or before.ndim != 3:
        return None
    axis = int(before.shape[0] != len(images)) if axis is None else axis
    if before.shape[axis] != len(images) or before.shape[1 - axis] <= last:
        return None
    changed = images.clone()
    height, width = (size * share for size, share in zip(images.shape[2:], grid.covers, strict=True))
    for row, column in ((0, 0), (0, grid.columns - 1), (grid.rows - 1, grid.columns - 1)):
        rows = slice(round(row * height / grid.rows), round((row + 1) * height / grid.rows))
        columns = slice(round(column * width / grid.columns), round((column + 1) * width / grid.columns))
        changed[:, :, rows, columns] = 1 - images[:, :, rows, columns]
    after = _first_read(tower, partial(run, changed))
    if after is None or before.shape != after.shape:
        return None
    tokens = torch.stack([part.select(axis, 0) for part in (before, after)])
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


def note_unread_border(tower: Tower, run: Callable[[Tensor], Any], image: Tensor, grid: Grid | None) -> None:
    """Warn if the first convolution reads the same in `image` (1, 3, H, W) with other outer pixels.

    `run`: a forward pass of the image. `grid`: the patches; None: a convolutional network's, at least 7 a side.
    """
    height, width = image.shape[2:]
    shares = [1 / 7] * 2 if grid is None else [grid.covers[0] / grid.rows, grid.covers[1] / grid.columns]
    border = max(1, int(min(height * shares[0], width * shares[1])) // OF_A_PATCH)
    outer = torch.where(image > 0, image - 1, image + 1)
    inside = (..., slice(border, height - border), slice(border, width - border))
    outer[inside] = image[inside]
    usual, again = (image_read(tower, partial(run, one)) for one in (image, outer))
    if usual is not None and again is not None and torch.equal(usual, again):
        network = type(tower.model).__name__
        warnings.warn(CROPPED.format(network=network, border=border, height=height, width=width), stacklevel=2)


def image_read(tower: Tower, run: Callable[[], Any]) -> Tensor | None:
    """Return the tensor (B, C, h, w) that the first convolution reads in a forward pass; None without one."""
    read = _first_read(tower, run, tower.modules_that(_is_convolution))
    return read if read is not None and read.ndim == 4 else None


def _first_read(tower: Tower, run: Callable[[], Any], modules: Sequence[nn.Module] = ()) -> Tensor | None:
    """Return the input of the first of `modules` in a forward pass, by default the first block's.

    The pass ends there unless something waits for its end.
    """
    seen: list[Any] = []
    through = tower.modules_that(waits_for_end)

    def see(module: nn.Module, inputs: Any) -> None:
        if modules:
            seen.extend(one.clone() for one in inputs[:1] if not seen)
        else:
            seen.extend(inputs[:1])
        if not through:
            raise PassEnds

    with ExitStack() as hooks:
        for module in modules or [tower.named[tower.blocks[0]]]:
            hooks.callback(module.register_forward_pre_hook(in_this_thread(see)).remove)
        with suppress(PassEnds):
            run()
    return seen[0] if len(seen) == 1 and isinstance(seen[0], Tensor) else None


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d)


def waits_for_end(module: nn.Module) -> bool:
    """True if something cleans up after a module's pass: accelerate's offloading, FSDP."""
    return hasattr(module, "_hf_hook") or "FSDP" in type(module).__name__ or "FullyShard" in type(module).__name__
