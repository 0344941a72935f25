"""The metrics of a dataset's maps and controls, one method per kind of metric."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.frame import evenly_spaced
from ..engine.heads import Target
from ..engine.recipe import Recipe
from ..judge.controls import CONTROLS, control_maps
from ..judge.deletion import GROUPS, SHARES, Curves
from ..judge.localisation import click_distance
from ..judge.trial import PAIRED_REAL
from ..model.detector import LoadedDetector
from ..settings.config import RunSettings
from . import perturbation as causal
from .clips import clip_controls, clips_of, frames_of, measured_tower, pictures_of
from .comparison import ALL, NOWHERE, Columns, Found, Kept, MetricRow, best_threshold, rows
from .counterparts import RealCounterparts, RealFrames
from .samples import DetectedFakes, stored_size
from .sweep import Randomised, localise_maps, make_maps, randomisation, resized

SCREENED_FRAMES = 100  # frames for ranking maps without masks
MOST_CLIPS = 48  # clips that any measurement uses: a pass of a clip takes as long as passes of all its frames
HIT = 0.1  # a map hits a click within this share of the diagonal
CLICK_METRICS = (
    "distance to the nearest click, shares of the diagonal",
    "distance to the nearest click, pixels",
    f"hit: a click within {HIT} of the diagonal",
)
ENERGY, SCREENING = "energy in mask", "drop at 10 % deleted"  # metrics that rank maps, with and without masks
BACKWARD = 3  # cost of a pass with gradients, in forward passes


class Measurement(NamedTuple):
    """A measurement with many forward passes, which uses at most `images` images, spread evenly.

    `passes`: maximum forward passes per image, from the numbers of maps and controls, patches, and blocks.
    """

    images: int
    passes: Callable[[int, int, int], int]


MEASUREMENTS = {
    "deletion": Measurement(200, lambda maps, patches, blocks: len(causal.FILLS) * 2 * len(SHARES) * maps),
    "saco": Measurement(200, lambda maps, patches, blocks: (GROUPS + 1) * maps),
    "transplant": Measurement(48, lambda maps, patches, blocks: 2 * patches),
    "attack": Measurement(48, lambda maps, patches, blocks: len(causal.TOP) * causal.STEPS * BACKWARD * maps),
    "randomisation": Measurement(64, lambda maps, patches, blocks: (blocks + 2) * BACKWARD),
}


@dataclass(frozen=True)
class DatasetScores:
    """The results for one dataset. Without detected fakes there are only `notes`."""

    dataset: str
    detected: int
    configured: list[Recipe]  # the configured map of each layer, the first layer first
    samples: DetectedFakes | None = None
    ranked_by: str = ENERGY
    ranking: list[Recipe] = field(default_factory=list)  # best first, without the controls
    rows: list[MetricRow] = field(default_factory=list)
    curves: Mapping[str, Mapping[Recipe, Curves]] = field(default_factory=dict)  # by fill
    curve_videos: Mapping[str, list[tuple[str, str]]] = field(default_factory=dict)  # of the images of a fill's curves
    randomised: Randomised | None = None
    paired: int = 0  # images with a real counterpart, of those with curves
    notes: list[str] = field(default_factory=list)

    def row_of(self, metric: str | None = None) -> dict[Recipe, MetricRow]:
        """Return each map's and control's row over all forgeries, for `metric` or the ranking metric."""
        metric = self.ranked_by if metric is None else metric
        return {row.recipe: row for row in self.rows if (row.forgery, row.metric) == (ALL, metric)}


class DatasetEvaluation:
    """Computes the metrics of a dataset's detected fakes; each method adds columns and notes.

    Call `make_maps` first. `columns`: one value per image and metric, for maps and controls; NaN if not computed.
    `ranked_by`: the metric that ranks maps. `notes` tell what was skipped and why.
    """

    def __init__(
        self,
        detector: LoadedDetector,
        samples: DetectedFakes,
        settings: RunSettings,
        target: Target,
        kept: Kept = NOWHERE,
    ) -> None:
        """`kept`: saves the long steps for a resumed run."""
        self.detector, self.samples, self.settings, self.target = detector, samples, settings, target
        self._kept = kept
        self.ranked_by = ENERGY if bool(samples.masked.any()) else SCREENING
        self.notes = sample_notes(samples)
        self.columns: Columns = {}
        self.maps: dict[Recipe, Tensor] = {}  # raw, on the CPU, as the controls
        self.controls: dict[Recipe, Tensor] = {}
        self.curves: dict[str, dict[Recipe, Curves]] = {}
        self.curve_videos: dict[str, list[tuple[str, str]]] = {}
        self.paired = 0
        self.of_clips, self.frames = detector.settings.clip_size is not None, frames_of(detector)

    @property
    def _all(self) -> dict[Recipe, Tensor]:
        return {**self.maps, **self.controls}

    def make_maps(self, recipes: Sequence[Recipe]) -> None:
        """Make the maps of `recipes`, and the controls."""
        samples, side = self.samples, self.settings.detector.resolution
        title, batch_size = f"{samples.frames[0].dataset}, explanations", self.settings.batch_size
        self.maps = make_maps(self.detector, recipes, samples.pixels, self.target, batch_size, title=title)
        seed = self.settings.seed
        if self.of_clips:
            height, columns = next(iter(self.maps.values())).shape[1:]
            self.controls = clip_controls(samples.landmarks, self.frames, (height, columns), seed)
        else:
            grid = causal.patches_of(self.detector)
            self.controls = control_maps(samples.landmarks, grid, (side, side), seed)

    def localisation(self) -> None:
        """Measure how well maps and controls find the masks; adds no columns without a usable mask."""
        masks, masked = self.samples.masks, self.samples.masked
        if not bool(masked.any()):
            return
        found = localise_maps(self.detector, self._all, masks, masked).items()
        columns = {
            ENERGY: {recipe: scores.energy.numpy() for recipe, scores in found},
            "pointing game": {recipe: scores.pointing.numpy() for recipe, scores in found},
            "pixel average precision": {recipe: scores.average_precision.numpy() for recipe, scores in found},
            "IoU (best threshold)": best_threshold({recipe: scores.iou.double().numpy() for recipe, scores in found}),
            "IoU (threshold 0.5)": {recipe: scores.iou_fixed.numpy() for recipe, scores in found},
        }
        self._add(columns, masked)

    def clicks(self, clicks: Mapping[str, np.ndarray]) -> None:
        """Measure the distance from maps and controls to people's clicks; `clicks` by the frames' paths."""
        frames = self.samples.frames
        part = torch.tensor([i for i, frame in enumerate(frames) if frame.path in clicks], dtype=torch.long)
        self.notes.append(f"clicks on {len(part)} of {len(frames)} fakes")
        if not len(part):
            return
        sizes = [stored_size(frames[i]) for i in part.tolist()]
        places = [clicks[frames[i].path] for i in part.tolist()]
        diagonals = np.array([np.hypot(*size) for size in sizes])
        columns: Columns = {metric: {} for metric in CLICK_METRICS}
        for recipe, raw in self._all.items():
            drawn = resized(self.detector, raw[part])
            pixels = np.array([click_distance(*one) for one in zip(drawn, places, sizes, strict=True)])
            values = (pixels / diagonals, pixels, pixels <= HIT * diagonals)
            for metric, column in zip(CLICK_METRICS, values, strict=True):
                columns[metric][recipe] = column.astype(np.float64)
        self._add(columns, part)

    def ranking(self) -> list[Recipe]:
        """Rank the maps by the mean of `ranked_by`, best first."""
        if self.ranked_by == SCREENING:
            self._step("screening", self._screening)
        column = self.columns[self.ranked_by]
        return sorted(self.maps, key=lambda recipe: -_mean(column[recipe]))

    def _screening(self) -> None:
        part = self._positions(SCREENED_FRAMES)
        maps = {recipe: raw[part] for recipe, raw in self._all.items()}
        self._add({SCREENING: causal.screening(self._examined((), part), maps)}, part)

    def _step(self, name: str, measure: Callable[[], None]) -> None:
        """Run a step unless it is saved; save its new columns, curves and notes."""
        recipes, text = list(self._all), self._kept.get(name)
        if text is not None:
            found = Found.of(text, recipes)
            self.columns |= found.columns
            self.curves |= found.curves
            self.curve_videos |= found.curve_videos
            self.notes += found.notes
            return
        before, notes = {*self.columns, *self.curves}, len(self.notes)
        measure()
        columns = {metric: column for metric, column in self.columns.items() if metric not in before}
        curves = {fill: curve for fill, curve in self.curves.items() if fill not in before}
        videos = {fill: self.curve_videos[fill] for fill in curves}
        self._kept.put(name, Found(columns, curves, videos, self.notes[notes:]).text(recipes))

    def say_cost(self, maps: int, left_out: Collection[str]) -> None:
        """Print the estimated time of the remaining measurements, from the time of one batch."""
        rows_of, columns = causal.patches_of(self.detector)
        counts = maps + len(CONTROLS), rows_of * columns, len(measured_tower(self.detector).blocks)
        passes = {
            name: len(self._positions(one.images)) * one.passes(*counts)
            for name, one in MEASUREMENTS.items()
            if name not in left_out and not (self.of_clips and name == "attack")
        }
        if not passes:
            return
        pixels, total = self.samples.pixels[: self.settings.batch_size], sum(passes.values())
        score = causal.fake_probability(self.detector)
        with torch.no_grad():
            score(self.detector.normalise(pixels))  # once to warm up
            start = time.perf_counter()
            score(self.detector.normalise(pixels)).cpu()
        seconds = (time.perf_counter() - start) / len(pixels) * total
        parts = ", ".join(f"{name} {count:,}" for name, count in passes.items())
        print(
            f"measuring the maps: up to {total:,} forward passes of one {'clip' if self.of_clips else 'image'}, at most"
            f" about {in_words(seconds)}"
            f" ({parts}); skip some with --leave_out NAME"
        )

    def perturbation(self, recipes: Sequence[Recipe], left_out: Collection[str] = ()) -> None:
        """Measure deletion, insertion, SaCo and segment attack of some maps and the controls; transplant of all."""
        part = self._positions(MEASUREMENTS["deletion"].images)
        reals, shown = self._counterparts(part), [*recipes, *self.controls]
        steps = {
            "deletion": lambda: self._deletion(shown, part, reals),
            "saco": lambda: self._add(causal.saco_metrics(self._examined(shown, part), reals), part),
            "transplant": lambda: self._transplant(part[reals.paired], reals.pixels[reals.paired]),
            "attack": lambda: self._attack(shown),
        }
        for name, measure in steps.items():
            if name not in left_out:
                self._step(name, measure)

    def _deletion(self, shown: Sequence[Recipe], part: Tensor, reals: RealFrames) -> None:
        columns, self.curves = causal.deletion_metrics(self._examined(shown, part), reals)
        self._add(columns, part)
        for fill in self.curves:
            used = part[reals.paired] if fill == PAIRED_REAL else part
            self.curve_videos[fill] = [self.samples.videos[i] for i in used.tolist()]

    def _attack(self, shown: Sequence[Recipe]) -> None:
        if self.of_clips:
            self.notes.append("segment attack skipped: it is for images")
            return
        part = self._positions(MEASUREMENTS["attack"].images)
        try:
            self._add(causal.attack_metrics(self._examined(shown, part)), part)
        except ImportError as error:
            self.notes.append(f"segment attack skipped: {error}")

    def _counterparts(self, part: Tensor) -> RealFrames:
        """Return the real counterparts of the images at positions `part`; add a note if some are missing."""
        frames = [frame for i in part.tolist() for frame in self.samples.parts[i]]
        clips = clips_of(self.samples.pixels[part], self.frames)
        found = RealCounterparts(self.settings.data).of(frames, clips.flatten(0, 1)).in_clips(self.frames)
        reals = RealFrames(pictures_of(found.pixels), found.paired)
        self.paired = int(reals.paired.sum())
        if not self.paired:
            self.notes.append("no real counterparts in the dataset: the paired-real fill and transplant are skipped")
        elif self.paired < len(part):
            missing = len(part) - self.paired
            self.notes.append(f"{missing} of {len(part)} fakes have no real counterpart: skipped for that fill")
        return reals

    def _transplant(self, part: Tensor, reals: Tensor) -> None:
        """Compare every map with transplant, on the first images at `part` and their counterparts (n, 3, R, R)."""
        most = MEASUREMENTS["transplant"].images
        part, reals = part[:most], reals[:most]
        if not len(part):
            return
        samples = self.samples
        pixels, grid = samples.pixels[part], causal.patches_of(self.detector)
        changed = causal.changed_patches(pixels, reals, samples.masks[part], samples.masked[part], grid)
        gold = causal.transplanted(self.detector, pixels, reals, changed, self.settings.batch_size)
        maps = {recipe: raw[part] for recipe, raw in self._all.items()}
        self._add({causal.AGREEMENT: causal.transplant_agreement(gold, changed, maps)}, part)

    def randomisation(self, recipes: Sequence[Recipe]) -> Randomised:
        """Measure how far some maps change as the detector's weights are randomised."""
        pixels = self.samples.pixels[self._positions(MEASUREMENTS["randomisation"].images)]
        layers = list(dict.fromkeys(recipe.layer for recipe in self.maps))
        make = partial(make_maps, self.detector, recipes, pixels, self.target, self.settings.batch_size, layers)
        text = self._kept.get("randomisation")
        if text is None:
            found = randomisation(self.detector, recipes, make, self.settings.seed)
            self._kept.put("randomisation", json.dumps([found.steps, list(found.correlation.values())]))
            return found
        steps, correlations = json.loads(text)
        return Randomised(steps, dict(zip(recipes, correlations, strict=True)))

    def rows(self, dataset: str) -> list[MetricRow]:
        """Compare every metric so far with the controls, for the dataset and for each forgery if there are several."""
        forgeries = list(dict.fromkeys(frame.forgery for frame in self.samples.frames))
        videos, seed = self.samples.videos, self.settings.seed
        return rows(dataset, self.columns, videos, seed, forgeries if len(forgeries) > 1 else [])

    def _positions(self, count: int) -> Tensor:
        most = min(count, MOST_CLIPS) if self.of_clips else count
        return torch.tensor(evenly_spaced(range(len(self.samples.frames)), most))

    def _examined(self, recipes: Sequence[Recipe], part: Tensor) -> causal.Examined:
        """Return the images at positions `part`, with some of the maps and controls as drawn."""
        maps, seed, batch_size = self._all, self.settings.seed, self.settings.batch_size
        drawn = {recipe: resized(self.detector, maps[recipe][part]) for recipe in recipes}
        return causal.Examined(self.detector, self.samples.pixels[part], drawn, seed, batch_size)

    def _add(self, columns: Columns, part: Tensor) -> None:
        """Add columns for the images at `part`, positions or (N,) bool."""
        count = len(self.samples.frames)
        for metric, column_of in columns.items():
            self.columns[metric] = {one: causal.with_gaps(column, part, count) for one, column in column_of.items()}


def _mean(column: np.ndarray) -> float:
    values = column[np.isfinite(column)]
    return float(values.mean()) if len(values) else -np.inf


def in_words(seconds: float) -> str:
    """Return a duration as text: `50 s`, `12 minutes`, `3.5 hours`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def sample_notes(samples: DetectedFakes) -> list[str]:
    """Return notes about missing or unusable masks and landmarks, and the consequences."""
    states, total = samples.mask_states, len(samples.frames)
    notes = []
    if states["none"] == total:
        notes.append("no masks: localisation metrics are skipped, and maps are ranked by deletion")
    elif states["none"]:
        notes.append(f"{states['none']} of {total} fakes have no mask: skipped in the localisation metrics")
    for state in ("empty", "full", "unreadable"):
        if states[state]:
            notes.append(f"{states[state]} of {total} masks are {state}: skipped in the localisation metrics")
    whole = "the mask is the whole face, so there is nothing to localise: no localisation metrics"
    notes += [f"{forgery}: {whole}" for forgery in samples.whole_face]
    if all(points is None for points in samples.landmarks):
        notes.append("no landmarks: the face control is a mean face")
    return notes
