"""--evaluate_explanations: from detected fakes to metrics of maps and controls, files and printed tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from ..base.allowed import METHOD_NAMES, TARGETS, TRANSPLANT
from ..base.errors import InputError
from ..base.files import write_json, write_table, write_whole
from ..data.clips import Clip, CutClips, parts_of
from ..data.frame import Frame, evenly_spaced
from ..engine.layers import FUSED, SUM
from ..engine.recipe import ATTENTION_SITE, NORMED, Recipe
from ..model.detector import LoadedDetector
from ..settings.config import RunSettings
from ..settings.run_options import ExplanationOptions
from .clips import measured_tower
from .comparison import NOWHERE, Kept
from .dataset_evaluation import DatasetEvaluation, DatasetScores
from .figures import curves_figure, heat_table_figure, image_file
from .samples import detected_fakes, find_evidence, read_samples
from .sweep import swept_recipes
from .tables import CSV_COLUMNS, csv_rows, json_values, printed, verdict

CSV_FILE, JSON_FILE = "explanations.csv", "explanations.json"
CONFIG_HEADER = "# Written by test_with_gradcam.py --write_config: the run's configuration with the best map."
BEST = 3  # maps that get these metrics, in addition to the first configured one
FEW = 20  # with fewer videos of detected fakes there is a warning


def check_options(detector: LoadedDetector) -> None:
    """Raise InputError if the detector has no heatmaps, or its target cannot be evaluated."""
    if not hasattr(detector.model, "capture"):
        raise InputError(f"model_name {detector.settings.model_name!r} has no heatmaps to evaluate")
    target = detector.gradcam.target
    if detector.gradcam.recipe.method == TRANSPLANT:
        raise InputError(
            "--evaluate_explanations already measures every map by transplant, so gradcam_method 'transplant' cannot"
            f" be evaluated; use one of {', '.join(METHOD_NAMES)}"
        )
    if target == "real" or target not in TARGETS:
        raise InputError(
            "--evaluate_explanations measures the evidence for fake on detected fakes, so gradcam_target"
            f" {target!r} cannot be evaluated; use predicted, fake or margin"
        )


def evaluate_dataset(
    detector: LoadedDetector,
    frames: Sequence[Frame],
    predictions: Iterable[Mapping[str, Any]],
    settings: RunSettings,
    options: ExplanationOptions,
    kept: Kept = NOWHERE,
    clips: Sequence[Clip] = (),
) -> DatasetScores:
    """Compute all metrics on one dataset's detected fakes.

    `frames`: all of the dataset's frames, or the rows of its `clips`; `predictions`: the rows of its `predictions.csv`.
    Raises RunError if an image or a map cannot be used, InputError if a layer cannot be explained.
    """
    dataset = frames[0].dataset
    recipes, configured = maps_to_make(detector, options)
    detected = detected_fakes(frames, predictions)
    if not detected:
        return DatasetScores(dataset, 0, configured, notes=["no detected fakes: nothing to evaluate"])
    chosen = evenly_spaced(detected, options.samples)
    every = [frame for part in parts_of(chosen, clips) for frame in part]
    evidence = find_evidence(options.masks, options.clicks, every, settings.data.folders.values())
    how = settings.detector.resolution, settings.batch_size, settings.workers
    samples = read_samples(chosen, *how, evidence, clips)
    target = "margin" if detector.gradcam.target == "margin" else "fake"
    evaluation = DatasetEvaluation(detector, samples, settings, target, kept)
    videos = len(set(samples.videos))
    if videos == 1:
        one_video = (
            f"all {len(samples.frames)} detected fakes are from one video: no intervals, and no map counts as better"
        )
        evaluation.notes.append(one_video)
    elif videos < FEW:
        few = f"detected fakes are from only {videos} videos: intervals over so few are too narrow"
        evaluation.notes.append(few)
    evaluation.make_maps(recipes)
    evaluation.localisation()
    if options.clicks is not None:
        evaluation.clicks(evidence.clicks)
    ranking = evaluation.ranking()
    examined = list(dict.fromkeys([*ranking[:BEST], configured[0]]))
    evaluation.say_cost(len(examined), options.leave_out)
    evaluation.perturbation(examined, options.leave_out)
    randomised = None
    if "randomisation" not in options.leave_out:
        methods = dict.fromkeys(recipe.method for recipe in recipes)
        best_of_methods = [next(recipe for recipe in ranking if recipe.method == method) for method in methods]
        randomised = evaluation.randomisation(list(dict.fromkeys([*best_of_methods, *examined])))
    if options.leave_out:
        evaluation.notes.append(f"skipped by --leave_out: {', '.join(options.leave_out)}")
    return DatasetScores(
        dataset=dataset,
        detected=len(detected),
        configured=configured,
        samples=samples,
        ranked_by=evaluation.ranked_by,
        ranking=ranking,
        rows=evaluation.rows(dataset),
        curves=evaluation.curves,
        curve_videos=evaluation.curve_videos,
        randomised=randomised,
        paired=evaluation.paired,
        notes=evaluation.notes,
    )


def maps_to_make(detector: LoadedDetector, options: ExplanationOptions) -> tuple[list[Recipe], list[Recipe]]:
    """Return the maps to make, and the configured map of each layer, the first layer first."""
    recipe, model = detector.gradcam.recipe, detector.model
    layers = list(model.gradcam_layers())
    if not options.sweep:
        configured = [recipe.at(layer) for layer in layers]
        return configured, configured
    swept = list(options.layers or measured_tower(detector).blocks or layers)
    recipes = swept_recipes(detector, swept)
    if recipe.site not in {ATTENTION_SITE, *(one.site for one in recipes)}:
        recipe = replace(recipe, site=NORMED)
    there = dict.fromkeys(one.layer for one in recipes)
    configured = [recipe.at(layer) for layer in layers if layer in there] or [recipe.at(recipes[0].layer)]
    # The configured maps are always measured, even at a site that a sweep does not try.
    return recipes if configured[0] in recipes else swept_recipes(detector, swept, (recipe.backward,)), configured


class EvaluationText(NamedTuple):
    """The text to print, the reason for exit code 1 (or ""), and the written files."""

    text: str
    problem: str
    files: list[Path]


def evaluate_explanations(
    detector: LoadedDetector,
    datasets: Mapping[str, Sequence[Frame]],
    predictions: Callable[[str], Iterable[Mapping[str, Any]]],
    folder: Path,
    settings: RunSettings,
    options: ExplanationOptions,
    kept: Callable[[str], Kept] = lambda name: NOWHERE,
    cut: Mapping[str, CutClips] | None = None,
) -> EvaluationText:
    """Evaluate the explanations of every dataset from a run's predictions. `cut`: for a clip detector, its clips.

    Writes `explanations.csv`, `explanations.json` and two figures per dataset to `folder`; with `options.write_config`
    also a config, if a map is better than the controls. Raises the errors of `evaluate_dataset`.
    """
    scores = [
        evaluate_dataset(
            detector, frames, predictions(name), settings, options, kept(name), cut[name].clips if cut else ()
        )
        for name, frames in datasets.items()
    ]
    write_table(folder / CSV_FILE, CSV_COLUMNS, csv_rows([row for dataset in scores for row in dataset.rows]))
    write_json(folder / JSON_FILE, {dataset.dataset: json_values(dataset) for dataset in scores})
    files = [folder / CSV_FILE, folder / JSON_FILE]
    for dataset in scores:
        if dataset.rows:
            figures = {"heat_table": heat_table_figure(dataset)}
            if dataset.curves:  # else --leave_out leaves them out
                figures["curves"] = curves_figure(dataset, settings.seed)
            for name, kind in itertools.product(figures, ("png", "pdf")):
                files.append(folder / dataset.dataset / f"explanation_{name}.{kind}")
                write_whole(files[-1], image_file(figures[name], kind))
    lines = [printed(dataset) for dataset in scores] + [verdict(dataset) for dataset in scores]
    problem = ""
    if options.write_config is not None:
        best = best_over_all(scores)
        if best is None:
            problem = f"--write_config: no map is better than the controls, so {options.write_config} was not written"
        else:
            write_config(options.write_config, best, scores, settings)
            lines.append(f"{best.title}: written as {options.write_config}")
    return EvaluationText("\n".join(lines) + "\n", problem, files)


def best_over_all(scores: Sequence[DatasetScores]) -> Recipe | None:
    """Return the map that is best on average over the datasets, among those that beat the controls on at least one."""
    rows = [row for dataset in scores for row in dataset.row_of().values() if not row.recipe.is_control]
    means: dict[Recipe, list[float]] = {}
    for row in rows:
        means.setdefault(row.recipe, []).append(row.interval.mean)
    faithful = dict.fromkeys(row.recipe for row in rows if row.better)
    return max(faithful, key=lambda recipe: float(np.mean(means[recipe])), default=None)


def write_config(path: Path, best: Recipe, scores: Sequence[DatasetScores], settings: RunSettings) -> None:
    """Write the run's configuration with the map `best` as a YAML file."""
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
