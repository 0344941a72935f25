"""Are the maps to be believed? What a run has measured: the choice by cause, the verdict with curves."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...judge.candidates import PLAIN
from ...judge.controls import CONTROLS
from ...judge.verdict import Choice, headline, judgements
from ...measure.comparison import lower_is_better
from ...measure.output import JSON_FILE
from ...measure.tables import CONTROL_NAMES
from ...store.manifest import read_json
from ...store.read_run import RunOnDisk

MOST_CURVES = 4  # maps in a figure, beside the controls
SPENT = ("--overwrite", "--resume")  # flags of the command that measuring needs no more
OUTPUT = "--gradcam_output_dir"


class ChoiceView(NamedTuple):
    """How the map was chosen. A row: method, layer, site, backward, fall, random, beyond random, share, mark."""

    headline: str
    rows: list[tuple[str, ...]]
    judgements: list[str]
    notes: list[str]


def choice_view(run: RunOnDisk) -> ChoiceView | None:
    """Of the manifest or, where the run did not finish, what any sample says; None where nothing is known."""
    choice = run.manifest.choice
    if choice is not None:
        return ChoiceView(headline(choice), _choice_rows(choice), judgements(choice), list(choice.notes))
    lines = list(next((sample.chosen for data in run.datasets for sample in data.samples if sample.chosen), ()))
    return ChoiceView(lines[0], [], lines[1:], []) if lines else None


def _choice_rows(choice: Choice) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for row in choice.rows:
        mean, low, high = row.beyond
        spread = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
        mark = "drawn" if row.candidate == choice.used else "named" if row.named else ""
        numbers = (f"{row.fall:.2f}", f"{row.random:.2f}", f"{mean:.2f}{spread}", f"{row.share:.0%}")
        rows.append((*row.candidate.facts().values(), *numbers, mark))
    return rows


class Curves(NamedTuple):
    """One figure: SVG points in a square of 100, per map its name, its kind ("map0", …, "control") and points."""

    title: str
    lines: list[tuple[str, str, str]]


class MeasuredView(NamedTuple):
    """What --evaluate_explanations found on one dataset."""

    dataset: str
    verdict: str
    ranked_by: str
    rows: list[tuple[str, ...]]
    curves: list[Curves]
    notes: list[str]


def measured_views(run: RunOnDisk) -> list[MeasuredView]:
    """Of every dataset that was measured; empty without `explanations.json`. Raises InputError where it is damaged."""
    path = run.folder / JSON_FILE
    found = read_json(path) if path.is_file() else {}
    return [_measured(data.name, found[data.name]) for data in run.datasets if data.name in found]


def _measured(name: str, values: Mapping[str, Any]) -> MeasuredView:
    rows = [row for row in values["rows"] if row["metric"] == values["ranked_by"]]
    rows.sort(key=lambda row: _rank(row, values["ranked_by"]))
    return MeasuredView(
        name,
        values["verdict"],
        values["ranked_by"],
        [
            (*_spec_names(row), _interval(row), {True: "yes", False: "no", None: "control"}[row["better"]])
            for row in rows
        ],
        _curves(values["curves"]),
        values["notes"],
    )


def _rank(row: Mapping[str, Any], metric: str) -> tuple[bool, float]:
    mean = math.inf if row["mean"] is None else row["mean"] * (1 if lower_is_better(metric) else -1)
    return row["better"] is None, mean


def _spec_names(row: Mapping[str, Any]) -> tuple[str, str, str]:
    balanced = row.get("backward", PLAIN) != PLAIN  # runs of earlier versions know no other rule
    return CONTROL_NAMES.get(row["method"], row["method"]), row["layer"], row["site"] + ", balanced" * balanced


def _interval(row: Mapping[str, Any]) -> str:
    mean, low, high = ("–" if row[key] is None else f"{row[key]:.3f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _curves(curves: Sequence[Mapping[str, Any]]) -> list[Curves]:
    """Deletion and insertion per fill; the share of the image, to the right, on a square-root scale."""
    figures = []
    for fill in dict.fromkeys(one["fill"] for one in curves):
        members = [one for one in curves if one["fill"] == fill]
        maps = [one for one in members if one["method"] not in CONTROLS][:MOST_CURVES]
        shown = [*maps, *(one for one in members if one["method"] in CONTROLS)]
        for kind, wish in (("deletion", "lower"), ("insertion", "higher")):
            lines = [
                (
                    " ".join(filter(None, _spec_names(one))),
                    f"map{i}" if i < len(maps) else f"control{i - len(maps)}",
                    " ".join(
                        f"{100 * math.sqrt(x):.1f},{100 - 100 * y:.1f}"
                        for x, y in zip(one["shares"], one[kind], strict=True)
                    ),
                )
                for i, one in enumerate(shown)
            ]
            figures.append(Curves(f"{kind}, filled with {fill} ({wish} is better)", lines))
    return figures


def measuring_command(run: RunOnDisk) -> str:
    """The run's command with the measurement added, into a folder of its own."""
    words, command = [], iter(run.manifest.command)
    for word in command:
        if word == OUTPUT:
            next(command, None)
        elif word not in SPENT and not word.startswith(f"{OUTPUT}="):
            words.append(word)
    added = ["--evaluate_explanations", OUTPUT, "runs/measured"]
    return " ".join(["python", *map(shlex.quote, words), *added])
