"""Which map is better than every control, and what is said and written of it: a table of values with known answers.

Forty videos of two frames. Map A beats every control, B two of them, D none, and C beats the face only until the
number of maps is corrected for. The expected numbers are computed here, with SciPy and by the rule written out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from tests.helpers.datasets import DataTree
from utils.gradcam_kit.engine.recipe import ATTENTION_SITE, Recipe
from utils.gradcam_kit.measure.comparison import ALL, Columns, MetricRow, best_threshold, rows
from utils.gradcam_kit.measure.dataset_evaluation import ENERGY
from utils.gradcam_kit.measure.evaluate import DatasetScores, best_over_all, write_config
from utils.gradcam_kit.measure.tables import (
    CSV_COLUMNS,
    FEWEST_VIDEOS,
    csv_rows,
    json_values,
    printed,
    verdict,
    weakest_control,
)
from utils.gradcam_kit.settings.config import run_settings

SEED = 7
VIDEOS, FRAMES = 40, 2
A, B = Recipe("hirescam", "encoder.layers.3", "layer_norm1"), Recipe("gradcam", "encoder.layers.3", "residual")
C, D = Recipe("legrad", "encoder.layers.2", ATTENTION_SITE), Recipe("layercam", "fused", "residual")
MAPS = (A, B, C, D)
RANDOM, GAUSSIAN, FACE = Recipe.control("random"), Recipe.control("gaussian"), Recipe.control("face")
CONTROLS = (RANDOM, GAUSSIAN, FACE)
DELETION = "deletion (blur)"
FRAME_VIDEOS = [("swap" if v < VIDEOS // 2 else "gan", f"{v:03d}") for v in range(VIDEOS) for _ in range(FRAMES)]
VIDEO_OF_FRAME = np.repeat(np.arange(VIDEOS), FRAMES)


def level(mean: float, deviation: float, seed: int) -> np.ndarray:
    """One value a frame, equal within a video: over the videos exactly this mean and standard deviation."""
    noise = np.random.default_rng(seed).normal(size=VIDEOS)
    return (mean + deviation * (noise - noise.mean()) / noise.std(ddof=1))[VIDEO_OF_FRAME]


def table() -> Columns:
    """Energy: higher is better. Deletion: lower is better. The pointing game has values for one forgery alone."""
    face = level(0.30, 0.05, 3)
    energy = {
        RANDOM: level(0.10, 0.05, 1),
        GAUSSIAN: level(0.20, 0.05, 2),
        FACE: face,
        A: level(0.50, 0.05, 4),
        B: level(0.27, 0.03, 5),
        C: face + level(1.95 * 0.02 / np.sqrt(VIDEOS), 0.02, 6),  # t = 1.95 against the face
        D: level(0.05, 0.02, 7),
    }
    deletion = {
        A: level(0.20, 0.05, 14),
        D: level(0.90, 0.05, 15),
        RANDOM: level(0.60, 0.05, 11),
        GAUSSIAN: level(0.50, 0.05, 12),
        FACE: level(0.40, 0.05, 13),
    }
    swaps = np.array([forgery == "swap" for forgery, _ in FRAME_VIDEOS])
    pointing = {key: np.where(swaps, column, np.nan) for key, column in energy.items()}
    return {ENERGY: energy, DELETION: deletion, "pointing game": pointing}


VALUES = table()


@pytest.fixture(scope="module")
def compared() -> list[MetricRow]:
    return rows("toy", VALUES, FRAME_VIDEOS, SEED, ["swap", "gan"])


def row_of(found: list[MetricRow], spec: Recipe, metric: str = ENERGY, forgery: str = ALL) -> MetricRow:
    (row,) = [r for r in found if (r.recipe, r.metric, r.forgery) == (spec, metric, forgery)]
    return row


def resampled(column: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """The rule by itself: draw as many videos as there are, with replacement, and average over their frames."""
    videos = np.unique(VIDEO_OF_FRAME[frames])
    drawn = np.random.default_rng(SEED).multinomial(len(videos), np.full(len(videos), 1 / len(videos)), size=10_000)
    copies = drawn[:, np.searchsorted(videos, VIDEO_OF_FRAME[frames])].astype(np.float64)  # of each frame
    copies[:, np.isnan(column[frames])] = 0
    return (copies * np.nan_to_num(column[frames])).sum(axis=1) / copies.sum(axis=1)


def holm(p: Mapping[Recipe, float]) -> dict[Recipe, float]:
    """Holm (1979): the k-th smallest of m times m - k + 1, never smaller than the one before."""
    corrected: dict[Recipe, float] = {}
    last = 0.0
    for k, key in enumerate(sorted(p, key=lambda key: p[key])):
        last = max(last, min(1.0, p[key] * (len(p) - k)))
        corrected[key] = last
    return corrected


# --------------------------------------------------------------------------------------------------------- comparison


def test_the_table_is_what_it_claims_to_be() -> None:
    """By SciPy's t-test over videos: C against the face is significant by itself, and not among four maps."""
    energy = {key: column[::FRAMES] for key, column in VALUES[ENERGY].items()}
    p = {spec: stats.ttest_rel(energy[spec], energy[FACE], alternative="greater").pvalue for spec in MAPS}
    assert p[A] < 1e-6 and 0.02 < p[C] < 0.04 and p[B] > 0.9 and p[D] > 0.9
    assert holm(p)[C] > 0.06
    assert stats.ttest_rel(energy[B], energy[GAUSSIAN], alternative="greater").pvalue < 1e-6


