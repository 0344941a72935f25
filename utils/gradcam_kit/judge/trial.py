"""Maps under trial: how far the detector's margin drops once a map's hottest patches, or random ones, are replaced.

A map that shows what the detector reads costs it more than random patches do (deletion at a single share; Petsiuk et
al. 2018). What replaces them is a fill: another image's pixels, or the nearest tokens of real images (`engine.real`).
No fill of pixels suits every detector: a blurred patch looks forged to one, a grey one to another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.recipe import Recipe
from .transplant import Margins, blurred

CALM = 0.1  # of the margin: random patches move it less, or the fill itself speaks for a class
FILLS_USED = 2  # that have to agree
SEED = 0  # of the random patches: the same for every candidate and every run
SHARE = 0.05  # of the patches that are replaced
AT_ONCE = 64  # copies of images that are made at once, for as many batches as that takes
MOST_SIDE = 32  # patches a side; a finer map is averaged down: single pixels are no evidence
MEAN_COLOUR, MIRRORED, BLUR, OTHER_REAL, PAIRED_REAL = "mean colour", "mirrored", "blur", "another real", "paired real"
REAL_TOKENS = "the nearest real tokens"

# Patches (n, h, w) bool and whose of N images each is, (n,) in rising order → the margins (n,) without these.
TokenFill = Callable[[Tensor, Tensor], Tensor]
Fills = Mapping[str, Tensor | TokenFill]  # name → for the same N images (N, 3, H, W), or what exchanges their tokens


def mean_coloured(images: Tensor) -> Tensor:
    """(N, 3, H, W) → each image's own mean colour everywhere."""
    return images.mean(dim=(2, 3), keepdim=True).expand_as(images)


# That an image has by itself, the one to prefer first. The face's other side may be as forged as what it replaces.
FILLS: Mapping[str, Callable[[Tensor], Tensor]] = {
    MEAN_COLOUR: mean_coloured, BLUR: blurred, MIRRORED: lambda images: images.flip(3)
}  # fmt: skip


def fills_of(images: Tensor, reals: Tensor | None = None) -> dict[str, Tensor]:
    """Every fill of `images` (N, 3, H, W) that needs no pair, the one to prefer first.

    `reals` (M, 3, H, W): images that the detector calls real; image i is given the patches of real i modulo M.
    """
    fills = {name: fill(images) for name, fill in FILLS.items()}
    if reals is None or not len(reals):
        return fills
    return {OTHER_REAL: reals[torch.arange(len(images), device=reals.device) % len(reals)], **fills}


class Heat(NamedTuple):
    """One kind of map of N images: raw (N, h, w) and which of them are empty (N,) bool, on the CPU."""

    raw: Tensor
    empty: Tensor


class Scorer(NamedTuple):
    """The margin towards the class that is explained; `direction` (N,), on the CPU: 1 for fake, -1 for real."""

    margins: Margins
    direction: Tensor

    def of(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) → (N,) float32 on the CPU, above 0 where the detector decides for the class explained."""
        return self.margins(images).float().cpu() * self.direction

    def drops(self, before: Tensor, images: Tensor, fill: Tensor | TokenFill, masks: Sequence[Tensor]) -> list[Tensor]:
        """(N,) for each of `masks` (N, h, w): how far the margin drops from `before` once these are taken from `fill`.

        What several masks have in common for an image is asked once, and all go through in full batches.
        """
        shape = masks[0].shape
        image = torch.arange(shape[0]).repeat(len(masks)).unsqueeze(1)
        every = torch.cat([image, torch.cat(list(masks)).flatten(1).long()], dim=1)
        jobs, places = every.unique(dim=0, return_inverse=True)
        found = []
        for part in jobs.split(AT_ONCE):
            whose, patches = part[:, 0], part[:, 1:].bool().view(-1, *shape[1:])
            if isinstance(fill, Tensor):
                margins = self.margins(replaced(images[whose], fill[whose], patches))
            else:
                margins = fill(patches, whose)
            found.append(before[whose] - margins.float().cpu() * self.direction[whose])
        return list(torch.cat(found)[places].view(len(masks), -1))


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


def grid_of(maps: Tensor) -> tuple[int, int]:
    """Rows and columns of (N, h, w)."""
    return maps.shape[1], maps.shape[2]


def patch_count(grid: tuple[int, int]) -> int:
    """How many patches of a grid are replaced."""
    return max(1, round(SHARE * grid[0] * grid[1]))


def hottest(raw: Tensor, empty: Tensor) -> Tensor:
    """(N, h, w) bool, on the trial's grid: the hottest `patch_count` patches above 0; none of a map that is `empty`."""
    raw = on_trial_grid(raw)
    flat = raw.flatten(1)
    highest = flat.topk(patch_count(grid_of(raw)), dim=1)
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, highest.indices, highest.values > 0)
    return mask.view_as(raw) & ~empty.view(-1, 1, 1)


