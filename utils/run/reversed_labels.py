"""Are the classes the wrong way round? An AUC below one half that no chance explains says so."""

from __future__ import annotations

from typing import Hashable, Sequence

import numpy as np

from utils.explanation_metrics.bootstrap import LEVEL, VideoBootstrap

RESAMPLES = 1000
LEAST_VIDEOS = 3  # of each class: with fewer, all pairs are the wrong way round too often by chance


def reversed_labels(prob_fake: Sequence[float], label: Sequence[int], video: Sequence[Hashable]) -> str:
    """One sentence where the whole interval of the AUC lies below 0.5, "" where it does not.

    Arguments as for `utils.run.detection_metrics.detection_metrics`, of both classes. The interval is that of a
    bootstrap over videos.
    """
    score, truth = np.asarray(prob_fake, dtype=np.float64), np.asarray(label, dtype=np.int64)
    for one_class in (0, 1):
        if len({key for key, number in zip(video, truth) if number == one_class}) < LEAST_VIDEOS:
            return ""
    bootstrap = VideoBootstrap(video, seed=0, resamples=RESAMPLES)
    aucs = np.array([weighted_auc(score, truth, weights[bootstrap.video]) for weights in bootstrap.weights])
    low, high = np.nanquantile(aucs, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if high >= 0.5:
        return ""
    auc = weighted_auc(score, truth, np.ones(len(truth)))
    return (
        f"labels look reversed: AUC {auc:.3f}, {LEVEL:.0%} interval {low:.3f} to {high:.3f}, all below 0.5; if the"
        " detector's classes are (fake, real), set gradcam_classes: [fake, real], or for one logit that speaks for real"
        " gradcam_classes: [real]; else check label_dict"
    )


def weighted_auc(score: np.ndarray, label: np.ndarray, weight: np.ndarray) -> float:
    """Share of the pairs of a fake and a real frame in which the fake scores higher, ties by half; NaN without pairs.

    All (N,); a pair counts as often as the product of its frames' weights.
    """
    _, place = np.unique(score, return_inverse=True)
    fake = np.bincount(place, weights=weight * (label == 1))
    real = np.bincount(place, weights=weight * (label == 0))
    below = np.cumsum(real) - real
    pairs = fake.sum() * real.sum()
    return float((fake * (below + real / 2)).sum() / pairs) if pairs else float("nan")
