"""From one value per image to means, intervals, and whether a map is better than the controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..engine.recipe import Recipe
from ..judge.bootstrap import RESAMPLES, Interval, VideoBootstrap, holm
from ..judge.controls import CONTROLS

# Metric → map or control → (frames,) float64, NaN where there is no value.
Columns = dict[str, dict[Recipe, np.ndarray]]

SIGNIFICANT = 0.05
ALL = "all"  # in place of a forgery method: every one of them


class Difference(NamedTuple):
    """A map minus a control on the same frames, signed so that above 0 the map is better; p after Holm's correction."""

    control: str
    mean: float
    low: float
    high: float
    p: float


class Row(NamedTuple):
    """One metric of one map or control on one dataset and forgery method. A control has no differences."""

    dataset: str
    forgery: str
    recipe: Recipe
    metric: str
    interval: Interval
    differences: list[Difference]

    @property
    def better(self) -> bool | None:
        """Whether the map is significantly better than every control; None for a control itself."""
        return all(one.p < SIGNIFICANT for one in self.differences) if self.differences else None


def lower_is_better(metric: str) -> bool:
    """For deletion, where the score should fall early, and for the distance to a click."""
    return metric.startswith(("deletion", "distance"))


def rows(
    dataset: str, columns: Columns, videos: Sequence[tuple[str, str]], seed: int, forgeries: Sequence[str]
) -> list[Row]:
    """Every metric of every map and control: of all frames, then by forgery. `videos`: (forgery, video) of frames."""
    frame_forgery = np.array([forgery for forgery, _ in videos])
    # The smallest p-value is one over the resamples; Holm multiplies it by the number of maps.
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
) -> list[Row]:
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
        # A map is better only if it beats all controls: its weakest comparison is corrected for the number of maps.
        corrected = holm(bootstrap.p_values(paired))
        for i, interval, p in zip(maps, bootstrap.intervals(paired), corrected, strict=True):
            differences[recipes[i]].append(Difference(control, *interval[:3], float(p)))
    return [
        Row(dataset, group, recipe, metric, interval, differences[recipe])
        for recipe, interval in zip(recipes, intervals, strict=True)
    ]


def best_threshold(iou: Mapping[Recipe, np.ndarray]) -> dict[Recipe, np.ndarray]:
    """(frames, thresholds) → (frames,) at the one threshold that is best on average, chosen for each map."""
    found = {}
    for recipe, table in iou.items():
        there = np.isfinite(table).all(axis=1)
        best = int(table[there].mean(axis=0).argmax()) if there.any() else 0
        found[recipe] = table[:, best]
    return found
