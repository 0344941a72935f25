"""What the page shows, computed in Python: no browser needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.fake_run import some_rows, write_run
from tests.helpers.paths import ROOT
from utils.explanation_metrics.bootstrap import Interval
from utils.report.face_regions import REGIONS
from utils.report.page import BINS, histogram_bars, video_histogram, write_report
from utils.report.region_tables import GroupRegions, headlines


def group(forgery: str, outcome: str, samples: int, layer: str = "layer", dataset: str = "set") -> GroupRegions:
    preference = [Interval(1.0, 0.9, 1.1, samples, 2)] * len(REGIONS)
    return GroupRegions(dataset, forgery, outcome, layer, samples, 2, 0, preference)


@pytest.mark.parametrize(("false_alarms", "cleared", "largest"), [(5, 9, "TN"), (9, 5, "FP")])
def test_headlines_are_of_detected_fakes_or_else_of_the_largest_group(
    false_alarms: int, cleared: int, largest: str
) -> None:
    groups = [
        group("swap", "TP", 3), group("swap", "FN", 50),
        group("real", "FP", false_alarms), group("real", "TN", cleared),
        group("swap", "TP", 70, layer="other"),
    ]  # fmt: skip
    found = [(one.forgery, one.outcome, one.samples) for one in headlines(groups, "layer")]
    assert found == [("swap", "TP", 3), ("real", largest, 9)]


def test_a_forgery_of_two_datasets_has_two_headlines() -> None:
    found = headlines([group("swap", "TP", 3), group("swap", "TP", 4, dataset="other")], "layer")
    assert [(one.dataset, one.samples) for one in found] == [("set", 3), ("other", 4)]


def test_histogram_bars_are_shares_of_each_class() -> None:
    """Four reals, of which three below 0.05; ten fakes, of which five in the last bin: heights 100, 33 and 67."""
    scores = np.array([0.01, 0.02, 0.03, 0.52, *[0.99] * 5, *[0.07] * 5])
    label = np.array([0] * 4 + [1] * 10)
    bars = histogram_bars(label, scores)
    heights = {kind: [round(height, 3) for _, _, height, _ in bars[kind]] for kind in ("real", "fake")}
    assert len(heights["real"]) == len(heights["fake"]) == BINS == 20
    assert {i: height for i, height in enumerate(heights["real"]) if height} == {0: 100.0, 10: 33.333}
    assert {i: height for i, height in enumerate(heights["fake"]) if height} == {1: 66.667, 19: 66.667}
    assert bars["real"][0][3] == "real: 75.0 % between 0.00 and 0.05"
    assert bars["fake"][19][3] == "fake: 50.0 % between 0.95 and 1.00"
    # Beside each other within their bin of five hundredths.
    real, fake = bars["real"][10], bars["fake"][10]
    assert 50 <= real[0] < real[0] + real[1] <= fake[0] < fake[0] + fake[1] <= 55
    assert list(histogram_bars(label[:4], scores[:4])) == ["real"]


def test_the_page_may_load_and_run_nothing_but_its_own(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a run", some_rows(tmp_path))
    html = write_report(run).read_text(encoding="utf-8")
    assert "default-src 'none'" in html and "http://" not in html and "https://" not in html
    assert str(run) not in html  # a run folder can be moved


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", some_rows(tmp_path)[:8])
    command = [sys.executable, "-m", "utils.report", str(run)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.strip() == str(run / "index.html"), done.stderr
    page = (run / "index.html").read_bytes()
    moved = run.rename(tmp_path / "elsewhere")
    assert write_report(moved).read_bytes() == page  # no time, no place in it


def test_frames_per_video_as_a_histogram() -> None:
    histogram = video_histogram([32] * 8 + [30, 31])
    assert histogram is not None and (histogram.least, histogram.most) == (30, 32)
    bars, text = histogram.bars, histogram.text
    assert [(round(height, 2), title) for _, _, height, title in bars] == [
        (12.5, "1 videos of 30 frames"), (12.5, "1 videos of 31 frames"), (100.0, "8 videos of 32 frames")
    ]  # fmt: skip
    assert text == "10 videos; 8 of them have 32 frames, the fewest 30, the most 32"
    histogram = video_histogram([1, 300])  # in 20 bins of 15
    assert histogram is not None
    wide = histogram.bars
    assert [title for *_, title in wide] == ["1 videos of 1 to 15 frames", "1 videos of 286 to 300 frames"]
    assert all(x >= 0 and x + width <= 100 for x, width, _, _ in wide) and wide[1][0] > 90
    assert video_histogram([]) is None
