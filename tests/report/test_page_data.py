"""What the page shows, computed in Python: no browser needed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.fake_run import changed_row, some_rows, with_values, write_run
from tests.helpers.paths import ROOT
from utils.gradcam_kit.judge.bootstrap import Interval
from utils.gradcam_kit.report.face_regions import REGIONS, GroupRegions, headlines
from utils.gradcam_kit.report.page import notes, video_histogram, write_report
from utils.gradcam_kit.report.page_parts.detection import BINS, Scores, above, histogram_bars, roc_points, thresholds
from utils.gradcam_kit.report.page_parts.faithfulness import measured_views, measuring_command
from utils.gradcam_kit.store.database import RunDatabase
from utils.gradcam_kit.store.read_run import read_run


def group(forgery: str, outcome: str, samples: int, layer: str = "layer", dataset: str = "set") -> GroupRegions:
    preference = [Interval(1.0, 0.9, 1.1, samples, 2)] * len(REGIONS)
    return GroupRegions(
        dataset=dataset, forgery=forgery, outcome=outcome, layer=layer,
        samples=samples, videos=2, mean_faces=0, preference=preference,
    )  # fmt: skip


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


def test_what_was_measured_is_on_the_page(tmp_path: Path) -> None:
    """Maps by what they are ranked by, controls last; curves as points of an SVG, the share on a square-root scale."""
    run = write_run(tmp_path / "run", some_rows(tmp_path)[:4])
    row = {"metric": "pointing game", "low": 0.1, "high": 0.9, "differences": []}
    names = [
        ("random", "", "", 0.95, None),
        ("legrad", "sum", "attention", 0.4, False),
        ("hirescam", "sum", "residual", 0.8, True),
    ]
    curve = {"method": "legrad", "layer": "sum", "site": "attention", "fill": "blur", "shares": [0, 0.25, 1],
             "deletion": [1, 0.5, 0], "insertion": [0, 0.5, 1]}  # fmt: skip
    values = {
        "verdict": "faces: for this checkpoint: <b>it holds</b>", "ranked_by": "pointing game", "notes": [],
        "rows": [{**row, "method": m, "layer": where, "site": s, "mean": mean, "better": b} for m, where, s, mean, b in names],
        "curves": [curve],
    }  # fmt: skip
    assert measured_views(read_run(run)) == []
    with RunDatabase(run / "run.sqlite", writes=True) as database:
        database.put("measurement", [("", "explanations.json", json.dumps({"faces": values}).encode())])
    (one,) = measured_views(read_run(run))
    assert [(row[0], row[-2], row[-1]) for row in one["rows"]] == [
        ("hirescam", "0.800 [0.100, 0.900]", "yes"), ("legrad", "0.400 [0.100, 0.900]", "no"),
        ("a random map", "0.950 [0.100, 0.900]", "control"),
    ]  # fmt: skip
    deletion, insertion = one["curves"]
    assert deletion["lines"] == [("legrad sum attention", "map0", "0.0,0.0 50.0,50.0 100.0,100.0")]
    assert insertion["lines"][0][2] == "0.0,100.0 50.0,50.0 100.0,0.0"
    assert "higher is better" in insertion["title"]
    html = write_report(run).read_text(encoding="utf-8")
    assert "faces: for this checkpoint: &lt;b&gt;it holds&lt;/b&gt;" in html and "Not measured" not in html


def test_where_nothing_was_measured_the_command_is_given(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", some_rows(tmp_path)[:2]))
    command = [
        "test_with_gradcam.py",
        "--gradcam_output_dir",
        "/home/me/out",
        "--overwrite",
        "--test_dataset",
        "my faces",
    ]
    asked = run._replace(manifest=replace(run.manifest, command=command))
    assert measuring_command(asked) == (
        "python test_with_gradcam.py --test_dataset 'my faces' --evaluate_explanations --gradcam_output_dir runs/measured"
    )


def test_with_the_target_predicted_the_page_says_that_classes_differ(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", some_rows(tmp_path)[:12])
    caveat = "of different classes, see above"
    assert caveat in write_report(run).read_text(encoding="utf-8")
    changed_row(
        run, "run", "manifest", lambda text: text.replace('"config": {', '"config": {"gradcam_target": "fake", ')
    )
    page = write_report(run).read_text(encoding="utf-8")
    assert caveat not in page and "fakes − reals" in page


def test_originals_that_were_replaced_are_told_and_those_that_are_gone_are_not(tmp_path: Path) -> None:
    """Of samples 0 to 3: the same as ever, deleted, another image, other landmarks."""
    rows = some_rows(tmp_path)[:4]
    run = write_run(tmp_path / "run", rows)
    frames = [Path(row.path) for row in rows]
    landmarks = [Path(str(frame).replace("/frames/", "/landmarks/")).with_suffix(".npy") for frame in frames]
    for row, frame, points in zip(rows, frames, landmarks, strict=True):
        for file, key in ((frame, "image_hash"), (points, "landmarks_hash")):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(f"{file}".encode())
            digest = hashlib.sha256(f"{file}".encode()).hexdigest()[:16]
            changed_row(run, "sample", "facts", with_values(**{key: digest}), f"idx = {row.number}")

    def told() -> list[str]:
        return [line for line in notes(read_run(run)) if "have changed since the run" in line]

    assert told() == []
    frames[1].unlink()
    landmarks[1].unlink()
    assert told() == []
    frames[2].write_bytes(b"another")
    landmarks[3].write_bytes(b"others")
    assert told() == [
        f"faces: 2 images or landmark files have changed since the run, first {frames[2]}; regions and mean maps use the"
        " present ones."
    ]


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
    assert histogram is not None and (histogram["least"], histogram["most"]) == (30, 32)
    bars, text = histogram["bars"], histogram["text"]
    assert [(round(height, 2), title) for _, _, height, title in bars] == [
        (12.5, "1 videos of 30 frames"), (12.5, "1 videos of 31 frames"), (100.0, "8 videos of 32 frames")
    ]  # fmt: skip
    assert text == "10 videos; 8 of them have 32 frames, the fewest 30, the most 32."
    histogram = video_histogram([1, 300])  # in 20 bins of 15
    assert histogram is not None
    wide = histogram["bars"]
    assert [title for *_, title in wide] == ["1 videos of 1 to 15 frames", "1 videos of 286 to 300 frames"]
    assert all(x >= 0 and x + width <= 100 for x, width, _, _ in wide) and wide[1][0] > 90
    assert video_histogram([]) is None
    same = video_histogram([3] * 7)
    assert same is not None and same["bars"] == [] and same["text"] == "All 7 videos have 3 frames."


def test_what_scores_above_each_threshold_is_counted_exactly() -> None:
    rng = np.random.default_rng(0)
    score = np.concatenate([rng.uniform(0, 1, 50), 1 - rng.exponential(1e-4, 50)]).astype(np.float32).astype(np.float64)
    label, forgery = rng.integers(0, 2, 100), np.array(["a", "b"], dtype=object)[rng.integers(0, 2, 100)]
    grid = thresholds([score])
    assert (np.diff(grid) > 0).all() and {0.0, 0.5, 1.0} <= set(grid) and (grid > 0.999).sum() > 20
    found = above(Scores(score, label, forgery), grid)
    assert found["real"] == [(label == 0).sum(), *(((label == 0) & (score > one)).sum() for one in grid)]
    assert {name for name, _ in found["fakes"]} == {"a", "b"}
    for name, counts in found["fakes"]:
        of = (label == 1) & (forgery == name)
        assert counts == [of.sum(), *((of & (score > one)).sum() for one in grid)]


def test_no_curve_of_a_handful_of_scores() -> None:
    score = np.linspace(0, 1, 9)
    assert roc_points(np.array([0] * 4 + [1] * 5), score) == "" == roc_points(np.ones(9, np.int64), score)
    assert (
        roc_points(np.array([0] * 5 + [1] * 5), np.linspace(0, 1, 10)) == "0.00,100.00 0.00,80.00 0.00,0.00 100.00,0.00"
    )
