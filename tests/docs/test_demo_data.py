"""The synthetic dataset on disk: its layout, its masks, its landmarks, and that all of it follows from the seed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.helpers.paths import ROOT

COMMAND = ROOT / "examples" / "make_demo_data.py"
KINDS = ("eyeswap", "noseswap", "mouthswap", "cheekblend", "innerface")


def make(output: Path, *flags: str) -> Path:
    command = [sys.executable, str(COMMAND), "--output", str(output), *flags]
    subprocess.run(command, check=True, capture_output=True, cwd=output.parent)
    return output


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("demo") / "data", "--seed", "7", "--videos", "2")


def tree(data: Path, name: str) -> dict[str, Any]:
    return json.loads((data / "dataset_json" / f"{name}.json").read_text(encoding="utf-8"))


def image(path: Path) -> np.ndarray:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None, path
    return pixels


def fakes(data: Path) -> list[Path]:
    return sorted(path for kind in KINDS for path in (data / f"{kind}_Fake" / "frames").glob("*/*.png"))


def beside(frame: Path, folder: str, suffix: str = ".png") -> Path:
    return frame.parents[2] / folder / frame.parent.name / (frame.stem + suffix)


def real_of(fake: Path) -> Path:
    return fake.parents[3] / "demo_Real" / "frames" / fake.parent.name / fake.name


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_layout_is_that_of_deepfakebench(data: Path) -> None:
    assert sorted(path.stem for path in (data / "dataset_json").iterdir()) == sorted([*KINDS, "demo"])
    joint = tree(data, "demo")["demo"]
    assert set(joint) == {"demo_Real", *(f"{kind}_Fake" for kind in KINDS)}
    for kind in KINDS:
        alone = tree(data, kind)[kind]
        assert set(alone) == {"demo_Real", f"{kind}_Fake"}
        assert alone[f"{kind}_Fake"] == joint[f"{kind}_Fake"]
        for split in ("train", "val", "test"):
            assert set(alone["demo_Real"][split]) == set(alone[f"{kind}_Fake"][split]), "each fake has its real"
    for label, splits in joint.items():
        assert set(splits) == {"train", "val", "test"}
        for videos in splits.values():
            assert len(videos) == (10 if label == "demo_Real" else 2)
            for name, video in videos.items():
                assert video["label"] == label
                for frame in video["frames"]:
                    path = data / frame
                    assert path.parent == data / label / "frames" / name
                    assert image(path).shape == (224, 224, 3)
                    assert np.load(beside(path, "landmarks", ".npy")).shape == (81, 2)
                    if label != "demo_Real":
                        mask = image(beside(path, "masks"))
                        assert mask.shape == (224, 224)
                        assert set(np.unique(mask)) == {0, 255}


def test_every_file_follows_from_the_seed_alone(data: Path, tmp_path: Path) -> None:
    again = make(tmp_path / "again", "--seed", "7", "--videos", "1", "--split", "test", "--processes", "1")
    first, second = digests(data), digests(again)
    images = [name for name in second if not name.startswith("dataset_json")]
    assert len(images) == 5 * 3 * 5  # pairs, frames; two images, one mask, two files of landmarks
    assert all(second[name] == first[name] for name in images)
    other = digests(make(tmp_path / "other", "--seed", "8", "--videos", "1", "--split", "test"))
    frames = [name for name in other if "/frames/" in name]
    assert not any(other[name] == first[name] for name in frames)


def test_no_face_is_in_two_splits(data: Path) -> None:
    videos = [set(tree(data, "demo")["demo"]["demo_Real"][split]) for split in ("train", "val", "test")]
    assert len(set.union(*videos)) == sum(map(len, videos)) == 30
    # Another face in another room: the first frames of two videos have hardly a pixel in common.
    first = [image(data / "demo_Real" / "frames" / name / "000.png").astype(int) for name in sorted(set.union(*videos))]
    for i in range(len(first)):
        for j in range(i):
            assert np.abs(first[i] - first[j]).mean() > 10


def test_a_fake_differs_from_its_real_inside_the_mask_only(data: Path) -> None:
    for fake in fakes(data):
        mask = image(beside(fake, "masks")) > 0
        change = np.abs(image(fake).astype(int) - image(real_of(fake)).astype(int)).max(axis=2)
        # JPEG works in squares of 16 pixels (colour at half resolution, then smoothed): none beyond the next one.
        far = cv2.dilate(mask.astype(np.uint8), np.ones((57, 57), np.uint8)) == 0
        assert change[far].max() == 0, fake
        assert change[mask].mean() > 1.0, fake
        assert change[mask].mean() > 15 * change[~mask].mean(), fake
        squares = change[mask].reshape(-1)
        assert (squares > 0).mean() > 0.5, fake


def test_masks_are_small_and_lie_on_the_part_that_the_method_names(data: Path) -> None:
    shares: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for fake in fakes(data):
        kind = fake.parents[2].name.split("_")[0]
        mask = image(beside(fake, "masks")) > 0
        landmarks = np.load(beside(fake, "landmarks", ".npy"))
        shares[kind].append(mask.mean())
        centre = np.argwhere(mask).mean(axis=0)[::-1]
        parts = {
            "eyeswap": [landmarks[36:42], landmarks[42:48]],
            "noseswap": [landmarks[27:36]],
            "mouthswap": [landmarks[48:68]],
            "cheekblend": [landmarks[[2, 31, 40]], landmarks[[14, 35, 47]]],
            "innerface": [landmarks[27:36]],
        }[kind]
        between_eyes = np.linalg.norm(landmarks[36:42].mean(axis=0) - landmarks[42:48].mean(axis=0))
        assert min(np.linalg.norm(part.mean(axis=0) - centre) for part in parts) < 0.3 * between_eyes, fake
    mean = {kind: float(np.mean(share)) for kind, share in shares.items()}
    assert all(0.015 < mean[kind] < 0.04 for kind in KINDS[:4]), mean
    assert 0.06 < mean["innerface"] < 0.12, mean


def test_landmarks_lie_on_the_drawn_features(data: Path) -> None:
    """Against the pixels: eyes hold darker spots than cheeks, lips are redder than the chin."""
    dark, red = [], []
    for path in sorted((data / "demo_Real" / "frames").glob("*/*.png")):
        pixels = cv2.GaussianBlur(image(path), (0, 0), 1.0).astype(np.float32)
        grey = pixels.mean(axis=2)
        landmarks = np.load(beside(path, "landmarks", ".npy"))

        def inside(points: np.ndarray, values: np.ndarray) -> np.ndarray:
            area = np.zeros(values.shape[:2], np.uint8)
            cv2.fillConvexPoly(area, cv2.convexHull(np.rint(points).astype(np.int32)), 1)
            return values[area > 0]

        for eye in (landmarks[36:42], landmarks[42:48]):
            cheek = eye + np.array([0, 22])
            dark.append(inside(eye, grey).min() < inside(cheek, grey).min())
        redness = pixels[..., 2] / (pixels[..., 1] + 1)
        chin = 0.5 * (landmarks[57] + landmarks[8]) + np.array([[-8, -3], [8, -3], [8, 3], [-8, 3]])
        red.append(np.median(inside(landmarks[48:60], redness)) > np.median(inside(chin, redness)))
    assert np.mean(dark) > 0.95
    assert np.mean(red) > 0.9
