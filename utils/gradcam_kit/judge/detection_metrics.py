"""How good the detector is: ACC, AUC, EER and AP per frame, AUC per video."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..base.decision import THRESHOLD
from .bootstrap import LEVEL, VideoBootstrap

RESAMPLES = 1000
LEAST_VIDEOS = 3  # of each class: with fewer, all pairs are the wrong way round too often by chance


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionMetrics:
    """All in [0, 1]; None where the frames at hand do not allow it, and `note` says why.

    `warning` says where the numbers, though right, look as if a setting were wrong.
    """

    acc: float | None = None
    auc: float | None = None
    eer: float | None = None
    eer_host: float | None = None  # by the host trees' formula: see `equal_error_rates`
    ap: float | None = None
    video_auc: float | None = None
    frames: int
    videos: int
    note: str = ""
    warning: str = ""
    details: Mapping[str, object] = field(default_factory=dict)  # of `forgeries.details`


def detection_metrics(prob_fake: Sequence[float], label: Sequence[int], video: Sequence[Hashable]) -> DetectionMetrics:
    """Metrics of N frames as the host trees compute them, but for the EER, and for videos, which `video` tells apart.

    Args:
        prob_fake: N probabilities of class 1 (fake). A frame counts as fake above THRESHOLD.
        label: N times 0 (real) or 1 (fake).
        video: N keys; frames of one video share key and label. The host takes the name of the parent folder, which
            merges a real and a fake video of the same name; label name and video name together do not.

    All but ACC need both classes; with one they are None. The video AUC is of each video's mean probability.
    """
    # A second to import, and needed only at the end.
    from sklearn.metrics import average_precision_score, roc_auc_score

    probability = np.asarray(prob_fake, dtype=np.float64)
    truth = np.asarray(label, dtype=np.int64)
    members: dict[Hashable, list[int]] = {}
    for i, key in enumerate(video):
        members.setdefault(key, []).append(i)
    frames, videos = len(truth), len(members)
    if not frames:
        return DetectionMetrics(frames=0, videos=0, note="no frame to judge by")
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
    """The EER, and what the host trees' formula gives for it; `probability` and `truth` (N,), of both classes.

    The EER is the rate at which as many reals are called fake as fakes real: where the ROC curve, all of whose points
    are joined by straight lines, meets the line FPR = 1 - TPR. Every mixture of two thresholds can be had (Fawcett
    2006, section 6), and the curve meets that line once.

    The host takes the FPR of the nearest point of a curve without those points that lie on a straight line between
    others. Where one forgery is found and another missed, or many frames share one score, no point that is left may be
    near: the host's rate is then far off, down to 0 for a detector that finds nothing.
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
    """One sentence where the AUC's whole interval, by a bootstrap over videos, lies below 0.5; "" where it does not."""
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