@pytest.mark.parametrize(
    ("metric", "better"), [(ENERGY, {A: True, B: False, C: False, D: False}), (DELETION, {A: True, D: False})]
)
def test_better_is_better_than_every_control(
    compared: list[MetricRow], metric: str, better: Mapping[Recipe, bool]
) -> None:
    assert {spec: row_of(compared, spec, metric).better for spec in better} == better
    for control in CONTROLS:
        row = row_of(compared, control, metric)
        assert row.better is None and row.differences == []


@pytest.mark.parametrize("metric", [ENERGY, DELETION])
def test_rows_equal_the_rule_written_out(compared: list[MetricRow], metric: str) -> None:
    frames = np.arange(VIDEOS * FRAMES)
    columns = VALUES[metric]
    sign = -1 if metric == DELETION else 1  # a difference above 0 is better, also where lower values are
    maps = [spec for spec in columns if spec not in CONTROLS]
    for spec, column in columns.items():
        interval = row_of(compared, spec, metric).interval
        expected = np.quantile(resampled(column, frames), [0.025, 0.975])
        np.testing.assert_allclose(interval[:3], [column.mean(), *expected], rtol=1e-6)
        assert interval[3:] == (80, 40)
        half = 1.96 * column[::FRAMES].std() / np.sqrt(VIDEOS)  # of the normal distribution
        assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.06)
    for control in CONTROLS:
        means = {spec: resampled(sign * (columns[spec] - columns[control]), frames) for spec in maps}
        corrected = holm({spec: (1 + (means[spec] <= 0).sum()) / 10_001 for spec in maps})
        for spec in maps:
            (difference,) = [one for one in row_of(compared, spec, metric).differences if one.control == control.method]
            low, high = np.quantile(means[spec], [0.025, 0.975])
            paired = sign * (columns[spec] - columns[control]).mean()
            np.testing.assert_allclose(difference[1:4], [paired, low, high], rtol=1e-6, atol=1e-9)
            assert difference.p == pytest.approx(corrected[spec], rel=1e-9)


@pytest.mark.parametrize("videos", [1, 2, 4, 5, 6])
def test_a_handful_of_videos_decides_nothing(videos: int) -> None:
    """A map better than every control in every frame: one video has no interval, and fewer than five no verdict.

    The sign test by SciPy is the bound: of V differences that are all above 0 its one-sided p is 2 ** -V.
    """
    frames = 24 * videos
    noise = np.random.default_rng(0).normal(0, 0.02, frames)
    columns: Columns = {ENERGY: {A: 0.9 + noise, **dict.fromkeys(CONTROLS, 0.2 + 0 * noise)}}
    found = rows("toy", columns, [("swap", f"{i % videos}") for i in range(frames)], SEED, [])
    row = row_of(found, A)
    least = stats.binomtest(videos, videos, alternative="greater").pvalue
    assert row.interval.videos == videos and row.interval.mean == pytest.approx((0.9 + noise).mean())
    assert [one.p for one in row.differences] == pytest.approx([max(least, 1 / 10_001)] * 3)
    assert row.better == (least < 0.05) == (videos >= FEWEST_VIDEOS)
    bounds = [(one.low, one.high) for one in row.differences] + [(row.interval.low, row.interval.high)]
    has_interval = [math.isfinite(bound) for pair in bounds for bound in pair]
    assert has_interval == [videos > 1] * 8
    if videos == 1:
        scores = DatasetScores("toy", frames, [A], ranked_by=ENERGY, ranking=[A], rows=found)
        assert verdict(scores) == (
            "toy: for this checkpoint: one video is too few to tell whether a map is better than the controls"
        )
        written = dict(zip(CSV_COLUMNS, csv_rows([row])[0], strict=True))
        assert (written["low"], written["high"], written["low_random"], written["better"]) == ("", "", "", "no")
        values = json_values(scores)["rows"][0]
        assert values["low"] is None and values["differences"][0]["high"] is None and values["better"] is False
        assert best_over_all([scores]) is None


