"""The trial of maps: how far the margin drops when a map's hottest patches, or random ones, are replaced.

If a map shows the evidence, its patches cost the margin more than random ones (deletion at a single share; Petsiuk et
al. 2018). A fill replaces them: another image's pixels, or the nearest tokens of real images (`engine.real`). No fill
of pixels suits every detector: a blurred patch looks forged to one, a grey patch to another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.recipe import Recipe
from .transplant import Margins, blurred

CALM = 0.1  # a calm fill in random patches moves the margin by less than this share, so it is no evidence itself
FILLS_USED = 2  # fills that have to agree
SEED = 0  # for random patches: the same for every candidate and run
SHARE = 0.05  # share of the patches that is replaced
AT_ONCE = 64  # copies of images made at once, for as many batches as that takes
MOST_SIDE = 32  # patches per side; a finer map is averaged down, because single pixels are no evidence
MEAN_COLOUR, MIRRORED, BLUR, OTHER_REAL, PAIRED_REAL = "mean colour", "mirrored", "blur", "another real", "paired real"
REAL_TOKENS = "the nearest real tokens"

# Patches (n, h, w) bool and the image of N that each belongs to, (n,) in rising order → the margins (n,) without them.
TokenFill = Callable[[Tensor, Tensor], Tensor]
Fills = Mapping[str, Tensor | TokenFill]  # name → replacement of the N images (N, 3, H, W), or a TokenFill


def mean_coloured(images: Tensor) -> Tensor:
    """Fill each image (N, 3, H, W) with its mean colour."""
    return images.mean(dim=(2, 3), keepdim=True).expand_as(images)


# Fills from the image itself, the preferred one first. The face's other side may be as forged as the replaced patch.
FILLS: Mapping[str, Callable[[Tensor], Tensor]] = {
    MEAN_COLOUR: mean_coloured, BLUR: blurred, MIRRORED: lambda images: images.flip(3)
}  # fmt: skip


def fills_of(images: Tensor, reals: Tensor | None = None) -> dict[str, Tensor]:
    """Return all fills of `images` (N, 3, H, W) that need no pair, the preferred one first.

    `reals` (M, 3, H, W): images that the detector calls real; image i gets the patches of real i modulo M.
    """
    fills = {name: fill(images) for name, fill in FILLS.items()}
    if reals is None or not len(reals):
        return fills
    return {OTHER_REAL: reals[torch.arange(len(images), device=reals.device) % len(reals)], **fills}


class CandidateMaps(NamedTuple):
    """A candidate's maps of N images, on the CPU: raw (N, h, w) float32, and whether each is empty (N,) bool."""

    raw: Tensor
    empty: Tensor


class Scorer(NamedTuple):
    """The margin towards the explained class. `direction` (N,) on the CPU: 1 for fake, -1 for real."""

    margins: Margins
    direction: Tensor

    def of(self, images: Tensor) -> Tensor:
        """Score images (N, 3, H, W): (N,) float32 on the CPU, positive for the explained class."""
        return self.margins(images).float().cpu() * self.direction

    def drops(self, before: Tensor, images: Tensor, fill: Tensor | TokenFill, masks: Sequence[Tensor]) -> list[Tensor]:
        """Return the drop (N,) of the margin from `before` for each of `masks` (N, h, w), replaced by `fill`.

        Equal masks of an image are computed once, and all run in full batches.
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
    """Replace the pixels of `patches` (N, h, w) bool in `images` (N, 3, H, W) by those of `fill`."""
    pixels = F.interpolate(patches.unsqueeze(1).float().to(images.device), size=images.shape[2:], mode="nearest")
    return torch.where(pixels > 0, fill, images)


def on_trial_grid(raw: Tensor) -> Tensor:
    """Average raw maps (N, h, w), or of clips (N, t, h, w), down to at most MOST_SIDE patches a side."""
    rows, columns = raw.shape[-2:]
    if max(rows, columns) <= MOST_SIDE:
        return raw
    return F.adaptive_avg_pool2d(raw, (min(MOST_SIDE, rows), min(MOST_SIDE, columns)))


def grid_of(maps: Tensor) -> tuple[int, int]:
    """Return rows and columns of maps (N, h, w)."""
    return maps.shape[1], maps.shape[2]


def patch_count(grid: tuple[int, int]) -> int:
    """Return the number of patches of a grid to replace."""
    return max(1, round(SHARE * grid[0] * grid[1]))


def hottest(raw: Tensor, empty: Tensor) -> Tensor:
    """Select the hottest `patch_count` patches above 0, on the trial's grid: (N, h, w) bool; none of an `empty` map."""
    raw = on_trial_grid(raw)
    return highest(raw, empty, patch_count(grid_of(raw)))


