"""Faces in photographs: found by dlib and cropped as in the benchmarks' preprocessing."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ..base.errors import InputError, RunError
from ..base.text import one_line
from ..data.images import UnreadableImage

# Eyes, nose tip and mouth corners in a 112 x 112 crop (ArcFace's template).
TEMPLATE = np.array([
    (38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)
])  # fmt: skip
TEMPLATE_SIZE = 112
MARGIN = 1.3  # the crop is so many times larger than the template
SQUARISH = 1.1  # maximum longer side ÷ shorter side of an image that is resized to a square, as in the hosts
LEAST_FACE = 0.35  # minimum size of the largest face in a face crop, as a share of its side

INSTALL = "pip install dlib-bin face_recognition_models"
MODEL_OF_81 = "shape_predictor_81_face_landmarks.dat"
MODELS = "face_recognition_models"  # a package that holds dlib's model of 68 points
LEAST_CONFIDENCE = 0.3  # dlib's confidence; frontal faces have 1 and more, a round badge 0.1
FIVE_OF_81 = (37, 44, 30, 49, 55)  # the template's points among dlib's 81; the same numbers among its 68


class Face(NamedTuple):
    """A face in a photograph, in pixels: its box (left, top, right, bottom), and five points (5, 2) x, y.

    `confidence`: dlib's, above 0, mostly below 3; None if unknown.
    """

    box: tuple[float, float, float, float]
    points: np.ndarray
    confidence: float | None = None

    @property
    def size(self) -> float:
        """The longer side of the box."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


FaceFinder = Callable[[np.ndarray], Sequence[Face]]  # (H, W, 3) uint8 RGB → faces, the largest first


class View(NamedTuple):
    """The part of a photograph that the detector sees."""

    image: np.ndarray  # (size, size, 3) uint8 RGB
    matrix: np.ndarray | None = (
        None  # (2, 3), from pixels of the photograph to those of `image`; None: the whole was resized
    )
    face: Face | None = None  # the cropped face


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Fit the rotation, scale and shift, a (2, 3) matrix, that moves points (N, 2) closest to the target's.

    Least squares in closed form: with points as complex numbers, w = a z + b (Umeyama 1991, without reflection).
    """
    z, w = (points @ np.array([1, 1j]) for points in (source, target))
    a = np.vdot(z - z.mean(), w - w.mean()) / np.vdot(z - z.mean(), z - z.mean()).real
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align(photo: np.ndarray, face: Face, size: int) -> View:
    """Crop a face from a photograph (H, W, 3) uint8 RGB, upright and centred, as (size, size, 3)."""
    centre = TEMPLATE_SIZE / 2
    target = ((TEMPLATE - centre) / MARGIN + centre) * size / TEMPLATE_SIZE
    matrix = similarity(face.points, target)
    return View(cv2.warpAffine(photo, matrix, (size, size)), matrix, face)


def is_squarish(photo: np.ndarray) -> bool:
    """Tell whether the sides differ so little that resizing to a square does not distort a face."""
    height, width = photo.shape[:2]
    return max(height, width) <= SQUARISH * min(height, width)


def whole(photo: np.ndarray, size: int) -> View:
    """Resize a whole photograph (H, W, 3) uint8 RGB to (size, size, 3), with black padding unless it is squarish."""
    if is_squarish(photo):
        return View(cv2.resize(photo, (size, size), interpolation=cv2.INTER_CUBIC))
    height, width = photo.shape[:2]
    # Shrink before padding: the square around a panorama of 20,000 pixels would take a gigabyte.
    small = [max(1, round(pixels * size / max(height, width))) for pixels in (width, height)]
    left, top = ((size - pixels) // 2 for pixels in small)
    square = np.zeros((size, size, 3), dtype=np.uint8)
    square[top : top + small[1], left : left + small[0]] = cv2.resize(photo, small, interpolation=cv2.INTER_AREA)
    scale = np.array(small) / (width, height)
    # OpenCV aligns the centres of pixels, hence the halves.
    shift = 0.5 * scale - 0.5 + (left, top)
    return View(square, np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]]))


class NoFaceError(RunError):
    """dlib finds no face in the image."""


def is_installed() -> bool:
    """Tell whether dlib and its packaged model are installed."""
    return importlib.util.find_spec("dlib") is not None and importlib.util.find_spec(MODELS) is not None


def face_finder(landmark_model: Path | None = None, least_confidence: float = LEAST_CONFIDENCE) -> FaceFinder:
    """Return a function that finds the faces in a photograph, and raises UnreadableImage if it is too large for dlib.

    `landmark_model` None: the model of the package face_recognition_models. Faces below `least_confidence` are skipped.
    Raises InputError if the model or dlib is missing.
    """
    try:
        import dlib
    except ImportError as error:
        or_else = "or give face crops without --face_crop and --landmark_model"
        raise InputError(f"finding faces needs dlib, which is not installed: {INSTALL}; {or_else}") from error
    model = landmark_model or _packaged_model()
    if not model.is_file():
        there = f"DeepfakeBench's preprocessing/dlib_tools has {MODEL_OF_81}"
        raise InputError(f"--landmark_model {model}: no such file; {there}")
    find_boxes: Any = dlib.get_frontal_face_detector()
    try:
        find_landmarks: Any = dlib.shape_predictor(str(model))
    except RuntimeError as error:
        raise InputError(f"--landmark_model {model}: dlib cannot read it ({one_line(error)})") from error

    def boxes_of(photo: np.ndarray) -> tuple[Sequence[Any], Sequence[float | None]]:
        if hasattr(find_boxes, "run"):
            boxes, scores, _ = find_boxes.run(photo, 1, least_confidence)
            return boxes, scores
        boxes = find_boxes(photo, 1)  # another finder by that name says no confidence: each of its faces counts
        return boxes, [None] * len(boxes)

    def find(photo: np.ndarray) -> Sequence[Face]:
        photo = np.ascontiguousarray(photo)  # dlib refuses a view
        try:
            boxes, scores = boxes_of(photo)
            found = sorted(zip(boxes, scores, strict=True), key=lambda one: -one[0].width() * one[0].height())
            points = [five_points(find_landmarks(photo, box), model) for box, _ in found]
        except InputError:
            raise
        except MemoryError as error:
            raise UnreadableImage(f"too large for dlib: {photo.shape[1]}x{photo.shape[0]} pixels") from error
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"dlib {getattr(dlib, '__version__', '')} refuses an image of {photo.shape[1]}x{photo.shape[0]} pixels"
                f" ({one_line(error)}) with numpy {np.__version__}: install a newer dlib or, with dlib 19, numpy 1"
            ) from error
        return [
            Face(
                (box.left(), box.top(), box.left() + box.width(), box.top() + box.height()),
                five,
                None if score is None else float(score),
            )
            for (box, score), five in zip(found, points, strict=True)
            if is_face(five, photo.shape[:2])
        ]

    return find


def _packaged_model() -> Path:
    """Find the model's file without importing the package, which would need setuptools."""
    spec = importlib.util.find_spec(MODELS)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"dlib has no landmark model: {INSTALL}; or give one with --landmark_model")
    return Path(spec.submodule_search_locations[0]) / "models" / "shape_predictor_68_face_landmarks.dat"


