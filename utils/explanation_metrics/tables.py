"""Judged explanations → the table, the verdict, `explanations.csv` and `explanations.json`."""

from __future__ import annotations

import io
import math
from typing import Any, Mapping, Sequence

import numpy as np

from utils.explanation_metrics.bootstrap import Interval
from utils.explanation_metrics.comparison import ALL, Row
from utils.explanation_metrics.controls import CONTROLS
from utils.explanation_metrics.deletion import SHARES
from utils.explanation_metrics.evaluate import Judged
from utils.explanation_metrics.randomisation import FAILS_FROM
from utils.explanation_metrics.sweep import Spec
from utils.files import write_row

CONTROL_NAMES = {"random": "a random map", "gaussian": "a centred blob", "face": "the mean face"}
COLUMNS = (
    "dataset", "forgery", "method", "layer", "site", "metric", "mean", "low", "high", "frames", "videos",
    *(f"{what}_{control}" for control in CONTROLS for what in ("difference", "low", "high", "p")), "better",
)  # fmt: skip
PRINTED = 12  # maps in the printed table


# ------------------------------------------------------------------------------------------------------------- verdict


def verdict(judged: Judged) -> str:
    """One sentence: the best map, and which configured ones are no better than a control."""
    if not judged.rows:
        return f"{judged.dataset}: {judged.notes[0]}"
    ranked = {spec_of(row): row for row in judged.rows if (row.forgery, row.metric) == (ALL, judged.ranked_by)}
    best = ranked[judged.ranking[0]]
    if best.better:
        first = f"{judged.ranking[0]} ({judged.ranked_by} {interval_text(best.interval)})"
    else:
        first = f"no map is better than {weakest_control(best)}, so its heatmaps show nothing"
    useless = [spec for spec in judged.configured if spec in ranked and not ranked[spec].better]
    if best.better and useless:
        more = f" and {len(useless) - 1} more of the configured maps are" if len(useless) > 1 else " is"
        first += f"; {useless[0]}{more} no better than {weakest_control(ranked[useless[0]])}"
    return f"{judged.dataset}: for this checkpoint: {first}"


def weakest_control(row: Row) -> str:
    """The control that a map fails against by most."""
    worst = max(row.differences, key=lambda one: (one.p, -one.mean))
    return CONTROL_NAMES[worst.control]


def spec_of(row: Row) -> Spec:
    return Spec(row.method, row.layer, row.site)


def interval_text(interval: Interval) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


# --------------------------------------------------------------------------------------------------------------- table


def printed(judged: Judged) -> str:
    """The tables of one data set for the terminal."""
    samples = judged.samples
    if samples is None:
        return "\n".join([f"{judged.dataset}: explanations", *judged.notes])
    overall = [row for row in judged.rows if row.forgery == ALL]
    title = (
        f"{judged.dataset}: explanations of {len(samples.frames)} of {judged.detected} detected fakes, 95 % intervals"
    )
    lines = [title, *_ranked_table(judged, overall), *_chosen_tables(judged, overall), *_forgery_lines(judged)]
    if judged.randomised:
        lines.append("rank correlation with the original map once all weights are random (should be near 0)")
        for spec, values in judged.randomised.correlation.items():
            state = "all maps constant" if math.isnan(values[-1]) else f"{values[-1]:.2f}"
            lines.append(f"  {spec!s:<48} {state}{'  FAILS' if values[-1] >= FAILS_FROM else ''}")
    return "\n".join([*lines, *(f"note: {note}" for note in judged.notes)])


def _ranked_table(judged: Judged, overall: Sequence[Row]) -> list[str]:
    """Maps by what they are ranked by, with the pointing game beside it, then the controls."""
    ranked = {spec_of(row): row for row in overall if row.metric == judged.ranked_by}
    pointing = {spec_of(row): row.interval for row in overall if row.metric == "pointing game"}
    shown = list(dict.fromkeys([*judged.ranking[:PRINTED], *judged.configured]))
    lines = [
        f"  {'method':<10}{'layer':<22}{'site':<13}{judged.ranked_by:<23}{'pointing game':<23}better than controls"
    ]
    for spec in [*shown, *(Spec(control, "", "") for control in CONTROLS)]:
        row = ranked[spec]
        points = interval_text(pointing[spec]) if spec in pointing else "–"
        better = {True: "yes", False: "no", None: "(control)"}[row.better]
        names = f"{spec.method:<10}{spec.layer:<22}{spec.site:<13}"
        lines.append(f"  {names}{interval_text(row.interval):<23}{points:<23}{better}")
    if len(judged.ranking) > len(shown):
        lines.append(f"  … {len(judged.ranking) - len(shown)} more in explanations.csv")
    return lines


