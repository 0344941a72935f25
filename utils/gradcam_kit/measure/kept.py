"""Saved results of measurement steps, as text that restores them to the last bit for a resumed run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..engine.recipe import Recipe
from ..judge.deletion import Curves


class Kept(NamedTuple):
    """Functions to read a step's text by its name (None if there is none), and to save it."""

    get: Callable[[str], str | None]
    put: Callable[[str, str], None]


NOWHERE = Kept(lambda step: None, lambda step, text: None)


class Found(NamedTuple):
    """The additions of a step; columns and curves by metric or fill, and by map."""

    columns: Mapping[str, Mapping[Recipe, np.ndarray]]
    curves: Mapping[str, Mapping[Recipe, Curves]]
    curve_videos: Mapping[str, Sequence[tuple[str, str]]]
    notes: Sequence[str]


def as_text(found: Found, recipes: Sequence[Recipe]) -> str:
    """Convert the additions to text. `recipes`: all maps and controls; the text names them by position."""
    place = {recipe: str(i) for i, recipe in enumerate(recipes)}
    values = {
        "columns": _by_place(found.columns, place, lambda column: column.tolist()),
        "curves": _by_place(found.curves, place, lambda curves: [one.tolist() for one in curves]),
        "curve_videos": found.curve_videos,
        "notes": found.notes,
    }
    return json.dumps(values)


def of_text(text: str, recipes: Sequence[Recipe]) -> Found:
    """Undo `as_text`."""
    values = json.loads(text)
    return Found(
        _by_recipe(values["columns"], recipes, lambda column: np.array(column, dtype=np.float64)),
        _by_recipe(values["curves"], recipes, lambda pair: Curves(*(torch.tensor(one) for one in pair))),
        {fill: [(video[0], video[1]) for video in videos] for fill, videos in values["curve_videos"].items()},
        values["notes"],
    )


def _by_place(found: Mapping[str, Mapping[Recipe, Any]], place: Mapping[Recipe, str], to: Callable[[Any], Any]) -> Any:
    return {name: {place[recipe]: to(value) for recipe, value in of.items()} for name, of in found.items()}


def _by_recipe(values: Any, recipes: Sequence[Recipe], to: Callable[[Any], Any]) -> Any:
    return {name: {recipes[int(i)]: to(value) for i, value in of.items()} for name, of in values.items()}
