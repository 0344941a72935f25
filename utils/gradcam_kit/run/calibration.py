"""Trials on the run's own data: the choice of its map or the judgement of a named one, and the order of frames."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..base.decision import UNKNOWN
from ..base.errors import InputError, RunError
from ..data.clips import Clip, clip_loader, parts_of
from ..data.frame import Frame, evenly_spaced
from ..data.frames import Batch, frame_loader
from ..engine.real.contrast import CONTRASTS
from ..engine.recipe import Recipe
from ..explaining.clips.checking import margins_of
from ..explaining.clips.choosing import CLIPS_TRIED, choose_clip_map, clip_candidates
from ..explaining.real_tokens import bank_of, one_of_each_video, tried, with_bank
from ..judge.candidates import captures
from ..judge.choosing import TrialImages, choose_map, separates
from ..judge.clips.time import Change, OrderTest, RealClips, order_test
from ..judge.trial import Margins, passes
from ..judge.verdict import UNTRIED, Choice
from ..measure.counterparts import RealCounterparts
from ..model.detector import LoadedDetector
from ..store.database import FILE, RunDatabase, database_of, is_run
from ..store.manifest import Manifest
from ..store.run_folder import RunFolder
from ..store.tables import write_run_tables
from .dataset_run import Context
from .disturbances import SplitOnOutOfMemory
from .predictions import Predictions

POOL = 8  # frames predicted per image needed: on some data detectors call few images fake
JUDGED = 16  # maximum images for judging a named map: enough for a warning
RIVALS = 10  # candidates that a named map is compared with: the first of the list
MOST_FILLS = 5  # fills that a trial tries
BLIND = "the detector hardly separates real from fake on these images, so no map gets the verdict supported"
NO_FAKE = "the detector calls no image fake, so maps were tested on images that it calls real"
ORDER_FILE = "frame_order.json"
ORDER_CLIPS = 8  # each from another video
FREE = ("workers", "weights_path", "dataset_json_folder", "dataset_root_rgb")  # keys on which no choice depends
VERSION = 7  # of the trial; a choice by another version is not reused


class Calibration(NamedTuple):
    """A choice, with the hash of everything that it depends on."""

    key: str
    choice: Choice

    def keep(self, folder: RunFolder) -> None:
        """Save the choice to the database and to files."""
        folder.database.put("calibration", [("map", json.dumps(self.choice.to_json()))], self.key)
        folder.database.commit()
        write_run_tables(folder.database, folder.path)


def find_calibration(key: str, output: Path) -> Calibration | None:
    """Find a saved calibration with this key, in the output folder's run or in a folder next to it."""
    neighbours = sorted(output.parent.glob(f"*/{FILE}")) if output.parent.is_dir() else []
    for place in dict.fromkeys([database_of(output), *neighbours]):
        if place.is_file() and is_run(place):
            with suppress(InputError), RunDatabase(place, writes=False) as database:
                row = database.first_row("calibration", "WHERE key = ?", key)
                if row is not None:
                    return Calibration(key, Choice.from_json(json.loads(row[1])))
    return None


