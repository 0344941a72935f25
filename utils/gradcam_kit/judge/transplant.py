"""Patch transplant: a patch's value is measured by exchanging it, not derived from a gradient.

After CAAP (arXiv 2603.13652) and Gowrisankar and Thing 2024. With x the image, r its reference (its original real
frame, or a blurred copy), x[k ← r] the image whose patch k comes from r, and m the margin fake − real:

    map_k = ((m(x) − m(x[k ← r])) + (m(r[k ← x]) − m(r))) / 2

It takes two forward passes per patch, and none for a patch that is the same in both, whose value is exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

INPUT, PIXELS = "input", "pixels"  # stand for the layer and the site of its only map
CELLS = (16, 16)  # rows and columns for a network without patches
BLUR = 0.05  # standard deviation of the blur, as a share of the image's side

Margins = Callable[[Tensor], Tensor]  # images (N, 3, H, W) → fake − real (N,)


@torch.no_grad()
def transplant_maps(
    margins: Margins,
    images: Tensor,
    references: Tensor,
    grid: tuple[int, int],
    batch_size: int,
    only: Tensor | None = None,
) -> Tensor:
    """Compute the signed map of each image: (B, h, w) float32, positive for evidence for "fake".

    `images` and `references`: normalised (B, 3, H, W). `grid`: rows and columns of patches. `only`: (B, h, w) bool,
    the patches to measure; others are 0.
    """
    patch = patch_of_pixel(grid, (images.shape[2], images.shape[3]), images.device)
    differs = (images != references).any(dim=1).flatten(1).float()
    pixels_changed = differs.new_zeros(len(images), grid[0] * grid[1]).index_add_(1, patch.flatten(), differs)
    whole, empty = (torch.cat([margins(part).float() for part in of.split(batch_size)]) for of in (images, references))
    if only is not None:
        pixels_changed = pixels_changed * only.flatten(1)
    worth = torch.zeros_like(pixels_changed)
    for jobs in pixels_changed.nonzero().split(max(1, batch_size // 2)):
        b, k = jobs.unbind(1)
        own = (patch == k.view(-1, 1, 1)).unsqueeze(1)
        taken = torch.where(own, references[b], images[b])
        planted = torch.where(own, images[b], references[b])
        without, alone = margins(torch.cat([taken, planted])).float().chunk(2)
        worth[b, k] = ((whole[b] - without) + (alone - empty[b])) / 2
    return worth.unflatten(1, grid)


def patch_of_pixel(grid: tuple[int, int], size: tuple[int, int], device: torch.device) -> Tensor:
    """Return the number of each pixel's patch, counted by rows: (H, W) int64."""
    row, column = (torch.arange(side, device=device) * count // side for side, count in zip(size, grid, strict=True))
    return row.unsqueeze(1) * grid[1] + column


def blurred(images: Tensor) -> Tensor:
    """Blur float images (N, 3, H, W) by a Gaussian."""
    side = min(images.shape[2:])
    sigma = BLUR * side
    radius = min(int(3 * sigma), side - 1)
    x = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-x.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    padded = F.pad(images, [radius] * 4, mode="reflect")
    rows = F.conv2d(padded, kernel.unsqueeze(2), groups=3)
    return F.conv2d(rows, kernel.unsqueeze(3), groups=3)