def _chosen_tables(judged: Judged, overall: Sequence[Row]) -> list[str]:
    """Deletion, insertion and attack: one table a metric, for the few maps that have them."""
    lines = []
    for metric in dict.fromkeys(row.metric for row in overall):
        if not metric.startswith(("deletion", "insertion", "accuracy drop")):
            continue
        found = [row for row in overall if row.metric == metric]
        lines.append(f"{metric}, {'lower' if metric.startswith('deletion') else 'higher'} is better")
        for row in found:
            name = str(spec_of(row)) if row.layer else CONTROL_NAMES[row.method]
            better = {True: "yes", False: "no", None: "(control)"}[row.better]
            lines.append(f"  {name:<48} {interval_text(row.interval)}  {better}")
    return lines


def _forgery_lines(judged: Judged) -> list[str]:
    """The best map on each forgery method."""
    best = judged.ranking[0]
    found = [row for row in judged.rows if row.metric == judged.ranked_by and spec_of(row) == best]
    per_forgery = [row for row in found if row.forgery != ALL]
    if not per_forgery:
        return []
    lines = [f"{best} on each forgery method, {judged.ranked_by}"]
    for row in per_forgery:
        better = "better than controls" if row.better else "no better than controls"
        lines.append(f"  {row.forgery:<48} {interval_text(row.interval)}  {better}, {row.interval.frames} frames")
    return lines


# --------------------------------------------------------------------------------------------------------------- files


def csv_text(judged: Sequence[Judged]) -> str:
    """`explanations.csv`: one row a data set × forgery method × map × metric; a difference above 0 is better."""
    text = io.StringIO(newline="")
    write_row(text, COLUMNS)
    for row in (row for one in judged for row in one.rows):
        against: list[object] = []
        for control in CONTROLS:
            found = next((one for one in row.differences if one.control == control), None)
            numbers = ("", "", "", "") if found is None else (found.mean, found.low, found.high, found.p)
            against += [_digits(number) for number in numbers]
        mean, low, high, frames, videos = row.interval
        write_row(text, [
            row.dataset, row.forgery, row.method, row.layer, row.site, row.metric, *map(_digits, (mean, low, high)),
            frames, videos, *against, "" if row.better is None else ("yes" if row.better else "no"),
        ])  # fmt: skip
    return text.getvalue()


def _digits(number: float | str) -> str:
    return number if isinstance(number, str) else f"{number:.6g}"


def json_values(judged: Judged) -> dict[str, Any]:
    """The entry of one data set in `explanations.json`; the rows are those over all forgery methods."""
    samples = judged.samples
    values: dict[str, Any] = {
        "verdict": verdict(judged),
        "detected_fakes": judged.detected,
        "judged": 0 if samples is None else len(samples.frames),
        "masks": None if samples is None else dict(samples.mask_states),
        "whole_face": [] if samples is None else samples.whole_face,
        "paired_real": judged.paired,
        "notes": judged.notes,
        "ranked_by": judged.ranked_by,
        "ranking": [spec._asdict() for spec in judged.ranking],
        "configured": [spec._asdict() for spec in judged.configured],
        "rows": [_row_json(row) for row in judged.rows if row.forgery == ALL],
        "curves": _curves_json(judged),
        "randomised": None,
    }
    if judged.randomised:
        values["randomised"] = {
            "steps": judged.randomised.steps,
            "correlation": [
                {**spec._asdict(), "values": [None if math.isnan(v) else v for v in correlation]}
                for spec, correlation in judged.randomised.correlation.items()
            ],
        }
    return values


def _row_json(row: Row) -> dict[str, Any]:
    names = {key: getattr(row, key) for key in ("method", "layer", "site", "metric")}
    return {
        **names,
        **{key: _finite(value) for key, value in row.interval._asdict().items()},
        "differences": [{k: _finite(v) for k, v in one._asdict().items()} for one in row.differences],
        "better": row.better,
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _curves_json(judged: Judged) -> list[dict[str, Any]]:
    """Mean curves; `low` and `high` are in the picture alone."""
    found = []
    for fill, by_key in judged.curves.items():
        for key, curves in by_key.items():
            names: Mapping[str, str] = (
                key._asdict() if isinstance(key, Spec) else {"method": key, "layer": "", "site": ""}
            )
            found.append({
                **names, "fill": fill, "shares": list(SHARES), "deletion": _means(curves.deletion.numpy()),
                "insertion": _means(curves.insertion.numpy()),
            })  # fmt: skip
    return found


def _means(curves: np.ndarray) -> list[float]:
    return [float(value) for value in curves.mean(axis=0)]
