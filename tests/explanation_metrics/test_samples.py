"""Which fakes are evaluated, and what becomes of masks that serve no localisation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.helpers.datasets import DataTree
from tests.helpers.detectors import PIXELS
from utils.gradcam_kit.data.frame import DataSettings, Frame, evenly_spaced
from utils.gradcam_kit.data.readers import read_dataset
from utils.gradcam_kit.measure.counterparts import RealCounterparts, likeness, real_videos
from utils.gradcam_kit.measure.dataset_evaluation import sample_notes
from utils.gradcam_kit.measure.samples import (
    DetectedFakes,
    detected_fakes,
    read_samples,
)
from utils.gradcam_kit.settings.config import run_settings


def read_fakes(tree: DataTree) -> DetectedFakes:
    settings = run_settings(tree.detector_yaml, tree.test_yaml, {})
    fakes = [frame for frame in read_dataset("toy", settings.data) if frame.label == 1]
    return read_samples(fakes, PIXELS, batch_size=5, workers=0)


def beside(frame: Path, folder: str, suffix: str) -> Path:
    path = Path(str(frame).replace("/frames/", f"/{folder}/")).with_suffix(suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_masks(tree: DataTree, forged: tuple[slice, slice], size: int = 80) -> list[Path]:
    """A mask of `size` pixels for each fake; `forged` in the frames' 80 pixels."""
    mask = np.zeros((80, 80), np.uint8)
    mask[forged] = 255
    paths = [beside(frame, "masks", ".png") for frame in tree.frames["toy_Fake"]]
    for path in paths:
        cv2.imwrite(str(path), cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST))
    return paths


def test_evenly_spaced_is_the_middle_of_equal_parts() -> None:
    assert evenly_spaced("abcdefghijkl", 3) == ["c", "g", "k"] and evenly_spaced(range(10), 4) == [1, 3, 6, 8]
    assert evenly_spaced("abc", 3) == evenly_spaced("abc", 7) == ["a", "b", "c"]


def test_detected_fakes_are_fakes_that_were_predicted_fake() -> None:
    frames = [Frame(f"{i}.png", "toy", "swap", "0", label, i) for i, label in enumerate((0, 0, 1, 1))]
    rows = [{"index": i, "predicted": i % 2} for i in range(4)]
    assert detected_fakes(frames, rows) == [frames[3]]


def test_masks_are_resized_to_the_nearest_pixel(data_tree: DataTree) -> None:
    paths = write_masks(data_tree, (slice(20, 40), slice(20, 60)), size=40)
    samples = read_fakes(data_tree)
    stored = np.asarray(cv2.imread(str(paths[0]), cv2.IMREAD_GRAYSCALE))
    expected = cv2.resize(stored, (PIXELS, PIXELS), interpolation=cv2.INTER_NEAREST) > 127
    assert samples.mask_states["ok"] == len(samples.frames) == 12 and bool(samples.masked.all())
    assert np.array_equal(samples.masks[0], expected) and 0.12 < expected.mean() < 0.13
    assert sample_notes(samples) == ["no landmarks: the face control is a mean face"]


def test_empty_full_and_unreadable_masks_are_counted_and_left_out(data_tree: DataTree) -> None:
    masks = write_masks(data_tree, (slice(20, 40), slice(20, 60)))
    cv2.imwrite(str(masks[0]), np.zeros((80, 80), np.uint8))
    cv2.imwrite(str(masks[1]), np.full((80, 80), 255, np.uint8))
    masks[2].write_bytes(b"no image")
    masks[3].unlink()
    samples = read_fakes(data_tree)
    assert samples.mask_states == {"ok": 8, "none": 1, "empty": 1, "full": 1, "unreadable": 1}
    assert samples.masked.tolist() == [False] * 4 + [True] * 8
    assert [note.split(":")[0] for note in sample_notes(samples)[:4]] == [
        "1 of 12 fakes have no mask", "1 of 12 masks are empty", "1 of 12 masks are full", "1 of 12 masks are unreadable"
    ]  # fmt: skip


def test_without_any_mask(data_tree: DataTree) -> None:
    samples = read_fakes(data_tree)
    assert samples.mask_states["none"] == 12 and not bool(samples.masked.any())
    assert sample_notes(samples)[0] == "no masks: localisation metrics are skipped, and maps are ranked by deletion"


