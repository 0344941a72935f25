"""Maps tried by cause: how far the detector's margin falls once a map's hottest patches are replaced.

As many patches at random are replaced beside them. A map that shows what the detector reads costs it more than these
do (deletion at a single share; Petsiuk et al. 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.recipe import Recipe
from .fills import Fills

CALM = 0.1  # of the margin: random patches move it less, or the fill itself speaks for a class
FILLS_USED = 2  # that have to agree
SEED = 0  # of the random patches: the same for every candidate and every run
SHARE = 0.05  # of the patches that are replaced
MOST_SIDE = 32  # patches a side; a finer map is averaged down: single pixels are no evidence

Margins = Callable[[Tensor], Tensor]  # images (N, 3, H, W) as the detector reads them → fake - real (N,)


class Heat(NamedTuple):
    """One kind of map of N images: raw (N, h, w) and which of them are empty (N,) bool, on the CPU."""

    raw: Tensor
    empty: Tensor


class Scorer(NamedTuple):
    """What images lose: their margin towards the class that is explained.

    `direction` (N,), on the CPU: 1 where fake is explained, -1 where real is.
    """

    margins: Margins
    direction: Tensor

    def of(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) → (N,) float32 on the CPU, above 0 where the detector decides for the class explained."""
        return self.margins(images).float().cpu() * self.direction

    def fall(self, before: Tensor, images: Tensor, fill: Tensor, patches: Tensor) -> Tensor:
        """(N,): how far the margin falls from `before` once `patches` (N, h, w) are taken from `fill`."""
        return before - self.of(replaced(images, fill, patches))


def replaced(images: Tensor, fill: Tensor, patches: Tensor) -> Tensor:
    """`images` (N, 3, H, W) with the pixels of `patches` (N, h, w) bool taken from `fill`."""
    pixels = F.interpolate(patches.unsqueeze(1).float().to(images.device), size=images.shape[2:], mode="nearest")
    return torch.where(pixels > 0, fill, images)


def on_trial_grid(raw: Tensor) -> Tensor:
    """Raw maps (N, h, w), those of more than MOST_SIDE patches a side averaged down to it."""
    rows, columns = raw.shape[1:]
    if max(rows, columns) <= MOST_SIDE:
        return raw
    return F.adaptive_avg_pool2d(raw.unsqueeze(1), (min(MOST_SIDE, rows), min(MOST_SIDE, columns))).squeeze(1)


def patch_count(grid: tuple[int, int]) -> int:
    """How many patches of a grid are replaced."""
    return max(1, round(SHARE * grid[0] * grid[1]))


def hottest(raw: Tensor, empty: Tensor) -> Tensor:
    """(N, h, w) bool, on the trial's grid: the hottest `patch_count` patches above 0; none of a map that is `empty`."""
    raw = on_trial_grid(raw)
    flat = raw.flatten(1)
    highest = flat.topk(patch_count((raw.shape[1], raw.shape[2])), dim=1)
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, highest.indices, highest.values > 0)
    return mask.view_as(raw) & ~empty.view(-1, 1, 1)


def random_patches(count: int, grid: tuple[int, int], seed: int) -> Tensor:
    """(count, h, w) bool: `patch_count` patches of each image, by `seed`."""
    draw = torch.rand(count, grid[0] * grid[1], generator=torch.Generator().manual_seed(seed))
    order = draw.argsort(dim=1).argsort(dim=1)
    return (order < patch_count(grid)).view(count, *grid)


# ----------------------------------------------------------------------------------------------------------- the trial


@dataclass(frozen=True)
class Trial:
    """What N images lost, in units of the margin; every tensor float32 on the CPU.

    `margins` (N,). `moved`: fill → how far random patches move the margin, median over images as a share of the mean
    size of the margin. `falls`: fill → candidate → (N,), of the hottest patches; `random`: the same of as many patches
    at random on that candidate's grid. Both for the fills that were used, the preferred first.
    """

    images: int
    margins: Tensor
    moved: dict[str, float]
    falls: dict[str, dict[Recipe, Tensor]]
    random: dict[str, dict[Recipe, Tensor]]


def try_candidates(
    images: Tensor, maps: Mapping[Recipe, Heat], fills: Fills, scorer: Scorer, only: str | None = None
) -> Trial:
    """The fall of the margin of N images by each candidate's map.

    Args:
        images: (N, 3, H, W), as `scorer` takes them.
        maps: of these images.
        fills: what patches are replaced by, in order of preference. The hottest ones are by the first two that are CALM
            or, where there are not two, by those that random patches move the margin least with.
        only: the fill that the hottest patches are replaced by instead.
    """
    before = scorer.of(images)
    patches = {candidate: hottest(*one) for candidate, one in maps.items()}
    grids = dict.fromkeys(_grid(mask) for mask in patches.values())
    draws = {grid: random_patches(len(images), grid, SEED) for grid in grids}
    random = {
        name: {grid: scorer.fall(before, images, fill, drawn) for grid, drawn in draws.items()}
        for name, fill in fills.items()
    }
    scale = float(before.abs().mean())
    moved = {name: _moved(list(falls.values()), scale) for name, falls in random.items()}
    used = [only] if only else _used(moved)
    return Trial(
        len(images),
        before,
        moved,
        {name: {one: scorer.fall(before, images, fills[name], mask) for one, mask in patches.items()} for name in used},
        {name: {one: random[name][_grid(mask)] for one, mask in patches.items()} for name in used},
    )


def _grid(mask: Tensor) -> tuple[int, int]:
    return mask.shape[1], mask.shape[2]


def _used(moved: Mapping[str, float]) -> list[str]:
    calm = [fill for fill, share in moved.items() if share <= CALM]
    return [*calm, *sorted(set(moved) - set(calm), key=lambda fill: moved[fill])][:FILLS_USED]


def _moved(falls: Sequence[Tensor], scale: float) -> float:
    """The median, since random patches do hit the evidence now and then, and that is no fault of the fill's."""
    middle = float(torch.cat(list(falls)).median().abs())
    return middle / scale if scale else (0.0 if middle == 0 else float("inf"))


def passes(images: int, candidates: int, fills: int) -> int:
    """Forward passes of single images that `try_candidates` makes, where all maps have one grid."""
    return images * (1 + fills + min(fills, FILLS_USED) * candidates)
