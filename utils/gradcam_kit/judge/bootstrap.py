"""Intervals and comparisons by a cluster bootstrap over videos, because frames of one video are correlated."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95


class Interval(NamedTuple):
    """A mean with its interval, over `frames` frames from `videos` videos; NaN without frames.

    A single video has no interval, because all its resamples are equal: `low` and `high` are NaN.
    """

    mean: float
    low: float
    high: float
    frames: int
    videos: int


class VideoBootstrap:
    """Resampled means over frames of videos. All columns share the resamples, so that differences are paired.

    `videos`: the video of each frame. Values are (frames, K); NaN means that a frame has no value.
    """

    def __init__(self, videos: Sequence[Hashable], seed: int, resamples: int = RESAMPLES) -> None:
        names = {name: i for i, name in enumerate(dict.fromkeys(videos))}
        self.video = np.array([names[name] for name in videos], dtype=np.int64)
        count = len(names)
        rng = np.random.default_rng(seed)
        self.weights = rng.multinomial(count, np.full(count, 1 / max(count, 1)), size=resamples).astype(np.float32)

    def means(self, values: np.ndarray) -> np.ndarray:
        """Average (frames, K) over the drawn videos: (resamples, K), NaN if no frame has a value."""
        there = np.isfinite(values)
        sums = self._by_video(np.where(there, values, 0.0))
        counts = self._by_video(there.astype(np.float64))
        drawn = self.weights @ counts
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(drawn > 0, (self.weights @ sums) / drawn, np.nan)

    def intervals(self, values: np.ndarray) -> list[Interval]:
        """Return one percentile interval for each column of (frames, K)."""
        finite, ends = np.isfinite(values), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
        found = []
        for column, there, means, videos in zip(
            values.T, finite.T, self.means(values).T, self._videos_of(finite), strict=True
        ):
            low, high = np.nanquantile(means, ends) if videos > 1 else (np.nan, np.nan)
            mean = column[there].mean() if videos else np.nan
            found.append(Interval(float(mean), float(low), float(high), int(there.sum()), int(videos)))
        return found

    def p_values(self, differences: np.ndarray) -> np.ndarray:
        """Return the one-sided p (K,) of "the mean is not above 0" for paired differences (frames, K); 1 if none.

        For V videos p is at least 2^-V, the chance that V differences without a true sign are all positive (the sign
        test's smallest p). Otherwise resampling a few videos would call any difference certain.
        """
        means = self.means(differences)
        with np.errstate(invalid="ignore"):
            p = (1 + (~(means > 0)).sum(axis=0)) / (1 + len(means))
        there = np.isfinite(differences)
        return np.where(there.any(axis=0), np.maximum(p, 0.5 ** self._videos_of(there)), 1.0)

    def _videos_of(self, there: np.ndarray) -> np.ndarray:
        """Count the videos with a value: (frames, K) bool → (K,)."""
        return (self._by_video(there.astype(np.float64)) > 0).sum(axis=0)

    def _by_video(self, values: np.ndarray) -> np.ndarray:
        sums = np.zeros((self.weights.shape[1], values.shape[1]))
        np.add.at(sums, self.video, values)
        return sums


def holm(p: np.ndarray) -> np.ndarray:
    """Correct (K,) p-values by Holm's step-down method, which bounds the chance of any false "better" (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected
