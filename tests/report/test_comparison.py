"""Two runs side by side: what differs by hand-made numbers, against scikit-learn and NumPy; and what cannot be compared."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.helpers.fake_run import Row, write_run
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.report.command import main
from utils.gradcam_kit.report.comparison import correlation, metric_differences, paired_frames, paired_layers
from utils.gradcam_kit.store.read_run import read_run


def rows(probabilities: Sequence[float], hot: tuple[int, int] = (3, 2), dataset: str = "faces") -> list[Row]:
    """Frames of four videos of each class, two a video, the reals first."""
    return [
        Row(i, dataset, "swap_Fake" if i >= 8 else "Real", f"{i // 2:03d}", int(i >= 8), p, f"/data/{i}.png", hot)
        for i, p in enumerate(probabilities)
    ]


A = [0.1, 0.2, 0.3, 0.4, 0.1, 0.2, 0.6, 0.3, 0.9, 0.8, 0.4, 0.7, 0.9, 0.6, 0.8, 0.7]
B = [0.1, 0.7, 0.3, 0.4, 0.1, 0.2, 0.2, 0.3, 0.9, 0.8, 0.9, 0.3, 0.9, 0.2, 0.8, 0.7]


def two_runs(folder: Path) -> tuple[Path, Path]:
    return write_run(folder / "a", rows(A)), write_run(folder / "b", rows(B, hot=(0, 0)))


def test_metrics_are_scikit_learns_and_the_interval_is_a_bootstrap_over_videos(tmp_path: Path) -> None:
    (frames,) = paired_frames(*map(read_run, two_runs(tmp_path)))
    label = [0] * 8 + [1] * 8
    found = {one.name: one for one in metric_differences(frames)}
    for name, score in (("AUC", roc_auc_score), ("AP", average_precision_score)):
        assert found[name].a == pytest.approx(score(label, A)) and found[name].b == pytest.approx(score(label, B))
    assert (found["ACC"].a, found["ACC"].b) == (14 / 16, 13 / 16)
    # By hand: resample the eight videos of two frames each, with another generator.
    difference = np.array([(b > 0.5) == y for b, y in zip(B, label, strict=True)], float) - [
        (a > 0.5) == y for a, y in zip(A, label, strict=True)
    ]
    of_video = difference.reshape(8, 2).mean(axis=1)
    rng = np.random.default_rng(99)
    drawn = of_video[rng.integers(0, 8, (20_000, 8))].mean(axis=1)
    assert [found["ACC"].low, found["ACC"].high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.03)
    assert found["ACC"].low < 0 < found["ACC"].high


def test_a_comparison_says_which_run_did_not_finish(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", rows(A)), write_run(tmp_path / "b", rows(B), finished=False)
    main(["compare", str(a), str(b), "-o", str(tmp_path / "comparison")])
    page = (tmp_path / "comparison" / "index.html").read_text()
    assert "Run B did not finish" in page and "Run A did not finish" not in page


def test_too_few_videos_have_no_interval(tmp_path: Path) -> None:
    few = [row._replace(video="000") for row in rows(A)]
    runs = write_run(tmp_path / "a", few), write_run(tmp_path / "b", few)
    (frames,) = paired_frames(*map(read_run, runs))
    assert all(np.isnan(one.low) and np.isnan(one.high) for one in metric_differences(frames))


def test_correlation_of_maps_of_two_grids() -> None:
    rng = np.random.default_rng(0)
    one = rng.random((8, 8))
    assert correlation(one, 3 * one + 1) == pytest.approx(1) and np.isnan(correlation(one, np.ones((8, 8))))
    coarse = rng.random((4, 4))
    fine = cv2.resize(coarse, (8, 8), interpolation=cv2.INTER_LINEAR)
    assert correlation(one, coarse) == pytest.approx(np.corrcoef(one.ravel(), fine.ravel())[0, 1])


def test_layers_of_one_name_or_of_one_place_stand_beside_each_other() -> None:
    assert paired_layers(["x", "y"], ["y", "z"]) == [("y", "y")]
    assert paired_layers(["sum"], ["b.5", "b.4"]) == [("sum", "b.5")]


def test_the_page_shows_the_disagreements_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = two_runs(tmp_path)
    out = tmp_path / "page"
    assert main(["compare", str(a), str(b), "-o", str(out), "--samples", "6"]) == 0
    assert "16 frames in common, 5 decided differently" in capsys.readouterr().out
    with (out / "frames.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["prob_fake_b"]) for row in table] == B
    assert [i for i, row in enumerate(table) if row["decisions_differ"] == "True"] == [1, 6, 10, 11, 13]
    page = (out / "index.html").read_text()
    cards = re.findall(r'<li( class="differs")?>\s*<p class="title">(.*?)[<\n]', page)
    assert len(cards) == 6 and all(differs for differs, _ in cards[:5]) and not cards[5][0]
    assert "1.png" in cards[0][1] or "10.png" in cards[0][1]  # the scores differ by 0.5
    assert page.count("<img") == 6 * 5 and all((out / src).is_file() for src in re.findall(r'<img src="(.*?)"', page))
    assert "only A is right" in page and re.search(r"swap_Fake</th><td>8</td><td>2</td><td>1</td>", page)
    assert not list(tmp_path.glob(".*partial"))


def other_data(folder: Path) -> list[str]:
    return [str(write_run(folder / "a", rows(A))), str(write_run(folder / "b", rows(B, dataset="others")))]


def no_run(folder: Path) -> list[str]:
    return [str(write_run(folder / "a", rows(A))), str(folder)]


@pytest.mark.parametrize(
    ("runs", "says"), [(other_data, "the two runs have no frame in common"), (no_run, "holds no run")]
)
def test_what_cannot_be_compared_is_one_line_and_leaves_nothing(runs: object, says: str, tmp_path: Path) -> None:
    assert callable(runs)
    with pytest.raises(InputError, match=says):
        main(["compare", *runs(tmp_path), "-o", str(tmp_path / "page")])
    assert not (tmp_path / "page").exists() and not list(tmp_path.glob(".*partial"))


def test_a_folder_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    a, b = two_runs(tmp_path)
    (tmp_path / "page").mkdir()
    with pytest.raises(InputError, match="exists already"):
        main(["compare", str(a), str(b), "-o", str(tmp_path / "page")])


def test_frames_of_one_run_alone_are_counted_and_left_out(tmp_path: Path) -> None:
    runs = write_run(tmp_path / "a", rows(A)), write_run(tmp_path / "b", rows(B)[2:])
    (frames,) = paired_frames(*map(read_run, runs))
    assert (len(frames.path), frames.only_a, frames.only_b) == (14, 2, 0)
