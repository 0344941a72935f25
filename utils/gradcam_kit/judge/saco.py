"""SaCo, the salience-guided faithfulness coefficient (Wu et al., CVPR 2024, arXiv 2404.01415, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from .deletion import Score, pixel_ranks, scores_of

GROUPS = 10  # as in the paper


@torch.no_grad()
def saco(images: Tensor, fill: Tensor, maps: Tensor, score: Score, seed: int = 0, batch_size: int = 64) -> Tensor:
    """In [-1, 1] for each of N images, float32 on the CPU: does the score fall as much as the map says for its pixels?

    The pixels are sorted by the map into ten groups G_1 (hottest) to G_10 of the same size. With s_i the map's sum over
    G_i and d_i the fall of the score where G_i alone is replaced:

        SaCo = Σ_i<j ±(s_i − s_j) / Σ_i<j |s_i − s_j|,   + where d_i ≥ d_j

    Deletion replaces one group after the other and tells only of the first; here every group speaks for itself. A map
    without any range has 0. Arguments as for `judge.deletion`, the maps in [0, 1].
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
