"""Scores of a dataset → the verdict, the printed tables, the rows of `explanations.csv` and `explanations.json`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..engine.recipe import Recipe
from ..judge.bootstrap import Interval
from .comparison import ALL, Row, lower_is_better
from .controls import CONTROLS
from .dataset_evaluation import CLICK_METRICS
from .deletion import SHARES
from .evaluate import DatasetScores
from .randomisation import FAILS_FROM, Randomised
from .transplant_agreement import AGREEMENT

CONTROL_NAMES = {"random": "a random map", "gaussian": "a centred blob", "face": "the mean face"}
CSV_COLUMNS = (
    "dataset", "forgery", "method", "layer", "site", "metric", "mean", "low", "high", "frames", "videos",
    *(f"{what}_{control}" for control in CONTROLS for what in ("difference", "low", "high", "p")), "better",
    "backward",
)  # fmt: skip
PRINTED = 12  # maps in the printed table
FEWEST_VIDEOS = 5  # from which on a p-value can be below 0.05: 2^-4 is not


# ------------------------------------------------------------------------------------------------------------- verdict


def verdict(scores: DatasetScores) -> str:
    """One sentence: the best map, and which configured ones are no better than a control."""
    if not scores.rows:
        return f"{scores.dataset}: {scores.notes[0]}"
    ranked = {row.spec: row for row in scores.rows if (row.forgery, row.metric) == (ALL, scores.ranked_by)}
    best = ranked[scores.ranking[0]]
    if best.interval.videos < FEWEST_VIDEOS:
        sentence = f"{_videos_text(best.interval.videos)} are too few to tell whether a map is better than the controls"
        return f"{scores.dataset}: for this checkpoint: {sentence.replace('video are', 'video is')}"
    if best.better:
        sentence = f"{best.spec.title} ({scores.ranked_by} {interval_text(best.interval)})"
    else:
        sentence = f"no map is better than {weakest_control(best)}, so its heatmaps show nothing"
    useless = [ranked[spec] for spec in scores.configured if spec in ranked and not ranked[spec].better]
    if best.better and useless:
        more = f" and {len(useless) - 1} more of the configured maps are" if len(useless) > 1 else " is"
        sentence += f"; {useless[0].spec.title}{more} no better than {weakest_control(useless[0])}"
    return f"{scores.dataset}: for this checkpoint: {sentence}"


def weakest_control(row: Row) -> str:
    """The name of the control that a map fails against by most."""
    worst = max(row.differences, key=lambda difference: (difference.p, -difference.mean))
    return CONTROL_NAMES[worst.control]


def _videos_text(videos: int) -> str:
    return "one video" if videos == 1 else f"{videos} videos"


def interval_text(interval: Interval) -> str:
    if math.isnan(interval.low):
        return f"{interval.mean:.3f} [no interval]"
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


# --------------------------------------------------------------------------------------------------------------- table


def printed(scores: DatasetScores) -> str:
    """The tables of one dataset for the terminal."""
    samples = scores.samples
    if samples is None:
        return "\n".join([f"{scores.dataset}: explanations", *scores.notes])
    overall = [row for row in scores.rows if row.forgery == ALL]
    title = (
        f"{scores.dataset}: explanations of {len(samples.frames)} of {scores.detected} detected fakes, 95 % intervals"
    )
    lines = [title, *_ranked_table(scores, overall), *_perturbation_tables(scores, overall), *_forgery_lines(scores)]
    if scores.randomised:
        lines += _randomisation_lines(scores.randomised)
    return "\n".join([*lines, *(f"note: {note}" for note in scores.notes)])


def _ranked_table(scores: DatasetScores, overall: Sequence[Row]) -> list[str]:
    """Maps by what they are ranked by, with the pointing game beside it, then the controls."""
    ranked = {row.spec: row for row in overall if row.metric == scores.ranked_by}
    pointing = {row.spec: row.interval for row in overall if row.metric == "pointing game"}
    shown = list(dict.fromkeys([*scores.ranking[:PRINTED], *scores.configured]))
    lines = [
        f"  {'method':<10}{'layer':<22}{'site':<22}{scores.ranked_by:<23}{'pointing game':<23}better than controls"
    ]
    for spec in [*shown, *map(Recipe.control, CONTROLS)]:
        row = ranked[spec]
        points = interval_text(pointing[spec]) if spec in pointing else "–"
        names = f"{spec.method:<10}{spec.layer:<22}{spec.where:<22}"
        lines.append(f"  {names}{interval_text(row.interval):<23}{points:<23}{_better_text(row)}")
    if len(scores.ranking) > len(shown):
        lines.append(f"  … {len(scores.ranking) - len(shown)} more in explanations.csv")
    return lines


def _better_text(row: Row) -> str:
    return {True: "yes", False: "no", None: "(control)"}[row.better]


def _perturbation_tables(scores: DatasetScores, overall: Sequence[Row]) -> list[str]:
    """What runs the detector again: one table per metric, of the shown maps that have it."""
    shown = {*scores.ranking[:PRINTED], *scores.configured, *map(Recipe.control, CONTROLS)}
    lines = []
    for metric in dict.fromkeys(row.metric for row in overall):
        if not metric.startswith(("deletion", "insertion", "SaCo", AGREEMENT, "accuracy drop", *CLICK_METRICS)):
            continue
        lines.append(f"{metric}, {'lower' if lower_is_better(metric) else 'higher'} is better")
        for row in overall:
            if row.metric == metric and row.spec in shown:
                name = CONTROL_NAMES[row.spec.method] if row.spec.is_control else row.spec.title
                lines.append(f"  {name:<48} {interval_text(row.interval)}  {_better_text(row)}")
    return lines


def _forgery_lines(scores: DatasetScores) -> list[str]:
    """The best map on each forgery method."""
    best = scores.ranking[0]
    per_forgery = [
        row for row in scores.rows if (row.metric, row.spec) == (scores.ranked_by, best) and row.forgery != ALL
    ]
    if not per_forgery:
        return []
    lines = [f"{best.title} on each forgery method, {scores.ranked_by}"]
    for row in per_forgery:
        better = "better than controls" if row.better else "no better than controls"
        lines.append(f"  {row.forgery:<48} {interval_text(row.interval)}  {better}, {row.interval.frames} frames")
    return lines


def _randomisation_lines(randomised: Randomised) -> list[str]:
    lines = ["rank correlation with the original map once all weights are random (should be near 0)"]
    for spec, values in randomised.correlation.items():
        state = "all maps constant" if math.isnan(values[-1]) else f"{values[-1]:.2f}"
        lines.append(f"  {spec.title:<48} {state}{'  FAILS' if values[-1] >= FAILS_FROM else ''}")
    return lines


# --------------------------------------------------------------------------------------------------------------- files


def csv_rows(rows: Sequence[Row]) -> list[list[object]]:
    """`explanations.csv`: dataset × forgery method × map × metric; a difference above 0 is better."""
    table: list[list[object]] = []
    for row in rows:
        mean, low, high, frames, videos = row.interval
        better = "" if row.better is None else ("yes" if row.better else "no")
        method, layer, site, backward = row.spec.facts().values()
        names = [row.dataset, row.forgery, method, layer, site, row.metric]
        rule = "" if row.spec.is_control else backward
        table.append([*names, *_digits(mean, low, high), frames, videos, *_against_controls(row), better, rule])
    return table


def _against_controls(row: Row) -> list[str]:
    """The columns of each control, empty for a control's own row."""
    differences = {difference.control: difference for difference in row.differences}
    cells: list[str] = []
    for control in CONTROLS:
        found = differences.get(control)
        cells += [""] * 4 if found is None else _digits(found.mean, found.low, found.high, found.p)
    return cells


