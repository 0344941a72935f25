"""The metrics of one dataset's maps and controls, one method each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.frame import evenly_spaced
from ..engine.layers import block_names
from ..engine.recipe import Recipe
from ..engine.targets import Target
from ..judge.localisation import click_distance
from ..model.detector import LoadedDetector
from ..settings.config import RunSettings
from .comparison import Columns, Row, best_threshold, rows
from .controls import control_maps
from .cost import announcement, expected_passes
from .deletion import (
    PAIRED_REAL,
    Curves,
    RealFrames,
    deletion_metrics,
    fake_probability,
    mean_coloured,
    screening,
)
from .randomisation import Randomised, randomisation
from .saco import saco
from .samples import DetectedFakes, RealCounterparts, stored_size
from .segment_attack import attack_metrics
from .sweep import SweepPlan, localise_maps, make_maps, resized
from .transplant_agreement import (
    AGREEMENT,
    changed_patches,
    patches_of,
    transplant_agreement,
    transplanted,
)

# Of so many images, evenly over them, are the metrics that run the detector again and again.
DELETION_FRAMES = 200
ATTACK_FRAMES = 48
TRANSPLANT_FRAMES = 48
RANDOMISED_FRAMES = 64
SCREENED_FRAMES = 100
HIT = 0.1  # share of the diagonal within which a map hits a click
CLICK_METRICS = (
    "distance to the nearest click, shares of the diagonal",
    "distance to the nearest click, pixels",
    f"hit: a click within {HIT} of the diagonal",
)
ENERGY, SCREENING = "energy in mask", "drop at 10 % deleted"  # what maps are ranked by, with and without masks


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
        self.maps: dict[Recipe, Tensor] = {}  # raw, on the CPU
        self.controls: dict[Recipe, Tensor] = {}
        self.layers: list[str] = []  # of the maps
        self.curves: dict[str, dict[Recipe, Curves]] = {}
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
            pixels = np.array([click_distance(*one) for one in zip(drawn, places, sizes, strict=True)])
            for metric, values in zip(
                CLICK_METRICS, (pixels / diagonals, pixels, pixels <= HIT * diagonals), strict=True
            ):
                columns[metric][spec] = values.astype(np.float64)
        self._add(columns, part)

    def ranking(self) -> list[Recipe]:
        """The maps by the mean of `ranked_by`, best first."""
        if self.ranked_by == SCREENING:
            self._add({SCREENING: self._deletion_ranking()}, self._positions(SCREENED_FRAMES))
        column = self.columns[self.ranked_by]
        return sorted(self.maps, key=lambda spec: -_mean(column[spec]))

    def _deletion_ranking(self) -> dict[Recipe, np.ndarray]:
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

    def perturbation(self, specs: Sequence[Recipe], left_out: Collection[str] = ()) -> None:
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

    def _deletion(self, specs: Sequence[Recipe], part: Tensor, reals: RealFrames) -> None:
        frames = [self.samples.frames[int(i)] for i in part]
        drawn, pixels = self._at_image_size(specs, part), self.samples.pixels[part]
        seed, batch_size = self.settings.seed, self.settings.batch_size
        columns, self.curves = deletion_metrics(self.detector, drawn, pixels, reals, seed, batch_size)
        self._add(columns, part)
        for fill in self.curves:
            used = [frame for frame, pair in zip(frames, reals.paired, strict=True) if pair or fill != PAIRED_REAL]
            self.curve_videos[fill] = [(frame.forgery, frame.video) for frame in used]

    def _saco(self, specs: Sequence[Recipe], part: Tensor, reals: RealFrames) -> None:
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

    def _segment_attack(self, specs: Sequence[Recipe], part: Tensor) -> None:
        drawn, pixels = self._at_image_size(specs, part), self.samples.pixels[part]
        try:
            columns = attack_metrics(self.detector, drawn, pixels, self.settings.seed, self.settings.batch_size)
        except ImportError as error:
            self.notes.append(f"segment attack left out: {error}")
        else:
            self._add(columns, part)

    def randomisation(self, specs: Sequence[Recipe]) -> Randomised:
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

    def _at_image_size(self, specs: Sequence[Recipe], part: Tensor) -> dict[Recipe, Tensor]:
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
