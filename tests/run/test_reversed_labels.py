"""Labels that look reversed: when it is said, and where."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from utils.gradcam_kit.judge.detection_metrics import detection_metrics, reversed_labels, weighted_auc


def videos(reals: int, fakes: int, frames: int = 2) -> tuple[list[int], list[str]]:
    label = [0] * (reals * frames) + [1] * (fakes * frames)
    return label, [f"v{i // frames}" for i in range(len(label))]


def test_the_weighted_auc_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    score, label, weight = rng.integers(0, 6, 40) / 5, rng.integers(0, 2, 40), rng.integers(0, 3, 40)
    frames = [i for i in range(40) for _ in range(weight[i])]
    pairs = [(score[f], score[r]) for f, r in itertools.product(frames, frames) if label[f] == 1 and label[r] == 0]
    expected = np.mean([1.0 if fake > real else 0.5 if fake == real else 0.0 for fake, real in pairs])
    assert weighted_auc(score, label, weight) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(weighted_auc(score, np.ones(40), weight))


@pytest.mark.parametrize("each", [3, 10])
def test_all_pairs_the_wrong_way_round_is_said(each: int) -> None:
    label, video = videos(each, each)
    prob = [0.9 - 0.01 * i if one == 0 else 0.1 + 0.001 * i for i, one in enumerate(label)]
    said = detection_metrics(prob, label, video)
    assert said.auc == 0.0 and said.warning.startswith("labels look reversed: AUC 0.000, 95% interval 0.000 to 0.000")
    assert "gradcam_classes: [fake, real]" in said.warning
    assert detection_metrics([1 - one for one in prob], label, video).warning == ""


def test_an_auc_below_one_half_by_chance_is_not_said() -> None:
    label, video = videos(12, 12)
    prob = np.random.default_rng(3).random(24).repeat(2)  # both frames of a video score alike
    if weighted_auc(prob, np.array(label), np.ones(48)) > 0.5:
        prob = 1 - prob
    assert detection_metrics(prob.tolist(), label, video).warning == ""


def test_too_few_videos_prove_nothing() -> None:
    label, video = videos(2, 10)
    assert reversed_labels([1 - one for one in label], label, video) == ""


def test_frames_of_one_video_are_no_evidence_of_their_own() -> None:
    """Ten frames in the wrong order, but all differences lie between two videos of six: the interval is wide."""
    label = [0] * 30 + [1] * 30
    video = [f"v{i // 10}" for i in range(60)]
    prob = [0.9] * 10 + [0.2] * 20 + [0.1] * 10 + [0.3] * 20
    assert weighted_auc(np.array(prob), np.array(label), np.ones(60)) == pytest.approx(4 / 9)
    assert reversed_labels(prob, label, video) == ""
