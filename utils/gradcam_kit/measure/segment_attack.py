"""Segment attack: can the detector be fooled by changing only what the map calls important?

After Tsigos, Apostolidis and Mezaris 2024 (arXiv 2404.18649): the hottest one to three SLIC segments are changed until
the fake passes for real. Theirs estimates the gradient (NES); here it is available, so the steps are projected gradient
steps (Madry et al. 2018). No pixel is ever further than `BUDGET` from where it began, over the whole attack.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..engine.tokens import frozen_for_explaining
from ..judge.deletion import hottest_first
from ..model.detector import LoadedDetector
from .comparison import Columns
from .perturbation import Examined

SEGMENTS = 50
COMPACTNESS = 10.0
BUDGET = 16 / 255
STEPS = 5
TOP = (1, 2, 3)

Margin = Callable[[Tensor], Tensor]  # images (N, 3, H, W) in [0, 1] → (N,) fake - real, differentiable


def attack_metrics(examined: Examined) -> Columns:
    """Whether each detected fake passes for real once its hottest one, two and three segments are attacked: 0 or 1.

    Their mean is the drop of accuracy, since each of them was called fake. Raises ImportError without scikit-image.
    """
    detector, pixels, maps, seed, batch_size = examined
    segments = slic_segments(pixels).to(detector.device)
    start = pixels.to(detector.device).float() / 255
    margin = fake_margin(detector)
    columns: Columns = {}
    with (
        frozen_for_explaining(detector.model),
        tqdm(total=len(TOP) * len(maps), unit="attack", desc="segment attack") as bar,
    ):
        for top in TOP:
            for recipe, drawn in maps.items():
                where = hottest_segments(drawn, segments, top, seed)
                fooled = []
                for part, spot in zip(start.split(batch_size), where.split(batch_size), strict=True):
                    after = attacked(part, spot, margin)
                    with torch.no_grad():
                        fooled.append((margin(after) <= 0).cpu())
                columns.setdefault(f"accuracy drop (top {top})", {})[recipe] = torch.cat(fooled).double().numpy()
                bar.update()
    return columns


def fake_margin(detector: LoadedDetector) -> Margin:
    """Images in [0, 1] on the detector's device → score of fake minus score of real."""
    mean, std = (
        torch.tensor(values, device=detector.device).view(3, 1, 1)
        for values in (detector.gradcam.mean, detector.gradcam.std)
    )
    return lambda images: detector.scores((images - mean) / std).margin


def slic_segments(pixels: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 RGB → (N, H, W) int64, the number of each pixel's segment, from 0. Raises ImportError."""
    try:
        from skimage.segmentation import slic  # optional, and slow to import
    except ImportError as error:
        raise ImportError("it needs scikit-image: pip install scikit-image") from error
    images = pixels.permute(0, 2, 3, 1).cpu().numpy()
    segments = [slic(image, SEGMENTS, COMPACTNESS, start_label=0, channel_axis=-1) for image in images]
    return torch.from_numpy(np.stack(segments)).to(pixels.device)


def hottest_segments(maps: Tensor, segments: Tensor, top: int, seed: int) -> Tensor:
    """(N, H, W) bool: the `top` segments of highest mean map value; ties are broken at random by `seed`."""
    labels = segments.flatten(1)
    count = int(labels.max()) + 1
    sums = torch.zeros(len(maps), count, device=maps.device).scatter_add_(1, labels, maps.flatten(1))
    sizes = torch.zeros_like(sums).scatter_add_(1, labels, torch.ones_like(maps).flatten(1))
    heat = torch.where(sizes > 0, sums / sizes.clamp(min=1), torch.full_like(sums, -1.0))  # numbers an image lacks
    chosen = torch.zeros_like(heat, dtype=torch.bool).scatter_(1, hottest_first(heat, seed)[:, :top], True)
    return chosen.gather(1, labels).view_as(segments)


def attacked(images: Tensor, where: Tensor, margin: Margin, budget: float = BUDGET, steps: int = STEPS) -> Tensor:
    """The images pushed towards "real" inside `where`.

    Args:
        images: (N, 3, H, W) float in [0, 1].
        where: (N, H, W) bool, the pixels that may change.
        margin: its weights must be constants (see `frozen_for_explaining`); gradients must be enabled.

    Returns:
        (N, 3, H, W), within `budget` of `images` and in [0, 1]; outside of `where` unchanged.
    """
    low, high = (images - budget).clamp(min=0), (images + budget).clamp(max=1)
    step = 2.5 * budget / steps * where.unsqueeze(1)
    moved = images
    for _ in range(steps):
        leaf = moved.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(margin(leaf).sum(), leaf)
        moved = torch.minimum(torch.maximum(moved - step * gradient.sign(), low), high)
    return moved.detach()