def five_points(shape: Any, landmark_model: Path) -> np.ndarray:
    """Return the template's points in dlib's `shape`: (5, 2) x, y. Raises InputError for another model."""
    if shape.num_parts not in (68, 81):
        raise InputError(
            f"--landmark_model {landmark_model}: finds {shape.num_parts} points; expected a model of 81 (or 68) points,"
            f" {MODEL_OF_81}"
        )
    return np.array([(shape.part(i).x, shape.part(i).y) for i in FIVE_OF_81], dtype=np.float64)


def is_face(points: np.ndarray, size: tuple[int, int]) -> bool:
    """Tell whether points (5, 2) can be a face in an image of `size` (h, w): not on one line, and not outside."""
    height, width = size
    x, y = points.mean(axis=0)
    return bool(np.ptp(points, axis=0).min() >= 1 and 0 <= x < width and 0 <= y < height)


@dataclass(frozen=True)
class Photographs:
    """Crops faces of `size` pixels from photographs. `find` may be None only with the modes "auto" and "off"."""

    size: int
    mode: str = "auto"
    find: FaceFinder | None = None

    def views(self, photo: np.ndarray) -> tuple[list[View], str]:
        """Return the crops of a photograph (H, W, 3) uint8 RGB, and a remark for the user or "". Raises NoFaceError."""
        return self.views_of(photo, self.faces(photo))

    def faces(self, photo: np.ndarray) -> Sequence[Face]:
        """Find the faces, the largest first; none with the mode "off"."""
        return self.find(photo) if self.find and self.mode != "off" else []

    def views_of(self, photo: np.ndarray, faces: Sequence[Face]) -> tuple[list[View], str]:
        """Return the crops of a photograph whose faces are known, and a remark or "". Raises NoFaceError."""
        if self.mode in ("largest", "all") and not faces:
            raise NoFaceError("dlib finds no face in it")
        if self.mode in ("auto", "off") and (not faces or self.is_crop(photo, faces)):
            return [whole(photo, self.size)], self.remark_on_whole(photo)
        wanted, remark = (faces if self.mode == "all" else faces[:1]), ""
        if len(faces) > 1 and self.mode == "auto":
            remark = f"{len(faces)} faces found; only the largest is explained; --face_crop all explains each"
        return [align(photo, face, self.size) for face in wanted], remark

    def is_crop(self, photo: np.ndarray, faces: Sequence[Face]) -> bool:
        """Tell whether a photograph already is a face crop, by its shape and the size of its largest face."""
        return is_squarish(photo) and (not faces or faces[0].size >= LEAST_FACE * min(photo.shape[:2]))

    def remark_on_whole(self, photo: np.ndarray) -> str:
        """Return a remark if a whole photograph that is not a face crop is explained; else ""."""
        if is_squarish(photo):
            return ""
        why = "no face was found in it" if self.find else f"to crop faces: {INSTALL}, or --landmark_model"
        why = "--face_crop off" if self.mode == "off" else why
        height, width = photo.shape[:2]
        return f"{width}x{height} pixels, not square: padded; the detector expects face crops ({why})"