@pytest.mark.parametrize("landmarks", [False, True])
def test_a_mask_of_the_whole_face_leaves_nothing_to_localise(data_tree: DataTree, landmarks: bool) -> None:
    """Without landmarks: of half the image. With them: of nine tenths of the face, here a face of a quarter of it."""
    if landmarks:
        points = np.full((81, 2), 40.0, np.float32)
        points[:4] = [[20, 20], [60, 20], [60, 60], [20, 60]]
        for frame in data_tree.frames["toy_Fake"]:
            np.save(beside(frame, "landmarks", ".npy"), points)
    side = slice(20, 60) if landmarks else slice(5, 75)
    write_masks(data_tree, (side, side))
    samples = read_fakes(data_tree)
    assert samples.whole_face == ["toy_Fake"] and not bool(samples.masked.any())
    assert samples.mask_states["ok"] == 12
    assert any(note.startswith("toy_Fake: the mask is the whole face") for note in sample_notes(samples))
    write_masks(data_tree, (slice(20, 60), slice(20, 45)))  # a good half of that face, under half of the image
    assert read_fakes(data_tree).whole_face == []


def test_counterparts_in_the_naming_of_faceforensics(tmp_path: Path) -> None:
    labels = {
        "FF-real": {"test": {"000": {"label": "FF-real", "frames": ["r/frames/000/012.png", "r/frames/000/024.png"]}}},
        "FF-DF": {
            "test": {"000_003": {"label": "FF-DF", "frames": ["f/frames/000_003/024.png", "f/frames/000_003/036.png"]}}
        },
    }
    (tmp_path / "toy.json").write_text(json.dumps({"toy": labels}))
    settings = DataSettings(
        json_folder=tmp_path, root=tmp_path, label_dict={"FF-real": 0, "FF-DF": 1}, frame_num=1, resolution=64
    )
    fakes = [frame for frame in read_dataset("toy", replace(settings, frame_num=None)) if frame.label]
    paths = [RealCounterparts(settings).path(fake) for fake in fakes]
    assert paths[0] is not None and paths[0].endswith("r/frames/000/024.png") and paths[1] is None


def test_counterparts_are_read_where_there_are_any(data_tree: DataTree) -> None:
    settings = run_settings(data_tree.detector_yaml, data_tree.test_yaml, {})
    fakes = [frame for frame in read_dataset("toy", settings.data) if frame.label == 1]
    data_tree.frames["toy_Real"][1].write_bytes(b"no image")
    image = np.asarray(cv2.imread(str(data_tree.frames["toy_Real"][2])))[..., ::-1]
    expected = cv2.resize(image, (PIXELS, PIXELS), interpolation=cv2.INTER_CUBIC)
    images = torch.zeros(3, 3, PIXELS, PIXELS, dtype=torch.uint8)  # of the fakes: the third shows its real frame
    images[2] = torch.from_numpy(expected.copy()).permute(2, 0, 1)
    images[2, :, :20, :30] = 255  # forged
    reals = RealCounterparts(settings.data).of(fakes[:3], images)
    assert reals.paired.tolist() == [False, False, True]
    assert np.array_equal(reals.pixels[2].permute(1, 2, 0), expected) and not bool(reals.pixels[:2].any())


def test_likeness_is_a_correlation_without_the_quarter_that_differs_most() -> None:
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 256, (2, 16, 16), dtype=np.uint8)
    changed = np.where(rng.random((16, 16)) < 0.5, cells[0], rng.integers(0, 256, (16, 16), dtype=np.uint8))
    first, second, third = (
        torch.from_numpy(one.repeat(4, 0).repeat(4, 1).astype(np.uint8)).expand(3, 64, 64) for one in (*cells, changed)
    )
    found = likeness(torch.stack([first, first, first]), torch.stack([first, second, third]))
    for other, value in zip((cells[0], cells[1], changed), found.tolist(), strict=True):
        apart = np.abs(cells[0].astype(float) - other)
        kept = apart <= np.quantile(apart, 0.75)
        assert value == pytest.approx(np.corrcoef(cells[0][kept], other[kept])[0, 1], abs=1e-4)


@pytest.mark.parametrize(
    ("fake", "real"),
    [
        ("000", "000"),
        ("000_003", "000"),  # FaceForensics++: the face of 003 in 000
        ("id0_id16_0002", "id0_0002"),  # Celeb-DF
        ("01_02__meeting_serious__YVGY8LOK", "01__meeting_serious"),  # DeepFakeDetection
        ("test_mouthswap_0007", "test_mouthswap_0007"),
    ],
)
def test_the_names_of_real_videos(fake: str, real: str) -> None:
    assert real in real_videos(fake)
