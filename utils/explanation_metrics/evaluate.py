"""Are the heatmaps faithful? Detected fakes → metrics of maps and controls → scores of the dataset."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Collection, Mapping, NamedTuple, Sequence

import numpy as np
import torch
from torch import Tensor

from utils.allowed import DEFAULT_SAMPLES, METHOD_NAMES, TARGETS, TRANSPLANT
from utils.cam.layers import block_names
from utils.cam.methods import ATTENTION_SITE, sites_of
from utils.cam.targets import Target
from utils.data.frames import Frame, evenly_spaced
from utils.errors import InputError
from utils.explanation_metrics.causal.saco import saco
from utils.explanation_metrics.causal.segment_attack import attack_metrics
from utils.explanation_metrics.causal.transplant_agreement import (
    AGREEMENT,
    changed_patches,
    patches_of,
    transplant_agreement,
    transplanted,
)
from utils.explanation_metrics.comparison import Columns, Row, best_threshold, rows
from utils.explanation_metrics.controls import control_maps
from utils.explanation_metrics.cost import announcement, expected_passes
from utils.explanation_metrics.deletion import (
    PAIRED_REAL,
    Curves,
    RealFrames,
    deletion_metrics,
    fake_probability,
    mean_coloured,
    screening,
)
from utils.explanation_metrics.localisation import click_distance
from utils.explanation_metrics.randomisation import Randomised, randomisation
from utils.explanation_metrics.samples import (
    DetectedFakes,
    RealCounterparts,
    detected_fakes,
    find_evidence,
    read_samples,
    stored_size,
)
from utils.explanation_metrics.sweep import (
    MapSpec,
    SweepPlan,
    full_plan,
    localise_maps,
    make_maps,
    resized,
)
from utils.model.config import RunSettings
from utils.model.detector import LoadedDetector

DELETION_FRAMES = 200  # of them, for the metrics that run the detector again and again
ATTACK_FRAMES = 48
TRANSPLANT_FRAMES = 48
RANDOMISED_FRAMES = 64
SCREENED_FRAMES = 100
BEST = 3  # maps that get these metrics, beside the first configured one
FEW = 20  # videos with detected fakes below which there is a warning
NO_FAKES = "no detected fakes: nothing to evaluate"
HIT = 0.1  # share of the diagonal within which a map hits a click
CLICK_METRICS = (
    "distance to the nearest click, shares of the diagonal",
    "distance to the nearest click, pixels",
    f"hit: a click within {HIT} of the diagonal",
)
ENERGY, SCREENING = "energy in mask", "drop at 10 % deleted"  # what maps are ranked by, with and without masks


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
    configured: list[MapSpec]  # the configured map of each layer, the first layer first
    samples: DetectedFakes | None = None
    ranked_by: str = ENERGY
    ranking: list[MapSpec] = field(default_factory=list)  # best first, without the controls
    rows: list[Row] = field(default_factory=list)
    curves: Mapping[str, Mapping[MapSpec, Curves]] = field(default_factory=dict)  # by fill
    curve_videos: Mapping[str, list[tuple[str, str]]] = field(default_factory=dict)  # of the images of a fill's curves
    randomised: Randomised | None = None
    paired: int = 0  # images with a real counterpart, of those with curves
    notes: list[str] = field(default_factory=list)


def check_options(detector: LoadedDetector) -> None:
    """Raises InputError where the detector has no heatmaps, or its target is none that can be evaluated."""
    if not hasattr(detector.model, "capture"):
        raise InputError(f"model_name {detector.settings.model_name!r} has no heatmaps to evaluate")
    target = detector.gradcam.target
    if detector.gradcam.method == TRANSPLANT:
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


def plan_and_configured(detector: LoadedDetector, options: ExplanationOptions) -> tuple[SweepPlan, list[MapSpec]]:
    """Which maps to make, and which of them is the configured map of each layer, the first layer first."""
    gradcam, model = detector.gradcam, detector.model
    (site,) = sites_of(gradcam.method, [gradcam.site])
    layers = list(model.gradcam_layers())
    if not options.sweep:
        plan = SweepPlan([gradcam.method], [gradcam.site], layers, (gradcam.backward,))
        return plan, plan.specs()
    plan = full_plan(detector, list(options.layers or block_names(model.explained_tower) or layers))
    if site not in (ATTENTION_SITE, *plan.sites):
        site = plan.sites[0]
    drawn = MapSpec(gradcam.method, plan.layers[0], site, gradcam.backward)
    configured = [drawn._replace(layer=layer) for layer in layers if layer in plan.layers] or [drawn]
    # What is drawn is measured, also at a site where a sweep would not try that rule.
    plan = plan if configured[0] in plan.specs() else plan._replace(backwards=(gradcam.backward,))
    return plan, configured


class DatasetEvaluation:
    """The metrics of one dataset's detected fakes; each method adds its columns, and its notes for the reader.

    Call `make_maps` first. `columns`: one value per image and metric, for maps and controls, NaN where a metric was not
    computed. `ranked_by` is the metric that ranks the maps. `notes` tell what was left out and why.
    """

    def __init__(self, detector: LoadedDetector, samples: DetectedFakes, settings: RunSettings, target: Target) -> None:
        self.detector, self.samples, self.settings, self.target = detector, samples, settings, target
        self.ranked_by = ENERGY if bool(samples.masked.any()) else SCREENING
        self.notes = sample_notes(samples)
        self.columns: Columns = {}
        self.maps: dict[MapSpec, Tensor] = {}  # raw, on the CPU
        self.controls: dict[MapSpec, Tensor] = {}
        self.layers: list[str] = []  # of the maps
        self.curves: dict[str, dict[MapSpec, Curves]] = {}
        self.curve_videos: dict[str, list[tuple[str, str]]] = {}
        self.paired = 0

    def make_maps(self, plan: SweepPlan) -> None:
        """Make the plan's maps and the controls."""
        samples, side = self.samples, self.settings.detector.resolution
        title = f"{samples.frames[0].dataset}, explanations"
        self.layers = plan.layers
        self.maps = make_maps(self.detector, plan, samples.pixels, self.target, self.settings.batch_size, title)
        grid = self.detector.model.patch_grid(side, side) or (16, 16)
        self.controls = control_maps(samples.landmarks, grid, (side, side), self.settings.seed)

    def localisation(self) -> None:
        """How well maps and controls find the masks; no columns where no mask can be used."""
        masks, masked = self.samples.masks, self.samples.masked
        if not bool(masked.any()):
            return
        found = localise_maps(self.detector, {**self.maps, **self.controls}, masks, masked)
        columns = {
            ENERGY: {spec: scores.energy.numpy() for spec, scores in found.items()},
            "pointing game": {spec: scores.pointing.numpy() for spec, scores in found.items()},
            "pixel average precision": {spec: scores.average_precision.numpy() for spec, scores in found.items()},
            "IoU (best threshold)": best_threshold({spec: s.iou.double().numpy() for spec, s in found.items()}),
            "IoU (threshold 0.5)": {spec: scores.iou_fixed.numpy() for spec, scores in found.items()},
        }
        self._add(columns, masked.nonzero().flatten())

    def clicks(self, clicks: Mapping[str, np.ndarray]) -> None:
        """How near maps and controls point to where people clicked; `clicks` by the frames' paths."""
        frames = self.samples.frames
        part = torch.tensor([i for i, frame in enumerate(frames) if frame.path in clicks], dtype=torch.long)
        self.notes.append(f"clicks on {len(part)} of {len(frames)} fakes")
        if not len(part):
            return
        sizes = [stored_size(frames[int(i)]) for i in part]
        places = [clicks[frames[int(i)].path] for i in part]
        diagonals = np.array([np.hypot(*size) for size in sizes])
        columns: Columns = {metric: {} for metric in CLICK_METRICS}
        for spec, raw in {**self.maps, **self.controls}.items():
            drawn = resized(self.detector, raw[part])
            pixels = np.array([click_distance(*one) for one in zip(drawn, places, sizes)])
            for metric, values in zip(CLICK_METRICS, (pixels / diagonals, pixels, pixels <= HIT * diagonals)):
                columns[metric][spec] = values.astype(np.float64)
        self._add(columns, part)

    def ranking(self) -> list[MapSpec]:
        """The maps by the mean of `ranked_by`, best first."""
        if self.ranked_by == SCREENING:
            self._add({SCREENING: self._deletion_ranking()}, self._positions(SCREENED_FRAMES))
        column = self.columns[self.ranked_by]
        return sorted(self.maps, key=lambda spec: -_mean(column[spec]))

    def _deletion_ranking(self) -> dict[MapSpec, np.ndarray]:
        part = self._positions(SCREENED_FRAMES)
        maps = {spec: raw[part] for spec, raw in {**self.maps, **self.controls}.items()}
        return screening(self.detector, maps, self.samples.pixels[part], self.settings.seed, self.settings.batch_size)

    def say_cost(self, maps: int, left_out: Collection[str]) -> None:
        """Print how long what is left to be measured will take."""
        total = len(self.samples.frames)
        of_each = {"deletion": DELETION_FRAMES, "saco": DELETION_FRAMES, "transplant": TRANSPLANT_FRAMES,
                   "attack": ATTACK_FRAMES, "randomisation": RANDOMISED_FRAMES}  # fmt: skip
        frames = {name: min(total, most) for name, most in of_each.items()}
        grid = patches_of(self.detector)
        levels = len(block_names(self.detector.model.explained_tower)) + 2
        passes = expected_passes(frames, maps, grid[0] * grid[1], levels, left_out)
        if passes:
            print(announcement(self.detector, self.samples.pixels[: self.settings.batch_size], passes))

    def perturbation(self, specs: Sequence[MapSpec], left_out: Collection[str] = ()) -> None:
        """Deletion, insertion, SaCo and segment attack of some maps and the controls; transplant of all of them."""
        part = self._positions(DELETION_FRAMES)
        reals = self._counterparts(part)
        paired = reals.paired
        if "deletion" not in left_out:
            self._deletion(specs, part, reals)
        if "saco" not in left_out:
            self._saco(specs, part, reals)
        if "transplant" not in left_out:
            self._transplant(part[paired][:TRANSPLANT_FRAMES], reals.pixels[paired][:TRANSPLANT_FRAMES])
        if "attack" not in left_out:
            self._segment_attack(specs, self._positions(ATTACK_FRAMES))

    def _counterparts(self, part: Tensor) -> RealFrames:
        """The real counterparts of the images at positions `part`, with a note where some are missing."""
        frames = [self.samples.frames[int(i)] for i in part]
        reals = RealCounterparts(frames[0].dataset, self.settings.data).read(frames, self.settings.detector.resolution)
        self.paired = int(reals.paired.sum())
        if not self.paired:
            self.notes.append("no real counterparts in the dataset: the paired-real fill and transplant are left out")
        elif self.paired < len(frames):
            missing = len(frames) - self.paired
            self.notes.append(f"{missing} of {len(frames)} fakes have no real counterpart: left out of that fill")
        return reals

    def _deletion(self, specs: Sequence[MapSpec], part: Tensor, reals: RealFrames) -> None:
        frames = [self.samples.frames[int(i)] for i in part]
        drawn, pixels = self._at_image_size(specs, part), self.samples.pixels[part]
        seed, batch_size = self.settings.seed, self.settings.batch_size
        columns, self.curves = deletion_metrics(self.detector, drawn, pixels, reals, seed, batch_size)
        self._add(columns, part)
        for fill in self.curves:
            used = [frame for frame, pair in zip(frames, reals.paired) if pair or fill != PAIRED_REAL]
            self.curve_videos[fill] = [(frame.forgery, frame.video) for frame in used]

    def _saco(self, specs: Sequence[MapSpec], part: Tensor, reals: RealFrames) -> None:
        """With the paired real where there is any, else with the mean colour, which is the paper's."""
        paired = bool(reals.paired.any())
        use = reals.paired if paired else torch.ones(len(part), dtype=torch.bool)
        images = self.detector.normalised(self.samples.pixels[part[use]])
        fill = self.detector.normalised(reals.pixels[use]) if paired else mean_coloured(images)
        score, batch_size = fake_probability(self.detector), 2 * self.settings.batch_size
        column = {
            spec: saco(images, fill, drawn, score, self.settings.seed, batch_size).double().numpy()
            for spec, drawn in self._at_image_size(specs, part[use]).items()
        }
        self._add({f"SaCo ({PAIRED_REAL if paired else 'mean'})": column}, part[use])

    def _transplant(self, part: Tensor, reals: Tensor) -> None:
        """The images at positions `part`, with their counterparts (n, 3, R, R) uint8: every map against transplant."""
        if not len(part):
            return
        samples = self.samples
        pixels, grid = samples.pixels[part], patches_of(self.detector)
        changed = changed_patches(pixels, reals, samples.masks[part], samples.masked[part], grid)
        gold = transplanted(self.detector, pixels, reals, changed, self.settings.batch_size)
        maps = {spec: raw[part] for spec, raw in {**self.maps, **self.controls}.items()}
        self._add({AGREEMENT: transplant_agreement(gold, changed, maps)}, part)

    def _segment_attack(self, specs: Sequence[MapSpec], part: Tensor) -> None:
        drawn, pixels = self._at_image_size(specs, part), self.samples.pixels[part]
        try:
            columns = attack_metrics(self.detector, drawn, pixels, self.settings.seed, self.settings.batch_size)
        except ImportError as error:
            self.notes.append(f"segment attack left out: {error}")
        else:
            self._add(columns, part)

    def randomisation(self, specs: Sequence[MapSpec]) -> Randomised:
        """How far some maps change as the detector's weights are randomised."""
        pixels = self.samples.pixels[self._positions(RANDOMISED_FRAMES)]
        seed, batch_size = self.settings.seed, self.settings.batch_size
        return randomisation(self.detector, specs, self.layers, pixels, self.target, seed, batch_size)

    def rows(self, dataset: str) -> list[Row]:
        """Every metric so far compared with the controls, for the dataset and for each of several forgery methods."""
        forgeries = list(dict.fromkeys(frame.forgery for frame in self.samples.frames))
        per_forgery = forgeries if len(forgeries) > 1 else []
        return rows(dataset, self.columns, self.samples.videos, self.settings.seed, per_forgery)

    def _positions(self, count: int) -> Tensor:
        """Positions of at most `count` images, evenly over them."""
        return torch.tensor(evenly_spaced(range(len(self.samples.frames)), count))

    def _at_image_size(self, specs: Sequence[MapSpec], part: Tensor) -> dict[MapSpec, Tensor]:
        """Some maps and the controls of the images at positions `part`, (n, R, R) in [0, 1], on the device."""
        raw = {**{spec: self.maps[spec] for spec in specs}, **self.controls}
        return {spec: resized(self.detector, maps[part]) for spec, maps in raw.items()}

    def _add(self, columns: Columns, part: Tensor) -> None:
        """Columns of the images at positions `part`."""
        for metric, by_spec in columns.items():
            self.columns[metric] = {spec: self._with_gaps(column, part) for spec, column in by_spec.items()}

    def _with_gaps(self, values: np.ndarray, part: Tensor) -> np.ndarray:
        """Values (n, ...) of the images at positions `part` → (N, ...), NaN for the others."""
        full = np.full((len(self.samples.frames), *values.shape[1:]), np.nan)
        full[part.numpy()] = values
        return full


def _mean(column: np.ndarray) -> float:
    values = column[np.isfinite(column)]
    return float(values.mean()) if len(values) else -np.inf


def sample_notes(samples: DetectedFakes) -> list[str]:
    """Which masks and landmarks are missing or useless, and what follows from it."""
    states, total = samples.mask_states, len(samples.frames)
    notes = []
    if states["none"] == total:
        notes.append("no masks: localisation metrics are left out, maps are ranked by deletion")
    elif states["none"]:
        notes.append(f"{states['none']} of {total} fakes have no mask: left out of the localisation metrics")
    for state in ("empty", "full", "unreadable"):
        if states[state]:
            notes.append(f"{states[state]} of {total} masks are {state}: left out of the localisation metrics")
    for forgery in samples.whole_face:
        notes.append(
            f"{forgery}: the mask is the whole face, which leaves nothing to localise: no localisation metrics"
        )
    if all(points is None for points in samples.landmarks):
        notes.append("no landmarks: the face control is a mean face")
    return notes
