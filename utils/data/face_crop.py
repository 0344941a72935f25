"""Crops and aligns the largest face of an image as the benchmarks' preprocessing does, where dlib is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np

from utils.data.images import UnreadableImage
from utils.errors import InputError, RunError
from utils.text import one_line

# Eyes, nose tip and mouth corners in a 112 x 112 crop (the template that ArcFace made common), and where dlib has them.
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
TEMPLATE_SIZE = 112
FIVE_OF_81 = (37, 44, 30, 49, 55)
MARGIN = 1.3  # the crop shows this much more than the template


class NoFaceError(RunError):
    """The image has no face that dlib finds."""


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(2, 3) matrix of the rotation, scale and shift that takes points `source` (N, 2) nearest to `target` (N, 2).

    Least squares in closed form: with points as complex numbers, w = a z + b (Umeyama 1991, without reflection).
    """
    z, w = source @ np.array([1, 1j]), target @ np.array([1, 1j])
    a = np.vdot(z - z.mean(), w - w.mean()) / np.vdot(z - z.mean(), z - z.mean()).real
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def aligned_crop(image: np.ndarray, five_points: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 and its five points (5, 2) x, y → (size, size, 3) with the face upright in the middle."""
    centre = TEMPLATE_SIZE / 2
    target = ((TEMPLATE - centre) / MARGIN + centre) * size / TEMPLATE_SIZE
    return cv2.warpAffine(image, similarity(five_points, target), (size, size))


def face_cropper(landmark_model: Path, size: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function image (H, W, 3) uint8 RGB → aligned crop (size, size, 3); it raises NoFaceError where there is none.

    Raises InputError where dlib or the landmark file (`shape_predictor_81_face_landmarks.dat`) is missing.
    """
    try:
        import dlib
    except ImportError as error:
        raise InputError(
            "--landmark_model crops faces with dlib, which is not installed: pip install dlib (it needs CMake and a C++"
            " compiler), or give images that are face crops already"
        ) from error
    if not landmark_model.is_file():
        raise InputError(
            f"--landmark_model {landmark_model}: no such file; DeepfakeBench's preprocessing/dlib_tools has"
            " shape_predictor_81_face_landmarks.dat"
        )
    find_faces: Any = dlib.get_frontal_face_detector()
    try:
        find_landmarks: Any = dlib.shape_predictor(str(landmark_model))
    except RuntimeError as error:
        raise InputError(f"--landmark_model {landmark_model}: dlib cannot read it ({one_line(error)})") from error

    def crop(image: np.ndarray) -> np.ndarray:
        image = np.ascontiguousarray(image)  # dlib refuses a view
        try:
            faces = find_faces(image, 1)
            if len(faces) == 0:
                raise NoFaceError("dlib finds no face in it")
            shape = find_landmarks(image, max(faces, key=lambda box: box.width() * box.height()))
            points = five_points(shape, landmark_model)
        except (InputError, NoFaceError):
            raise
        except MemoryError as error:
            raise UnreadableImage(f"too large for dlib: {image.shape[1]}x{image.shape[0]} pixels") from error
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"dlib {getattr(dlib, '__version__', '')} refuses an image of {image.shape[1]}x{image.shape[0]} pixels"
                f" ({one_line(error)}); here is numpy {np.__version__}: install a newer dlib or, with dlib 19, numpy 1"
            ) from error
        check_face(points, image.shape[:2])
        return aligned_crop(image, points, size)

    return crop


def five_points(shape: Any, landmark_model: Path) -> np.ndarray:
    """The points of dlib's `shape` that the template has: (5, 2) x, y. Raises InputError for another model's."""
    if shape.num_parts not in (68, 81):  # the first 68 of the 81 are the same
        raise InputError(
            f"--landmark_model {landmark_model}: finds {shape.num_parts} points; expected a model of 81 (or 68) points,"
            " shape_predictor_81_face_landmarks.dat"
        )
    return np.array([(shape.part(i).x, shape.part(i).y) for i in FIVE_OF_81], dtype=np.float64)


def check_face(points: np.ndarray, size: tuple[int, int]) -> None:
    """Raises NoFaceError for points (5, 2) that give no crop of an image of that height and width."""
    if np.ptp(points, axis=0).min() < 1:
        raise NoFaceError("the points that dlib finds in it lie on one line")
    height, width = size
    x, y = points.mean(axis=0)
    if not (0 <= x < width and 0 <= y < height):
        raise NoFaceError("the face that dlib finds lies outside of the image")