def test_rows_of_a_forgery_are_of_its_frames_alone(compared: list[MetricRow]) -> None:
    frames = np.flatnonzero([forgery == "gan" for forgery, _ in FRAME_VIDEOS])
    interval = row_of(compared, B, ENERGY, "gan").interval
    column = VALUES[ENERGY][B]
    expected = [column[frames].mean(), *np.quantile(resampled(column, frames), [0.025, 0.975])]
    np.testing.assert_allclose(interval[:3], expected, rtol=1e-6)
    assert interval[3:] == (40, 20)


def test_frames_without_a_value_are_left_out_and_an_empty_group_has_no_row(compared: list[MetricRow]) -> None:
    interval = row_of(compared, A, "pointing game").interval
    column = VALUES["pointing game"][A]
    expected = [np.nanmean(column), *np.quantile(resampled(column, np.arange(80)), [0.025, 0.975])]
    np.testing.assert_allclose(interval[:3], expected, rtol=1e-6)
    assert interval[3:] == (40, 20)
    assert not [row for row in compared if (row.metric, row.forgery) == ("pointing game", "gan")]


def test_any_number_of_maps_leaves_room_for_a_map_that_is_better() -> None:
    """The smallest p is one over the resamples; times the number of maps it has to stay below 5 %."""
    count = 520
    columns: dict[Recipe, np.ndarray] = {
        Recipe("gradcam", str(i), "residual"): np.linspace(0.8, 0.9, 40) for i in range(count)
    }
    columns.update({control: np.full(40, 0.1) for control in CONTROLS})
    found = rows("toy", {ENERGY: columns}, [("swap", str(i)) for i in range(40)], SEED, [])
    assert count / 10_001 > 0.05 and all(row.better for row in found if row.recipe not in CONTROLS)


def test_the_threshold_is_the_best_one_on_average() -> None:
    """Two frames with a mask, three thresholds: the means are 0.3, 0.5 and 0.4."""
    found = best_threshold({A: np.array([[0.2, 0.4, 0.7], [0.4, 0.6, 0.1], [np.nan] * 3])})
    np.testing.assert_array_equal(found[A], [0.4, 0.6, np.nan])


# ------------------------------------------------------------------------------------------------ verdict, tables, YAML


def scores(found: list[MetricRow], ranking: list[Recipe], configured: list[Recipe], **changes: Any) -> DatasetScores:
    values: dict[str, Any] = {
        "dataset": "toy", "detected": 80, "samples": None, "configured": configured, "ranked_by": ENERGY,
        "ranking": ranking, "rows": found, "curves": {}, "curve_videos": {}, "randomised": None, "paired": 0,
        "notes": [],
    }  # fmt: skip
    return DatasetScores(**{**values, **changes})


def in_brackets(row: MetricRow) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*row.interval[:3])


BEST = "toy: for this checkpoint: hirescam at encoder.layers.3, layer_norm1 (energy in mask "


def test_the_verdict(compared: list[MetricRow]) -> None:
    best = f"{BEST}{in_brackets(row_of(compared, A))})"
    assert verdict(scores(compared, [A, C, B, D], [A])) == best
    useless = "; gradcam at encoder.layers.3, residual is no better than the mean face"
    assert verdict(scores(compared, [A, C, B, D], [A, B])) == best + useless
    more = "; gradcam at encoder.layers.3, residual and 2 more of the configured maps are no better than the mean face"
    assert verdict(scores(compared, [A, C, B, D], [B, C, D])) == best + more


def test_the_verdict_where_nothing_is_better(compared: list[MetricRow]) -> None:
    """The best one fails against the face alone, so that is what it is held against."""
    nothing = "toy: for this checkpoint: no map is better than the mean face: do not use its heatmaps"
    assert verdict(scores(compared, [C, B, D], [B])) == nothing
    assert verdict(scores([], [], [A], detected=0, notes=["no detected fakes"])) == "toy: no detected fakes"


def test_the_weakest_control_is_the_one_that_a_map_fails_against_by_most(compared: list[MetricRow]) -> None:
    assert weakest_control(row_of(compared, B)) == "the mean face"  # beats the other two
    assert weakest_control(row_of(compared, D)) == "the mean face"  # below all three, below the face by most
    lower = rows("toy", {ENERGY: {B: level(0.15, 0.02, 5), RANDOM: level(0.30, 0.02, 1), GAUSSIAN: level(0.20, 0.02, 2),
                                  FACE: level(0.10, 0.02, 3)}}, FRAME_VIDEOS, SEED, [])  # fmt: skip
    assert weakest_control(row_of(lower, B)) == "a random map"


