"""Photographs as telephones take them: nobody in them, a whole crowd, faces cut by the border, 33 megapixels."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from utils.gradcam_kit.drawing.overlays import LayerImage, PastedCrop
from utils.gradcam_kit.media.faces import MARGIN, TEMPLATE, Face, NoFaceError, Photographs
from utils.gradcam_kit.media.single_images import whole_picture
from utils.gradcam_kit.store.sample_folder import RenderedSample

SIZE = 64
Finder = Callable[[np.ndarray], Sequence[Face]]


def face_at(x: float, y: float, side: float) -> Face:
    """A face whose template of 112 pixels lies in a box of that side around (x, y)."""
    points = (TEMPLATE - 56) * side / 112 + (x, y)
    return Face((x - side / 2, y - side / 2, x + side / 2, y + side / 2), points)


def finder(*faces: Face) -> Finder:
    return lambda photo: sorted(faces, key=lambda face: -face.size)


def painted(height: int, width: int, faces: Sequence[Face]) -> np.ndarray:
    """Each face a square of a grey of its own, on black."""
    photo = np.zeros((height, width, 3), np.uint8)
    for number, face in enumerate(faces):
        left, top, right, bottom = (max(0, round(end)) for end in face.box)
        photo[top:bottom, left:right] = 100 + 3 * number
    return photo


def test_nobody() -> None:
    photo = np.full((300, 500, 3), 90, np.uint8)
    (view,), said = Photographs(SIZE, "auto", finder()).views(photo)
    assert view.face is None and "no face was found" in said
    for mode in ("largest", "all"):
        with pytest.raises(NoFaceError):
            Photographs(SIZE, mode, finder()).views(photo)


def test_fifty_people() -> None:
    faces = [face_at(60 + 100 * (i % 10), 60 + 100 * (i // 10), 40 + i % 7) for i in range(50)]
    photo = painted(560, 1_060, faces)
    views, said = Photographs(SIZE, "all", finder(*faces)).views(photo)
    assert len(views) == 50 and said == ""
    for view in views:  # each shows its own: its grey in the middle, black around the template's margin
        assert view.face is not None
        number = next(i for i, face in enumerate(faces) if face is view.face)
        assert view.image[SIZE // 2, SIZE // 2, 0] == 100 + 3 * number
    (largest,), said = Photographs(SIZE, "auto", finder(*faces)).views(photo)
    assert (
        "50 faces found; only the largest is explained" in said and largest.face is not None and largest.face.size == 46
    )


@pytest.mark.parametrize("corner", [(0, 0), (399, 0), (0, 299), (399, 299), (200, 0), (0, 150), (399, 150), (200, 299)])
def test_a_face_that_the_border_cuts(corner: tuple[int, int]) -> None:
    """What is beyond the photograph is black in the crop, and nothing is drawn there when it is pasted back."""
    face = face_at(*corner, 100)
    photo = np.full((300, 400, 3), 200, np.uint8)
    (view,), _ = Photographs(SIZE, "largest", finder(face)).views(photo)
    inside = cv2.warpAffine(np.ones((300, 400), np.float32), view.matrix, (SIZE, SIZE))
    assert 0.2 < inside.mean() < 0.6
    np.testing.assert_array_equal(view.image[inside > 0.99], 200)
    np.testing.assert_array_equal(view.image[inside < 0.01], 0)
    assert view.matrix is not None
    pasted = PastedCrop(photo, view.matrix).over(np.zeros((SIZE, SIZE, 3), np.uint8))
    rows, columns = np.indices((300, 400))
    near = np.maximum(abs(columns - corner[0]), abs(rows - corner[1]))
    half = 50 * MARGIN
    assert (
        pasted.shape == photo.shape and (pasted[near < half - 3] == 0).all() and (pasted[near > half + 3] == 200).all()
    )


def test_a_photograph_of_33_megapixels() -> None:
    """8K, 7680 x 4320: a small face in it is cropped at its own resolution, in seconds and with no copies to speak of."""
    face = face_at(7_000, 4_000, 300)
    photo = painted(4_320, 7_680, [face])
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    (view,), _ = Photographs(SIZE, "auto", finder(face)).views(photo)
    assert view.matrix is not None
    pasted = PastedCrop(photo, view.matrix).over(np.full((SIZE, SIZE, 3), 255, np.uint8))
    assert time.perf_counter() - start < 20
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 600
    assert view.image[SIZE // 2, SIZE // 2, 0] == 100
    found = np.argwhere(pasted[..., 0] > 200) * 7_680 / pasted.shape[1]  # drawn at most 2,048 pixels wide
    np.testing.assert_allclose(found.mean(0), [4_000, 7_000], atol=6)
    np.testing.assert_allclose(np.ptp(found, axis=0), 300 * MARGIN, atol=20)


def rendered(overlay: int) -> RenderedSample:
    """A sample of which only the first layer's overlay, the score and the target are drawn."""
    empty = np.zeros((1, 1), np.float32)
    layer = LayerImage("a", np.full((SIZE, SIZE, 3), overlay, np.uint8), empty, empty, False, False)
    sample: Any = SimpleNamespace(prob_fake=0.25, evidence="evidence for fake", layers=[])
    return RenderedSample(sample, layer.overlay, [layer])


def test_the_picture_of_a_photograph_numbers_its_faces() -> None:
    """Each face has its own map and a number; below, a line of text for each."""
    faces = [face_at(400, 150, 120), face_at(120, 150, 100)]
    photo = np.full((300, 520, 3), 90, np.uint8)
    views, _ = Photographs(SIZE, "all", finder(*faces)).views(photo)
    picture = whole_picture(photo, [(view, rendered(10 * number)) for number, view in enumerate(views, start=1)])
    assert picture[150, 400, 0] == 10 and picture[150, 120, 0] == 20 and picture[5, 5, 0] == 90
    for face in faces:  # a white tile with a digit at the corner of the face
        tile = picture[round(face.box[1]) :, round(face.box[0]) :][:22, :22]
        assert (tile == 255).mean() > 0.5 and (tile < 60).any()
    lines = picture[300:]
    assert lines.shape == (2 * 22, 520, 3) and all((line < 60).any() for line in (lines[:22], lines[22:]))
    (alone,), _ = Photographs(SIZE, "largest", finder(*faces)).views(photo)
    single = whole_picture(photo, [(alone, rendered(10))])
    assert single.shape == (322, 520, 3) and single[round(faces[0].box[1]) + 5, round(faces[0].box[0]) + 3, 0] == 10


def test_the_picture_of_a_face_crop_is_large_enough_for_its_line() -> None:
    photo = np.full((100, 100, 3), 90, np.uint8)
    views, _ = Photographs(SIZE, "off").views(photo)
    picture = whole_picture(photo, [(views[0], rendered(30))])
    assert picture.shape == (512 + 22, 512, 3) and (picture[:512] == 30).all()
