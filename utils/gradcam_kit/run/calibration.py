"""Which map a run draws: chosen on images of its own data, or the named one judged there, before any is drawn."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import astuple, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.frame import Frame, evenly_spaced
from ..data.frames import frame_loader
from ..engine.recipe import Recipe
from ..judge.candidates import captures
from ..judge.choosing import TrialImages, choose_map
from ..judge.trial import Margins, passes
from ..judge.verdict import UNTRIED, Choice
from ..measure.samples import RealCounterparts
from ..model.detector import LoadedDetector
from ..settings.config import RunSettings
from ..store.calibration_file import key_of
from ..store.manifest import Manifest
from .out_of_memory import Halving

POOL = 8  # frames predicted for each image that is wanted: detectors call few images fake on some data
JUDGED = 16  # images on which a named map is judged, at most: a figure to warn by needs no more
FILLS = 5  # tried at most
NO_FAKE = "the detector calls no image fake: maps were tried on images that it calls real"
VERSION = 1  # of the trial: a choice by another one is not taken over


class Plan(NamedTuple):
    """What will be tried. `named`: what the user has named wholly; then nothing is chosen."""

    candidates: list[Recipe]
    named: list[Recipe]
    images: int

    @classmethod
    def of(cls, detector: LoadedDetector, images: int) -> Plan:
        """For a detector with heatmaps."""
        candidates, named = detector.model.gradcam_candidates(), detector.model.gradcam_named()
        return cls(candidates, named, min(images, JUDGED) if named else images)

    @property
    def off(self) -> bool:
        """--calibration_images 0."""
        return self.images == 0

    def key(self, manifest: Manifest) -> str:
        """A hash of all that the choice depends on: weights, data, detector, candidates."""
        config = {name: value for name, value in manifest.config.items() if not str(name).startswith("gradcam_")}
        for free in ("workers", "weights_path"):
            config.pop(free, None)
        return key_of(
            {
                "version": VERSION,
                "plan": self,
                "config": config,
                "target": manifest.config.get("gradcam_target"),
                "signed": manifest.config.get("gradcam_signed"),
                "seed": manifest.settings.seed if manifest.weights is None else None,
                "weights": manifest.weights.sha256 if manifest.weights else None,
                "datasets": {name: astuple(record) for name, record in manifest.datasets.items()},
                "precision": manifest.options["precision"],
            }
        )

    def announcement(self) -> str:
        """What it will cost, in one line."""
        every = {*self.named, *self.candidates}
        backward = self.images * captures(every)
        forward = POOL * self.images + passes(self.images, len(every), FILLS) + backward
        what = "judging the named map" if self.named else "choosing the map"
        return (
            f"{what}: {len(every)} kinds of map on at most {self.images} images, at most {forward:,} forward and"
            f" {backward:,} backward passes of one image; --calibration_images 0 leaves it out"
        )


def untried(plan: Plan) -> Choice:
    """What is drawn where nothing is tried."""
    return Choice(UNTRIED, (plan.named or plan.candidates)[0], "--calibration_images 0")


def calibrate(
    detector: LoadedDetector,
    plan: Plan,
    datasets: Mapping[str, Sequence[Frame]],
    settings: RunSettings,
    check: Callable[[], None],
) -> Choice:
    """Try the plan's maps on images that the detector calls fake, spread evenly over all datasets.

    Which images these are is decided by the detector alone, whatever their labels. Where it calls none fake, images
    that it calls real are used. `check` is called between batches, and may raise.
    """
    frames = [frame for some in datasets.values() for frame in some]
    halving = Halving("trying maps on")
    halving.most = settings.batch_size
    asked = detector.as_subject().tried(halving.run, check)
    seen = _Seen.of(detector, asked.margins, evenly_spaced(frames, POOL * plan.images), settings)
    fakes, reals = (evenly_spaced(found, plan.images) for found in (seen.called_fake, seen.called_real))
    used, target = (fakes, _target(detector)) if fakes else (reals, "real")
    if not used:
        return Choice(UNTRIED, (plan.named or plan.candidates)[0], "none of the images tried could be read")
    paired, has_pair = _pairs([seen.frames[i] for i in used], settings)
    images = TrialImages(
        detector.normalised(seen.pixels[used]),
        [target] * len(used),
        [_video(seen.frames[i]) for i in used],
        detector.normalised(seen.pixels[reals]) if reals and fakes else None,
        detector.normalised(paired),
        has_pair,
    )
    choice = choose_map(asked, images, plan.candidates, plan.named)
    return choice if fakes else replace(choice, notes=(*choice.notes, NO_FAKE))


class _Seen(NamedTuple):
    """Frames that could be read, with their pixels (N, 3, R, R) uint8 and the positions of each class, as predicted."""

    frames: list[Frame]
    pixels: Tensor
    called_fake: list[int]
    called_real: list[int]

    @classmethod
    def of(cls, detector: LoadedDetector, margins: Margins, frames: Sequence[Frame], settings: RunSettings) -> _Seen:
        found: list[Frame] = []
        pixels: list[Tensor] = []
        fake: list[bool] = []
        for batch in frame_loader(frames, settings.detector.resolution, settings.batch_size, settings.workers):
            if batch.frames:
                found += batch.frames
                pixels.append(batch.pixels)
                fake += (margins(detector.normalised(batch.pixels)) > 0).tolist()
        called_fake = [i for i, one in enumerate(fake) if one]
        called_real = [i for i, one in enumerate(fake) if not one]
        return cls(found, torch.cat(pixels) if pixels else torch.empty(0), called_fake, called_real)


def _target(detector: LoadedDetector) -> str:
    """Whose evidence is shown on images that are called fake."""
    target = detector.gradcam.target
    return target if target in ("margin", "real") else "fake"


def _video(frame: Frame) -> Hashable:
    return frame.dataset, frame.forgery, frame.video


def _pairs(frames: Sequence[Frame], settings: RunSettings) -> tuple[Tensor, Tensor]:
    """The same frames of the real videos (N, 3, R, R) uint8, and which have one (N,), where the dataset tells."""
    side = settings.detector.resolution
    pixels, paired = (
        torch.zeros(len(frames), 3, side, side, dtype=torch.uint8),
        torch.zeros(len(frames), dtype=torch.bool),
    )
    for dataset in dict.fromkeys(frame.dataset for frame in frames):
        here = [i for i, frame in enumerate(frames) if frame.dataset == dataset and frame.label == 1]
        if here:
            reals = RealCounterparts(dataset, settings.data).read([frames[i] for i in here], side)
            pixels[here], paired[here] = reals.pixels, reals.paired
    return pixels, paired
