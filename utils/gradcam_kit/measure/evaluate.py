"""Are the heatmaps faithful? Detected fakes → metrics of maps and controls → scores of the dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..base.allowed import METHOD_NAMES, TARGETS, TRANSPLANT
from ..base.errors import InputError
from ..data.frame import Frame, evenly_spaced
from ..engine.layers import block_names
from ..engine.recipe import ATTENTION_SITE, NORMED, Recipe
from ..judge.deletion import Curves
from ..model.detector import LoadedDetector
from ..settings.config import RunSettings
from ..settings.run_options import ExplanationOptions
from .comparison import ALL, Row
from .dataset_evaluation import ENERGY, DatasetEvaluation
from .samples import DetectedFakes, detected_fakes, find_evidence, read_samples
from .sweep import Randomised, swept_recipes

BEST = 3  # maps that get these metrics, beside the first configured one
FEW = 20  # videos with detected fakes below which there is a warning


@dataclass(frozen=True)
class DatasetScores:
    """The explanations of one dataset, evaluated. Without detected fakes there is nothing but the `notes`."""

    dataset: str
    detected: int
    configured: list[Recipe]  # the configured map of each layer, the first layer first
    samples: DetectedFakes | None = None
    ranked_by: str = ENERGY
    ranking: list[Recipe] = field(default_factory=list)  # best first, without the controls
    rows: list[Row] = field(default_factory=list)
    curves: Mapping[str, Mapping[Recipe, Curves]] = field(default_factory=dict)  # by fill
    curve_videos: Mapping[str, list[tuple[str, str]]] = field(default_factory=dict)  # of the images of a fill's curves
    randomised: Randomised | None = None
    paired: int = 0  # images with a real counterpart, of those with curves
    notes: list[str] = field(default_factory=list)

    def row_of(self, metric: str | None = None) -> dict[Recipe, Row]:
        """The row of each map and control over all forgery methods, by `metric` or by what maps are ranked by."""
        metric = self.ranked_by if metric is None else metric
        return {row.recipe: row for row in self.rows if (row.forgery, row.metric) == (ALL, metric)}


def check_options(detector: LoadedDetector) -> None:
    """Raises InputError where the detector has no heatmaps, or its target is none that can be evaluated."""
    if not hasattr(detector.model, "capture"):
        raise InputError(f"model_name {detector.settings.model_name!r} has no heatmaps to evaluate")
    target = detector.gradcam.target
    if detector.gradcam.recipe.method == TRANSPLANT:
        raise InputError(
            "--evaluate_explanations measures every map by transplant already, so gradcam_method 'transplant' does not"
            f" go with it; use one of {', '.join(METHOD_NAMES)}"
        )
    if target == "real" or target not in TARGETS:
        raise InputError(
            "--evaluate_explanations measures the evidence for fake on detected fakes, so gradcam_target"
            f" {target!r} does not go with it; use predicted, fake or margin"
        )


def evaluate_dataset(
    detector: LoadedDetector,
    frames: Sequence[Frame],
    predictions: Path,
    settings: RunSettings,
    options: ExplanationOptions,
) -> DatasetScores:
    """All metrics on one dataset's detected fakes.

    `frames`: all of the dataset's, and `predictions` the run's `predictions.csv` of them. Raises RunError where an
    image or a map cannot be used, InputError where a layer cannot be explained.
    """
    dataset = frames[0].dataset
    recipes, configured = maps_to_make(detector, options)
    detected = detected_fakes(frames, predictions)
    if not detected:
        return DatasetScores(dataset, 0, configured, notes=["no detected fakes: nothing to evaluate"])
    chosen = evenly_spaced(detected, options.samples)
    evidence = find_evidence(options.masks, options.clicks, chosen, settings.data.folders.values())
    samples = read_samples(chosen, settings.detector.resolution, settings.batch_size, settings.workers, evidence)
    target = "margin" if detector.gradcam.target == "margin" else "fake"
    evaluation = DatasetEvaluation(detector, samples, settings, target)
    videos = len(set(samples.videos))
    if videos == 1:
        one_video = f"all {len(samples.frames)} detected fakes are of one video: no interval, and no map is better"
        evaluation.notes.append(one_video)
    elif videos < FEW:
        few = f"detected fakes of only {videos} videos: intervals over so few come out too narrow"
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
        evaluation.notes.append(f"left out as asked: {', '.join(options.leave_out)}")
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
    """Which maps to make, and which of them is the configured map of each layer, the first layer first."""
    recipe, model = detector.gradcam.recipe, detector.model
    layers = list(model.gradcam_layers())
    if not options.sweep:
        configured = [recipe.at(layer) for layer in layers]
        return configured, configured
    swept = list(options.layers or block_names(model.explained_tower) or layers)
    recipes = swept_recipes(detector, swept)
    if recipe.site not in {ATTENTION_SITE, *(one.site for one in recipes)}:
        recipe = replace(recipe, site=NORMED)
    there = dict.fromkeys(one.layer for one in recipes)
    configured = [recipe.at(layer) for layer in layers if layer in there] or [recipe.at(recipes[0].layer)]
    # What is drawn is measured, also at a site where a sweep would not try that rule.
    return recipes if configured[0] in recipes else swept_recipes(detector, swept, (recipe.backward,)), configured
