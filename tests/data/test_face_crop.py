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
