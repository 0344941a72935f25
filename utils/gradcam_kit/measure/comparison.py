"""Means, intervals, and tests whether a map is better than the controls, from one value per image.

Also saved results of measurement steps, as text that restores them to the last bit for a resumed run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..engine.recipe import Recipe
from ..judge.bootstrap import RESAMPLES, Interval, VideoBootstrap, holm
from ..judge.controls import CONTROLS
from ..judge.deletion import Curves

# Metric → map or control → (frames,) float64, NaN without a value.
Columns = dict[str, dict[Recipe, np.ndarray]]

SIGNIFICANT = 0.05
ALL = "all"  # stands for all forgery methods


class Difference(NamedTuple):
    """A map minus a control on the same frames; positive if the map is better; p after Holm's correction."""

    control: str
    mean: float
    low: float
    high: float
    p: float


class MetricRow(NamedTuple):
    """One metric of one map or control on one dataset and forgery method. A control has no differences."""

    dataset: str
    forgery: str
    recipe: Recipe
    metric: str
    interval: Interval
    differences: list[Difference]

    @property
    def better(self) -> bool | None:
        """Whether the map is significantly better than every control; None for a control."""
        return all(one.p < SIGNIFICANT for one in self.differences) if self.differences else None


def lower_is_better(metric: str) -> bool:
    """Tell whether lower is better: for deletion, where the score should drop early, and for distances to clicks."""
    return metric.startswith(("deletion", "distance"))


def rows(
    dataset: str, columns: Columns, videos: Sequence[tuple[str, str]], seed: int, forgeries: Sequence[str]
) -> list[MetricRow]:
    """Summarise every metric of every map and control: over all frames, then by forgery.

    `videos`: (forgery, video) of each frame.
    """
    frame_forgery = np.array([forgery for forgery, _ in videos])
    # The smallest p-value is 1 / resamples; Holm's correction multiplies it by the number of maps.
    resamples = max(RESAMPLES, 50 * max(len(by_recipe) for by_recipe in columns.values()))
    found = []
    for group in (ALL, *forgeries):
        chosen = np.ones(len(videos), dtype=bool) if group == ALL else frame_forgery == group
        bootstrap = VideoBootstrap([video for video, use in zip(videos, chosen, strict=True) if use], seed, resamples)
        for metric, by_recipe in columns.items():
            subset = {recipe: column[chosen] for recipe, column in by_recipe.items()}
            found += _metric_rows(dataset, group, metric, subset, bootstrap)
    return found


def _metric_rows(
    dataset: str, group: str, metric: str, by_recipe: Mapping[Recipe, np.ndarray], bootstrap: VideoBootstrap
) -> list[MetricRow]:
    recipes = list(by_recipe)
    table = np.stack([by_recipe[recipe] for recipe in recipes], axis=1)
    intervals = bootstrap.intervals(table)
    if not any(interval.frames for interval in intervals):
        return []
    sign = -1.0 if lower_is_better(metric) else 1.0
    maps = [i for i, recipe in enumerate(recipes) if not recipe.is_control]
    differences: dict[Recipe, list[Difference]] = {recipe: [] for recipe in recipes}
    for control in CONTROLS:
        paired = sign * (table[:, maps] - table[:, [recipes.index(Recipe.control(control))]])
        # A map must beat all controls, so its weakest comparison is corrected for the number of maps.
        corrected = holm(bootstrap.p_values(paired))
        for i, interval, p in zip(maps, bootstrap.intervals(paired), corrected, strict=True):
            differences[recipes[i]].append(Difference(control, *interval[:3], float(p)))
    return [
        MetricRow(dataset, group, recipe, metric, interval, differences[recipe])
        for recipe, interval in zip(recipes, intervals, strict=True)
    ]


def best_threshold(iou: Mapping[Recipe, np.ndarray]) -> dict[Recipe, np.ndarray]:
    """Reduce (frames, thresholds) to (frames,) at the threshold that is best on average, separately for each map."""
    found = {}
    for recipe, table in iou.items():
        there = np.isfinite(table).all(axis=1)
        best = int(table[there].mean(axis=0).argmax()) if there.any() else 0
        found[recipe] = table[:, best]
    return found


class Kept(NamedTuple):
    """Functions to read a step's text by its name (None if there is none), and to save it."""

    get: Callable[[str], str | None]
    put: Callable[[str, str], None]


NOWHERE = Kept(lambda step: None, lambda step, text: None)


class Found(NamedTuple):
    """The additions of a step; columns and curves by metric or fill, and by map."""

    columns: Columns
    curves: dict[str, dict[Recipe, Curves]]
    curve_videos: dict[str, list[tuple[str, str]]]
    notes: list[str]

    def text(self, recipes: Sequence[Recipe]) -> str:
        """Convert to text. `recipes`: all maps and controls; the text names them by position."""
        place = {recipe: str(i) for i, recipe in enumerate(recipes)}
        values = {
            "columns": _by_place(self.columns, place, lambda column: column.tolist()),
            "curves": _by_place(self.curves, place, lambda curves: [one.tolist() for one in curves]),
            "curve_videos": self.curve_videos,
            "notes": self.notes,
        }
        return json.dumps(values)

    @classmethod
    def of(cls, text: str, recipes: Sequence[Recipe]) -> Found:
        """Undo `text`."""
        values = json.loads(text)
        return cls(
            _by_recipe(values["columns"], recipes, lambda column: np.array(column, dtype=np.float64)),
            _by_recipe(values["curves"], recipes, lambda pair: Curves(*(torch.tensor(one) for one in pair))),
            {fill: [(video[0], video[1]) for video in videos] for fill, videos in values["curve_videos"].items()},
            values["notes"],
        )


def _by_place(found: Mapping[str, Mapping[Recipe, Any]], place: Mapping[Recipe, str], to: Callable[[Any], Any]) -> Any:
    return {name: {place[recipe]: to(value) for recipe, value in of.items()} for name, of in found.items()}


def _by_recipe(values: Any, recipes: Sequence[Recipe], to: Callable[[Any], Any]) -> Any:
    return {name: {recipes[int(i)]: to(value) for i, value in of.items()} for name, of in values.items()}
