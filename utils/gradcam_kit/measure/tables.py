"""A dataset's results as text: the verdict, the printed tables, the rows of files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..base.typed import builtins
from ..engine.recipe import Recipe
from ..judge.bootstrap import Interval
from ..judge.controls import CONTROLS
from ..judge.deletion import SHARES
from .comparison import ALL, MetricRow, lower_is_better
from .dataset_evaluation import CLICK_METRICS, DatasetScores
from .perturbation import AGREEMENT
from .sweep import FAILS_FROM

CONTROL_NAMES = {"random": "a random map", "gaussian": "a centred blob", "face": "the mean face"}
DIFFERENCE = {"difference": "mean", "low": "low", "high": "high", "p": "p"}  # column → field of a Difference
CSV_COLUMNS = (
    "dataset", "forgery", "method", "layer", "site", "metric", "mean", "low", "high", "frames", "videos",
    *(f"{what}_{control}" for control in CONTROLS for what in DIFFERENCE), "better", "backward",
)  # fmt: skip
BETTER = {True: "yes", False: "no", None: "(control)"}
PRINTED = 12  # maps in the printed table
FEWEST_VIDEOS = 5  # needed for a p-value below 0.05: 2^-4 is above it


def verdict(scores: DatasetScores) -> str:
    """Return one sentence: the best map, and the configured ones that are not better than a control."""
    if not scores.rows:
        return f"{scores.dataset}: {scores.notes[0]}"
    ranked = scores.row_of()
    best = ranked[scores.ranking[0]]
    if best.interval.videos < FEWEST_VIDEOS:
        few = "one video is" if best.interval.videos == 1 else f"{best.interval.videos} videos are"
        return f"{scores.dataset}: for this checkpoint: {few} too few to tell whether a map is better than the controls"
    if best.better:
        sentence = f"{best.recipe.title} ({scores.ranked_by} {interval_text(best.interval)})"
    else:
        sentence = f"no map is better than {weakest_control(best)}: do not use its heatmaps"
    useless = [ranked[recipe] for recipe in scores.configured if recipe in ranked and not ranked[recipe].better]
    if best.better and useless:
        more = f" and {len(useless) - 1} more of the configured maps are" if len(useless) > 1 else " is"
        sentence += f"; {useless[0].recipe.title}{more} no better than {weakest_control(useless[0])}"
    return f"{scores.dataset}: for this checkpoint: {sentence}"


def weakest_control(row: MetricRow) -> str:
    """Return the name of the control that beats a map by most."""
    worst = max(row.differences, key=lambda difference: (difference.p, -difference.mean))
    return CONTROL_NAMES[worst.control]


def interval_text(interval: Interval) -> str:
    if math.isnan(interval.low):
        return f"{interval.mean:.3f} [no interval]"
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def printed(scores: DatasetScores) -> str:
    """Return the tables of one dataset for the terminal."""
    if scores.samples is None:
        return "\n".join([f"{scores.dataset}: explanations", *scores.notes])
    count, shown = len(scores.samples.frames), list(dict.fromkeys([*scores.ranking[:PRINTED], *scores.configured]))
    lines = [f"{scores.dataset}: explanations of {count} of {scores.detected} detected fakes, 95 % intervals"]
    lines += _ranked_table(scores, shown)
    for metric in dict.fromkeys(row.metric for row in scores.rows if row.forgery == ALL):
        if metric.startswith(("deletion", "insertion", "SaCo", AGREEMENT, "accuracy drop", *CLICK_METRICS)):
            lines.append(f"{metric}, {'lower' if lower_is_better(metric) else 'higher'} is better")
            for recipe, row in scores.row_of(metric).items():
                if recipe in shown or recipe.is_control:
                    name = CONTROL_NAMES.get(recipe.method, recipe.title)
                    lines.append(f"  {name:<48} {interval_text(row.interval)}  {BETTER[row.better]}")
    lines += _forgery_lines(scores)
    if scores.randomised:
        lines.append("rank correlation with the original map after randomising all weights (should be near 0)")
        for recipe, values in scores.randomised.correlation.items():
            state = "all maps constant" if math.isnan(values[-1]) else f"{values[-1]:.2f}"
            lines.append(f"  {recipe.title:<48} {state}{'  FAILS' if values[-1] >= FAILS_FROM else ''}")
    return "\n".join([*lines, *(f"note: {note}" for note in scores.notes)])


def _ranked_table(scores: DatasetScores, shown: Sequence[Recipe]) -> list[str]:
    """Return the maps by rank, with the pointing game, then the controls."""
    ranked, pointing = scores.row_of(), scores.row_of("pointing game")
    lines = [
        f"  {'method':<10}{'layer':<22}{'site':<22}{scores.ranked_by:<23}{'pointing game':<23}better than controls"
    ]
    for recipe in [*shown, *map(Recipe.control, CONTROLS)]:
        row = ranked[recipe]
        points = interval_text(pointing[recipe].interval) if recipe in pointing else "–"
        names = f"{recipe.method:<10}{recipe.layer:<22}{recipe.where:<22}"
        lines.append(f"  {names}{interval_text(row.interval):<23}{points:<23}{BETTER[row.better]}")
    if len(scores.ranking) > len(shown):
        lines.append(f"  … {len(scores.ranking) - len(shown)} more in explanations.csv")
    return lines


def _forgery_lines(scores: DatasetScores) -> list[str]:
    best = scores.ranking[0]
    found = [row for row in scores.rows if (row.metric, row.recipe) == (scores.ranked_by, best) and row.forgery != ALL]
    lines = [f"{best.title} on each forgery method, {scores.ranked_by}"] if found else []
    for row in found:
        better = f"{'' if row.better else 'no '}better than controls, {row.interval.frames} frames"
        lines.append(f"  {row.forgery:<48} {interval_text(row.interval)}  {better}")
    return lines


def csv_rows(rows: Sequence[MetricRow]) -> list[list[str]]:
    """Return the rows of `explanations.csv`: dataset × forgery × map × metric; a positive difference is better."""
    lines = []
    for row in rows:
        values = {**row._asdict(), **row.recipe.facts(), **row.interval._asdict(), "better": row.better}
        for one in row.differences:
            values |= {f"{what}_{one.control}": getattr(one, name) for what, name in DIFFERENCE.items()}
        if row.recipe.is_control:
            values["backward"] = None
        lines.append([_cell(values.get(column)) for column in CSV_COLUMNS])
    return lines


def _cell(value: object) -> str:
    """Format a number with six digits, a missing one as "", a bool as yes or no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else str(value)


