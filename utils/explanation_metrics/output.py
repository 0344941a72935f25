"""What --evaluate_explanations leaves on disk and says in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

import numpy as np
import yaml

from utils.cam.maps import FUSED
from utils.data.frames import Frame
from utils.explanation_metrics.comparison import ALL
from utils.explanation_metrics.evaluate import ExplanationOptions, Judged, judge
from utils.explanation_metrics.figures import curves_figure, heat_table_figure
from utils.explanation_metrics.sweep import ATTENTION, Spec
from utils.explanation_metrics.tables import csv_text, json_values, printed, spec_of, verdict
from utils.files import write_json, write_whole
from utils.model.config import RunSettings
from utils.model.detector import LoadedDetector
from utils.text import AS_IT_CAME

CSV_FILE, JSON_FILE = "explanations.csv", "explanations.json"
CURVES_FILE, HEAT_FILE = "explanation_curves.png", "explanation_heat_table.png"  # in each data set's folder
CONFIG_HEADER = """\
# Written by test_with_gradcam.py --write_config: the configuration of the run, with the map that was found best.
# {verdict}
"""


class Explained(NamedTuple):
    """What to print, and, where not empty, why the run could not give all that was asked for."""

    text: str
    problem: str


def evaluate_explanations(
    detector: LoadedDetector,
    datasets: Mapping[str, Sequence[Frame]],
    folder: Path,
    settings: RunSettings,
    options: ExplanationOptions,
) -> Explained:
    """Judge the explanations of every data set from the predictions that a run has left in `folder`.

    Writes `explanations.csv`, `explanations.json`, two figures a data set and, where asked for and a map is better than
    the controls, a config.
    """
    judged = [
        judge(detector, frames, folder / name / "predictions.csv", settings, options)
        for name, frames in datasets.items()
    ]
    write_whole(folder / CSV_FILE, csv_text(judged).encode("utf-8", AS_IT_CAME))
    write_json(folder / JSON_FILE, {one.dataset: json_values(one) for one in judged})
    for one in judged:
        if one.rows:
            write_whole(folder / one.dataset / CURVES_FILE, curves_figure(one, settings.seed))
            write_whole(folder / one.dataset / HEAT_FILE, heat_table_figure(one))
    lines = [printed(one) for one in judged] + [verdict(one) for one in judged]
    problem = ""
    if options.write_config is not None:
        best = best_over_all(judged)
        if best is None:
            problem = f"--write_config: no map is better than the controls, so {options.write_config} was not written"
        else:
            write_config(options.write_config, best, judged, settings)
            lines.append(f"{best}: written as {options.write_config}")
    return Explained("\n".join(lines) + "\n", problem)


def best_over_all(judged: Sequence[Judged]) -> Spec | None:
    """The map that is best on average over the data sets, of those that beat the controls on one at least."""
    values: dict[Spec, list[float]] = {}
    true: set[Spec] = set()
    for one in judged:
        for row in one.rows:
            if (row.forgery, row.metric) == (ALL, one.ranked_by) and row.layer:
                values.setdefault(spec_of(row), []).append(row.interval.mean)
                true |= {spec_of(row)} if row.better else set()
    return max(true, key=lambda spec: float(np.mean(values[spec])), default=None)


def write_config(path: Path, best: Spec, judged: Sequence[Judged], settings: RunSettings) -> None:
    """The run's configuration with the map `best` in it, as a YAML file."""
    config: dict[str, Any] = {**settings.detector.config, "gradcam_enabled": True, "gradcam_method": best.method}
    layers = [one.layer for one in judged[0].ranking if one.method == best.method and one.layer != FUSED]
    config["gradcam_layers"] = [*sorted(set(layers)), FUSED] if best.layer == FUSED else [best.layer]
    if best.site != ATTENTION:
        config["gradcam_site"] = best.site
    if settings.detector.weights_path is not None:
        config["weights_path"] = str(settings.detector.weights_path.resolve())
    text = CONFIG_HEADER.format(verdict=verdict(judged[0])) + yaml.safe_dump(
        config, sort_keys=False, allow_unicode=True
    )
    write_whole(path, text.encode())