def _digits(*numbers: float) -> list[str]:
    return ["" if math.isnan(number) else f"{number:.6g}" for number in numbers]


def json_values(scores: DatasetScores) -> dict[str, Any]:
    """The entry of one dataset in `explanations.json`; the rows are those over all forgery methods."""
    samples = scores.samples
    return {
        "verdict": verdict(scores),
        "detected_fakes": scores.detected,
        "judged": 0 if samples is None else len(samples.frames),
        "masks": None if samples is None else dict(samples.mask_states),
        "whole_face": [] if samples is None else samples.whole_face,
        "paired_real": scores.paired,
        "notes": scores.notes,
        "ranked_by": scores.ranked_by,
        "ranking": [spec.facts() for spec in scores.ranking],
        "configured": [spec.facts() for spec in scores.configured],
        "rows": [_row_json(row) for row in scores.rows if row.forgery == ALL],
        "curves": _curves_json(scores),
        "randomised": None if scores.randomised is None else _randomised_json(scores.randomised),
    }


def _row_json(row: Row) -> dict[str, Any]:
    return {
        **row.spec.facts(),
        "metric": row.metric,
        **_finite(row.interval._asdict()),
        "differences": [_finite(difference._asdict()) for difference in row.differences],
        "better": row.better,
    }


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """NaN and infinity, which JSON has not, as None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _curves_json(scores: DatasetScores) -> list[dict[str, Any]]:
    """Mean curves; their bands are drawn in the figure only."""
    return [
        {
            **spec.facts(),
            "fill": fill,
            "shares": list(SHARES),
            "deletion": [float(value) for value in curves.deletion.numpy().mean(axis=0)],
            "insertion": [float(value) for value in curves.insertion.numpy().mean(axis=0)],
        }
        for fill, by_spec in scores.curves.items()
        for spec, curves in by_spec.items()
    ]


def _randomised_json(randomised: Randomised) -> dict[str, Any]:
    return {
        "steps": randomised.steps,
        "correlation": [
            {**spec.facts(), "values": [None if math.isnan(value) else value for value in values]}
            for spec, values in randomised.correlation.items()
        ],
    }
