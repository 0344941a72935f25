"""Baseline maps that ignore the detector; a method has to beat them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from ..engine.recipe import Recipe

CONTROLS = ("random", "gaussian", "face")
FACE_POINTS = slice(17, 68)  # brows, nose, eyes and mouth, among 81 landmarks
# Where a face crop has its face, in shares of its side: used where no image has landmarks.
FACE_ELLIPSE = (0.5, 0.56, 0.24, 0.27)  # centre x, y, half axes


def control_maps(
    landmarks: Sequence[np.ndarray | None], grid: tuple[int, int], size: tuple[int, int], seed: int
) -> dict[Recipe, Tensor]:
    """Every control for N images of `size` as raw maps: noise (N, h, w) on `grid`, or views of one map (N, H, W)."""
    maps = (random_maps(len(landmarks), grid, seed), gaussian_map(size), face_map(landmarks, size))
    return {Recipe.control(name): raw.expand(len(landmarks), -1, -1) for name, raw in zip(CONTROLS, maps, strict=True)}


def random_maps(count: int, grid: tuple[int, int], seed: int) -> Tensor:
    """(count, h, w) uniform noise on the patch grid, so that it is as coarse as the maps it is compared with."""
    return torch.rand(count, *grid, generator=torch.Generator().manual_seed(seed))


def gaussian_map(size: tuple[int, int]) -> Tensor:
    """(H, W) a centred Gaussian blob, its standard deviation a quarter of the side, 1 at its peak."""
    y, x = (torch.linspace(-1, 1, side) for side in size)
    return torch.exp(-(y.unsqueeze(1).square() + x.square()) / (2 * 0.5**2))


def face_map(landmarks: Sequence[np.ndarray | None], size: tuple[int, int]) -> Tensor:
    """(H, W) in [0, 1]: how often a pixel lies in the inner face; a Gaussian blob at its usual place without landmarks.

    `landmarks`: (81, 2) x and y each in shares of the image's width and height, or None.
    """
    drawn = [hull(points[FACE_POINTS], size) for points in landmarks if points is not None]
    if drawn:
        return torch.from_numpy(np.mean(drawn, axis=0, dtype=np.float32))
    y, x = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    cx, cy, rx, ry = FACE_ELLIPSE
    distance = ((x / size[1] - cx) / rx) ** 2 + ((y / size[0] - cy) / ry) ** 2
    return torch.from_numpy(np.exp(-0.5 * distance).astype(np.float32))


def hull(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8, 1 in the convex hull of `points` (n, 2), x and y in shares of width and height."""
    pixels = np.rint(points * [size[1], size[0]]).astype(np.int32)
    filled = np.zeros(size, dtype=np.uint8)
    cv2.fillConvexPoly(filled, cv2.convexHull(pixels), 1)
    return filled
