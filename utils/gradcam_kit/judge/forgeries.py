"""Measure the detector on each forgery, as papers do: its fakes against all real frames of the dataset."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..base.decision import THRESHOLD
from .bootstrap import LEVEL, VideoBootstrap

RATES = ("auc", "ap", "eer", "acc", "recall")
KEYS = [f"{level}{rate}{end}" for level in ("", "video_") for rate in RATES for end in ("", "_low", "_high")]
RESAMPLES = 500
FEWEST_VIDEOS = 2  # of each class, for an interval
PLACES = 2_000  # on the curve of a resample: of more scores than that, neighbours are taken together

# DF40's four groups, by the names that its files give to the forgeries, in lower-case letters and digits.
GROUPS: dict[str, tuple[str, ...]] = {
    "face swapping": (
        "fsgan", "faceswap", "simswap", "inswap", "blendface", "uniface", "mobileswap", "e4s", "facedancer",
        "deepfacelab", "fsall",
    ),
    "face reenactment": (
        "fomm", "facevid2vid", "fsvid2vid", "wav2lip", "mraa", "oneshotfree", "oneshot", "pirender", "tpsm", "lia",
        "danet", "dagan", "sadtalker", "mcnet", "hyperreenact", "heygen", "frall",
    ),
    "entire face synthesis": (
        "vqgan", "stylegan2", "stylegan3", "styleganxl", "sd21", "ddim", "ddpm", "rddm", "pixart", "dit", "sit",
        "midjourney", "whichisreal", "whichfaceisreal", "efsall",
    ),
    "face editing": ("collabdiff", "collaborativediffusion", "e4e", "stargan", "starganv2", "styleclip"),
}  # fmt: skip
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}
METRICS = [*KEYS, "frames", "videos"]  # of each forgery
Metrics = dict[str, float | None]


def details(
    prob_fake: Sequence[float], label: Sequence[int], forgery: Sequence[str], video: Sequence[Hashable]
) -> dict[str, Any]:
    """For `metrics.json`: the rates of all frames with intervals, `by_forgery`, each with its `group`, and `groups`."""
    of_forgery = forgery_metrics(prob_fake, label, forgery, video)
    return {
        **rates_of(prob_fake, label, video),
        "by_forgery": {name: {"group": group_of(name), **of} for name, of in of_forgery.items()},
        "groups": group_means(of_forgery.items()),
    }


def forgery_metrics(
    prob_fake: Sequence[float], label: Sequence[int], forgery: Sequence[str], video: Sequence[Hashable]
) -> dict[str, Metrics]:
    """Forgery → METRICS of its fakes and all real frames, in the order of the frames.

    Args:
        prob_fake: N probabilities of fake.
        label: N times 0 (real) or 1 (fake).
        forgery: N names; those of real frames play no part.
        video: N keys; frames of one video share key and label.

    The rates are those of `rates_of`; without real frames only the recall, the share of its fakes that are called fake,
    is known. `frames`, `videos`: of the forgery alone.
    """
    score, truth = np.asarray(prob_fake, dtype=np.float64), np.asarray(label, dtype=np.int64)
    named, videos = np.asarray(forgery, dtype=object), list(video)
    found: dict[str, Metrics] = {}
    for name in dict.fromkeys(named[truth == 1].tolist()):
        of_forgery = (truth == 1) & (named == name)
        kept = np.flatnonzero(of_forgery | (truth == 0))
        rates = rates_of(score[kept].tolist(), truth[kept].tolist(), [videos[i] for i in kept])
        if not (truth == 0).any():
            rates = {key: value if "recall" in key else None for key, value in rates.items()}
        fakes = {videos[i] for i in np.flatnonzero(of_forgery)}
        found[name] = {**rates, "frames": int(of_forgery.sum()), "videos": len(fakes)}
    return found


def rates_of(prob_fake: Sequence[float], label: Sequence[int], video: Sequence[Hashable]) -> dict[str, float | None]:
    """KEYS → value in [0, 1], None where the classes at hand do not allow it.

    A plain name is of the N frames, `video_…` of the videos' mean probabilities. `…_low`, `…_high`: the interval, by a
    bootstrap over videos; None with fewer than two videos of a class. AUC, AP and recall are scikit-learn's, the EER
    that of `equal_error_rates`; a frame or video is called fake above THRESHOLD.
    """
    score, truth = np.asarray(prob_fake, dtype=np.float64), np.asarray(label, dtype=np.int64)
    if not len(score):
        return dict.fromkeys(KEYS)
    bootstrap = VideoBootstrap(video, seed=0, resamples=RESAMPLES)
    count = np.bincount(bootstrap.video)
    mean = np.bincount(bootstrap.video, weights=score) / count
    of_video = np.zeros(len(count), dtype=np.int64)
    of_video[bootstrap.video] = truth
    enough = np.bincount(of_video, minlength=2).min() >= FEWEST_VIDEOS
    found: dict[str, float | None] = {}
    for level, scores, labels, videos in (
        ("", score, truth, bootstrap.video),
        ("video_", mean, of_video, np.arange(len(count))),
    ):
        one = np.ones((1, len(count)), dtype=np.float32)
        values = _resampled(scores, labels, videos, one, len(scores))
        ends = _ends(_resampled(scores, labels, videos, bootstrap.weights, PLACES)) if enough else {}
        for rate in RATES:
            low, high = ends.get(rate, (None, None))
            found |= {
                f"{level}{rate}": _number(values[rate][0]),
                f"{level}{rate}_low": low,
                f"{level}{rate}_high": high,
            }
    return found


def _ends(values: dict[str, np.ndarray]) -> dict[str, tuple[float | None, float | None]]:
    found = {}
    for rate, of_resamples in values.items():
        low, high = np.nanquantile(of_resamples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        found[rate] = _number(low), _number(high)
    return found


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _resampled(
    score: np.ndarray, label: np.ndarray, video: np.ndarray, weights: np.ndarray, places: int
) -> dict[str, np.ndarray]:
    """Rate → (R,), NaN where a resample does not allow it; `weights` (R, videos): how often each video was drawn."""
    from scipy.sparse import csr_matrix

    _, place = np.unique(-score, return_inverse=True)  # 0: the highest score
    there = int(place.max(initial=-1)) + 1
    if there > places:
        place, there = place * places // there, places
    curves = []
    for one in (1, 0):
        of_class = label == one
        cells = csr_matrix(
            (np.ones(of_class.sum()), (video[of_class], place[of_class])), shape=(weights.shape[1], there)
        )
        curves.append(np.cumsum((cells.T @ weights.T.astype(np.float64)).T, axis=1))
    called_fake = score > THRESHOLD
    sums = [
        weights @ np.bincount(video[which], minlength=weights.shape[1]).astype(np.float64)
        for which in (label == 1, (label == 1) & called_fake, (label == 1) == called_fake, label >= 0)
    ]
    fakes, found, right, frames = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        return {**_of_curve(*curves), "acc": right / frames, "recall": found / fakes}


def _of_curve(fake: np.ndarray, real: np.ndarray) -> dict[str, np.ndarray]:
    """AUC, AP and EER of (R, P) numbers of fakes and reals that score at least as high as each of P thresholds."""
    if not fake.shape[1]:
        return {rate: np.full(len(fake), np.nan) for rate in ("auc", "ap", "eer")}
    with np.errstate(invalid="ignore", divide="ignore"):
        true, false = (np.pad(one / one[:, -1:], ((0, 0), (1, 0))) for one in (fake, real))
        precision = np.nan_to_num(fake / (fake + real))
    both = np.isfinite(true[:, -1] + false[:, -1])
    auc = (np.diff(false) * (true[:, 1:] + true[:, :-1]) / 2).sum(axis=1)
    ap = (np.diff(true) * precision).sum(axis=1)
    excess = false - (1 - true)  # rises from -1 to 1; where it is 0 as many reals are called fake as fakes real
    after = np.argmax(excess >= 0, axis=1)[:, None]
    last, first = (np.take_along_axis(excess, places, axis=1) for places in (np.maximum(after - 1, 0), after))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = -last / (first - last)
    before, behind = (np.take_along_axis(false, places, axis=1) for places in (np.maximum(after - 1, 0), after))
    eer = (before + share * (behind - before))[:, 0]
    return {name: np.where(both, one, np.nan) for name, one in (("auc", auc), ("ap", ap), ("eer", eer))}


def group_of(forgery: str) -> str:
    """The DF40 group of a forgery by its name, as `simswap`, `simswap_Fake` or `StyleGAN2`; "" for any other."""
    name = re.sub(r"_(fake|ff|cdf)$", "", forgery.lower())
    return _GROUP_OF.get(re.sub(r"[^a-z0-9]", "", re.sub(r"_(ff|cdf)$", "", name)), "")


def group_means(metrics: Iterable[tuple[str, Metrics]]) -> dict[str, Mapping[str, float]]:
    """DF40 group → the mean of each rate over its `forgeries`, given as (name, metrics); no group without any."""
    by_group: dict[str, list[Metrics]] = {}
    for name, one in metrics:
        if group := group_of(name):
            by_group.setdefault(group, []).append(one)
    means: dict[str, Mapping[str, float]] = {}
    for group in GROUPS:
        if members := by_group.get(group):
            known = {f"{level}{rate}": None for level in ("", "video_") for rate in RATES}
            some = {key: [value for one in members if (value := one[key]) is not None] for key in known}
            means[group] = {key: float(np.mean(values)) for key, values in some.items() if len(values) == len(members)}
            means[group] = {**means[group], "forgeries": len(members)}
    return means
