"""Maps that know nothing of the detector. A method that does not beat them shows nothing."""

from __future__ import annotations

from typing import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

CONTROLS = ("random", "gaussian", "face")
FACE_POINTS = slice(17, 68)  # brows, nose, eyes and mouth, among 81 landmarks
# Where a face crop has its face, in shares of its side: the ellipse used where no picture has landmarks.
MEAN_FACE = (0.5, 0.56, 0.24, 0.27)  # centre x, y, half axes


def random_maps(count: int, grid: tuple[int, int], seed: int) -> Tensor:
    """(count, h, w) uniform noise on the patch grid, so that it is as coarse as the maps that it is held against."""
    return torch.rand(count, *grid, generator=torch.Generator().manual_seed(seed))


def gaussian_map(size: tuple[int, int]) -> Tensor:
    """(H, W) a blob in the middle, its deviation a quarter of the side, 1 at its peak."""
    y, x = (torch.linspace(-1, 1, side) for side in size)
    return torch.exp(-(y.unsqueeze(1).square() + x.square()) / (2 * 0.5**2))


def face_map(landmarks: Sequence[np.ndarray | None], size: tuple[int, int]) -> Tensor:
    """(H, W) how often a pixel lies in the inner face, over the pictures that have landmarks; a mean face without any.

    `landmarks`: (81, 2) x and y each in shares of the picture's width and height, or None.
    """
    drawn = [inner_face(points, size) for points in landmarks if points is not None]
    if drawn:
        return torch.from_numpy(np.mean(drawn, axis=0, dtype=np.float32))
    y, x = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    cx, cy, rx, ry = MEAN_FACE
    distance = ((x / size[1] - cx) / rx) ** 2 + ((y / size[0] - cy) / ry) ** 2
    return torch.from_numpy(np.exp(-0.5 * distance).astype(np.float32))


def inner_face(landmarks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8, 1 in the convex hull of brows, eyes, nose and mouth."""
    return hull(landmarks[FACE_POINTS], size)


def hull(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8, 1 in the convex hull of `points` (n, 2), x and y in shares of width and height."""
    pixels = np.rint(points * [size[1], size[0]]).astype(np.int32)
    filled = np.zeros(size, dtype=np.uint8)
    cv2.fillConvexPoly(filled, cv2.convexHull(pixels), 1)
    return filled
