"""How a score falls as the hottest pixels are replaced: deletion and insertion (Petsiuk et al. 2018, RISE), and SaCo.

`images` and `fill`, which replaces them, are (N, 3, H, W) as the score takes them, `maps` (N, H, W) on the same device;
`seed` breaks ties, and `batch_size` images are scored in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Shares of the image that are replaced. A forged region is small, so that the steps are fine where it is found.
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
GROUPS = 10  # of SaCo, as in its paper

Score = Callable[[Tensor], Tensor]  # images (N, 3, H, W) as the detector reads them → (N,)


class Curves(NamedTuple):
    """Scores (N, len(shares)) after each share of the pixels was replaced or restored, float32 on the CPU."""

    deletion: Tensor
    insertion: Tensor


def pixel_ranks(maps: Tensor, seed: int) -> Tensor:
    """(N, H, W) → (N, H · W) int64: 0 for the hottest pixel; tied pixels are ordered at random by `seed`."""
    return hottest_first(maps.flatten(1), seed).argsort(dim=1)


def hottest_first(values: Tensor, seed: int) -> Tensor:
    """(N, K) → the positions (N, K) int64 of the values, the largest first; ties at random by `seed`."""
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
    """Both curves of N images; `shares` of the pixels rise from 0 to 1."""
    ranks = pixel_ranks(maps, seed)
    steps = [round(share * ranks.shape[1]) for share in shares]
    # Both ends are the whole image and the whole fill, whatever the map says.
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
    """(N, len(steps), 2): the scores with the hottest pixels replaced, and with these alone restored."""
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
    """Area under each curve (N, S) → (N,), by trapezoids."""
    return torch.trapezoid(curves, torch.tensor(shares, dtype=curves.dtype), dim=1)


@torch.no_grad()
def score_without(
    images: Tensor, fill: Tensor, maps: Tensor, score: Score, share: float, seed: int = 0, batch_size: int = 64
) -> Tensor:
    """The score (N,) once the hottest `share` of the pixels is replaced: one point of the deletion curve."""
    height, width = images.shape[2:]
    taken = (pixel_ranks(maps, seed) < round(share * height * width)).view(-1, 1, height, width)
    return scores_of(score, torch.where(taken, fill, images), batch_size).float().cpu()


@torch.no_grad()
def saco(images: Tensor, fill: Tensor, maps: Tensor, score: Score, seed: int = 0, batch_size: int = 64) -> Tensor:
    """In [-1, 1] for each of N images, float32 on the CPU: does the score fall as much as the map says for its pixels?

    The salience-guided faithfulness coefficient (Wu et al., CVPR 2024, arXiv 2404.01415, algorithm 1). The pixels are
    sorted by the map, which is in [0, 1], into ten groups G_1 (hottest) to G_10 of equal size. With s_i the map's sum
    over G_i and d_i how far the score falls where only G_i is replaced:

        SaCo = Σ_i<j ±(s_i − s_j) / Σ_i<j |s_i − s_j|,   + where d_i ≥ d_j

    Deletion tells only of the groups that it replaces first; here every group counts. A map without any range has 0.
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
