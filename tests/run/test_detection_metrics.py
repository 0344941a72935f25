"""Against values worked out by hand and definitions spelled out in the test."""

from __future__ import annotations

import numpy as np
import pytest

from utils.gradcam_kit.judge.detection_metrics import DetectionMetrics, detection_metrics


def test_worked_out_by_hand() -> None:
    prob = [0.9, 0.8, 0.7, 0.6, 0.55, 0.4, 0.3, 0.2]
    label = [1, 1, 0, 1, 0, 1, 0, 0]
    video = ["f1", "f1", "r1", "f2", "r1", "f2", "r2", "r2"]
    got = detection_metrics(prob, label, video)
    assert got.acc == pytest.approx(5 / 8)  # wrong: 0.7 and 0.55 (real), 0.4 (fake)
    # Pairs (fake, real) in the right order: 0.9 and 0.8 beat all 4 reals, 0.6 beats 3, 0.4 beats 2.
    assert got.auc == pytest.approx((4 + 4 + 3 + 2) / 16)
    # From the top: precision 1/1, 2/2, 3/4, 4/6 at the fakes, each a quarter of the recall.
    assert got.ap == pytest.approx((1 + 1 + 3 / 4 + 4 / 6) / 4)
    # Below 0.6 the false negative rate is 1/4 and the false positive rate 1/4.
    assert got.eer == pytest.approx(1 / 4)
    # Means: f1 0.85, f2 0.5, r1 0.625, r2 0.25. f1 beats both reals, f2 one.
    assert got.video_auc == pytest.approx(3 / 4)
    assert (got.frames, got.videos, got.note) == (8, 4, "")


def numbers(found: DetectionMetrics) -> tuple[float | None, ...]:
    return found.acc, found.auc, found.eer, found.ap, found.video_auc


def test_perfect_inverted_and_tied() -> None:
    perfect = detection_metrics([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], "abcd")
    assert numbers(perfect) == (1.0, 1.0, 0.0, 1.0, 1.0)
    inverted = detection_metrics([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], "abcd")
    assert (inverted.acc, inverted.auc, inverted.eer, inverted.video_auc) == (0.0, 0.0, 1.0, 0.0)
    tied = detection_metrics([0.5] * 4, [0, 1, 0, 1], "abcd")
    assert (tied.acc, tied.auc, tied.ap) == (0.5, 0.5, 0.5)  # 0.5 counts as real
    assert tied.eer == 0.5


def test_eer_between_two_points_of_the_curve() -> None:
    """Worked out by hand: the points (0, 1/2) and (2/3, 1) and the line FPR = 1 - TPR meet at 2/7."""
    got = detection_metrics([0.9, 0.5, 0.5, 0.5, 0.1], [1, 1, 0, 0, 0], "abcde")
    assert got.eer == pytest.approx(2 / 7, abs=1e-15)


def test_large_sample_against_the_definitions() -> None:
    rng = np.random.default_rng(5)
    label = rng.integers(0, 2, 400)
    prob = np.round(np.clip(rng.normal(0.4 + 0.2 * label, 0.2), 0, 1), 2)  # rounded: with ties
    video = [(int(y), int(v)) for y, v in zip(label, rng.integers(0, 30, 400), strict=True)]
    got = detection_metrics(prob.tolist(), label.tolist(), video)

    def mann_whitney(fake: np.ndarray, real: np.ndarray) -> float:
        pairs = np.sign(fake[:, None] - real[None, :])
        return float((pairs + 1).mean() / 2)

    assert got.auc == pytest.approx(mann_whitney(prob[label == 1], prob[label == 0]), abs=1e-12)
    means = {key: np.mean([p for p, k in zip(prob, video, strict=True) if k == key]) for key in set(video)}
    by_class = [np.array([mean for key, mean in means.items() if key[0] == y]) for y in (1, 0)]
    assert got.video_auc == pytest.approx(mann_whitney(*by_class), abs=1e-12)
    assert got.videos == len(means)
    assert got.acc == pytest.approx(np.mean((prob > 0.5) == label))
    # Average precision: over the distinct thresholds, precision times the step in recall.
    area, last = 0.0, 0.0
    for threshold in np.unique(prob)[::-1]:
        chosen = prob >= threshold
        recall = label[chosen].sum() / label.sum()
        area += (recall - last) * label[chosen].mean()
        last = recall
    assert got.ap == pytest.approx(area, abs=1e-12)
    assert got.eer == pytest.approx(crossing(prob, label), abs=1e-12)


