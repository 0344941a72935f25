"""Contrast: how much more a patch adds to the score than the nearest patches of real images.

Token × gradient compares a patch with a token of zeros. On a pre-trained tower, every eye and edge adds more than a
forgery does, so contrast compares it with real images instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CONTRAST, CONTRAST_Z = CONTRASTS = ("contrast", "contrast_z")  # the methods' names
LEAST_DEVIATION = 0.1  # of the image's median deviation: bounds the weight of a patch with nearly equal neighbours


def contrast(A: Tensor, G: Tensor, R: Tensor) -> Tensor:
    """Compute contrast: map = Σ_c G_c (A_c − R_c), where R is the mean of the patch's nearest real tokens.

    It is the first-order change of the score from R to A. `A`, `G`, `R`: (B, C, h, w) → (B, h, w).
    """
    return (G * (A - R)).sum(dim=1)


def contrast_z(A: Tensor, G: Tensor, R: Tensor, along: Tensor) -> Tensor:
    """Compute standardised contrast: map = Σ_c G_c (A_c − R_c) / (s + median(s) / 10), s the deviation of Σ_c G_c R_jc.

    R_j are the patch's k nearest real tokens, R is their mean. Dividing by s downweights a patch whose similar real
    patches vary much along the gradient, as eyes and edges do. `A`, `G`, `R`: (B, C, h, w), `along` = Σ_c G_c R_jc:
    (B, k, h, w) → (B, h, w).
    """
    s = along.std(dim=1)
    return contrast(A, G, R) / (s + LEAST_DEVIATION * s.flatten(1).median(dim=1).values[:, None, None])


def scaled_mean(maps: Sequence[Tensor]) -> Tensor:
    """Return mean_l m_l / σ(m_l), σ over each image's patches, so that no block outweighs others by token length.

    `maps`: (B, h, w) each. A constant map adds nothing.
    """
    stacked = torch.stack(list(maps))
    deviation = stacked.flatten(2).std(dim=2, unbiased=False)[..., None, None]
    scaled = torch.where(deviation > 0, stacked / deviation, torch.zeros_like(stacked))
    return scaled.mean(dim=0)


def neighbourhood_mean(u: Tensor) -> Tensor:
    """Average each patch of (B, h, w) with its 3 × 3 neighbourhood; at the border, with the neighbours inside."""
    return F.avg_pool2d(u.unsqueeze(1), 3, stride=1, padding=1, count_include_pad=False).squeeze(1)


def sharpened(u: Tensor) -> Tensor:
    """Return ReLU(u) · ReLU(mean of u over 3 × 3 patches)³ of (B, h, w): a patch stays high if its neighbours agree.

    Patches beyond the border count as 0. A mean of the fewer ones inside would vary more, and be the largest by chance.
    """
    return u.relu() * F.avg_pool2d(u.unsqueeze(1), 3, stride=1, padding=1).squeeze(1).relu() ** 3