class SomeSamples:
    """As much of the samples as the printed table counts."""

    frames = (None,) * 80


def test_printed_in_the_order_of_the_ranking(compared: list[MetricRow]) -> None:
    lines = printed(scores(compared, [A, C, B, D], [D], samples=SomeSamples())).splitlines()
    assert lines[0] == "toy: explanations of 80 of 80 detected fakes, 95 % intervals"
    names = [line.split()[0] for line in lines[2:9]]
    assert names == ["hirescam", "legrad", "gradcam", "layercam", "random", "gaussian", "face"]
    assert [line.split()[-1] for line in lines[2:9]] == ["yes", "no", "no", "no", *["(control)"] * 3]
    assert in_brackets(row_of(compared, A)) in lines[2]
    assert in_brackets(row_of(compared, A, "pointing game")) in lines[2]
    below = lines.index("deletion (blur), lower is better") + 1
    assert lines[below].split()[0] == "hirescam" and lines[below].endswith("yes")
    assert lines[below + 1].split()[0] == "layercam" and lines[below + 1].endswith("no")
    forgeries = lines.index("hirescam at encoder.layers.3, layer_norm1 on each forgery method, energy in mask") + 1
    assert lines[forgeries].split()[0] == "swap" and lines[forgeries].endswith("better than controls, 40 frames")


def test_a_long_ranking_is_cut_but_for_the_configured_maps() -> None:
    maps = [Recipe("gradcam", f"encoder.layers.{i}", "residual") for i in range(16)]
    columns: dict[Recipe, np.ndarray] = {spec: level(0.9 - 0.05 * i, 0.05, i) for i, spec in enumerate(maps)}
    columns.update({control: level(0.1, 0.05, 30 + i) for i, control in enumerate(CONTROLS)})
    found = rows("toy", {ENERGY: columns}, FRAME_VIDEOS, SEED, [])
    lines = printed(scores(found, maps, [maps[14]], samples=SomeSamples())).splitlines()
    layers = [line.split()[1] for line in lines[2:15]]
    assert layers == [f"encoder.layers.{i}" for i in (*range(12), 14)]
    assert lines[18] == "  … 3 more in explanations.csv"


def test_the_best_map_over_all_datasets(compared: list[MetricRow]) -> None:
    """Best on average, among those that beat every control on one dataset at least."""
    lower = level(0.30, 0.02, 21)
    columns = {**VALUES[ENERGY], A: lower, C: level(0.60, 0.05, 22)}
    other = rows("other", {ENERGY: columns}, FRAME_VIDEOS, SEED, [])
    first, second = scores(compared, [A, C, B, D], [B]), scores(other, [C, A, B, D], [B], dataset="other")
    assert best_over_all([first]) == A and best_over_all([second]) == C
    assert np.mean([0.5, 0.3]) < np.mean([0.306, 0.6]) and best_over_all([first, second]) == C
    assert best_over_all([scores([row for row in compared if row.recipe != A], [C, B, D], [B])]) is None


SWEPT = [Recipe("layercam", layer, "residual") for layer in ("encoder.layers.3", "fused", "encoder.layers.1")]
BALANCED_SWEPT = replace(SWEPT[0], backward="balanced")


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        (SWEPT[0], {"gradcam_layers": ["encoder.layers.3"], "gradcam_site": "residual"}),
        (SWEPT[1], {"gradcam_layers": ["encoder.layers.1", "encoder.layers.3", "fused"], "gradcam_site": "residual"}),
        (
            BALANCED_SWEPT,
            {"gradcam_layers": ["encoder.layers.3"], "gradcam_site": "residual", "gradcam_backward": "balanced"},
        ),
        (C, {"gradcam_layers": ["encoder.layers.2"]}),  # a method that reads attention has no site
    ],
)
def test_the_written_config(
    compared: list[MetricRow], data_tree: DataTree, tmp_path: Path, best: Recipe, expected: dict[str, Any]
) -> None:
    settings = run_settings(data_tree.detector_yaml, data_tree.test_yaml, {})
    judged = scores(compared, [A, *SWEPT, BALANCED_SWEPT, C], [A])
    write_config(tmp_path / "best.yaml", best, [judged], settings)
    text = (tmp_path / "best.yaml").read_text()
    before, written = settings.detector.config, yaml.safe_load(text)
    changed = {key: value for key, value in written.items() if key not in before or before[key] != value}
    everywhere = {"gradcam_enabled": True, "gradcam_method": best.method, "gradcam_backward": "plain"}
    assert changed == {**everywhere, **expected}
    assert not set(before) - set(written)
    assert text.splitlines()[1] == f"# {BEST}{in_brackets(row_of(compared, A))})"