def random_patches(count: int, grid: tuple[int, int], seed: int) -> Tensor:
    """(count, h, w) bool: `patch_count` patches of each image, by `seed`."""
    draw = torch.rand(count, grid[0] * grid[1], generator=torch.Generator().manual_seed(seed))
    return (draw.argsort(dim=1).argsort(dim=1) < patch_count(grid)).view(count, *grid)


@dataclass(frozen=True)
class Trial:
    """What N images lost, in units of the margin; every tensor float32 on the CPU.

    `margins` (N,). `moved`: fill → how far random patches move the margin, median over images as a share of the mean
    size of the margin. `drops`: fill → candidate → (N,), of the hottest patches; `random`: the same of as many patches
    at random on that candidate's grid. Both for the fills that were used, the preferred first. NaN where a
    candidate was not tried any more.
    """

    images: int
    margins: Tensor
    moved: dict[str, float]
    drops: dict[str, dict[Recipe, Tensor]]
    random: dict[str, dict[Recipe, Tensor]]


def try_candidates(
    images: Tensor,
    maps: Mapping[Recipe, Heat],
    fills: Fills,
    scorer: Scorer,
    only: str | None = None,
    before: Tensor | None = None,
    seed: int = SEED,
) -> Trial:
    """The drop of the margin of N images (N, 3, H, W), as `scorer` takes them, by each candidate's map.

    Of the fills, which are in order of preference, the first two are used that are CALM or, where there are not two,
    those that random patches move the margin least with; or `only` this one. `before`: what the scorer gives the
    images, where it is known. `seed`: of the random patches.
    """
    before = scorer.of(images) if before is None else before
    patches = {candidate: hottest(*one) for candidate, one in maps.items()}
    draws = {grid: random_patches(len(images), grid, seed) for grid in dict.fromkeys(map(grid_of, patches.values()))}
    random = {
        name: {grid: scorer.drops(before, images, fill, [drawn])[0] for grid, drawn in draws.items()}
        for name, fill in fills.items()
    }
    scale = float(before.abs().mean())
    moved = {name: _moved(list(drops.values()), scale) for name, drops in random.items()}
    calm = [fill for fill, share in moved.items() if share <= CALM]
    restless = sorted(set(moved) - set(calm), key=lambda fill: moved[fill])
    used = [only] if only else [*calm, *restless][:FILLS_USED]
    return Trial(
        len(images),
        before,
        moved,
        {name: _drops(scorer, before, images, fills[name], patches) for name in used},
        {name: {one: random[name][grid_of(mask)] for one, mask in patches.items()} for name in used},
    )


def _drops(
    scorer: Scorer, before: Tensor, images: Tensor, fill: Tensor | TokenFill, patches: Mapping[Recipe, Tensor]
) -> dict[Recipe, Tensor]:
    """Of each candidate; those of one grid together."""
    found: dict[Recipe, Tensor] = {}
    for grid in dict.fromkeys(map(grid_of, patches.values())):
        some = [one for one, mask in patches.items() if grid_of(mask) == grid]
        drops = scorer.drops(before, images, fill, [patches[one] for one in some])
        found |= dict(zip(some, drops, strict=True))
    return {one: found[one] for one in patches}


def joined(trials: Sequence[Trial]) -> Trial:
    """Trials of different images by one fill as one; of a later one candidates may be missing."""
    if len(trials) == 1:
        return trials[0]
    (fill,) = trials[0].drops

    def together(of: Callable[[Trial], Mapping[Recipe, Tensor]]) -> dict[Recipe, Tensor]:
        return {
            one: torch.cat([of(trial).get(one, torch.full((trial.images,), torch.nan)) for trial in trials])
            for one in of(trials[0])
        }

    margins = torch.cat([trial.margins for trial in trials])
    random = together(lambda trial: trial.random[fill])
    moved = _moved([drops[drops.isfinite()] for drops in random.values()], float(margins.abs().mean()))
    drops = together(lambda trial: trial.drops[fill])
    return Trial(len(margins), margins, {**trials[0].moved, fill: moved}, {fill: drops}, {fill: random})


def _moved(drops: Sequence[Tensor], scale: float) -> float:
    """The median, since random patches do hit the evidence now and then, and that is no fault of the fill's."""
    middle = float(torch.cat(list(drops)).median().abs())
    return middle / scale if scale else (0.0 if middle == 0 else float("inf"))


def passes(images: int, candidates: int, fills: int) -> int:
    """Forward passes of single images that `try_candidates` makes, where all maps have one grid."""
    return images * (1 + fills + min(fills, FILLS_USED) * candidates)
