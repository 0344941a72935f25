"""Means with intervals that respect videos: frames of one video are alike, so whole videos are drawn again."""

from __future__ import annotations

from typing import Hashable, NamedTuple, Sequence

import numpy as np


class Interval(NamedTuple):
    """Means with their 95 % intervals, each (K,); NaN where there is no value, or a single video for an interval."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def mean_over_videos(
    values: np.ndarray, videos: Sequence[Hashable], draws: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Means of the columns of `values` (N, K), and percentile bootstrap intervals (Efron 1979) over videos.

    `videos` names each row's video; NaN entries are left out of mean and interval. A draw takes as many videos as there
    are, with replacement, and all their rows.
    """
    keys = {key: i for i, key in enumerate(dict.fromkeys(videos))}
    member = np.array([keys[key] for key in videos], dtype=np.int64)
    known = np.isfinite(values)
    sums, counts = np.zeros((len(keys), values.shape[1])), np.zeros((len(keys), values.shape[1]))
    np.add.at(sums, member, np.where(known, values, 0.0))
    np.add.at(counts, member, known)
    mean = _ratio(sums.sum(axis=0), counts.sum(axis=0))
    if len(keys) < 2:
        nothing = np.full(values.shape[1], np.nan)
        return Interval(mean, nothing, nothing)
    # How often each video comes up in each draw: (draws, videos).
    times = np.random.default_rng(seed).multinomial(len(keys), np.full(len(keys), 1 / len(keys)), size=draws)
    drawn = _ratio(times @ sums, times @ counts)
    tail = 100 * (1 - level) / 2
    columns = [column[np.isfinite(column)] for column in drawn.T]
    low, high = (
        np.array([np.percentile(column, at) if len(column) else np.nan for column in columns])
        for at in (tail, 100 - tail)
    )
    return Interval(mean, low, high)


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)
