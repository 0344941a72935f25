"""Faces in a photograph, found by dlib."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...base.errors import InputError, RunError
from ...base.text import one_line
from ...data.images import UnreadableImage
from .align import Face

FaceFinder = Callable[[np.ndarray], Sequence[Face]]  # (H, W, 3) uint8 RGB → faces, the largest first
INSTALL = "pip install dlib-bin face_recognition_models"
MODELS = "face_recognition_models"  # a package that holds dlib's model of 68 points
FIVE_OF_81 = (37, 44, 30, 49, 55)  # the template's points among dlib's; of its 68 points they are the same


class NoFaceError(RunError):
    """The image has no face that dlib finds."""


def is_installed() -> bool:
    """Whether faces can be found without a landmark file of the user's own."""
    return importlib.util.find_spec("dlib") is not None and importlib.util.find_spec(MODELS) is not None


def face_finder(landmark_model: Path | None = None) -> FaceFinder:
    """A function photograph → the faces in it. It raises UnreadableImage for an image that is too large for dlib.

    `landmark_model`: a model of 81 or 68 points; None: that of the package face_recognition_models. Raises InputError
    where dlib or the model is missing.
    """
    try:
        import dlib
    except ImportError as error:
        raise InputError(
            f"faces are found with dlib, which is not installed: {INSTALL}; or give face crops, and no --face_crop and"
            " no --landmark_model"
        ) from error
    model = landmark_model or _packaged_model()
    if not model.is_file():
        raise InputError(
            f"--landmark_model {model}: no such file; DeepfakeBench's preprocessing/dlib_tools has"
            " shape_predictor_81_face_landmarks.dat"
        )
    find_boxes: Any = dlib.get_frontal_face_detector()
    try:
        find_landmarks: Any = dlib.shape_predictor(str(model))
    except RuntimeError as error:
        raise InputError(f"--landmark_model {model}: dlib cannot read it ({one_line(error)})") from error

    def find(photo: np.ndarray) -> Sequence[Face]:
        photo = np.ascontiguousarray(photo)  # dlib refuses a view
        try:
            found = sorted(find_boxes(photo, 1), key=lambda box: -box.width() * box.height())
            points = [five_points(find_landmarks(photo, box), model) for box in found]
        except InputError:
            raise
        except MemoryError as error:
            raise UnreadableImage(f"too large for dlib: {photo.shape[1]}x{photo.shape[0]} pixels") from error
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"dlib {getattr(dlib, '__version__', '')} refuses an image of {photo.shape[1]}x{photo.shape[0]} pixels"
                f" ({one_line(error)}); here is numpy {np.__version__}: install a newer dlib or, with dlib 19, numpy 1"
            ) from error
        corners = [(box.left(), box.top(), box.left() + box.width(), box.top() + box.height()) for box in found]
        return [Face(*pair) for pair in zip(corners, points, strict=True) if is_face(pair[1], photo.shape[:2])]

    return find


def _packaged_model() -> Path:
    """By its place alone: importing the package needs setuptools."""
    spec = importlib.util.find_spec(MODELS)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"dlib has no model of a face's points here: {INSTALL}; or give your own by --landmark_model")
    return Path(spec.submodule_search_locations[0]) / "models" / "shape_predictor_68_face_landmarks.dat"


def five_points(shape: Any, landmark_model: Path) -> np.ndarray:
    """The points of dlib's `shape` that the template has: (5, 2) x, y. Raises InputError for another model's."""
    if shape.num_parts not in (68, 81):
        raise InputError(
            f"--landmark_model {landmark_model}: finds {shape.num_parts} points; expected a model of 81 (or 68) points,"
            " shape_predictor_81_face_landmarks.dat"
        )
    return np.array([(shape.part(i).x, shape.part(i).y) for i in FIVE_OF_81], dtype=np.float64)


def is_face(points: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether points (5, 2) give a crop of an image of that height and width: not all on one line, nor outside."""
    height, width = size
    x, y = points.mean(axis=0)
    return bool(np.ptp(points, axis=0).min() >= 1 and 0 <= x < width and 0 <= y < height)
