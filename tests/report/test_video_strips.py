"""Which frames of a long video its strip shows, and that each stands over its own score."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from tests.helpers.fake_run import Row, write_run
from utils.gradcam_kit.exports.formats import FRAME, GAP, LINE, MOST_FRAMES, NAMES, write_strips
from utils.gradcam_kit.store.read_run import read_run

COUNT = 50
TITLE = LINE + GAP


def paint_original(folder: Path, level: int) -> None:
    """Give the original in the comparison its own grey, by which it is known again."""
    path = folder / "gradcam_comparison.png"
    whole = np.asarray(cv2.imread(str(path)))
    whole[(whole == (60, 120, 90)).all(axis=-1)] = level
    cv2.imwrite(str(path), whole)


def test_a_long_video_is_shown_from_beginning_to_end(tmp_path: Path) -> None:
    rows = [Row(i, "faces", "swap", "clip", 1, 0.9, f"{i:03d}.png") for i in range(COUNT)]
    run = write_run(tmp_path / "run", rows)
    for i in range(COUNT):
        paint_original(run / "faces" / f"sample{i}", 4 * i + 10)
    (path,) = write_strips(read_run(run).datasets[0])
    image = np.asarray(cv2.imread(str(path)))
    assert image.shape[1] == NAMES + MOST_FRAMES * (FRAME + GAP)
    middles = NAMES + FRAME // 2 + (FRAME + GAP) * np.arange(MOST_FRAMES)
    shown = (image[TITLE + FRAME // 2, middles].mean(axis=1) - 10) / 4
    # From the first frame to the last, in order, no step more than one longer than another.
    assert shown[0] == 0 and shown[-1] == COUNT - 1
    assert set(np.diff(shown)) == {1, 2} and np.array_equal(shown, np.round(np.linspace(0, 49, 32)))


def test_a_short_video_is_shown_as_it_is(tmp_path: Path) -> None:
    rows = [Row(i, "faces", "swap", "clip", 1, 0.9, f"{i:03d}.png") for i in range(3)]
    (path,) = write_strips(read_run(write_run(tmp_path / "run", rows)).datasets[0])
    assert np.asarray(cv2.imread(str(path))).shape[1] == NAMES + 3 * (FRAME + GAP)
