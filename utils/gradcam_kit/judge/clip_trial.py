"""The trial of clips' maps: how far the margin drops when their hottest cells, in time and space, are replaced.

It is `judge.trial` for clips (N, T, 3, H, W). A cell is replaced by the same place in the nearest frame that keeps it,
so that it stays a piece of the same video. The second fill is the clip's mean colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.clips.grid import steps_of
from ..engine.recipe import Recipe
from .trial import SEED, SHARE, CandidateMaps, Scorer, Trial

FROZEN, MEAN = "the nearest frame", "mean colour"
MOST_CELLS = 32  # per side of a frame; a finer map is averaged down


def frames_of(raw: Tensor, frames: int) -> Tensor:
    """Expand maps (N, t, h, w) to `frames` frames, averaged down to MOST_CELLS a side."""
    count, _, rows, columns = raw.shape
    if max(rows, columns) > MOST_CELLS:
        size = min(MOST_CELLS, rows), min(MOST_CELLS, columns)
        raw = F.adaptive_avg_pool2d(raw.flatten(0, 1).unsqueeze(1), size).squeeze(1).unflatten(0, (count, -1))
    return raw[:, steps_of(raw.shape[1], frames)]


def hottest_cells(cells: Tensor, empty: Tensor) -> Tensor:
    """Select the hottest SHARE of a clip's cells above 0: (N, T, h, w) bool; none of a map that is `empty` (N,)."""
    flat = cells.flatten(1)
    highest = flat.topk(_count(cells), dim=1)
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, highest.indices, highest.values > 0)
    return mask.view_as(cells) & ~empty.view(-1, 1, 1, 1)


def random_cells(cells: Tensor) -> Tensor:
    """Select as many random cells per clip: (N, T, h, w) bool."""
    draw = torch.rand(len(cells), cells[0].numel(), generator=torch.Generator().manual_seed(SEED))
    return (draw.argsort(dim=1).argsort(dim=1) < _count(cells)).view(cells.shape)


def _count(cells: Tensor) -> int:
    return max(1, round(SHARE * cells[0].numel()))


def frozen_cells(clips: Tensor, replaced: Tensor) -> Tensor:
    """Replace cells (N, T, h, w) bool of clips (N, T, 3, H, W) by the nearest frame that keeps them.

    A place that no frame keeps stays unchanged.
    """
    frames = clips.shape[1]
    times = torch.arange(frames)
    distance = (times[:, None] - times[None, :]).abs().float() + 1e-3 * (times[None, :] > times[:, None])
    kept = replaced.permute(0, 2, 3, 1).unsqueeze(3)  # (N, h, w, 1, T)
    nearest = distance.expand(*replaced.shape[0:1], *replaced.shape[2:], frames, frames).masked_fill(kept, math.inf)
    moves = replaced & ~replaced.all(dim=1, keepdim=True)
    source = torch.where(moves, nearest.argmin(dim=4).permute(0, 3, 1, 2), times[None, :, None, None])
    pixels = F.interpolate(source.float(), size=clips.shape[3:], mode="nearest").long().to(clips.device)
    return clips.gather(1, pixels.unsqueeze(2).expand(clips.shape))


def mean_coloured_cells(clips: Tensor, replaced: Tensor) -> Tensor:
    """Replace cells (N, T, h, w) bool of clips (N, T, 3, H, W) by the clip's mean colour."""
    mask = F.interpolate(replaced.float(), size=clips.shape[3:], mode="nearest").bool().unsqueeze(2).to(clips.device)
    return torch.where(mask, clips.mean(dim=(1, 3, 4), keepdim=True), clips)


CLIP_FILLS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {FROZEN: frozen_cells, MEAN: mean_coloured_cells}


def try_clip_maps(clips: Tensor, maps: Mapping[Recipe, CandidateMaps], scorer: Scorer) -> Trial:
    """Measure the drop of N clips' margins for each candidate's map (N, t, h, w), with both fills."""
    before, frames = scorer.of(clips), clips.shape[1]
    cells = {one: frames_of(heat.raw, frames) for one, heat in maps.items()}
    masks = {one: hottest_cells(cells[one], maps[one].empty) for one in maps}
    of_shape = {tuple(each.shape): each for each in cells.values()}
    draws = {shape: random_cells(each) for shape, each in of_shape.items()}
    drops: dict[str, dict[Recipe, Tensor]] = {}
    random: dict[str, dict[Recipe, Tensor]] = {}
    moved: dict[str, float] = {}
    scale = float(before.abs().mean())
    for name, fill in CLIP_FILLS.items():
        drawn = {shape: before - scorer.of(fill(clips, mask)) for shape, mask in draws.items()}
        drops[name] = {one: before - scorer.of(fill(clips, mask)) for one, mask in masks.items()}
        random[name] = {one: drawn[tuple(mask.shape)] for one, mask in masks.items()}
        middle = float(torch.cat(list(drawn.values())).median().abs())
        moved[name] = middle / scale if scale else 0.0
    return Trial(len(clips), before, moved, drops, random)
