"""One dataset of a run: predict every frame, explain the chosen ones, write the tables.

The unit of work is a batch: batch k of a dataset holds the same frames however many ranks share the run and however
often it was interrupted, so that the arithmetic, and every byte that is written, is the same too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..base.allowed import MOST_MISTAKES, TRANSPLANT
from ..base.errors import RunError
from ..data.frame import Frame
from ..data.frames import Batch, frame_loader
from ..data.gaps import forgery_gaps, is_absent, write_gaps
from ..engine.checks import FromDevice
from ..explaining.checking import MapChecker
from ..judge.transplant import CELLS
from ..measure.samples import RealCounterparts
from ..model.detector import LoadedDetector
from ..settings.config import RunSettings
from ..settings.run_options import RunOptions
from ..store.features_file import FEATURES, Features, write_features
from ..store.journal import GAPS, Journal, next_number, read_rows
from ..store.manifest import HeatmapCounts
from ..store.sample_folder import sample_folders, whole_samples
from ..store.sample_writer import SampleWriter
from .disturbances import Interrupted, SignalGuard, SplitOnOutOfMemory
from .explainer import Explainer
from .predictions import Resume
from .processes import Processes
from .summary import DatasetSummary


class Context(NamedTuple):
    """What all datasets of a run share."""

    detector: LoadedDetector
    settings: RunSettings
    options: RunOptions
    processes: Processes
    guard: SignalGuard
    predicting: SplitOnOutOfMemory

    def predict(self, pixels: Tensor, frames: Sequence[Frame]) -> tuple[Tensor, Tensor]:
        """uint8 images of `frames` → logits (B, 2) and probability of fake (B,)."""
        parts = self.predicting.run(lambda part: self.detector.predict(pixels[part], frames[part]), len(pixels))
        return torch.cat([logits for logits, _ in parts]), torch.cat([prob for _, prob in parts])


class DeferredStep:
    """Keeps a device at work: what a step has handed to it is read and written when the next step is under way.

    The last half is done at the end of the `with` block, also where that ends by an error or by a first signal.
    """

    def __init__(self) -> None:
        self._left: Callable[[], None] | None = None

    def add(self, second_half: Callable[[], None]) -> None:
        """Do what was left of the step before; `second_half` is left now."""
        before, self._left = self._left, None
        if before is not None:
            before()
        self._left = second_half

    def __enter__(self) -> DeferredStep:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._left is not None and (error is None or isinstance(error, (Exception, Interrupted))):
            self._left()


def explains_every_frame(settings: RunSettings, options: RunOptions) -> bool:
    """Whether every frame is to be explained, so that one forward pass gives its logits and its maps."""
    gradcam = settings.detector.gradcam
    return gradcam.enabled and options.save_all and gradcam.samples is None


def samples_at_most(frames: int, settings: RunSettings, options: RunOptions) -> int:
    """How many of a dataset's frames may be explained."""
    gradcam = settings.detector.gradcam
    if not gradcam.enabled:
        return 0
    return frames if explains_every_frame(settings, options) else min(frames, gradcam.samples or MOST_MISTAKES)


