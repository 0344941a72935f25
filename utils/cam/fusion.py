"""Several maps of one picture made into one."""

from __future__ import annotations

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import InputError
from utils.gradcam import Explanation, LayerMaps, normalise

# Among layer names: the mean of the normalised maps of the other layers.
FUSED = "fused"


def without_fused(layers: Sequence[str]) -> list[str]:
    """The layers that are modules. Raises InputError where `fused` has fewer than two of them to fuse."""
    named = [layer for layer in layers if layer != FUSED]
    if FUSED in layers and len(set(named)) < 2:
        raise InputError(f"layer {FUSED!r} is the mean of the other layers' maps: name at least two beside it")
    return named


def fused(layers: Sequence[LayerMaps], size: tuple[int, int]) -> LayerMaps:
    """The mean over layers of each picture's normalised map, on the finest of their grids, then resized to `size`.

    An empty map counts as zeros. Signed: the mean of the signed maps, each divided by its largest magnitude.
    """
    grid = max((one.grid for one in layers), key=lambda rows_columns: rows_columns[0] * rows_columns[1])
    raw = torch.stack([normalise(one.raw, grid) for one in layers]).mean(dim=0)
    signed = torch.stack([scaled(one.signed, grid) for one in layers]).mean(dim=0)
    return LayerMaps.of(signed, raw, size)


def scaled(signed: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h, w) → (B, H, W) float32 in [-1, 1]: each picture divided by its largest magnitude, zero stays zero."""
    largest = signed.abs().amax(dim=(1, 2), keepdim=True)
    shares = signed / torch.where(largest > 0, largest, torch.ones_like(largest))
    return F.interpolate(shares.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1).float()


def both_classes(fake: Explanation, real: Explanation) -> Explanation:
    """Two explanations of the same batch as one, with the layers `<layer>_fake` and `<layer>_real` side by side."""
    layers = {}
    for name in fake.layers:
        layers[f"{name}_fake"] = fake.layers[name]
        layers[f"{name}_real"] = real.layers[name]
    return Explanation(fake.prediction, ["both"] * len(fake.target), layers)