class TrialPlan(NamedTuple):
    """The maps to try. `named`: recipes that the user has named completely; then nothing is chosen."""

    candidates: list[Recipe]
    named: list[Recipe]
    images: int

    @classmethod
    def of(cls, detector: LoadedDetector, images: int) -> TrialPlan:
        """TrialPlan the trial of a detector with heatmaps, on at most `images` images."""
        named = detector.model.gradcam_named()
        if detector.settings.clip_size is not None:
            subject = detector.as_clip_subject()
            return cls(clip_candidates(subject), named, min(images, CLIPS_TRIED))
        candidates = detector.as_subject().candidates(bank=images > 0)
        return cls(candidates[:RIVALS], named, min(images, JUDGED)) if named else cls(candidates, named, images)

    def key(self, manifest: Manifest) -> str:
        """Return a hash of everything that the choice depends on: weights, data, detector, candidates."""
        config = {name: value for name, value in manifest.config.items() if not str(name).startswith("gradcam_")}
        for free in FREE:
            config.pop(free, None)
        values = {
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
        return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()

    def untried(self, why: str) -> Choice:
        """Return the choice if nothing is tried."""
        first = next(one for one in [*self.named, *self.candidates] if one.method not in CONTRASTS or self.named)
        return Choice(UNTRIED, first, why)

    def announcement(self, predicted: bool) -> str:
        """Describe the trial and its cost in one line. `predicted`: the run has already predicted its images."""
        every = {*self.named, *self.candidates}
        backward = self.images * captures(every)
        forward = (0 if predicted else POOL * self.images) + passes(self.images, len(every), MOST_FILLS) + backward
        what = "judging the named map" if self.named else "choosing a heatmap method"
        return (
            f"{what}: testing {len(every)} candidates on up to {self.images} images (up to {forward:,} forward and"
            f" {backward:,} backward passes of one image); skip with --calibration_images 0"
        )


def calibrate(
    context: Context,
    plan: TrialPlan,
    datasets: Mapping[str, Sequence[Frame]],
    predicted: Mapping[str, Predictions] | None = None,
) -> Choice:
    """Try the plan's maps on images that the detector calls fake, spread evenly over all datasets.

    The images are selected by the detector's predictions, not by labels: by `predicted` if given, else by predicting
    now. If it calls none fake, images that it calls real are used. Raises Interrupted between batches.
    """
    if context.cut:
        return _calibrate_clips(context, plan)
    detector, settings = context.detector, context.settings
    frames = [frame for some in datasets.values() for frame in some]
    split = SplitOnOutOfMemory("trying maps on", settings.batch_size)
    subject = detector.as_subject()
    frames = evenly_spaced(frames, POOL * plan.images)
    if predicted is None:
        ask = tried(subject, split.run, context.guard.check).margins
        frames, margins = _margins(context, ask, frames)
    else:
        frames, margins = _recorded(frames, predicted)
    is_fake = (margins > 0).tolist()
    separate = separates(margins, _labels(frames))
    fakes = evenly_spaced([frame for frame, fake in zip(frames, is_fake, strict=True) if fake], plan.images)
    reals = evenly_spaced([frame for frame, fake in zip(frames, is_fake, strict=True) if not fake], plan.images)
    # The target of the maps on images that the detector calls fake.
    shown = detector.gradcam.target if detector.gradcam.target in ("margin", "real") else "fake"
    tried_on, target = _read(context, fakes), shown
    others, notes = _read(context, reals), []
    if not tried_on.frames:
        tried_on, others, target, notes = others, tried_on, "real", [NO_FAKE]
    if not tried_on.frames:
        return plan.untried("none of the images tried could be read")
    pairs = RealCounterparts(settings.data).of(tried_on.frames, tried_on.pixels)
    images = TrialImages(
        detector.normalise(tried_on.pixels),
        [target] * len(tried_on.frames),
        [frame.whole_video for frame in tried_on.frames],
        detector.normalise(others.pixels) if others.frames else None,
        detector.normalise(pairs.pixels),
        pairs.paired,
        [frame.whole_video for frame in others.frames],
    )
    subject = with_bank(subject, images)
    tested, bank = tried(subject, split.run, context.guard.check), subject.bank
    detector.model.gradcam_bank = bank
    candidates = [one for one in plan.candidates if bank is not None or one.method not in CONTRASTS]
    choice = choose_map(tested, images, candidates, plan.named)
    if bank is not None:
        compared = [others.frames[i] for i in one_of_each_video(images.real_videos)]
        choice = replace(choice, bank=tuple((frame.dataset, frame.index) for frame in compared))
    notes = [*choice.notes, *notes, *([] if separate else [BLIND])]
    return replace(choice, notes=tuple(notes), separates=separate)


def _calibrate_clips(context: Context, plan: TrialPlan) -> Choice:
    """Calibrate on one clip per video, of those that the detector calls fake, or else real."""
    detector, settings = context.detector, context.settings
    chosen = _clips_of_videos(context, 2 * plan.images)
    margins = margins_of(detector.as_clip_subject(), settings.batch_size)
    rows: list[Frame] = []
    pixels: list[Tensor] = []
    found: list[Tensor] = []
    for batch in clip_loader(chosen, settings.detector.resolution, settings.batch_size, settings.workers):
        context.guard.check()
        if batch.frames:
            rows += batch.frames
            pixels.append(batch.pixels)
            found.append(margins(detector.normalise(batch.pixels)).cpu())
    if not rows:
        return plan.untried("none of the clips tried could be read")
    together = torch.cat(found)
    fakes, reals = (kind.nonzero().flatten().tolist() for kind in (together > 0, together <= 0))
    used, target = (fakes, "fake") if fakes else (reals, "real")
    used = used[: plan.images]
    of_used = torch.cat(pixels)[used]
    videos = [rows[i].whole_video for i in used]
    pairs: RealClips | None = None
    if fakes:
        parts = [part for i in used for part in parts_of([rows[i]], context.cut[rows[i].dataset].clips)[0]]
        found_reals = RealCounterparts(settings.data).of(parts, of_used.flatten(0, 1)).in_clips(of_used.shape[1])
        pairs = RealClips(detector.normalise(found_reals.pixels), found_reals.paired)
    subject, clips = detector.as_clip_subject(), detector.normalise(of_used)
    choice = choose_clip_map(subject, margins, clips, target, videos, plan.named, pairs)
    separate = separates(together, _labels(rows))
    notes = [*choice.notes, *([] if fakes else [NO_FAKE]), *([] if separate else [BLIND])]
    return replace(choice, notes=tuple(notes), separates=separate)


def _labels(frames: Sequence[Frame]) -> list[int] | None:
    """Return the labels, or None if one is unknown."""
    labels = [frame.label for frame in frames]
    return None if UNKNOWN in labels else labels


def _clips_of_videos(context: Context, count: int) -> list[Clip]:
    """Return the first clips of at most `count` videos."""
    of_video = {clip.row.whole_video: clip for cut in context.cut.values() for clip in reversed(cut.clips)}
    return evenly_spaced(list(of_video.values()), count)


def set_bank(context: Context, choice: Choice, datasets: Mapping[str, Sequence[Frame]]) -> None:
    """Give the detector the tokens of the real frames that the choice names, unless it already has them.

    Raises InputError if one of the frames can no longer be read.
    """
    frames = [datasets[name][index] for name, index in choice.bank]
    if not frames or context.detector.model.gradcam_bank is not None:
        return
    detector, settings = context.detector, context.settings
    pixels: list[Tensor] = []
    for batch in frame_loader(frames, settings.detector.resolution, settings.batch_size, settings.workers):
        if batch.unreadable:
            frame, reason = batch.unreadable[0]
            raise InputError(
                f"{frame.path}: maps are compared with this real frame, which can no longer be read ({reason}):"
                " restore it"
            )
        pixels.append(batch.pixels)
    images = detector.normalise(torch.cat(pixels))
    detector.model.gradcam_bank = bank_of(detector.as_subject(), images, [frame.whole_video for frame in frames])


class _Read(NamedTuple):
    """Frames that could be read, with their pixels (N, 3, R, R) uint8."""

    frames: list[Frame]
    pixels: Tensor


def _read(context: Context, some: Sequence[Frame]) -> _Read:
    batches = list(_batches(context, some))
    pixels = torch.cat([torch.empty(0, dtype=torch.uint8), *(batch.pixels for batch in batches)])
    return _Read([frame for batch in batches for frame in batch.frames], pixels)


def _batches(context: Context, some: Sequence[Frame]) -> Iterator[Batch]:
    """Yield the batches with a readable frame."""
    settings = context.settings
    loader = frame_loader(some, settings.detector.resolution, settings.batch_size, settings.workers) if some else ()
    return (batch for batch in loader if batch.frames)


def _margins(context: Context, ask: Margins, some: Sequence[Frame]) -> tuple[list[Frame], Tensor]:
    """Return the readable frames, and the detector's margins (N,) float32."""
    found: list[Frame] = []
    margins = [torch.empty(0)]
    for batch in _batches(context, some):
        found += batch.frames
        margins.append(ask(context.detector.normalise(batch.pixels)).float().cpu())
    return found, torch.cat(margins)


def _recorded(some: Sequence[Frame], predicted: Mapping[str, Predictions]) -> tuple[list[Frame], Tensor]:
    """Return the readable frames and their margins (N,) from the run's predictions."""
    found = [frame for frame in some if predicted[frame.dataset].seen[frame.index]]
    scores = torch.tensor([predicted[frame.dataset].logits[frame.index].tolist() for frame in found]).reshape(-1, 2)
    return found, scores[:, 1] - scores[:, 0]


def frame_order(context: Context, folder: RunFolder) -> OrderTest | None:
    """Run the order test, or read it from the run's database; None if the run explains or tries nothing.

    Raises RunError if none of the clips can be read.
    """
    if not (context.cut and context.settings.detector.gradcam.enabled and context.options.calibration_images):
        return None
    database, where = folder.database, "WHERE dataset = '' AND name = ? AND key = ?"
    row = database.first_row("measurement", where, ORDER_FILE, folder.key)
    if row is not None:
        values = json.loads(row[2])
        changes = {name: Change(*values[name]) for name in ("order", "frozen")}
        return OrderTest(clips=values["clips"], videos=values["videos"], **changes)
    chosen = _clips_of_videos(context, ORDER_CLIPS)
    print(
        f"order of frames: testing on {len(chosen)} clips, each from another video ({5 * len(chosen)} forward passes"
        " of one clip)"
    )
    settings, detector = context.settings, context.detector
    (batch,) = clip_loader(chosen, settings.detector.resolution, len(chosen), settings.workers)
    if not batch.frames:
        raise RunError(f"order of frames: none of {len(chosen)} clips could be read, first: {batch.unreadable[0][1]}")
    margins = margins_of(detector.as_clip_subject(), settings.batch_size)
    with torch.no_grad():
        found = order_test(margins, detector.normalise(batch.pixels), [frame.whole_video for frame in batch.frames])
    text = json.dumps({**asdict(found), "word": found.word})
    database.put("measurement", [("", ORDER_FILE, text.encode())], folder.key)
    database.commit()
    return found
