"""Are the heatmaps faithful? Detected fakes → metrics of maps and controls → scores of the dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..base.allowed import DEFAULT_SAMPLES, METHOD_NAMES, TARGETS, TRANSPLANT
from ..base.errors import InputError
from ..data.frame import Frame, evenly_spaced
from ..engine.layers import block_names
from ..engine.recipe import ATTENTION_SITE, NORMED, Recipe
from ..model.detector import LoadedDetector
from ..settings.config import RunSettings
from .comparison import Row
from .dataset_evaluation import ENERGY, DatasetEvaluation
from .deletion import Curves
from .randomisation import Randomised
from .samples import DetectedFakes, detected_fakes, find_evidence, read_samples
from .sweep import SweepPlan, full_plan

BEST = 3  # maps that get these metrics, beside the first configured one
FEW = 20  # videos with detected fakes below which there is a warning
NO_FAKES = "no detected fakes: nothing to evaluate"


class ExplanationOptions(NamedTuple):
    """The command line's options alone. `layers` None: a sweep takes every block."""

    samples: int = DEFAULT_SAMPLES
    sweep: bool = False
    layers: Sequence[str] | None = None
    write_config: Path | None = None
    masks: Path | None = None  # a folder of masks in place of those beside the frames
    clicks: Path | None = None  # a CSV of where people saw the forgery
    leave_out: Sequence[str] = ()  # of MEASUREMENTS


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

    Args:
        frames: of the dataset, all of them.
        predictions: the run's `predictions.csv` of these frames.

    Raises:
        RunError: an image or a map cannot be used.
        InputError: a layer cannot be explained.
    """
    dataset = frames[0].dataset
    plan, configured = plan_and_configured(detector, options)
    detected = detected_fakes(frames, predictions)
    if not detected:
        return DatasetScores(dataset, 0, configured, notes=[NO_FAKES])
    chosen = evenly_spaced(detected, options.samples)
    evidence = find_evidence(options.masks, options.clicks, chosen, settings.data.folders.values())
    samples = read_samples(chosen, settings.detector.resolution, settings.batch_size, settings.workers, evidence)
    evaluation = DatasetEvaluation(
        detector, samples, settings, "margin" if detector.gradcam.target == "margin" else "fake"
    )
    videos = len(set(samples.videos))
    if videos == 1:
        evaluation.notes.append(f"all {len(chosen)} detected fakes are of one video: no interval, and no map is better")
    elif videos < FEW:
        evaluation.notes.append(f"detected fakes of only {videos} videos: intervals over so few come out too narrow")
    evaluation.make_maps(plan)
    evaluation.localisation()
    if options.clicks is not None:
        evaluation.clicks(evidence.clicks)
    ranking = evaluation.ranking()
    examined = list(dict.fromkeys([*ranking[:BEST], configured[0]]))
    evaluation.say_cost(len(examined), options.leave_out)
    evaluation.perturbation(examined, options.leave_out)
    best_of_methods = [next(spec for spec in ranking if spec.method == method) for method in plan.methods]
    randomised = None
    if "randomisation" not in options.leave_out:
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


def plan_and_configured(detector: LoadedDetector, options: ExplanationOptions) -> tuple[SweepPlan, list[Recipe]]:
    """Which maps to make, and which of them is the configured map of each layer, the first layer first."""
    gradcam, model = detector.gradcam, detector.model
    recipe = gradcam.recipe
    site = recipe.site
    layers = list(model.gradcam_layers())
    if not options.sweep:
        plan = SweepPlan([recipe.method], [NORMED if site == ATTENTION_SITE else site], layers, (recipe.backward,))
        return plan, plan.specs()
    plan = full_plan(detector, list(options.layers or block_names(model.explained_tower) or layers))
    if site not in (ATTENTION_SITE, *plan.sites):
        site = plan.sites[0]
    drawn = Recipe(recipe.method, plan.layers[0], site, recipe.backward)
    configured = [drawn.at(layer) for layer in layers if layer in plan.layers] or [drawn]
    # What is drawn is measured, also at a site where a sweep would not try that rule.
    plan = plan if configured[0] in plan.specs() else plan._replace(backwards=(gradcam.recipe.backward,))
    return plan, configured