class DatasetRun:
    """One dataset, or what is left of it after an interruption."""

    def __init__(self, context: Context, frames: Sequence[Frame], folder: Path) -> None:
        self.context, self.frames, self.folder = context, frames, folder
        self.processes, self.target = context.processes, context.detector.gradcam.target
        explaining = context.settings.detector.gradcam.enabled
        whole = self.processes.on_rank_zero(lambda: whole_samples(folder) if explaining else {})
        self.resume = Resume(folder, frames, whole, len(sample_folders(folder)) if explaining else 0)
        self.predictions = self.resume.predictions
        if self.processes.first and self.resume.remarks:
            print("\n".join(self.resume.remarks), file=sys.stderr)

    def evaluate(self) -> DatasetSummary:
        """All of it. The tables are complete afterwards, and every sample is on disk."""
        summary = self._predict_and_explain()
        if self.context.options.save_features:
            self.save_features()
        return summary

    def save_features(self) -> None:
        """Write `features.npz`, where it is not there yet, in a pass of its own over the readable frames."""
        if self.processes.broadcast((self.folder / FEATURES).is_file()):
            return
        detector = self.context.detector
        found: list[Tensor] = []
        indices: list[int] = []

        def step(batch: Batch) -> Callable[[], None]:
            indices.extend(frame.index for frame in batch.frames)
            coming = FromDevice([detector.features(batch.pixels, batch.frames)] if batch.frames else [])
            return lambda: found.extend(coming.read())

        seen = [int(index) for index in self.predictions.seen.nonzero()[0]]
        self._for_each(self._in_batches(seen), step, ", features")
        mine = (torch.cat(found).numpy() if found else None, indices)
        gathered = [(part, places) for part, places in self.processes.all_gather(mine) if part is not None]
        if self.processes.first and gathered:
            feat, index = np.concatenate([part for part, _ in gathered]), np.concatenate([of for _, of in gathered])
            order = index.argsort()
            write_features(self.folder, Features(feat[order], index[order]), self.frames)

    def _predict_and_explain(self) -> DatasetSummary:
        settings, options = self.context.settings, self.context.options
        gradcam = settings.detector.gradcam
        if not gradcam.enabled:
            self.predict_all()
            return self.processes.on_rank_zero(lambda: self._write_tables(HeatmapCounts()))
        with SampleWriter(options.image_format, options.save_raw) as writer:
            explainer = self._explainer(writer)
            if explains_every_frame(settings, options):
                self._say_cost(self.frames, explainer.counterparts)
                self.predict_all(explainer)
                chosen = self.predictions.choose(None, False, "first", 0)
            else:
                self.predict_all()
                count = gradcam.samples or MOST_MISTAKES
                chosen = self.predictions.choose(count, not options.save_all, options.select, settings.seed)
                self._say_cost([self.frames[index] for index in chosen], explainer.counterparts)
                self.explain_chosen(chosen, explainer)
        if self.processes.first:
            for index in chosen:
                if index in self.resume.whole:
                    explainer.counts.add_sample(self.resume.whole[index])
        counts = HeatmapCounts.merged(self.processes.all_gather(explainer.counts))
        return self.processes.on_rank_zero(lambda: self._write_tables(counts))

    def _explainer(self, writer: SampleWriter) -> Explainer:
        context, counterparts, checker = self.context, None, None
        if context.settings.detector.gradcam.recipe.method == TRANSPLANT:  # a check itself
            counterparts = RealCounterparts(context.settings.data)
        elif context.options.checks_maps:
            checker = MapChecker(context.detector, context.settings.batch_size)
        return Explainer(context.detector, self.resume, self.folder, writer, context.predict, checker, counterparts)

    def _say_cost(self, frames: Sequence[Frame], counterparts: RealCounterparts | None) -> None:
        """Transplant takes hundreds of passes an image: how many, before they begin."""
        if counterparts is None or not self.processes.first:
            return
        side = self.context.settings.detector.resolution
        rows, columns = self.context.detector.model.patch_grid(side, side) or CELLS
        paired = sum(counterparts.path(frame) is not None for frame in frames)
        print(
            f"{self.frames[0].dataset}: transplant takes up to {2 * rows * columns} forward passes for each of"
            f" {len(frames)} images; {paired} are compared with the real frame that they were made from,"
            f" {len(frames) - paired} with a blurred copy"
        )

    def predict_all(self, explainer: Explainer | None = None) -> None:
        """Predict every frame at full speed or, with an explainer, write its maps from the same forward pass."""
        batches = self._in_batches(range(len(self.frames)))
        missing = self.resume.missing(batches, predictions=True, samples=explainer is not None)
        missing = self.processes.broadcast(missing)
        if self.processes.first and len(missing) < len(batches):
            done = len(batches) - len(missing)
            print(f"{self.frames[0].dataset}: {done} of {len(batches)} batches were done before")
        number = self.processes.broadcast(next_number(self.folder)) + self.processes.rank
        with Journal(self.folder, number) as journal:
            what = ", with heatmaps" if explainer else ""
            self._for_each(missing, lambda batch: self._predict_batch(batch, journal, explainer), what)
        self._collect_predictions()

    def _predict_batch(self, batch: Batch, journal: Journal, explainer: Explainer | None) -> Callable[[], None]:
        """The batch handed to the device; returns what is to be done with its results."""
        frames = sorted([*batch.frames, *(frame for frame, _ in batch.unreadable)], key=lambda frame: frame.index)
        if explainer is None:
            coming = FromDevice(self.context.predict(batch.pixels, batch.frames) if batch.frames else ())
        else:
            targets: list[str | int] = [self.target] * len(batch.frames)
            begun = explainer.begin(batch, targets)

        def record() -> None:
            if explainer and self.resume.is_recorded([frame.index for frame in frames]):  # only samples are missing
                explainer.explain(batch, targets, begun)
                return
            self.predictions.stamp(batch.stamps)
            for frame, reason in batch.unreadable:
                self.predictions.add_unreadable(frame.index, reason)
            if explainer:
                explainer.predict_and_explain(batch, begun)
            elif batch.frames:
                self.predictions.add(batch.frames, *coming.read())
            journal.append(self.predictions.journal_rows(frames, batch.stamps))

        return record

    def explain_chosen(self, chosen: Sequence[int], explainer: Explainer) -> None:
        """The chosen frames in full batches; a batch that lacks a sample is explained as a whole."""
        missing = self.resume.missing(self._in_batches(chosen), predictions=False, samples=True)
        missing = self.processes.broadcast(missing)

        def step(batch: Batch) -> Callable[[], None]:
            targets = self._targets(batch.frames)
            begun = explainer.begin(batch, targets)
            return lambda: explainer.explain(batch, targets, begun)

        self._for_each(missing, step, ", heatmaps")

    def _targets(self, frames: Sequence[Frame]) -> list[str | int]:
        """Per frame; "predicted" means the class that was recorded, which another batch might not give again."""
        if self.target != "predicted":
            return [self.target] * len(frames)
        return [self.predictions.predicted(frame.index) for frame in frames]

    def _in_batches(self, indices: Sequence[int]) -> list[Sequence[int]]:
        size = self.context.settings.batch_size
        return [indices[start : start + size] for start in range(0, len(indices), size)]

    def _for_each(self, batches: list[Sequence[int]], step: Callable[[Batch], Callable[[], None]], what: str) -> None:
        """Do `step` with this rank's share of the batches, until a signal, and what it returns during the next one."""
        guard, settings = self.context.guard, self.context.settings
        frames = [self.frames[index] for batch in self.processes.share(batches) for index in batch]
        guard.check()
        if not frames:
            return
        title, quiet = frames[0].dataset + what, not self.processes.first
        with tqdm(total=len(frames), unit="frame", desc=title, disable=quiet) as bar, DeferredStep() as deferred:
            for batch in frame_loader(frames, settings.detector.resolution, settings.batch_size, settings.workers):
                deferred.add(step(batch))
                bar.update(len(batch.frames) + len(batch.unreadable))
                guard.check()

    def _collect_predictions(self) -> None:
        """Read what the other ranks have predicted. Raises RunError where a frame has no prediction even so."""
        if self.processes.size > 1:
            self.processes.all_gather(None)  # waits until all journals are complete
            self.predictions.restore(filter(self.predictions.belongs, read_rows(self.folder)))
        if not self.predictions.done.all():
            raise RunError(
                f"{self.folder}: {int((~self.predictions.done).sum())} predictions are in no journal there; does every"
                " process write into the same folder? go on with --resume"
            )

    def _write_tables(self, counts: HeatmapCounts) -> DatasetSummary:
        self.predictions.write(self.folder)
        frames, unreadable = self.frames, self.predictions.unreadable
        if not self.predictions.seen.any():
            reason = f" ({unreadable[0]})" if unreadable else ""
            raise RunError(
                f"dataset {frames[0].dataset}: none of its {len(frames)} frames could be read,"
                f" first {frames[0].path}{reason}"
            )
        absent = [index for index, reason in unreadable.items() if is_absent(reason)]
        gaps = forgery_gaps(frames, absent, unreadable.keys() - set(absent))
        if gaps:
            write_gaps(self.folder / GAPS, gaps)
        return DatasetSummary(frames[0].dataset, self.predictions.metrics(), len(unreadable), counts, gaps)
