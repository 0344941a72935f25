"""The trial of clips' maps: how far the margin drops when their hottest cells, in time and space, are replaced.

It is `judge.trial` for clips (N, T, 3, H, W). A cell is replaced by the same cell of the real video that the fake was
made from. If that is unknown, it is replaced by the same place in the nearest frame that keeps it, so that it stays a
piece of the same video; the second fill is then the clip's mean colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ...engine.clips.grid import steps_of
from ...engine.recipe import Recipe
from ..trial import (
    PAIRED_REAL,
    SEED,
    SHARE,
    CandidateMaps,
    Scorer,
    Trial,
    highest,
    moved_by,
    on_trial_grid,
    random_places,
)
from .time import nearest_kept

FROZEN, MEAN = "the nearest frame", "mean colour"


def cell_count(shape: Sequence[int]) -> int:
    """Return the number of cells to replace in each clip of maps of `shape` (N, T, h, w)."""
    return max(1, round(SHARE * math.prod(shape[1:])))


def frozen_cells(clips: Tensor, replaced: Tensor) -> Tensor:
    """Replace cells (N, T, h, w) bool of clips (N, T, 3, H, W) by the nearest frame that keeps them.

    A place that no frame keeps stays unchanged.
    """
    pixels = F.interpolate(nearest_kept(replaced).float(), size=clips.shape[3:], mode="nearest").long().to(clips.device)
    return clips.gather(1, pixels.unsqueeze(2).expand(clips.shape))


def mean_coloured_cells(clips: Tensor, replaced: Tensor) -> Tensor:
    """Replace cells (N, T, h, w) bool of clips (N, T, 3, H, W) by the clip's mean colour."""
    return exchanged_cells(clips, replaced, clips.mean(dim=(1, 3, 4), keepdim=True))


def exchanged_cells(clips: Tensor, replaced: Tensor, others: Tensor) -> Tensor:
    """Replace cells (N, T, h, w) bool of clips (N, T, 3, H, W) by those of `others`."""
    mask = F.interpolate(replaced.float(), size=clips.shape[3:], mode="nearest").bool().unsqueeze(2).to(clips.device)
    return torch.where(mask, others, clips)


CLIP_FILLS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {FROZEN: frozen_cells, MEAN: mean_coloured_cells}


def try_clip_maps(
    clips: Tensor, maps: Mapping[Recipe, CandidateMaps], scorer: Scorer, reals: Tensor | None = None
) -> Trial:
    """Measure the drop of N clips' margins for each candidate's map (N, t, h, w).

    The fill is `reals` (N, T, 3, H, W), the real clips that these were made from, if given; else there are two.
    """
    fills = CLIP_FILLS if reals is None else {PAIRED_REAL: partial(exchanged_cells, others=reals)}
    before, masks = scorer.of(clips), {}
    for one, (raw, empty) in maps.items():
        cells = on_trial_grid(raw)[:, steps_of(raw.shape[1], clips.shape[1])]
        masks[one] = highest(cells, empty, cell_count(cells.shape))
    shapes = dict.fromkeys(mask.shape for mask in masks.values())
    draws = {shape: random_places(shape, cell_count(shape), SEED) for shape in shapes}
    drops: dict[str, dict[Recipe, Tensor]] = {}
    random: dict[str, dict[Recipe, Tensor]] = {}
    moved: dict[str, float] = {}
    scale = float(before.abs().mean())
    for name, fill in fills.items():
        drawn = {shape: before - scorer.of(fill(clips, mask)) for shape, mask in draws.items()}
        drops[name] = {one: before - scorer.of(fill(clips, mask)) for one, mask in masks.items()}
        random[name] = {one: drawn[mask.shape] for one, mask in masks.items()}
        moved[name] = moved_by(list(drawn.values()), scale)
    return Trial(len(clips), before, moved, drops, random)
