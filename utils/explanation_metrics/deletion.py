"""Deletion and insertion: how the score falls as the hottest pixels are taken away, and rises as they are restored.

Petsiuk et al. 2018 (RISE). What a pixel is replaced by matters for deepfakes, since a grey patch is no real face
either: beside blur and the mean colour there is the same frame of the real video (Gowrisankar and Thing 2024).
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PAIRED_REAL = "paired real"
FILLS = ("blur", "mean", PAIRED_REAL)
# Shares of the picture that are replaced. A forged region is small, so that the steps are fine where it is found.
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
BLUR = 0.05  # deviation of the blur, as a share of the picture's side

Score = Callable[[Tensor], Tensor]  # pictures (N, 3, H, W) as the detector reads them → (N,)


class Curves(NamedTuple):
    """Scores (N, len(shares)) after each share of the pixels was replaced or restored, float32 on the CPU."""

    deletion: Tensor
    insertion: Tensor


def blurred(pictures: Tensor) -> Tensor:
    """(N, 3, H, W) → the same after a Gaussian blur, float."""
    side = min(pictures.shape[2:])
    sigma = BLUR * side
    radius = min(int(3 * sigma), side - 1)
    x = torch.arange(-radius, radius + 1, device=pictures.device, dtype=pictures.dtype)
    kernel = torch.exp(-x.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    padded = F.pad(pictures, [radius] * 4, mode="reflect")
    rows = F.conv2d(padded, kernel.unsqueeze(2), groups=3)
    return F.conv2d(rows, kernel.unsqueeze(3), groups=3)


def mean_coloured(pictures: Tensor) -> Tensor:
    """(N, 3, H, W) → each picture's own mean colour everywhere."""
    return pictures.mean(dim=(2, 3), keepdim=True).expand_as(pictures)


def pixel_ranks(maps: Tensor, seed: int) -> Tensor:
    """(N, H, W) → (N, H · W) int64: 0 for the hottest pixel; the order among tied pixels is drawn by `seed`."""
    flat = maps.flatten(1)
    draw = torch.rand(flat.shape, generator=torch.Generator().manual_seed(seed)).to(flat.device).argsort(dim=1)
    order = draw.gather(1, flat.gather(1, draw).argsort(dim=1, descending=True, stable=True))
    return order.argsort(dim=1)


@torch.no_grad()
def deletion_insertion(
    pictures: Tensor,
    fill: Tensor,
    maps: Tensor,
    score: Score,
    seed: int = 0,
    shares: Sequence[float] = SHARES,
    batch_size: int = 64,
) -> Curves:
    """Both curves of N pictures.

    Args:
        pictures: (N, 3, H, W) as `score` takes them; `fill`: the same shape, what replaces them.
        maps: (N, H, W), on the same device. `seed` breaks ties.
        shares: of the pixels that are replaced (deletion) or restored (insertion), rising from 0 to 1.
        batch_size: pictures a call of `score`.
    """
    height, width = pictures.shape[2:]
    ranks = pixel_ranks(maps, seed)
    steps = [round(share * height * width) for share in shares]
    # Both ends are the whole picture and the whole fill, whatever the map says.
    ends = torch.stack([_scores(score, batch, batch_size) for batch in (pictures, fill)], dim=1)
    inner = _varied_scores(pictures, fill, ranks, steps[1:-1], score, batch_size)
    deletion = torch.cat([ends[:, :1], inner[..., 0], ends[:, 1:]], dim=1)
    insertion = torch.cat([ends[:, 1:], inner[..., 1], ends[:, :1]], dim=1)
    return Curves(deletion.float().cpu(), insertion.float().cpu())


def _scores(score: Score, pictures: Tensor, batch_size: int) -> Tensor:
    return torch.cat([score(part) for part in pictures.split(batch_size)])


def _varied_scores(
    pictures: Tensor, fill: Tensor, ranks: Tensor, steps: Sequence[int], score: Score, batch_size: int
) -> Tensor:
    """(N, len(steps), 2): the scores with the hottest pixels replaced, and with these alone restored."""
    count, _, height, width = pictures.shape
    jobs = [(i, step) for i in range(count) for step in steps]
    scores = []
    for start in range(0, len(jobs), max(1, batch_size // 2)):
        part = jobs[start : start + max(1, batch_size // 2)]
        which = torch.tensor([i for i, _ in part], device=pictures.device)
        taken = torch.tensor([step for _, step in part], device=pictures.device).unsqueeze(1)
        hottest = (ranks[which] < taken).view(-1, 1, height, width)
        original, filled = pictures[which], fill[which]
        both = torch.cat([torch.where(hottest, filled, original), torch.where(hottest, original, filled)])
        scores.append(score(both).view(2, -1))
    return torch.cat(scores, dim=1).T.view(count, len(steps), 2)


def area(curves: Tensor, shares: Sequence[float] = SHARES) -> Tensor:
    """Area under each curve (N, S) → (N,), by trapezoids."""
    return torch.trapezoid(curves, torch.tensor(shares, dtype=curves.dtype), dim=1)


@torch.no_grad()
def score_without(
    pictures: Tensor, fill: Tensor, maps: Tensor, score: Score, share: float, seed: int = 0, batch_size: int = 64
) -> Tensor:
    """The score (N,) once the hottest `share` of the pixels is replaced: one point of the deletion curve."""
    height, width = pictures.shape[2:]
    taken = (pixel_ranks(maps, seed) < round(share * height * width)).view(-1, 1, height, width)
    return _scores(score, torch.where(taken, fill, pictures), batch_size).float().cpu()
