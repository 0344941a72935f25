"""Are the heatmaps true? The run of --evaluate_explanations: detected fakes → metrics against controls → a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Mapping, NamedTuple, Sequence

import numpy as np
import torch
from torch import Tensor

from utils.cam.layers import block_names
from utils.cam.maps import normalise
from utils.cam.methods import ATTENTION_METHODS
from utils.data.frames import Frame
from utils.errors import InputError
from utils.explanation_metrics.comparison import Key, Row, best_threshold, rows
from utils.explanation_metrics.controls import face_map, gaussian_map, random_maps
from utils.explanation_metrics.deletion import PAIRED_REAL, Curves
from utils.explanation_metrics.localisation import Localisation, localise
from utils.explanation_metrics.perturbation import (
    Columns,
    Fills,
    Randomised,
    attack_metrics,
    deletion_metrics,
    randomisation,
    screening,
)
from utils.explanation_metrics.samples import RealCounterparts, Samples, detected_fakes, read_samples, spread
from utils.explanation_metrics.sweep import ATTENTION, CHUNK, Plan, Spec, Swept, full_plan, resized, sweep
from utils.model.config import RunSettings
from utils.model.detector import LoadedDetector

DEFAULT_SAMPLES = 500
DELETION_FRAMES = 200  # of them, for the metrics that run the detector again and again
ATTACK_FRAMES = 48
RANDOMISED_FRAMES = 64
SCREENED_FRAMES = 100
BEST = 3  # maps that get these metrics, beside the configured ones
FEW = 20  # detected fakes below which a warning is given
NOTHING = "no detected fakes: nothing to judge"
ENERGY, SCREENING = "energy in mask", "drop at 10 % deleted"  # what maps are ranked by, with and without masks


class ExplanationOptions(NamedTuple):
    """What only the command line says. `layers` None: a sweep takes every block."""

    samples: int = DEFAULT_SAMPLES
    sweep: bool = False
    layers: Sequence[str] | None = None
    write_config: Path | None = None


class Judged(NamedTuple):
    """The explanations of one data set, judged. Empty `rows` where there was nothing to judge; `notes` say why."""

    dataset: str
    detected: int
    samples: Samples | None
    configured: list[Spec]
    ranked_by: str
    ranking: list[Spec]  # best first
    rows: list[Row]
    curves: dict[str, dict[Key, Curves]]
    curve_videos: dict[str, list[tuple[str, str]]]  # of the pictures of each fill's curves
    randomised: Randomised | None
    paired: int
    notes: list[str]


def check_options(detector: LoadedDetector) -> None:
    """Before anything is evaluated. Raises InputError where the detector or its settings cannot be judged."""
    if not hasattr(detector.model, "capture"):
        raise InputError(f"model_name {detector.settings.model_name!r} has no heatmaps to evaluate")
    if detector.gradcam.target == "real":
        raise InputError(
            "--evaluate_explanations judges the evidence for fake on detected fakes, so gradcam_target 'real' does not"
            " go with it; use predicted, fake or margin"
        )


def judge(
    detector: LoadedDetector,
    frames: Sequence[Frame],
    predictions: Path,
    settings: RunSettings,
    options: ExplanationOptions,
) -> Judged:
    """All metrics on one data set's detected fakes. Raises RunError, InputError."""
    dataset = frames[0].dataset
    plan, configured = _plan(detector, options)
    detected = detected_fakes(frames, predictions)
    if not detected:
        return Judged(dataset, 0, None, configured, ENERGY, [], [], {}, {}, None, 0, [NOTHING])
    samples = read_samples(
        spread(detected, options.samples), settings.detector.resolution, settings.batch_size, settings.workers
    )
    target = "margin" if detector.gradcam.target == "margin" else "fake"
    swept = sweep(detector, plan, samples, target, settings.batch_size)
    controls = _control_maps(detector, samples, settings.seed)
    values = _localisation_values(swept, samples, _judged_controls(controls, samples))
    notes = mask_notes(samples)
    if len(detected) < FEW:
        notes.append(f"only {len(detected)} detected fakes: the intervals are wide, and too narrow for so few videos")
    if not bool(samples.masked.any()):
        values = {SCREENING: _screened(detector, swept, controls, samples, settings)}
    ranked_by = next(iter(values))
    ranking = sorted(swept.raw, key=lambda spec: -_mean(values[ranked_by][spec]))
    chosen = list(dict.fromkeys([*ranking[:BEST], configured[0]]))
    more, curves, curve_videos, paired = _asking_again(detector, swept, controls, samples, chosen, settings, notes)
    values.update(more)
    per_method = [next(spec for spec in ranking if spec.method == method) for method in plan.methods]
    randomised = _randomised(detector, [*per_method, *chosen], plan, samples, target, settings)
    forgeries = list(dict.fromkeys(frame.forgery for frame in samples.frames))
    table = rows(dataset, values, samples.videos, settings.seed, forgeries if len(forgeries) > 1 else [])
    return Judged(
        dataset,
        len(detected),
        samples,
        configured,
        ranked_by,
        ranking,
        table,
        curves,
        curve_videos,
        randomised,
        paired,
        notes,
    )


