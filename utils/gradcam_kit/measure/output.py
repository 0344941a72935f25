"""What --evaluate_explanations writes and prints."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from ..base.files import write_json, write_table, write_whole
from ..data.frame import Frame
from ..engine.layers import FUSED, SUM
from ..engine.recipe import ATTENTION_SITE, Recipe
from ..model.detector import LoadedDetector
from ..settings.config import RunSettings
from .evaluate import DatasetScores, ExplanationOptions, evaluate_dataset
from .figures import curves_figure, heat_table_figure, image_file
from .tables import CSV_COLUMNS, csv_rows, json_values, printed, verdict

CSV_FILE, JSON_FILE = "explanations.csv", "explanations.json"
CONFIG_HEADER = (
    "# Written by test_with_gradcam.py --write_config: the configuration of the run, with the map that was found best."
)


class EvaluationText(NamedTuple):
    """Text to print, and the reason for exit code 1 (empty: none)."""

    text: str
    problem: str


def evaluate_explanations(
    detector: LoadedDetector,
    datasets: Mapping[str, Sequence[Frame]],
    folder: Path,
    settings: RunSettings,
    options: ExplanationOptions,
) -> EvaluationText:
    """Evaluate the explanations of every dataset, from the predictions that a run has left in `folder`.

    Writes `explanations.csv`, `explanations.json`, two figures per dataset and, if `options.write_config` is given and
    a map is better than the controls, a config. Raises as `evaluate_dataset`.
    """
    scores = [
        evaluate_dataset(detector, frames, folder / name / "predictions.csv", settings, options)
        for name, frames in datasets.items()
    ]
    write_table(folder / CSV_FILE, CSV_COLUMNS, csv_rows([row for dataset in scores for row in dataset.rows]))
    write_json(folder / JSON_FILE, {dataset.dataset: json_values(dataset) for dataset in scores})
    for dataset in scores:
        if dataset.rows:
            figures = {"curves": curves_figure(dataset, settings.seed), "heat_table": heat_table_figure(dataset)}
            for name, kind in itertools.product(figures, ("png", "pdf")):
                write_whole(folder / dataset.dataset / f"explanation_{name}.{kind}", image_file(figures[name], kind))
    lines = [printed(dataset) for dataset in scores] + [verdict(dataset) for dataset in scores]
    problem = ""
    if options.write_config is not None:
        best = best_over_all(scores)
        if best is None:
            problem = f"--write_config: no map is better than the controls, so {options.write_config} was not written"
        else:
            write_config(options.write_config, best, scores, settings)
            lines.append(f"{best.title}: written as {options.write_config}")
    return EvaluationText("\n".join(lines) + "\n", problem)


def best_over_all(scores: Sequence[DatasetScores]) -> Recipe | None:
    """The map that is best on average over the datasets, of those that beat the controls on one at least."""
    rows = [row for dataset in scores for row in dataset.row_of().values() if not row.recipe.is_control]
    means: dict[Recipe, list[float]] = {}
    for row in rows:
        means.setdefault(row.recipe, []).append(row.interval.mean)
    faithful = dict.fromkeys(row.recipe for row in rows if row.better)
    return max(faithful, key=lambda recipe: float(np.mean(means[recipe])), default=None)


def write_config(path: Path, best: Recipe, scores: Sequence[DatasetScores], settings: RunSettings) -> None:
    """The run's configuration with the map `best` in it, as a YAML file."""
    config: dict[str, Any] = {**settings.detector.config, "gradcam_enabled": True, "gradcam_method": best.method}
    fusable = {recipe.layer for recipe in scores[0].ranking if recipe.method == best.method} - {FUSED, SUM}
    config["gradcam_layers"] = [*sorted(fusable), FUSED] if best.layer == FUSED else [best.layer]
    config["gradcam_backward"] = best.backward
    if best.site != ATTENTION_SITE:
        config["gradcam_site"] = best.site
    if settings.detector.weights_path is not None:
        config["weights_path"] = str(settings.detector.weights_path.resolve())
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    write_whole(path, f"{CONFIG_HEADER}\n# {verdict(scores[0])}\n{text}".encode())
