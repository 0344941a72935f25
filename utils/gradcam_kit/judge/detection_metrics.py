"""Metrics of the detector: ACC, AUC, EER and AP per frame, AUC per video."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..base.decision import THRESHOLD
from .bootstrap import LEVEL, VideoBootstrap

RESAMPLES = 1000
LEAST_VIDEOS = 3  # per class; with fewer, all pairs are reversed by chance too often


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionMetrics:
    """Metrics in [0, 1]; None if they cannot be computed, with the reason in `note`.

    `warning` tells if the numbers suggest a wrong setting.
    """

    acc: float | None = None
    auc: float | None = None
    eer: float | None = None
    eer_host: float | None = None  # by the hosts' formula, see `equal_error_rates`
    ap: float | None = None
    video_auc: float | None = None
    frames: int
    videos: int
    note: str = ""
    warning: str = ""
    details: Mapping[str, object] = field(default_factory=dict)  # of `forgeries.details`


def detection_metrics(prob_fake: Sequence[float], label: Sequence[int], video: Sequence[Hashable]) -> DetectionMetrics:
    """Compute the metrics of N frames as the hosts do, except for the EER and the identity of videos.

    Args:
        prob_fake: N probabilities of class 1 (fake). A frame counts as fake above THRESHOLD.
        label: N times 0 (real) or 1 (fake).
        video: N keys; frames of one video share key and label. The host uses the name of the parent folder, which
            merges a real and a fake video of the same name.

    With one class, all but ACC are None. The video AUC uses each video's mean probability.
    """
    # imported late, because it takes a second
    from sklearn.metrics import average_precision_score, roc_auc_score

    probability = np.asarray(prob_fake, dtype=np.float64)
    truth = np.asarray(label, dtype=np.int64)
    members: dict[Hashable, list[int]] = {}
    for i, key in enumerate(video):
        members.setdefault(key, []).append(i)
    frames, videos = len(truth), len(members)
    if not frames:
        return DetectionMetrics(frames=0, videos=0, note="no readable frame")
    acc = float(np.mean((probability > THRESHOLD) == (truth == 1)))
    if truth.min() == truth.max():
        only = "fake" if truth[0] else "real"
        note = f"all {frames} frames are {only}: AUC, EER, AP and video AUC need both classes"
        return DetectionMetrics(acc=acc, frames=frames, videos=videos, note=note)
    eer, eer_host = equal_error_rates(probability, truth)
    video_truth = [truth[of[0]] for of in members.values()]
    video_probability = [probability[of].mean() for of in members.values()]
    auc = float(roc_auc_score(truth, probability))
    return DetectionMetrics(
        acc=acc,
        auc=auc,
        eer=eer,
        eer_host=eer_host,
        ap=float(average_precision_score(truth, probability)),
        video_auc=float(roc_auc_score(video_truth, video_probability)),
        frames=frames,
        videos=videos,
        warning=reversed_labels(prob_fake, label, video) if auc < 0.5 else "",
    )


def equal_error_rates(probability: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Return the EER, and the value of the hosts' formula; `probability` and `truth` (N,), of both classes.

    The EER is the rate at the point where the ROC curve, with its points joined by straight lines, meets the line
    FPR = 1 - TPR. Any point between two thresholds can be reached by mixing them (Fawcett 2006, section 6).

    The hosts take the FPR of the nearest point of a thinned curve, without points on straight lines between others. If
    one forgery is found and another missed, or many frames share a score, no remaining point may be near. Then their
    rate is far off, down to 0 for a detector that finds nothing.
    """
    from sklearn.metrics import roc_curve

    thinned, thinned_true, _ = roc_curve(truth, probability)
    host = thinned[np.abs(thinned - (1 - thinned_true)).argmin()]
    false_positive, true_positive, _ = roc_curve(truth, probability, drop_intermediate=False)
    excess = false_positive - (1 - true_positive)  # rises from -1 to 1
    after = int(np.argmax(excess >= 0))
    share = -excess[after - 1] / (excess[after] - excess[after - 1])
    return float(false_positive[after - 1] + share * (false_positive[after] - false_positive[after - 1])), float(host)


def reversed_labels(prob_fake: Sequence[float], label: Sequence[int], video: Sequence[Hashable]) -> str:
    """Return a sentence if the AUC's whole interval, by a bootstrap over videos, is below 0.5; else ""."""
    score, truth = np.asarray(prob_fake, dtype=np.float64), np.asarray(label, dtype=np.int64)
    by_class = [{key for key, number in zip(video, truth, strict=True) if number == one} for one in (0, 1)]
    if min(map(len, by_class)) < LEAST_VIDEOS:
        return ""
    bootstrap = VideoBootstrap(video, seed=0, resamples=RESAMPLES)
    aucs = np.array([weighted_auc(score, truth, weights[bootstrap.video]) for weights in bootstrap.weights])
    low, high = np.nanquantile(aucs, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if high >= 0.5:
        return ""
    auc = weighted_auc(score, truth, np.ones(len(truth)))
    return (
        f"labels look reversed: AUC {auc:.3f}, {LEVEL:.0%} interval {low:.3f} to {high:.3f}, all below 0.5; if the"
        " detector's classes are (fake, real), set gradcam_classes: [fake, real], or for a single logit for real"
        " gradcam_classes: [real]; else check label_dict"
    )


def weighted_auc(score: np.ndarray, label: np.ndarray, weight: np.ndarray) -> float:
    """Compute the AUC of weighted frames: the share of pairs in which the fake scores higher than the real frame.

    All arguments are (N,). A tie counts half; a pair's weight is the product of its frames' weights. NaN without pairs.
    """
    _, place = np.unique(score, return_inverse=True)
    fake = np.bincount(place, weights=weight * (label == 1))
    real = np.bincount(place, weights=weight * (label == 0))
    below = np.cumsum(real) - real
    pairs = fake.sum() * real.sum()
    return float((fake * (below + real / 2)).sum() / pairs) if pairs else float("nan")
