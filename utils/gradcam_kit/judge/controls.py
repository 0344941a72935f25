"""Control maps that ignore the detector. A method has to beat them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from ..engine.recipe import Recipe

CONTROLS = ("random", "gaussian", "face")
FACE_POINTS = slice(17, 68)  # brows, nose, eyes and mouth, among 81 landmarks
# The usual place of the face in a face crop, as shares of its side, for images without landmarks.
FACE_ELLIPSE = (0.5, 0.56, 0.24, 0.27)  # centre x, y, half axes


def control_maps(
    landmarks: Sequence[np.ndarray | None], grid: tuple[int, int], size: tuple[int, int], seed: int
) -> dict[Recipe, Tensor]:
    """Return all controls for N images of `size`: noise (N, h, w) on `grid`, others as (N, H, W)."""
    maps = (random_maps(len(landmarks), grid, seed), gaussian_map(size), face_map(landmarks, size))
    return {Recipe.control(name): raw.expand(len(landmarks), -1, -1) for name, raw in zip(CONTROLS, maps, strict=True)}


def random_maps(count: int, grid: tuple[int, int], seed: int) -> Tensor:
    """Return uniform noise (count, h, w) in [0, 1] on the patch grid, as coarse as the compared maps."""
    return torch.rand(count, *grid, generator=torch.Generator().manual_seed(seed))


def gaussian_map(size: tuple[int, int]) -> Tensor:
    """Return a centred Gaussian blob (H, W), 1 at its peak, with a standard deviation of a quarter of the side."""
    y, x = (torch.linspace(-1, 1, side) for side in size)
    return torch.exp(-(y.unsqueeze(1).square() + x.square()) / (2 * 0.5**2))


def face_map(landmarks: Sequence[np.ndarray | None], size: tuple[int, int]) -> Tensor:
    """Return how often each pixel is in the inner face, (H, W) in [0, 1]; without landmarks, a Gaussian blob.

    `landmarks`: (81, 2) x and y as shares of width and height, or None.
    """
    drawn = [hull(points[FACE_POINTS], size) for points in landmarks if points is not None]
    if drawn:
        return torch.from_numpy(np.mean(drawn, axis=0, dtype=np.float32))
    y, x = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    cx, cy, rx, ry = FACE_ELLIPSE
    distance = ((x / size[1] - cx) / rx) ** 2 + ((y / size[0] - cy) / ry) ** 2
    return torch.from_numpy(np.exp(-0.5 * distance).astype(np.float32))


def hull(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Fill the convex hull of `points` (n, 2), x and y as shares of width and height: (H, W) uint8, 1 inside."""
    pixels = np.rint(points * [size[1], size[0]]).astype(np.int32)
    filled = np.zeros(size, dtype=np.uint8)
    cv2.fillConvexPoly(filled, cv2.convexHull(pixels), 1)
    return filled
