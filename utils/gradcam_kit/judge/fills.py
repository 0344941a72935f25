"""What patches are replaced by, where it is asked what the detector loses with them.

Every fill is a whole image of the same size, of which the replaced patches are taken. No fill suits every detector: a
blurred patch looks forged to one, a grey one to another. `try_candidates` chooses among them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .transplant import blurred

MEAN_COLOUR, MIRRORED, BLUR, OTHER_REAL, PAIRED_REAL = "mean colour", "mirrored", "blur", "another real", "paired real"

Fills = dict[str, Tensor]  # name → (N, 3, H, W), for the same N images


def fills_of(images: Tensor, reals: Tensor | None = None) -> Fills:
    """Every fill of `images` (N, 3, H, W) that needs no pair, the one to prefer first.

    The other side of the face comes last: it may be as forged as what it replaces.

    `reals` (M, 3, H, W): images that the detector calls real; image i is given the patches of real i modulo M. Without
    any that fill is left out.
    """
    fills = {MEAN_COLOUR: mean_coloured(images), BLUR: blurred(images), MIRRORED: mirrored(images)}
    if reals is None or not len(reals):
        return fills
    return {OTHER_REAL: reals[torch.arange(len(images), device=reals.device) % len(reals)], **fills}


def mean_coloured(images: Tensor) -> Tensor:
    """(N, 3, H, W) → each image's own mean colour everywhere."""
    return images.mean(dim=(2, 3), keepdim=True).expand_as(images)


def mirrored(images: Tensor) -> Tensor:
    """(N, 3, H, W) → left and right exchanged: the same place on the face's other side."""
    return images.flip(3)