def json_values(scores: DatasetScores) -> Any:
    """Return a dataset's entry in `explanations.json`; its rows are over all forgeries."""
    samples, randomised = scores.samples, scores.randomised
    values = {
        "verdict": verdict(scores),
        "detected_fakes": scores.detected,
        "judged": 0 if samples is None else len(samples.frames),
        "masks": None if samples is None else samples.mask_states,
        "whole_face": [] if samples is None else samples.whole_face,
        "paired_real": scores.paired,
        "notes": scores.notes,
        "ranked_by": scores.ranked_by,
        "ranking": [recipe.facts() for recipe in scores.ranking],
        "configured": [recipe.facts() for recipe in scores.configured],
        "rows": [
            {**row.recipe.facts(), "metric": row.metric, **row.interval._asdict(),
             "differences": row.differences, "better": row.better}
            for row in scores.rows if row.forgery == ALL
        ],
        "curves": [  # means; the bands are only in the figure
            {**recipe.facts(), "fill": fill, "shares": SHARES,
             **{kind: curve.numpy().mean(axis=0).tolist() for kind, curve in curves._asdict().items()}}
            for fill, by_recipe in scores.curves.items()
            for recipe, curves in by_recipe.items()
        ],
        "randomised": randomised and {
            "steps": randomised.steps,
            "correlation": [{**of.facts(), "values": found} for of, found in randomised.correlation.items()],
        },
    }  # fmt: skip
    return builtins(values)
