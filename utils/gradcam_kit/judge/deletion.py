"""The drop of a score as the hottest pixels are replaced: deletion, insertion (Petsiuk et al. 2018, RISE), and SaCo.

`images` and their replacement `fill` are normalised (N, 3, H, W), `maps` (N, H, W) on the same device. `seed` breaks
ties, and `batch_size` images are scored per call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Shares of the image that are replaced. A forged region is small, so the first steps are fine.
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
GROUPS = 10  # of SaCo, as in its paper

Score = Callable[[Tensor], Tensor]  # normalised images (N, 3, H, W) → (N,)


class Curves(NamedTuple):
    """Scores (N, len(shares)) after each share of the pixels was replaced or restored, float32 on the CPU."""

    deletion: Tensor
    insertion: Tensor


def pixel_ranks(maps: Tensor, seed: int) -> Tensor:
    """Rank the pixels of maps (N, H, W): (N, H · W) int64, 0 for the hottest; ties in random order by `seed`."""
    return hottest_first(maps.flatten(1), seed).argsort(dim=1)


def hottest_first(values: Tensor, seed: int) -> Tensor:
    """Sort (N, K) values, the largest first: positions (N, K) int64; ties in random order by `seed`."""
    draw = torch.rand(values.shape, generator=torch.Generator().manual_seed(seed)).to(values.device).argsort(dim=1)
    return draw.gather(1, values.gather(1, draw).argsort(dim=1, descending=True, stable=True))


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
    """Compute the deletion and insertion curves of N images; `shares` of the pixels rise from 0 to 1."""
    ranks = pixel_ranks(maps, seed)
    steps = [round(share * ranks.shape[1]) for share in shares]
    # Both ends are the whole image and the whole fill, for any map.
    ends = torch.stack([scores_of(score, batch, batch_size) for batch in (images, fill)], dim=1)
    inner = _varied_scores(images, fill, ranks, steps[1:-1], score, batch_size)
    deletion = torch.cat([ends[:, :1], inner[..., 0], ends[:, 1:]], dim=1)
    insertion = torch.cat([ends[:, 1:], inner[..., 1], ends[:, :1]], dim=1)
    return Curves(deletion.float().cpu(), insertion.float().cpu())


def scores_of(score: Score, images: Tensor, batch_size: int) -> Tensor:
    return torch.cat([score(part) for part in images.split(batch_size)])


def _varied_scores(
    images: Tensor, fill: Tensor, ranks: Tensor, steps: Sequence[int], score: Score, batch_size: int
) -> Tensor:
    """Return the scores (N, len(steps), 2): with the hottest pixels replaced, and with only these restored."""
    count, _, height, width = images.shape
    jobs = torch.cartesian_prod(torch.arange(count), torch.tensor(steps)).to(images.device)
    scores = []
    for part in jobs.split(max(1, batch_size // 2)):
        which, taken = part.unbind(1)
        hottest = (ranks[which] < taken.unsqueeze(1)).view(-1, 1, height, width)
        original, filled = images[which], fill[which]
        both = torch.cat([torch.where(hottest, filled, original), torch.where(hottest, original, filled)])
        scores.append(score(both).view(2, -1))
    return torch.cat(scores, dim=1).T.view(count, len(steps), 2)


def area(curves: Tensor, shares: Sequence[float] = SHARES) -> Tensor:
    """Integrate each curve (N, S) by trapezoids: (N,)."""
    return torch.trapezoid(curves, torch.tensor(shares, dtype=curves.dtype), dim=1)


@torch.no_grad()
def score_without(
    images: Tensor, fill: Tensor, maps: Tensor, score: Score, share: float, seed: int = 0, batch_size: int = 64
) -> Tensor:
    """Return the score (N,) with the hottest `share` of the pixels replaced: one point of the deletion curve."""
    height, width = images.shape[2:]
    taken = (pixel_ranks(maps, seed) < round(share * height * width)).view(-1, 1, height, width)
    return scores_of(score, torch.where(taken, fill, images), batch_size).float().cpu()


@torch.no_grad()
def saco(images: Tensor, fill: Tensor, maps: Tensor, score: Score, seed: int = 0, batch_size: int = 64) -> Tensor:
    """Compute SaCo, the salience-guided faithfulness coefficient: (N,) in [-1, 1], float32 on the CPU.

    It tells whether the score drops as much as the map claims (Wu et al., CVPR 2024, arXiv 2404.01415, algorithm 1).
    The pixels are sorted by the map, in [0, 1], into ten groups G_1 (hottest) to G_10 of equal size. With s_i the map's
    sum over G_i and d_i the drop of the score if only G_i is replaced:

        SaCo = Σ_i<j ±(s_i − s_j) / Σ_i<j |s_i − s_j|,   + where d_i ≥ d_j

    Deletion depends mostly on the groups replaced first; here every group counts. A constant map has 0.
    """
    count, _, height, width = images.shape
    group = (pixel_ranks(maps, seed) * GROUPS).div(height * width, rounding_mode="floor").view(count, height, width)
    whole = scores_of(score, images, batch_size)
    salience, fall = [], []
    for number in range(GROUPS):
        chosen = group == number
        salience.append((maps * chosen).sum(dim=(1, 2)))
        fall.append(whole - scores_of(score, torch.where(chosen.unsqueeze(1), fill, images), batch_size))
    s, d = torch.stack(salience, dim=1).double(), torch.stack(fall, dim=1)
    hotter, colder = torch.triu_indices(GROUPS, GROUPS, offset=1)
    weight = s[:, hotter] - s[:, colder]
    agrees = torch.where(d[:, hotter] >= d[:, colder], weight, -weight).sum(dim=1)
    total = weight.abs().sum(dim=1)
    return (agrees / torch.where(total > 0, total, torch.ones_like(total))).float().cpu()
