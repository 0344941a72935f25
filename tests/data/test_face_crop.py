"""Alignment by five points, against transforms made by hand and the least squares of NumPy."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from utils.data.face_crop import FIVE_OF_81, MARGIN, TEMPLATE, NoFaceError, aligned_crop, face_cropper, similarity
from utils.data.images import UnreadableImage
from utils.errors import InputError


def test_similarity_recovers_a_known_rotation_scale_and_shift() -> None:
    angle, scale, shift = 0.4, 1.7, np.array([12.0, -5.0])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    target = scale * TEMPLATE @ rotation.T + shift
    np.testing.assert_allclose(similarity(TEMPLATE, target), np.c_[scale * rotation, shift], atol=1e-10)


def test_similarity_is_the_least_squares_one() -> None:
    """Against NumPy's solver for the four unknowns a, b, x, y of [[a, -b, x], [b, a, y]]."""
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    rows = [((x, -y, 1, 0), (y, x, 0, 1)) for x, y in source]
    a, b, x, y = np.linalg.lstsq(np.array(rows).reshape(-1, 4), target.reshape(-1), rcond=None)[0]
    np.testing.assert_allclose(similarity(source, target), [[a, -b, x], [b, a, y]], atol=1e-12)


def face_with_marks() -> tuple[np.ndarray, np.ndarray]:
    """A tilted arrangement of five white dots on black, and where they are."""
    angle = np.deg2rad(25)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (TEMPLATE - 56) @ rotation.T * 1.5 + (200, 150)
    image = np.zeros((300, 400, 3), dtype=np.uint8)
    for x, y in points:
        cv2.circle(image, (round(x), round(y)), 5, (255, 255, 255), -1)
    return image, points


def test_crop_puts_the_marks_where_the_template_with_its_margin_has_them() -> None:
    image, points = face_with_marks()
    crop = aligned_crop(image, points, 224)
    assert crop.shape == (224, 224, 3)
    for x, y in ((TEMPLATE - 56) / MARGIN + 56) * 2:
        column, row = round(x), round(y)
        assert crop[row - 2 : row + 3, column - 2 : column + 3].mean() > 200
    assert crop.mean() < 20


class Part:
    def __init__(self, x: float, y: float) -> None:
        self.x, self.y = x, y


class Box:
    def __init__(self, size: int) -> None:
        self.size = size

    def width(self) -> int:
        return self.size

    def height(self) -> int:
        return self.size


class Shape:
    def __init__(self, points: np.ndarray) -> None:
        self.points = points
        self.num_parts = 81

    def part(self, number: int) -> Part:
        return Part(*self.points[FIVE_OF_81.index(number)])


@pytest.fixture
def stand_in_dlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """dlib needs a compiler to install; this one knows the marks of `face_with_marks`, and a smaller face beside it."""
    points = face_with_marks()[1]

    def detector() -> Any:
        return lambda image, upsampled: [Box(40), Box(90)] if image.max() > 0 else []

    def predictor(path: str) -> Any:
        return lambda image, box: Shape(points if box.size == 90 else points * 0)

    dlib: Any = ModuleType("dlib")
    dlib.get_frontal_face_detector, dlib.shape_predictor = detector, predictor
    monkeypatch.setitem(sys.modules, "dlib", dlib)


@pytest.mark.usefixtures("stand_in_dlib")
def test_largest_face_is_cropped_and_no_face_is_said(tmp_path: Path) -> None:
    model = tmp_path / "shape_predictor_81_face_landmarks.dat"
    model.write_bytes(b"model")
    image, points = face_with_marks()
    crop = face_cropper(model, 224)
    np.testing.assert_array_equal(crop(image), aligned_crop(image, points, 224))
    with pytest.raises(NoFaceError):
        crop(np.zeros_like(image))
    with pytest.raises(InputError, match="no such file"):
        face_cropper(tmp_path / "gone.dat", 224)


def test_without_dlib_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(InputError, match="pip install dlib"):
        face_cropper(tmp_path / "model.dat", 224)


def cropper_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, find: Any, points: Any) -> Any:
    """The cropper on a dlib whose search is `find`, and whose model gives `points`."""
    dlib: Any = ModuleType("dlib")
    dlib.__version__ = "19.24.2"
    dlib.get_frontal_face_detector, dlib.shape_predictor = lambda: find, lambda path: lambda image, box: points
    monkeypatch.setitem(sys.modules, "dlib", dlib)
    (tmp_path / "model.dat").write_bytes(b"model")
    return face_cropper(tmp_path / "model.dat", 112)


def refusing(image: np.ndarray, upsampled: int) -> Any:
    raise RuntimeError("Unsupported image type, must be 8bit gray or RGB image.")


def test_an_image_that_dlib_refuses_names_the_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crop = cropper_of(tmp_path, monkeypatch, refusing, None)
    with pytest.raises(
        InputError, match=rf"dlib 19\.24\.2 refuses an image of 200x160 .*numpy {np.__version__}: install"
    ):
        crop(np.zeros((160, 200, 3), np.uint8))


def test_dlib_is_given_whole_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As dlib itself, which takes nothing that does not lie in memory row after row."""

    def find(image: np.ndarray, upsampled: int) -> Any:
        return [] if image.flags.c_contiguous else refusing(image, upsampled)

    with pytest.raises(NoFaceError, match="finds no face"):
        cropper_of(tmp_path, monkeypatch, find, None)(np.zeros((160, 200, 6), np.uint8)[::-1, :, ::2])


def test_a_model_of_other_points_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    five = Shape(np.zeros((5, 2)))
    five.num_parts = 5
    crop = cropper_of(tmp_path, monkeypatch, lambda image, upsampled: [Box(90)], five)
    with pytest.raises(InputError, match="finds 5 points; expected a model of 81"):
        crop(np.zeros((160, 200, 3), np.uint8))


@pytest.mark.parametrize("moved", [(-500, 0), (0, 900)])
def test_a_face_outside_of_the_image_is_none(
    moved: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, points = face_with_marks()
    crop = cropper_of(tmp_path, monkeypatch, lambda image, upsampled: [Box(90)], Shape(points + np.array(moved)))
    with pytest.raises(NoFaceError, match="outside"):
        crop(image)
    flat = cropper_of(tmp_path, monkeypatch, lambda image, upsampled: [Box(90)], Shape(points * (1, 0) + (0, 50)))
    with pytest.raises(NoFaceError, match="on one line"):
        flat(image)


def test_an_image_too_large_for_dlib_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(image: np.ndarray, upsampled: int) -> Any:
        raise MemoryError("bad allocation")

    with pytest.raises(UnreadableImage, match="too large for dlib"):
        cropper_of(tmp_path, monkeypatch, full, None)(np.zeros((160, 200, 3), np.uint8))
