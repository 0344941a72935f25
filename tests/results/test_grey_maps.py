"""Grey maps on disk, read back by OpenCV alone: what the page's browser and other programs work on."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from tests.helpers.fake_run import LAYERS, PIXELS, Row, raw_map, write_row
from utils.gradcam_kit.store.sample_folder import grey, signed_grey

HOT = (3, 2)


def read(path: Path) -> np.ndarray:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))


def test_grey_maps_hold_the_raw_map(tmp_path: Path) -> None:
    """In a sample's folder as a run writes it; the JSON's box says where the original lies in the comparison."""
    folder = write_row(tmp_path, Row(0, "faces", "swap", "000", 1, 0.9, "frame.png", HOT))
    stored = read(folder / "heatmaps" / f"{LAYERS[0]}.png")
    assert stored.dtype == np.uint8 and np.array_equal(stored, (raw_map(HOT) > 0) * 255)
    signed = read(folder / "heatmaps" / f"{LAYERS[0]}_signed.png")
    values = raw_map(HOT) - 0.001
    assert np.abs((signed.astype(float) - 128) / 127 * 0.003 - values).max() < 0.003 / 127
    box = json.loads((folder / "sample0.json").read_text())["original"]
    whole = read(folder / "gradcam_comparison.png")
    assert whole.shape[:2] == (box["of_height"], box["of_width"])
    part = whole[box["top"] : box["top"] + PIXELS, box["left"] : box["left"] + PIXELS, ::-1]
    assert (part == (90, 120, 60)).all()


def test_both_scales_by_hand() -> None:
    """Grey: minimum 0, maximum 255. Signed: zero 128, the largest magnitude 1 or 255, the same unit on both sides."""
    raw = np.array([[0.25, 0.375], [0.5, 0.75]], np.float32)
    assert grey(raw, empty=False).tolist() == [[0, 64], [128, 255]]  # 255 × 0.25 = 63.75, × 0.5 = 127.5 to even
    assert grey(raw, empty=True).tolist() == [[0, 0], [0, 0]]
    signed = np.array([[-0.5, 0.0], [0.125, 0.25]], np.float32)
    assert signed_grey(signed).tolist() == [[1, 128], [160, 192]]  # 128 + 31.75, 128 + 63.5 to even
    assert signed_grey(-signed).tolist() == [[255, 128], [96, 64]]  # 128 - 31.75, 128 - 63.5 to even
    assert signed_grey(np.zeros((1, 2), np.float32)).tolist() == [[128, 128]]
