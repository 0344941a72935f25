"""Deletion and insertion: how the score falls as the hottest pixels are taken away, and rises as they are restored.

Petsiuk et al. 2018 (RISE). What a pixel is replaced by matters for deepfakes, since a grey patch is no real face
either: beside blur and the mean colour there is the same frame of the real video (Gowrisankar and Thing 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..engine.recipe import Recipe
from ..judge.fills import PAIRED_REAL, blurred, mean_coloured
from ..model.detector import LoadedDetector
from .comparison import Columns
from .sweep import resized

FILLS = ("blur", "mean", PAIRED_REAL)
# Shares of the image that are replaced. A forged region is small, so that the steps are fine where it is found.
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
SCREENED = 0.1  # the share that is replaced where maps are ranked without masks

Score = Callable[[Tensor], Tensor]  # images (N, 3, H, W) as the detector reads them → (N,)


class Curves(NamedTuple):
    """Scores (N, len(shares)) after each share of the pixels was replaced or restored, float32 on the CPU."""

    deletion: Tensor
    insertion: Tensor


class RealFrames(NamedTuple):
    """The real counterpart of each of N images, for PAIRED_REAL."""

    pixels: Tensor  # (N, 3, R, R) uint8
    paired: Tensor  # (N,) bool: which images have one


# ------------------------------------------------------------------------------------------------ of a loaded detector


def deletion_metrics(
    detector: LoadedDetector,
    maps: Mapping[Recipe, Tensor],
    pixels: Tensor,
    reals: RealFrames,
    seed: int,
    batch_size: int,
) -> tuple[Columns, dict[str, dict[Recipe, Curves]]]:
    """Areas under both curves for each fill, one value per image, and the curves themselves.

    Args:
        maps: (N, R, R) in [0, 1], on the detector's device.
        pixels: (N, 3, R, R) uint8.
        reals: the counterparts of these images; without any the fill PAIRED_REAL is left out.
        seed: breaks ties.
    """
    images = detector.normalised(pixels)
    score = fake_probability(detector)
    columns: Columns = {}
    curves: dict[str, dict[Recipe, Curves]] = {}
    with tqdm(total=len(FILLS) * len(maps), unit="curve", desc="deletion and insertion") as bar:
        for fill in FILLS:
            use = reals.paired if fill == PAIRED_REAL else torch.ones(len(pixels), dtype=torch.bool)
            if not use.any():
                bar.update(len(maps))
                continue
            used = use.to(images.device)
            replacement = _fill(detector, fill, images[used], reals.pixels[use])
            curves[fill] = {}
            for spec, drawn in maps.items():
                found = deletion_insertion(
                    images[used], replacement, drawn[used], score, seed, batch_size=2 * batch_size
                )
                curves[fill][spec] = found
                for kind, curve in (("deletion", found.deletion), ("insertion", found.insertion)):
                    column = np.full(len(pixels), np.nan)
                    column[use.numpy()] = area(curve).numpy()
                    columns.setdefault(f"{kind} ({fill})", {})[spec] = column
                bar.update()
    return columns, curves


def screening(
    detector: LoadedDetector, maps: Mapping[Recipe, Tensor], pixels: Tensor, seed: int, batch_size: int
) -> dict[Recipe, np.ndarray]:
    """How far the probability of fake falls once the hottest tenth is blurred: ranks maps where there are no masks.

    `maps`: raw (N, h, w); resized here, one kind at a time. `pixels`: (N, 3, R, R) uint8. Returns (N,) per map.
    """
    images = detector.normalised(pixels)
    fill, score = blurred(images), fake_probability(detector)
    with torch.no_grad():
        before = torch.cat([score(part) for part in images.split(batch_size)]).cpu()
    found = {}
    for spec, raw in tqdm(maps.items(), desc="ranking maps by deletion", unit="map"):
        after = score_without(images, fill, resized(detector, raw), score, SCREENED, seed, batch_size)
        found[spec] = (before - after).numpy()
    return found


def fake_probability(detector: LoadedDetector) -> Score:
    """Normalised images (N, 3, R, R) on the device → probability of fake (N,)."""

    def score(images: Tensor) -> Tensor:
        return detector.scores(images).prob_fake.float()

    return score


def _fill(detector: LoadedDetector, fill: str, images: Tensor, reals: Tensor) -> Tensor:
    if fill == "blur":
        return blurred(images)
    return mean_coloured(images) if fill == "mean" else detector.normalised(reals)


# -------------------------------------------------------------------------------------------------------- any score


def pixel_ranks(maps: Tensor, seed: int) -> Tensor:
    """(N, H, W) → (N, H · W) int64: 0 for the hottest pixel; tied pixels are ordered at random by `seed`."""
    flat = maps.flatten(1)
    draw = torch.rand(flat.shape, generator=torch.Generator().manual_seed(seed)).to(flat.device).argsort(dim=1)
    order = draw.gather(1, flat.gather(1, draw).argsort(dim=1, descending=True, stable=True))
    return order.argsort(dim=1)


@torch.no_grad()
def deletion_insertion(
    images: Tensor,
    fill: Tensor,
    maps: Tensor,
    score: Score,
    seed: int = 0,
    shares: Sequence[float] = SHARES,
    batch_size: int = 64,
) -> Curves:
    """Both curves of N images.

    Args:
        images: (N, 3, H, W) as `score` takes them.
        fill: the same shape, what replaces them.
        maps: (N, H, W), on the same device.
        seed: breaks ties.
        shares: of the pixels that are replaced (deletion) or restored (insertion), rising from 0 to 1.
        batch_size: images per call of `score`.
    """
    height, width = images.shape[2:]
    ranks = pixel_ranks(maps, seed)
    steps = [round(share * height * width) for share in shares]
    # Both ends are the whole image and the whole fill, whatever the map says.
    ends = torch.stack([_scores(score, batch, batch_size) for batch in (images, fill)], dim=1)
    inner = _varied_scores(images, fill, ranks, steps[1:-1], score, batch_size)
    deletion = torch.cat([ends[:, :1], inner[..., 0], ends[:, 1:]], dim=1)
    insertion = torch.cat([ends[:, 1:], inner[..., 1], ends[:, :1]], dim=1)
    return Curves(deletion.float().cpu(), insertion.float().cpu())


def _scores(score: Score, images: Tensor, batch_size: int) -> Tensor:
    return torch.cat([score(part) for part in images.split(batch_size)])


def _varied_scores(
    images: Tensor, fill: Tensor, ranks: Tensor, steps: Sequence[int], score: Score, batch_size: int
) -> Tensor:
    """(N, len(steps), 2): the scores with the hottest pixels replaced, and with these alone restored."""
    count, _, height, width = images.shape
    jobs = [(i, step) for i in range(count) for step in steps]
    scores = []
    for start in range(0, len(jobs), max(1, batch_size // 2)):
        part = jobs[start : start + max(1, batch_size // 2)]
        which = torch.tensor([i for i, _ in part], device=images.device)
        taken = torch.tensor([step for _, step in part], device=images.device).unsqueeze(1)
        hottest = (ranks[which] < taken).view(-1, 1, height, width)
        original, filled = images[which], fill[which]
        both = torch.cat([torch.where(hottest, filled, original), torch.where(hottest, original, filled)])
        scores.append(score(both).view(2, -1))
    return torch.cat(scores, dim=1).T.view(count, len(steps), 2)


def area(curves: Tensor, shares: Sequence[float] = SHARES) -> Tensor:
    """Area under each curve (N, S) → (N,), by trapezoids."""
    return torch.trapezoid(curves, torch.tensor(shares, dtype=curves.dtype), dim=1)


@torch.no_grad()
def score_without(
    images: Tensor, fill: Tensor, maps: Tensor, score: Score, share: float, seed: int = 0, batch_size: int = 64
) -> Tensor:
    """The score (N,) once the hottest `share` of the pixels is replaced: one point of the deletion curve."""
    height, width = images.shape[2:]
    taken = (pixel_ranks(maps, seed) < round(share * height * width)).view(-1, 1, height, width)
    return _scores(score, torch.where(taken, fill, images), batch_size).float().cpu()
