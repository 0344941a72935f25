"""Segment attack: can the detector be fooled by changing only what the map calls important?

After Tsigos, Apostolidis and Mezaris 2024 (arXiv 2404.18649): the hottest one to three SLIC segments are changed until
the fake passes for real. Theirs estimates the gradient (NES); here it is at hand, so the steps are projected gradient
steps (Madry et al. 2018). No pixel is ever further than `BUDGET` from where it began, over the whole attack.
"""

from __future__ import annotations

from typing import Callable

import numpy as np
import torch
from torch import Tensor

SEGMENTS = 50
COMPACTNESS = 10.0
BUDGET = 16 / 255
STEPS = 5
TOP = (1, 2, 3)

Margin = Callable[[Tensor], Tensor]  # pictures (N, 3, H, W) in [0, 1] → (N,) fake - real, differentiable


def slic_segments(pixels: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 RGB → (N, H, W) int64, the number of each pixel's segment, from 0. Raises ImportError."""
    try:
        from skimage.segmentation import slic  # optional, and slow to import
    except ImportError as error:
        raise ImportError("it needs scikit-image: pip install scikit-image") from error
    pictures = pixels.permute(0, 2, 3, 1).cpu().numpy()
    segments = [slic(picture, SEGMENTS, COMPACTNESS, start_label=0, channel_axis=-1) for picture in pictures]
    return torch.from_numpy(np.stack(segments)).to(pixels.device)


def hottest_segments(maps: Tensor, segments: Tensor, top: int, seed: int) -> Tensor:
    """(N, H, W) bool: the `top` segments of highest mean map value; ties are broken at random by `seed`."""
    labels = segments.flatten(1)
    count = int(labels.max()) + 1
    sums = torch.zeros(len(maps), count, device=maps.device).scatter_add_(1, labels, maps.flatten(1))
    sizes = torch.zeros_like(sums).scatter_add_(1, labels, torch.ones_like(maps).flatten(1))
    heat = torch.where(sizes > 0, sums / sizes.clamp(min=1), torch.full_like(sums, -1.0))  # numbers a picture lacks
    draw = torch.rand(heat.shape, generator=torch.Generator().manual_seed(seed)).to(heat.device).argsort(dim=1)
    order = draw.gather(1, heat.gather(1, draw).argsort(dim=1, descending=True, stable=True))
    chosen = torch.zeros_like(heat, dtype=torch.bool).scatter_(1, order[:, :top], True)
    return chosen.gather(1, labels).view_as(segments)


def attacked(pictures: Tensor, where: Tensor, margin: Margin, budget: float = BUDGET, steps: int = STEPS) -> Tensor:
    """The pictures pushed towards "real" inside `where`.

    Args:
        pictures: (N, 3, H, W) float in [0, 1].
        where: (N, H, W) bool, the pixels that may change.
        margin: its weights must be constants (see `utils.gradcam.explaining`); gradients must be enabled.

    Returns:
        (N, 3, H, W), within `budget` of `pictures` and in [0, 1]; outside of `where` unchanged.
    """
    low, high = (pictures - budget).clamp(min=0), (pictures + budget).clamp(max=1)
    step = 2.5 * budget / steps * where.unsqueeze(1)
    moved = pictures
    for _ in range(steps):
        leaf = moved.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(margin(leaf).sum(), leaf)
        moved = torch.minimum(torch.maximum(moved - step * gradient.sign(), low), high)
    return moved.detach()