def _plan(detector: LoadedDetector, options: ExplanationOptions) -> tuple[Plan, list[Spec]]:
    """What is made, and which of it is the configured map of each layer, the first layer first."""
    gradcam, model = detector.gradcam, detector.model
    site = ATTENTION if gradcam.method in ATTENTION_METHODS else gradcam.site
    layers = list(model.gradcam_layers())
    if not options.sweep:
        return Plan([gradcam.method], [gradcam.site], layers), [Spec(gradcam.method, layer, site) for layer in layers]
    swept = list(options.layers or block_names(model.explained_tower) or layers)
    plan = full_plan(detector, swept)
    if site not in (ATTENTION, *plan.sites):
        site = plan.sites[0]
    configured = [Spec(gradcam.method, layer, site) for layer in layers if layer in plan.layers]
    return plan, configured or [Spec(gradcam.method, plan.layers[0], site)]


def _mean(column: np.ndarray) -> float:
    there = column[np.isfinite(column)]
    return float(there.mean()) if len(there) else -np.inf


# ---------------------------------------------------------------------------------------------------- localisation


def _control_maps(detector: LoadedDetector, samples: Samples, seed: int) -> dict[str, Tensor]:
    """The controls as raw maps (N, h, w), or (1, H, W) where they are the same for every picture."""
    side = detector.settings.resolution
    grid = detector.model.patch_grid(side, side) or (16, 16)
    return {
        "random": random_maps(len(samples.frames), grid, seed),
        "gaussian": gaussian_map((side, side)).unsqueeze(0),
        "face": face_map(samples.landmarks, (side, side)).unsqueeze(0),
    }


def _judged_controls(controls: Mapping[str, Tensor], samples: Samples) -> dict[str, Localisation]:
    masks = samples.masks[samples.masked]
    found: dict[str, Localisation] = {}
    for name, raw in controls.items():
        mine = raw.expand(len(samples.frames), -1, -1)[samples.masked]
        parts = [
            localise(normalise(few, (masks.shape[1], masks.shape[2])), some)
            for few, some in zip(mine.split(CHUNK), masks.split(CHUNK))
            if len(few)
        ]
        if parts:
            found[name] = Localisation(*map(torch.cat, zip(*parts)))
    return found


def _localisation_values(swept: Swept, samples: Samples, controls: Mapping[str, Localisation]) -> Columns:
    """The table of values, energy first, since maps are ranked by it; no entry where no mask can be judged against."""
    found: dict[Key, Localisation] = {}
    for spec, one in swept.localisation.items():
        found[spec] = one
    for name, one in controls.items():
        found[name] = one
    if not found:
        return {}

    def column(values: Tensor) -> np.ndarray:
        full = np.full((len(samples.frames), *values.shape[1:]), np.nan)
        full[samples.masked.numpy()] = values.numpy()
        return full

    return {
        ENERGY: {key: column(one.energy) for key, one in found.items()},
        "pointing game": {key: column(one.pointing) for key, one in found.items()},
        "pixel average precision": {key: column(one.average_precision) for key, one in found.items()},
        "IoU (best threshold)": best_threshold({key: column(one.iou) for key, one in found.items()}),
        "IoU (threshold 0.5)": {key: column(one.iou_fixed) for key, one in found.items()},
    }


def mask_notes(samples: Samples) -> list[str]:
    """What the reader should know of the masks."""
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
        notes.append(f"{forgery}: the mask is the whole face, there is no place in it to find: no localisation metrics")
    if all(points is None for points in samples.landmarks):
        notes.append("no landmarks: the face control is a mean face")
    return notes


