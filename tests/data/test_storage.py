"""LMDBs as DeepfakeBench writes them: images and masks encoded, landmarks as bare 32-bit numbers, odd keys."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.helpers.fake_run import Row, sample_of
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.data.frame import DataSettings
from utils.gradcam_kit.data.frame_paths import landmark_path, mask_path
from utils.gradcam_kit.data.frames import frame_loader
from utils.gradcam_kit.data.images import UnreadableImage
from utils.gradcam_kit.data.masks import face_points, read_landmarks, read_mask
from utils.gradcam_kit.data.readers import read_dataset
from utils.gradcam_kit.report.face_regions import sample_landmarks
from utils.gradcam_kit.store.sample import Sample

lmdb = pytest.importorskip("lmdb")

LABELS = {"FF-real": 0, "FF-DF": 1}
FOLDERS = {"FF-real": "original_sequences/youtube", "FF-DF": "manipulated_sequences/Deepfakes"}
RANDOM = np.random.default_rng(3)
IMAGES = {
    f"{FOLDERS[label]}/c23/frames/{video}/{number:03d}": RANDOM.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for label in LABELS
    for video in ("000", "001")
    for number in range(3)
}
LANDMARKS = RANDOM.integers(0, 40, (81, 2), dtype=np.uint32)


def make_lmdb(folder: Path, json_style: str, key_style: str) -> DataSettings:
    """`FF-DF` in the LMDB of its family. A style writes the path below the dataset's folder."""
    styles = {
        "windows": "FaceForensics++\\{windows}",
        "windows with the folder in front": "./datasets\\FaceForensics++\\{windows}",
        "linux": "FaceForensics++/{linux}",
        "written on linux": "FaceForensics++\\{linux}",  # the host puts a backslash after the dataset's name
    }

    def styled(style: str, path: str) -> str:
        return styles[style].format(linux=path, windows=path.replace("/", "\\"))

    (folder / "lmdb").mkdir()
    environment = lmdb.open(str(folder / "lmdb" / "FaceForensics++_lmdb"), map_size=1 << 24)
    entries: dict[str, Any] = {label: {"test": {"c23": {}}} for label in LABELS}
    with environment.begin(write=True) as values:
        for path, image in IMAGES.items():
            encoded = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
            mask = cv2.imencode(".png", (image[..., 0] > 127).astype(np.uint8) * 255)[1].tobytes()
            values.put(styled(key_style, f"{path}.png").encode(), encoded)
            values.put(styled(key_style, f"{path.replace('/frames/', '/masks/')}.png").encode(), mask)
            landmark_key = styled(key_style, f"{path.replace('/frames/', '/landmarks/')}.npy")
            values.put(landmark_key.encode(), LANDMARKS.tobytes())
            label = next(name for name in LABELS if path.startswith(FOLDERS[name]))
            videos = entries[label]["test"]["c23"]
            video = videos.setdefault(path.split("/")[-2], {"label": label, "frames": []})
            video["frames"].append(styled(json_style, f"{path}.png"))
    environment.close()
    (folder / "json").mkdir()
    (folder / "json" / "FF-DF.json").write_text(json.dumps({"FF-DF": entries}))
    return DataSettings(json_folder=folder / "json", label_dict=LABELS, resolution=40, lmdb_dir=folder / "lmdb")


def sample_at(path: str) -> Sample:
    """A run's explained sample of a frame in the LMDB."""
    return sample_of(Row(0, "FF-DF", "FF-DF", "000", 1, 0.9, path))


JSON_STYLES = ("windows", "windows with the folder in front", "linux")
KEY_STYLES = ("windows", "linux", "written on linux")
CASES = [(json_style, key_style, 0) for json_style in JSON_STYLES for key_style in KEY_STYLES]


@pytest.mark.parametrize(("json_style", "key_style", "workers"), [*CASES, ("windows", "written on linux", 2)])
def test_images_masks_and_landmarks(tmp_path: Path, json_style: str, key_style: str, workers: int) -> None:
    """Whatever machine wrote the JSON and the LMDB; read here first, then in workers, each with its own environment."""
    frames = read_dataset("FF-DF", make_lmdb(tmp_path, json_style, key_style))
    assert [frame.label for frame in frames] == [0] * 6 + [1] * 6
    for frame, image in zip(frames, IMAGES.values(), strict=True):
        mask, landmarks = read_mask(frame.path, 40), read_landmarks(frame.path)
        assert mask is not None and landmarks is not None
        np.testing.assert_array_equal(mask, image[..., 0] > 127)
        np.testing.assert_array_equal(landmarks, LANDMARKS)
        for points in (face_points(frame.path), sample_landmarks(sample_at(frame.path))):  # of an image of 40 x 40
            assert points is not None and np.abs(points - LANDMARKS / 40.0).max() < 1e-6
    batches = list(frame_loader(frames, 40, 5, workers))
    pixels = np.concatenate([batch.pixels.permute(0, 2, 3, 1).numpy() for batch in batches])
    np.testing.assert_array_equal(pixels, np.stack(list(IMAGES.values())))
    assert not any(batch.unreadable for batch in batches)


