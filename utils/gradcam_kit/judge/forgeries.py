"""How good the detector is on each forgery, as papers report it: its fakes against all real frames of the dataset."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .rates import KEYS, RATES, rates_of

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
