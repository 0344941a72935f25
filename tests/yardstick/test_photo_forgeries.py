"""The forger of photographs: its fakes differ where the mask says, and as the kind says."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.yardstick.demo_clip import write_dataset
from benchmarks.yardstick.photo_forgeries import (
    LEAST_CHANGE,
    LOCAL,
    SPREAD,
    Crop,
    Scene,
    adapted,
    feature,
    forge,
    forgeries,
    soft_ellipse,
)
from benchmarks.yardstick.photographs import Face, Photograph

SIDE = 96


def noise(seed: int, height: int = 200, width: int = 240) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def photographs() -> list[Photograph]:
    face = Face(((100, 90), (130, 90)), (115, 125))
    return [Photograph(f"p{i}", noise(i), [face] if i < 2 else [], "drawn here") for i in range(4)]


@pytest.mark.parametrize("kind", LOCAL)
def test_a_local_fake_is_its_real_image_but_for_the_soft_edge_around_the_mask(
    photographs: list[Photograph], kind: str
) -> None:
    for forgery in forgeries(photographs, 4, 3, SIDE, [kind]):
        real, fake, mask = forgery.pair
        assert real.shape == fake.shape == (SIDE, SIDE, 3)
        assert real.dtype == fake.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}
        change = np.abs(real.astype(int) - fake).max(axis=2)
        assert change[mask > 0].mean() >= LEAST_CHANGE
        far = np.ones(mask.shape, bool)
        for y, x in np.argwhere(mask > 0):
            far[max(0, y - 14) : y + 15, max(0, x - 14) : x + 15] = False
        assert far.any()
        assert (change[far] == 0).all()


@pytest.mark.parametrize("kind", SPREAD)
def test_distributed_evidence_has_an_empty_mask_and_lies_everywhere(photographs: list[Photograph], kind: str) -> None:
    for forgery in forgeries(photographs, 3, 3, SIDE, [kind]):
        real, fake, mask = forgery.pair
        assert not mask.any()
        changed = (real != fake).any(axis=2)
        quarters = [changed[y : y + 48, x : x + 48].mean() for y in (0, 48) for x in (0, 48)]
        assert min(quarters) > 0.5


def test_an_upsampled_image_has_lost_its_highest_frequencies(photographs: list[Photograph]) -> None:
    (forgery,) = forgeries(photographs, 1, 3, SIDE, ["upsampled"])
    real, fake = (np.abs(np.fft.fft2(image.mean(axis=2))) for image in forgery.pair[:2])
    highest = slice(SIDE * 3 // 8, SIDE * 5 // 8)
    assert fake[highest, highest].mean() < 0.2 * real[highest, highest].mean()


def test_a_checkerboard_is_the_highest_frequency_of_the_forged_place(photographs: list[Photograph]) -> None:
    (forgery,) = forgeries(photographs, 1, 3, SIDE, ["checker"])
    real, fake, mask = forgery.pair
    inside = mask > 0
    wave = 0.5 * np.add.outer(np.cos(np.pi * np.arange(SIDE)), np.cos(np.pi * np.arange(SIDE)))
    along = [float((image.mean(axis=2) * wave)[inside].mean()) for image in (real, fake)]
    assert along[1] - along[0] > 2.0  # half of the square of a wave of at least 12 grey levels, less noise


def test_kinds_and_photographs_take_turns_and_a_seed_repeats_them(photographs: list[Photograph]) -> None:
    once, again = (list(forgeries(photographs, 14, 5, SIDE)) for _ in range(2))
    assert [one.kind for one in once] == [*LOCAL, *LOCAL]
    assert {one.video for one in once if one.kind == "feature"} == {"p0", "p1"}
    assert {one.video for one in once} == {"p0", "p1", "p2", "p3"}
    for one, other in zip(once, again, strict=True):
        assert all((a == b).all() for a, b in zip(one.pair, other.pair, strict=True))


def test_another_seed_makes_other_fakes(photographs: list[Photograph]) -> None:
    one, other = (next(iter(forgeries(photographs, 1, seed, SIDE))) for seed in (5, 6))
    assert (one.pair.fake != other.pair.fake).any()


def test_an_ellipse_has_its_area_and_a_soft_edge() -> None:
    area = soft_ellipse(101, (50.0, 40.0), np.array([20.0, 10.0]), 30.0, np.random.default_rng(0))
    assert math.pi * 20 * 10 < area.sum() < math.pi * 21 * 11  # a pixel on its edge counts
    assert area[40, 50] == pytest.approx(1.0, abs=0.01)
    assert ((area > 0.1) & (area < 0.9)).sum() > 50


def test_a_patch_is_adapted_to_the_mean_and_the_deviation_of_the_place() -> None:
    real, patch, area = np.zeros((2, 2, 3)), np.zeros((2, 2, 3)), np.array([[1.0, 1.0], [0.0, 0.0]])
    real[0] = [[10.0], [30.0]]  # mean 20, deviation 10
    patch[0] = [[100.0], [110.0]]  # mean 105, deviation 5
    scale = math.sqrt(10**2 + 1) / math.sqrt(5**2 + 1)  # 1.97, below the bound of 2
    found = adapted(patch, real, area)
    np.testing.assert_allclose(found[0, :, 0], [20 - 5 * scale, 20 + 5 * scale])


def test_another_faces_eyes_and_mouth_come_to_lie_on_this_ones() -> None:
    ours = Face(((30, 40), (60, 40)), (45, 70))
    theirs = Face(((40, 30), (40, 60)), (10, 45))  # turned by a right angle
    image = np.full((SIDE, SIDE, 3), 50.0, np.float32)
    other = image.copy()
    for x, y in (*theirs.eyes, theirs.mouth):
        other[y - 3 : y + 4, x - 3 : x + 4] = 250.0
    scene = Scene(Crop(image, ours), image, image, Crop(other, theirs))
    places = set()
    for seed in range(8):
        placed = feature(scene, np.random.default_rng(seed))
        assert placed is not None
        patch, area = placed
        for x, y in (*ours.eyes, ours.mouth):
            assert patch[y, x, 0] - patch[5, 90, 0] > 10
        places.add((bool(area[40, 45] > 0.5), bool(area[70, 45] > 0.5)))
    assert places == {(True, False), (False, True)}  # the eyes, or the mouth


def test_no_face_and_no_change_make_no_forgery() -> None:
    image = noise(0, SIDE, SIDE).astype(np.float32)
    face = Face(((30, 40), (60, 40)), (45, 70))
    rng = np.random.default_rng(0)
    assert forge("feature", Scene(Crop(image, None), image, image, None), rng) is None
    assert forge("feature", Scene(Crop(image, face), image, image, Crop(image, face)), rng) is None  # by its own face
    assert forge("swap", Scene(Crop(0 * image + 9, None), image, image, None), rng) is None  # a plain crop


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return image.astype(int)


def test_a_written_dataset_pairs_each_fake_with_its_real_image(photographs: list[Photograph], tmp_path: Path) -> None:
    write_dataset(photographs, 7, tmp_path)
    rows = list(csv.DictReader((tmp_path / "photographs.csv").open(encoding="utf-8")))
    assert len(rows) == 14
    for real, fake in zip(rows[0::2], rows[1::2], strict=True):
        assert (real["label"], real["forgery"], fake["label"]) == ("real", "", "fake")
        assert (real["video"], Path(real["path"]).name) == (fake["video"], Path(fake["path"]).name)
        images = [read(tmp_path / path) for path in (real["path"], fake["path"], fake["mask"])]
        inside = images[2][..., 0] > 0
        change = np.abs(images[0] - images[1]).max(axis=2)
        assert change[inside].mean() > 4 * change[~inside].mean()
    assert [row["forgery"] for row in rows[1::2]] == list(LOCAL)
    assert (tmp_path / "sources.txt").read_text(encoding="utf-8").splitlines()[3] == "p3: drawn here"


def test_without_a_second_face_no_feature_is_exchanged(photographs: list[Photograph], tmp_path: Path) -> None:
    write_dataset(photographs[1:], 7, tmp_path)
    table = (tmp_path / "photographs.csv").read_text(encoding="utf-8")
    assert "swap" in table
    assert "feature" not in table