def crossing(prob: np.ndarray, label: np.ndarray) -> float:
    """EER by bisection: thresholds t and t' are mixed so that as many reals are called fake as fakes real."""
    rates = [((prob >= t)[label == 0].mean(), (prob < t)[label == 1].mean()) for t in [2.0, *np.unique(prob)[::-1]]]
    i = next(i for i, (false_positive, false_negative) in enumerate(rates) if false_positive >= false_negative)
    (a, b), (c, d) = rates[i - 1], rates[i]
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if a + middle * (c - a) < b + middle * (d - b) else (low, middle)
    return float(a + low * (c - a))


def scores(*groups: tuple[float, float, int]) -> np.ndarray:
    """(lowest, highest, how many): evenly spread, no two alike."""
    return np.concatenate([np.linspace(low, high, count) for low, high, count in groups])


@pytest.mark.parametrize(
    ("real", "fake", "wanted"),
    [
        pytest.param(scores((0.2, 0.8, 50)), scores((0.9, 1, 35), (0, 0.1, 15)), 0.3, id="one forgery in three missed"),
        pytest.param(scores((0, 0.1, 60), (0.9, 1, 40)), scores((0.2, 0.8, 77)), 0.4, id="some reals above all fakes"),
        pytest.param(scores((0.2, 0.3, 9)), scores((0, 0.1, 2), (0.9, 1, 1)), 2 / 3, id="two of three fakes missed"),
        pytest.param(np.array([0.5, 0.4]), np.array([0.9, 0.6, 0.1]), 1 / 3, id="five frames"),
        pytest.param(
            np.full(40, 0.5), np.r_[np.full(10, 0.5), np.full(10, 0.9)], 1 / 3, id="half of the fakes saturate"
        ),
        pytest.param(np.full(40, 1.0), np.full(7, 1.0), 0.5, id="one score for all"),
        pytest.param(np.zeros(9), np.ones(4), 0.0, id="perfect"),
        pytest.param(np.ones(9), np.zeros(4), 1.0, id="reversed"),
    ],
)
def test_eer_is_where_both_rates_are_equal(real: np.ndarray, fake: np.ndarray, wanted: float) -> None:
    prob, label = np.r_[real, fake], np.r_[np.zeros(len(real), int), np.ones(len(fake), int)]
    got = detection_metrics(prob.tolist(), label.tolist(), range(len(prob)))
    assert got.eer == pytest.approx(wanted, abs=1e-12)
    assert got.eer == pytest.approx(crossing(prob, label), abs=1e-12)


def test_the_hosts_eer_stands_beside_it() -> None:
    """The host: FPR at the nearest point of scikit-learn's thinned curve, here its corner (0, 0.7)."""
    prob = np.r_[scores((0.2, 0.8, 50)), scores((0.9, 1, 35), (0, 0.1, 15))]
    got = detection_metrics(prob.tolist(), [0] * 50 + [1] * 50, range(100))
    assert got.eer_host == 0.0
    assert got.eer == pytest.approx(0.3)


def test_float32_probabilities_keep_their_value() -> None:
    prob = np.array([0.1, 0.50000006, 0.3, 0.7], np.float32)
    assert detection_metrics(list(prob), [0, 1, 0, 1], "abcd").acc == 1.0


def test_a_real_and_a_fake_video_of_one_name_stay_apart() -> None:
    prob, label = [0.1, 0.2, 0.9, 0.8], [0, 0, 1, 1]
    apart = detection_metrics(prob, label, [("real", "000"), ("real", "000"), ("fake", "000"), ("fake", "000")])
    assert (apart.videos, apart.video_auc) == (2, 1.0)


@pytest.mark.parametrize(("label", "word"), [(0, "real"), (1, "fake")])
def test_one_class_only(label: int, word: str) -> None:
    got = detection_metrics([0.9, 0.2, 0.6], [label] * 3, ["a", "a", "b"])
    assert got.acc == pytest.approx(2 / 3 if label else 1 / 3)
    assert numbers(got)[1:] == (None, None, None, None)
    assert (got.frames, got.videos) == (3, 2)
    assert word in got.note
    assert "both classes" in got.note


def test_no_frame_at_all() -> None:
    got = detection_metrics([], [], [])
    assert (*numbers(got), got.frames, got.videos) == (None, None, None, None, None, 0, 0)
    assert got.note