def highest(values: Tensor, empty: Tensor, count: int) -> Tensor:
    """Select the `count` highest of each image's values (N, ...) above 0, shaped like them; none where `empty` (N,)."""
    flat = values.flatten(1)
    top = flat.topk(count, dim=1)
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, top.indices, top.values > 0)
    return (mask & ~empty.unsqueeze(1)).view_as(values)


def random_patches(count: int, grid: tuple[int, int], seed: int) -> Tensor:
    """Select `patch_count` random patches per image, by `seed`: (count, h, w) bool."""
    return random_places((count, *grid), patch_count(grid), seed)


def random_places(shape: Sequence[int], count: int, seed: int) -> Tensor:
    """Select `count` random places of each image, by `seed`: bool of `shape` (N, ...)."""
    draw = torch.rand(shape[0], math.prod(shape[1:]), generator=torch.Generator().manual_seed(seed))
    return (draw.argsort(dim=1).argsort(dim=1) < count).view(*shape)


@dataclass(frozen=True)
class Trial:
    """The drops of N images' margins; every tensor is float32 on the CPU.

    `margins` (N,). `moved`: fill → how far random patches move the margin (median over images, as a share of the mean
    size of the margin). `drops`: fill → candidate → drop (N,) for the hottest patches; `random`: the same for as many
    random patches on the candidate's grid. Both hold the used fills, the preferred one first. NaN: not tried.
    """

    images: int
    margins: Tensor
    moved: dict[str, float]
    drops: dict[str, dict[Recipe, Tensor]]
    random: dict[str, dict[Recipe, Tensor]]


def try_candidates(
    images: Tensor,
    maps: Mapping[Recipe, CandidateMaps],
    fills: Fills,
    scorer: Scorer,
    only: str | None = None,
    before: Tensor | None = None,
    seed: int = SEED,
) -> Trial:
    """Measure the drop of the margin of normalised images (N, 3, H, W) for each candidate's map.

    The first two CALM fills in the order of preference are used; if there are fewer, those that move the margin least
    follow. `only`: use this fill. `before`: the images' scores, if known. `seed`: for random patches.
    """
    before = scorer.of(images) if before is None else before
    patches = {candidate: hottest(*one) for candidate, one in maps.items()}
    draws = {grid: random_patches(len(images), grid, seed) for grid in dict.fromkeys(map(grid_of, patches.values()))}
    random = {
        name: {grid: scorer.drops(before, images, fill, [drawn])[0] for grid, drawn in draws.items()}
        for name, fill in fills.items()
    }
    scale = float(before.abs().mean())
    moved = {name: moved_by(list(drops.values()), scale) for name, drops in random.items()}
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
    """Join trials of different images with one fill. Later trials may lack candidates."""
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
    moved = moved_by([drops[drops.isfinite()] for drops in random.values()], float(margins.abs().mean()))
    drops = together(lambda trial: trial.drops[fill])
    return Trial(len(margins), margins, {**trials[0].moved, fill: moved}, {fill: drops}, {fill: random})


def moved_by(drops: Sequence[Tensor], scale: float) -> float:
    """Return the median, because random patches sometimes hit the evidence, which is not the fill's fault."""
    middle = float(torch.cat(list(drops)).median().abs())
    return middle / scale if scale else (0.0 if middle == 0 else float("inf"))


def passes(images: int, candidates: int, fills: int) -> int:
    """Count the forward passes of single images in `try_candidates`, if all maps share one grid."""
    return images * (1 + fills + min(fills, FILLS_USED) * candidates)
