"""How good the detector is on each forgery, as papers report it: its fakes against all real frames of the dataset."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from ..base.decision import THRESHOLD
from .bootstrap import LEVEL, VideoBootstrap
from .detection_metrics import detection_metrics, weighted_auc

RESAMPLES = 500
FEWEST_VIDEOS = 2  # of each class, for an interval

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgeryMetrics:
    """Of one forgery's fakes and the dataset's real frames, all in [0, 1]; None where there are no real frames.

    `recall`: the share of its fakes that are called fake. `auc_low`, `auc_high`: the 95 % interval of the AUC, by a
    bootstrap over videos; None with fewer than two videos of a class. `frames`, `videos`: of the forgery alone.
    """

    auc: float | None
    auc_low: float | None
    auc_high: float | None
    ap: float | None
    eer: float | None
    acc: float | None
    recall: float | None
    video_auc: float | None
    frames: int
    videos: int


METRICS = [one.name for one in fields(ForgeryMetrics)]


def forgery_metrics(
    prob_fake: Sequence[float], label: Sequence[int], forgery: Sequence[str], video: Sequence[Hashable]
) -> dict[str, ForgeryMetrics]:
    """Forgery → its metrics, in the order of the frames.

    Args:
        prob_fake: N probabilities of fake.
        label: N times 0 (real) or 1 (fake).
        forgery: N names; those of real frames play no part.
        video: N keys; frames of one video share key and label.
    """
    score, truth = np.asarray(prob_fake, dtype=np.float64), np.asarray(label, dtype=np.int64)
    named, videos = np.asarray(forgery, dtype=object), list(video)
    found = {}
    for name in dict.fromkeys(named[truth == 1].tolist()):
        of_forgery = (truth == 1) & (named == name)
        kept = np.flatnonzero(of_forgery | (truth == 0))
        found[name] = _of_one(score[kept], truth[kept], [videos[i] for i in kept])
    return found


def _of_one(score: np.ndarray, truth: np.ndarray, videos: Sequence[Hashable]) -> ForgeryMetrics:
    fake = truth == 1
    all_of_them = detection_metrics(score.tolist(), truth.tolist(), videos)
    low, high = _interval(score, truth, videos)
    both = not fake.all()
    return ForgeryMetrics(
        auc=all_of_them.auc,
        auc_low=low,
        auc_high=high,
        ap=all_of_them.ap,
        eer=all_of_them.eer,
        acc=all_of_them.acc if both else None,
        recall=float((score[fake] > THRESHOLD).mean()),
        video_auc=all_of_them.video_auc,
        frames=int(fake.sum()),
        videos=len({video for video, is_fake in zip(videos, fake.tolist(), strict=True) if is_fake}),
    )


def _interval(score: np.ndarray, truth: np.ndarray, videos: Sequence[Hashable]) -> tuple[float | None, float | None]:
    """The AUC's, over resamples of the videos that hold both classes."""
    bootstrap = VideoBootstrap(videos, seed=0, resamples=RESAMPLES)
    if min(len(set(bootstrap.video[truth == one].tolist())) for one in (0, 1)) < FEWEST_VIDEOS:
        return None, None
    aucs = np.array([weighted_auc(score, truth, weights[bootstrap.video]) for weights in bootstrap.weights])
    low, high = np.nanquantile(aucs, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def group_of(forgery: str) -> str:
    """The DF40 group of a forgery by its name, as `simswap`, `simswap_Fake` or `StyleGAN2`; "" for any other."""
    name = re.sub(r"_(fake|ff|cdf)$", "", forgery.lower())
    return _GROUP_OF.get(re.sub(r"[^a-z0-9]", "", re.sub(r"_(ff|cdf)$", "", name)), "")


def group_means(metrics: Iterable[tuple[str, ForgeryMetrics]]) -> dict[str, Mapping[str, float]]:
    """DF40 group → the mean of each metric over its forgeries, given as (name, metrics); no group without any."""
    by_group: dict[str, list[ForgeryMetrics]] = {}
    for name, one in metrics:
        if group := group_of(name):
            by_group.setdefault(group, []).append(one)
    means: dict[str, Mapping[str, float]] = {}
    for group in GROUPS:
        if members := by_group.get(group):
            values = {
                name: [getattr(one, name) for one in members]
                for name in ("auc", "ap", "eer", "acc", "recall", "video_auc")
            }
            means[group] = {name: float(np.mean(some)) for name, some in values.items() if None not in some}
    return means
