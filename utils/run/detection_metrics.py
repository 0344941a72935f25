"""How good the detector is: ACC, AUC, EER and AP per frame, AUC per video."""

from __future__ import annotations

from typing import Hashable, NamedTuple, Sequence

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from utils.results.decision import THRESHOLD


class DetectionMetrics(NamedTuple):
    """All in [0, 1]; None where the frames at hand do not allow it, and `note` says why."""

    acc: float | None
    auc: float | None
    eer: float | None
    ap: float | None
    video_auc: float | None
    frames: int
    videos: int
    note: str


def detection_metrics(prob_fake: Sequence[float], label: Sequence[int], video: Sequence[Hashable]) -> DetectionMetrics:
    """Metrics of N frames, as the host trees compute them, except that videos are identified by `video`.

    Args:
        prob_fake: N probabilities of class 1 (fake). A frame counts as fake above THRESHOLD.
        label: N times 0 (real) or 1 (fake).
        video: N keys; frames of one video share key and label. The host takes the name of the parent folder, which
            merges a real and a fake video of the same name; label name and video name together do not.

    AUC, EER, AP and the video AUC (of the mean probability of each video) need both classes; with one they are None.
    EER is where the ROC curve, its points joined by straight lines, meets the line of equal error rates. (The host
    takes the false positive rate of the nearest point, which is 0, a perfect detector's, where all scores are alike.)
    """
    probability = np.asarray(prob_fake, dtype=np.float64)
    truth = np.asarray(label, dtype=np.int64)
    members: dict[Hashable, list[int]] = {}
    for i, key in enumerate(video):
        members.setdefault(key, []).append(i)
    frames, videos = len(truth), len(members)
    if not frames:
        return DetectionMetrics(None, None, None, None, None, 0, 0, "no frame to judge by")
    acc = float(np.mean((probability > THRESHOLD) == (truth == 1)))
    if truth.min() == truth.max():
        only = "fake" if truth[0] else "real"
        note = f"all {frames} frames are {only}: AUC, EER, AP and video AUC need both classes"
        return DetectionMetrics(acc, None, None, None, None, frames, videos, note)
    false_positive, true_positive, _ = roc_curve(truth, probability)
    video_truth = [truth[of[0]] for of in members.values()]
    video_probability = [probability[of].mean() for of in members.values()]
    return DetectionMetrics(
        acc=acc,
        auc=float(roc_auc_score(truth, probability)),
        eer=equal_error_rate(false_positive, true_positive),
        ap=float(average_precision_score(truth, probability)),
        video_auc=float(roc_auc_score(video_truth, video_probability)),
        frames=frames,
        videos=videos,
        note="",
    )


def equal_error_rate(false_positive: np.ndarray, true_positive: np.ndarray) -> float:
    """Where a ROC curve from (0, 0) to (1, 1), (N,) each, meets the line false positive rate = false negative rate.

    Between two of its points every mixture of their thresholds can be had (Fawcett 2006, section 6): a straight line.
    """
    excess = false_positive - (1 - true_positive)  # rises from -1 to 1
    after = int(np.argmax(excess >= 0))
    share = -excess[after - 1] / (excess[after] - excess[after - 1])
    return float(false_positive[after - 1] + share * (false_positive[after] - false_positive[after - 1]))
