"""Whether a map points at the forged region, and whether it is steady over a video.

`maps` are (N, H, W) float in [0, 1]; an all-zero one is empty and points nowhere. `masks` are (N, H, W) bool, True
where the image is forged, neither empty nor full. Each metric returns one value per image, (N,) float32; higher is
better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Maps are measured as drawn, in 256 levels; IoU uses the pixels of at least a given level.
LEVELS = 256
IOU_LEVELS = tuple(range(13, LEVELS, 13))  # 0.05, 0.10, ... 0.95
FIXED_LEVEL = 128  # one half


class Localisation(NamedTuple):
    """Scores of N maps against their masks: each (N,), `iou` (N, len(IOU_LEVELS)), on the CPU."""

    pointing: Tensor
    energy: Tensor
    average_precision: Tensor
    iou_fixed: Tensor
    iou: Tensor


def localise(maps: Tensor, masks: Tensor) -> Localisation:
    """Compute all metrics of this module for maps (N, H, W) and masks (N, H, W)."""
    inside, outside = level_counts(maps, masks)
    precision, overlap = over_levels(inside, outside)
    return Localisation(
        pointing_game(maps, masks).cpu(),
        energy_in_mask(maps, masks).cpu(),
        precision.cpu(),
        overlap[:, FIXED_LEVEL].cpu(),
        overlap[:, list(IOU_LEVELS)].cpu(),
    )


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """Return 1 if the hottest pixel is in the mask, else 0 (Zhang et al. 2018); for ties, the share that is."""
    peak = maps.amax(dim=(1, 2), keepdim=True)
    hottest = maps == peak
    share = (hottest & masks).sum(dim=(1, 2)) / hottest.sum(dim=(1, 2))
    return torch.where(peak.flatten() > 0, share, torch.zeros_like(share))


def click_distance(drawn: Tensor, clicks: np.ndarray, size: tuple[int, int]) -> float:
    """Return the distance from the hottest pixel of a map (H, W) to the nearest click.

    It is in pixels of an image of `size` (height, width); for ties the mean, for an empty map the diagonal. `clicks`:
    (n, 2) x and y as shares of width and height.
    """
    height, width = size
    if not bool(drawn.any()):
        return float(np.hypot(height, width))
    rows, columns = (drawn == drawn.max()).nonzero(as_tuple=True)
    x = (columns.double().cpu().numpy() + 0.5) / drawn.shape[1] * width
    y = (rows.double().cpu().numpy() + 0.5) / drawn.shape[0] * height
    distances = np.hypot(x[:, None] - clicks[:, 0] * width, y[:, None] - clicks[:, 1] * height)
    return float(distances.min(axis=1).mean())


def energy_in_mask(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the share of the map's sum in the mask (Wang et al. 2020); Quantus calls it relevance mass accuracy."""
    total = maps.sum(dim=(1, 2))
    inside = torch.linalg.vecdot(maps.flatten(1), masks.flatten(1).to(maps.dtype))
    return inside / torch.where(total > 0, total, torch.ones_like(total))


def level_counts(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Count the pixels per level, (N, 256) float64, inside and outside the mask."""
    count = len(maps)
    level = (maps * (LEVELS - 1)).round_().to(torch.int32).flatten(1)
    cell = (torch.arange(count, device=maps.device, dtype=torch.int32).unsqueeze(1) * 2 + masks.flatten(1)) * LEVELS
    counts = torch.bincount((cell + level).flatten(), minlength=count * 2 * LEVELS).view(count, 2, LEVELS).double()
    return counts[:, 1], counts[:, 0]


def over_levels(inside: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """Compute average precision (N,) and each level's IoU (N, 256) from `level_counts`.

    Average precision is Σ (R_n - R_n-1) P_n over the levels, from the hottest down. An empty map ranks no pixel and has
    0; scikit-learn would give it the mask's share.
    """
    found = inside.flip(1).cumsum(1)  # from the hottest level down
    taken = found + outside.flip(1).cumsum(1)
    total = inside.sum(1, keepdim=True)
    precision = (inside.flip(1) * (found / taken.clamp(min=1))).sum(1, keepdim=True) / total
    iou = (found / (taken + total - found)).flip(1)
    empty = (inside + outside)[:, 1:].sum(1, keepdim=True) == 0
    return precision.masked_fill(empty, 0).flatten().float(), iou.masked_fill(empty, 0).float()


class TemporalConsistency:
    """The correlation of maps over one video's frames. A frame without a map, or an empty map, breaks the sequence."""

    def __init__(self) -> None:
        self._before: dict[str, np.ndarray] = {}
        self._correlations: dict[str, list[float]] = {}

    def add(self, raw_maps: Mapping[str, np.ndarray]) -> None:
        """Add the next frame's raw maps (h, w) by layer, without empty ones."""
        now = {layer: raw.astype(np.float64).ravel() for layer, raw in raw_maps.items()}
        for layer, values in now.items():
            row = self._correlations.setdefault(layer, [])
            if layer in self._before:
                row.append(float(np.corrcoef(self._before[layer], values)[0, 1]))
        self._before = now

    def consistency(self) -> dict[str, float]:
        """Return per layer the mean Pearson correlation between maps of neighbouring frames; NaN without a pair."""
        return {layer: float(np.mean(row)) if row else math.nan for layer, row in self._correlations.items()}
