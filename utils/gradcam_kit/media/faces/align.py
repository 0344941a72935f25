"""A face's five points → the aligned crop of the benchmarks' preprocessing, and where it lies in the photograph."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

# Eyes, nose tip and mouth corners in a 112 x 112 crop (the template that ArcFace made common).
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
TEMPLATE_SIZE = 112
MARGIN = 1.3  # the crop shows this much more than the template

SQUARISH = 1.1  # longer side ÷ shorter side up to which an image is resized to a square, as the hosts do


class Face(NamedTuple):
    """A face in a photograph: its box (left, top, right, bottom) and its five points (5, 2) x, y, in pixels."""

    box: tuple[float, float, float, float]
    points: np.ndarray

    @property
    def size(self) -> float:
        """Of the box: its longer side."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


class View(NamedTuple):
    """What the detector sees of a photograph."""

    image: np.ndarray  # (size, size, 3) uint8 RGB
    matrix: np.ndarray | None = None  # (2, 3), pixels of the photograph → of `image`; None: all of it was resized
    face: Face | None = None  # that was cropped


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(2, 3) matrix of the rotation, scale and shift that takes points `source` (N, 2) nearest to `target` (N, 2).

    Least squares in closed form: with points as complex numbers, w = a z + b (Umeyama 1991, without reflection).
    """
    z, w = (points @ np.array([1, 1j]) for points in (source, target))
    a = np.vdot(z - z.mean(), w - w.mean()) / np.vdot(z - z.mean(), z - z.mean()).real
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def aligned(photo: np.ndarray, face: Face, size: int) -> View:
    """(H, W, 3) uint8 and a face in it → (size, size, 3) with the face upright in the middle."""
    centre = TEMPLATE_SIZE / 2
    target = ((TEMPLATE - centre) / MARGIN + centre) * size / TEMPLATE_SIZE
    matrix = similarity(face.points, target)
    return View(cv2.warpAffine(photo, matrix, (size, size)), matrix, face)


def is_squarish(photo: np.ndarray) -> bool:
    """Whether its sides differ so little that resizing it to a square does not distort a face."""
    height, width = photo.shape[:2]
    return max(height, width) <= SQUARISH * min(height, width)


def whole(photo: np.ndarray, size: int) -> View:
    """All of a photograph (H, W, 3) uint8: resized where it is squarish, else padded with black to a square before."""
    if is_squarish(photo):
        return View(cv2.resize(photo, (size, size), interpolation=cv2.INTER_CUBIC))
    height, width = photo.shape[:2]
    # Made smaller before it is padded: the square around a panorama of 20,000 pixels would take a gigabyte.
    small = [max(1, round(pixels * size / max(height, width))) for pixels in (width, height)]
    left, top = ((size - pixels) // 2 for pixels in small)
    square = np.zeros((size, size, 3), dtype=np.uint8)
    square[top : top + small[1], left : left + small[0]] = cv2.resize(photo, small, interpolation=cv2.INTER_AREA)
    scale = np.array(small) / (width, height)
    # OpenCV resizes between the centres of pixels, hence the halves.
    shift = 0.5 * scale - 0.5 + (left, top)
    return View(square, np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]]))
