"""Contrast: what a patch adds to the score compared with the nearest patches of real images.

Token × gradient says what a patch adds compared with a token of zeros. On a pre-trained tower every eye and edge adds
more than a forgery does, so the map is compared with what real images have there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CONTRAST, CONTRAST_Z = CONTRASTS = ("contrast", "contrast_z")  # the methods' names
LEAST_DEVIATION = 0.1  # of the image's median deviation: no patch counts for more because its neighbours are alike


def contrast(A: Tensor, G: Tensor, R: Tensor) -> Tensor:
    """Contrast: map = Σ_c G_c (A_c − R_c), with R the mean of the patch's nearest tokens in real images.

    The first-order term of the score's change from R to A. `A`, `G`, `R`: (B, C, h, w) → (B, h, w).
    """
    return (G * (A - R)).sum(dim=1)


def contrast_z(A: Tensor, G: Tensor, R: Tensor, along: Tensor) -> Tensor:
    """Standardised contrast: map = Σ_c G_c (A_c − R_c) / (s + median(s) / 10), s the deviation of Σ_c G_c R_jc.

    Of the patch's k nearest real tokens R_j with the mean R. What a patch adds counts by how much real patches that
    look like it differ along the gradient: eyes and edges differ much. `A`, `G`, `R`:
    (B, C, h, w), `along` = Σ_c G_c R_jc: (B, k, h, w) → (B, h, w).
    """
    s = along.std(dim=1)
    return contrast(A, G, R) / (s + LEAST_DEVIATION * s.flatten(1).median(dim=1).values[:, None, None])


def scaled_mean(maps: Sequence[Tensor]) -> Tensor:
    """mean_l m_l / σ(m_l), σ over the patches of each image: no block outweighs another by its tokens' length.

    `maps`: (B, h, w) each. A map that is constant adds nothing.
    """
    stacked = torch.stack(list(maps))
    deviation = stacked.flatten(2).std(dim=2, unbiased=False)[..., None, None]
    scaled = torch.where(deviation > 0, stacked / deviation, torch.zeros_like(stacked))
    return scaled.mean(dim=0)


def neighbourhood_mean(u: Tensor) -> Tensor:
    """(B, h, w) → the mean of each patch and its neighbours, 3 × 3; at the border that of those there are."""
    return F.avg_pool2d(u.unsqueeze(1), 3, stride=1, padding=1, count_include_pad=False).squeeze(1)


def sharpened(u: Tensor) -> Tensor:
    """ReLU(u) · ReLU(mean of u over 3 × 3 patches)²: a patch is drawn as far as its neighbours agree."""
    return u.relu() * neighbourhood_mean(u).relu().square()
