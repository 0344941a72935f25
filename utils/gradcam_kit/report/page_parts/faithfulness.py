"""The page's section on faithfulness: the choice of the map, and the measurements with curves."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ...judge.candidates import PLAIN
from ...judge.controls import CONTROLS
from ...judge.verdict import headline, judgements
from ...measure.comparison import lower_is_better
from ...measure.evaluate import JSON_FILE
from ...measure.tables import CONTROL_NAMES
from ...settings.run_options import without_flags
from ...store.read_run import RunOnDisk, reader

MOST_CURVES = 4  # maps in a figure, in addition to the controls
OUTPUT = "--gradcam_output_dir"


def choice_view(run: RunOnDisk) -> dict[str, Any] | None:
    """Return the choice from the manifest or, for an unfinished run, from a sample; None if unknown.

    A row: method, layer, site, backward, drop, random, difference, share, mark.
    """
    choice = run.manifest.choice
    if choice is None:
        lines = next((sample.chosen for data in run.datasets for sample in data.samples if sample.chosen), ())
        return {"headline": lines[0], "rows": [], "judgements": lines[1:], "notes": []} if lines else None
    rows = []
    for row in choice.rows:
        mean, low, high = row.beyond
        spread = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
        mark = "drawn" if row.candidate == choice.used else "named" if row.named else ""
        numbers = (f"{row.fall:.2f}", f"{row.random:.2f}", f"{mean:.2f}{spread}", f"{row.share:.0%}")
        rows.append((*row.candidate.facts().values(), *numbers, mark))
    return {"headline": headline(choice), "rows": rows, "judgements": judgements(choice), "notes": choice.notes}


def measured_views(run: RunOnDisk) -> list[dict[str, Any]]:
    """Return the results of --evaluate_explanations for every measured dataset."""
    row = reader(run.folder).first_row("measurement", "WHERE dataset = '' AND name = ?", JSON_FILE)
    found = json.loads(row[2]) if row else {}
    return [_measured(data.name, found[data.name]) for data in run.datasets if data.name in found]


def _measured(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    rows = [row for row in values["rows"] if row["metric"] == values["ranked_by"]]
    sign = 1 if lower_is_better(values["ranked_by"]) else -1
    rows.sort(key=lambda row: (row["better"] is None, math.inf if row["mean"] is None else sign * row["mean"]))
    better = {True: "yes", False: "no", None: "control"}
    return {
        "dataset": name, "verdict": values["verdict"], "ranked_by": values["ranked_by"],
        "rows": [(*_spec_names(row), _interval(row), better[row["better"]]) for row in rows],
        "curves": _curves(values["curves"]), "notes": values["notes"],
    }  # fmt: skip


def _spec_names(row: Mapping[str, Any]) -> tuple[str, str, str]:
    balanced = row.get("backward", PLAIN) != PLAIN  # runs of earlier versions only have this rule
    return CONTROL_NAMES.get(row["method"], row["method"]), row["layer"], row["site"] + ", balanced" * balanced


def _interval(row: Mapping[str, Any]) -> str:
    mean, low, high = ("–" if row[key] is None else f"{row[key]:.3f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _curves(curves: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return deletion and insertion per fill; a line is its name, its kind ("map0", …, "control0", …) and SVG points.

    The points are in a square of 100; the share of the image, to the right, is on a square-root scale.
    """
    figures = []
    for fill in dict.fromkeys(one["fill"] for one in curves):
        members = [one for one in curves if one["fill"] == fill]
        maps = [one for one in members if one["method"] not in CONTROLS][:MOST_CURVES]
        controls = [one for one in members if one["method"] in CONTROLS]
        shown = [(f"map{i}", one) for i, one in enumerate(maps)]
        shown += [(f"control{i}", one) for i, one in enumerate(controls)]
        for kind, wish in (("deletion", "lower"), ("insertion", "higher")):
            lines = [(" ".join(filter(None, _spec_names(one))), line, _points(one, kind)) for line, one in shown]
            figures.append({"title": f"{kind}, filled with {fill} ({wish} is better)", "lines": lines})
    return figures


def _points(curve: Mapping[str, Any], kind: str) -> str:
    places = zip(curve["shares"], curve[kind], strict=True)
    return " ".join(f"{100 * math.sqrt(x):.1f},{100 - 100 * y:.1f}" for x, y in places)


def measuring_command(run: RunOnDisk) -> str:
    """Return the run's command with the measurement added, for a new folder."""
    words = without_flags(run.manifest.command, OUTPUT)
    return shlex.join(["python", *words, "--evaluate_explanations", OUTPUT, "runs/measured"])
