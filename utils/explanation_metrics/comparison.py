"""From one value a picture to means, intervals, and whether a map is better than the controls."""

from __future__ import annotations

from typing import Mapping, NamedTuple, Sequence, Union

import numpy as np

from utils.explanation_metrics.bootstrap import RESAMPLES, Interval, VideoBootstrap, holm
from utils.explanation_metrics.controls import CONTROLS
from utils.explanation_metrics.sweep import Spec

Key = Union[Spec, str]  # a map, or the name of a control
Values = Mapping[str, Mapping[Key, np.ndarray]]  # metric → map or control → (frames,), NaN where there is no value

SIGNIFICANT = 0.05
ALL = "all"  # in place of a forgery method: every one of them


class Difference(NamedTuple):
    """A map minus a control on the same frames, signed so that above 0 the map is better; p is Holm's."""

    control: str
    mean: float
    low: float
    high: float
    p: float


class Row(NamedTuple):
    """One metric of one map (or control: then layer and site are empty) on one data set and forgery method."""

    dataset: str
    forgery: str
    method: str
    layer: str
    site: str
    metric: str
    interval: Interval
    differences: list[Difference]

    @property
    def better(self) -> bool | None:
        """Better than every control? None for a control itself."""
        return all(one.p < SIGNIFICANT for one in self.differences) if self.differences else None


def lower_is_better(metric: str) -> bool:
    """Of the deletion curves alone: there the score should fall early."""
    return metric.startswith("deletion")


def rows(
    dataset: str, values: Values, videos: Sequence[tuple[str, str]], seed: int, forgeries: Sequence[str]
) -> list[Row]:
    """Every metric of every map and control: over all frames, then for each of `forgeries`.

    `videos`: (forgery, video) of each frame.
    """
    frame_forgery = np.array([forgery for forgery, _ in videos])
    found = []
    for group in (ALL, *forgeries):
        chosen = np.ones(len(videos), dtype=bool) if group == ALL else frame_forgery == group
        largest = max(len(columns) for columns in values.values())
        bootstrap = VideoBootstrap(
            [video for video, one in zip(videos, chosen) if one], seed, max(RESAMPLES, 50 * largest)
        )
        for metric, columns in values.items():
            subset = {key: column[chosen] for key, column in columns.items()}
            found += _metric_rows(dataset, group, metric, subset, bootstrap)
    return found


def _metric_rows(
    dataset: str, group: str, metric: str, columns: Mapping[Key, np.ndarray], bootstrap: VideoBootstrap
) -> list[Row]:
    keys = list(columns)
    table = np.stack([columns[key] for key in keys], axis=1)
    intervals = bootstrap.intervals(table)
    if not any(interval.frames for interval in intervals):
        return []
    sign = -1.0 if lower_is_better(metric) else 1.0
    specs = [i for i, key in enumerate(keys) if isinstance(key, Spec)]
    differences: dict[str, tuple[list[Interval], np.ndarray]] = {}
    for control in CONTROLS:
        paired = sign * (table[:, specs] - table[:, [keys.index(control)]])
        # A map is called better only if it beats all controls, so that its weakest comparison is what is corrected
        # for the number of maps.
        differences[control] = (bootstrap.intervals(paired), holm(bootstrap.p_values(paired)))
    found = []
    for i, key in enumerate(keys):
        names = (key.method, key.layer, key.site) if isinstance(key, Spec) else (key, "", "")
        against = []
        if isinstance(key, Spec):
            k = specs.index(i)
            for control, (interval, p) in differences.items():
                against.append(Difference(control, interval[k].mean, interval[k].low, interval[k].high, float(p[k])))
        found.append(Row(dataset, group, *names, metric, intervals[i], against))
    return found


def best_threshold(iou: Mapping[Key, np.ndarray]) -> dict[Key, np.ndarray]:
    """(frames, thresholds) → (frames,) at the one threshold that is best on average, for each map."""
    found = {}
    for key, table in iou.items():
        there = np.isfinite(table).all(axis=1)
        best = int(table[there].mean(axis=0).argmax()) if there.any() else 0
        found[key] = table[:, best]
    return found