def test_a_key_that_is_not_there_is_an_unreadable_frame(tmp_path: Path) -> None:
    settings = make_lmdb(tmp_path, "windows", "windows")
    path = tmp_path / "json" / "FF-DF.json"
    path.write_text(path.read_text().replace("001.png", "777.png"))
    frames = read_dataset("FF-DF", settings)
    (batch,) = frame_loader(frames, 40, 12, 0)
    assert len(batch.frames) == 8 and len(batch.unreadable) == 4
    frame, reason = batch.unreadable[0]
    assert "no such key" in reason and frame.path.endswith("frames\\000\\777.png")
    assert read_mask(frame.path, 40) is None and read_landmarks(frame.path) is None


def test_landmarks_of_another_size_are_refused(tmp_path: Path) -> None:
    frames = read_dataset("FF-DF", make_lmdb(tmp_path, "windows", "windows"))
    from utils.gradcam_kit.data.frame_paths import _close_all

    _close_all()
    folder, _, key = landmark_path(frames[0].path).partition("!/")
    with lmdb.open(folder, map_size=1 << 24) as environment, environment.begin(write=True) as values:
        values.put(key.encode(), LANDMARKS.astype(np.int64).tobytes())
    with pytest.raises(UnreadableImage, match="162 numbers of 4 bytes, found 1296"):
        read_landmarks(frames[0].path)


def test_the_key_of_mask_and_landmarks_keeps_its_separators() -> None:
    frame = "/data/frames/x_lmdb!/x\\frames\\frames\\id0\\000.png"
    assert mask_path(frame) == "/data/frames/x_lmdb!/x\\frames\\masks\\id0\\000.png"
    assert (
        landmark_path("/l/x_lmdb!/x\\Celeb-real/frames/id0/000.png") == "/l/x_lmdb!/x\\Celeb-real/landmarks/id0/000.npy"
    )


@pytest.mark.parametrize("kept", [0, 5_000, 8_192, -4_096, "half", "pages"])
def test_a_damaged_lmdb_is_one_line(tmp_path: Path, kept: Any) -> None:
    """LMDB maps the file: of one that is cut off, reading a page ends the process with SIGBUS."""
    settings = make_lmdb(tmp_path, "windows", "windows")
    file = tmp_path / "lmdb" / "FaceForensics++_lmdb" / "data.mdb"
    whole = file.read_bytes()
    if kept == "pages":  # of the tree
        file.write_bytes(whole[:8192] + np.random.default_rng(0).bytes(len(whole) - 8192))
    else:
        file.write_bytes(whole[: len(whole) // 2 if kept == "half" else kept])
    with pytest.raises(InputError, match="is damaged or cut off .*: copy or download it again"):
        read_dataset("FF-DF", settings)


def test_frames_are_read_where_there_is_no_lmdb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`lmdb: true` is what DeepfakeBench's configuration says as it comes."""
    settings = replace(make_lmdb(tmp_path, "linux", "linux"), lmdb_dir=tmp_path / "nowhere", root=tmp_path / "rgb")
    for path, image in IMAGES.items():
        file = tmp_path / "rgb" / "FaceForensics++" / f"{path}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), image[..., ::-1])
    frames = read_dataset("FF-DF", settings)
    (batch,) = frame_loader(frames, 40, 12, 0)
    np.testing.assert_array_equal(batch.pixels.permute(0, 2, 3, 1).numpy(), np.stack(list(IMAGES.values())))
    read_dataset("FF-DF", settings)
    said = capsys.readouterr().err
    assert said.count("no LMDB of dataset 'FF-DF'") == 1 and "its frames exist as files, which are read instead" in said


def test_a_root_that_is_not_there_is_named(tmp_path: Path) -> None:
    settings = replace(make_lmdb(tmp_path, "linux", "linux"), lmdb_dir=None, named_root="/mnt/gone")
    with pytest.raises(
        InputError, match=r"dataset_root_rgb \(rgb_dir\) '/mnt/gone' does not exist, .*: give the folder"
    ):
        read_dataset("FF-DF", settings)


def test_no_lmdb_and_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(make_lmdb(tmp_path, "windows", "windows"), lmdb_dir=tmp_path)
    with pytest.raises(InputError, match=r"no LMDB of dataset 'FF-DF' at .*FaceForensics\+\+_lmdb.*lmdb_dir"):
        read_dataset("FF-DF", settings)
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(InputError, match="pip install lmdb"):
        read_dataset("FF-DF", settings)