# ------------------------------------------------------------------------------------------ asking the detector again


def _part(samples: Samples, count: int) -> Tensor:
    """Positions of `count` samples, evenly over them."""
    total = len(samples.frames)
    count = min(count, total)
    return torch.tensor([(2 * k + 1) * total // (2 * count) for k in range(count)])


def _drawn(
    detector: LoadedDetector, raw: Mapping[Spec, Tensor], controls: Mapping[str, Tensor], part: Tensor, total: int
) -> dict[Key, Tensor]:
    """Maps and controls of some samples, normalised at picture size, on the detector's device."""
    drawn: dict[Key, Tensor] = {spec: resized(detector, maps[part]) for spec, maps in raw.items()}
    for name, control in controls.items():
        drawn[name] = resized(detector, control.expand(total, -1, -1)[part])
    return drawn


def _on_all(columns: Columns, part: Tensor, total: int) -> Columns:
    """Columns of some samples as columns of all, NaN elsewhere."""
    full: Columns = {}
    for metric, by_key in columns.items():
        for key, column in by_key.items():
            spread_out = np.full(total, np.nan)
            spread_out[part.numpy()] = column
            full.setdefault(metric, {})[key] = spread_out
    return full


def _screened(
    detector: LoadedDetector,
    swept: Swept,
    controls: Mapping[str, Tensor],
    samples: Samples,
    settings: RunSettings,
) -> dict[Key, np.ndarray]:
    total, part = len(samples.frames), _part(samples, SCREENED_FRAMES)
    maps: dict[Key, Tensor] = {spec: raw[part] for spec, raw in swept.raw.items()}
    maps.update({name: control.expand(total, -1, -1)[part] for name, control in controls.items()})
    column = screening(detector, maps, samples.pixels[part], settings.seed, settings.batch_size)
    return _on_all({SCREENING: column}, part, total)[SCREENING]


def _asking_again(
    detector: LoadedDetector,
    swept: Swept,
    controls: Mapping[str, Tensor],
    samples: Samples,
    chosen: Sequence[Spec],
    settings: RunSettings,
    notes: list[str],
) -> tuple[Columns, dict[str, dict[Key, Curves]], dict[str, list[tuple[str, str]]], int]:
    """Deletion, insertion and segment attack of the chosen maps and the controls; adds to `notes`."""
    total, part = len(samples.frames), _part(samples, DELETION_FRAMES)
    raw = {spec: swept.raw[spec] for spec in chosen}
    frames = [samples.frames[int(i)] for i in part]
    reals = RealCounterparts(frames[0].dataset, settings.data)
    fills = Fills(*reals.read(frames, settings.detector.resolution))
    paired = int(fills.paired.sum())
    if not paired:
        notes.append("no real counterparts in the data set: the paired-real fill is left out")
    elif paired < len(frames):
        notes.append(f"{len(frames) - paired} of {len(frames)} fakes have no real counterpart: left out of that fill")
    drawn = _drawn(detector, raw, controls, part, total)
    columns, curves = deletion_metrics(detector, drawn, samples.pixels[part], fills, settings.seed, settings.batch_size)
    columns = _on_all(columns, part, total)
    every = [(frame.forgery, frame.video) for frame in frames]
    videos = {fill: [v for v, pair in zip(every, fills.paired) if pair or fill != PAIRED_REAL] for fill in curves}
    part = _part(samples, ATTACK_FRAMES)
    drawn = _drawn(detector, raw, controls, part, total)
    try:
        attack = attack_metrics(detector, drawn, samples.pixels[part], settings.seed, settings.batch_size)
    except ImportError as error:
        notes.append(f"segment attack left out: {error}")
    else:
        columns.update(_on_all(attack, part, total))
    return columns, curves, videos, paired


def _randomised(
    detector: LoadedDetector,
    specs: Sequence[Spec],
    plan: Plan,
    samples: Samples,
    target: str,
    settings: RunSettings,
) -> Randomised:
    pixels = samples.pixels[_part(samples, RANDOMISED_FRAMES)]
    unique = list(dict.fromkeys(specs))
    return randomisation(detector, unique, plan.layers, pixels, target, settings.seed, settings.batch_size)
