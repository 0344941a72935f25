"""One dataset of a run: predict every frame, explain the chosen ones, write the tables.

The unit of work is a batch. Batch k of a dataset always holds the same frames, whatever the number of ranks
and interruptions, so that the results are identical to the last byte.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from ..base.allowed import AUTO, MOST_MISTAKES, TRANSPLANT
from ..base.errors import RunError
from ..data.clips import CutClips, clip_loader
from ..data.frame import Frame
from ..data.frames import Batch, frame_loader
from ..engine.checks import FromDevice
from ..engine.real.contrast import CONTRASTS
from ..explaining.checking import MapChecker
from ..explaining.clips.checking import ClipChecker
from ..explaining.subject import Subject
from ..judge.clips.time import OrderTest
from ..judge.transplant import CELLS
from ..judge.verdict import Choice
from ..measure.counterparts import RealCounterparts
from ..model.detector import LoadedDetector
from ..settings.config import RunSettings
from ..settings.run_options import RunOptions
from ..store.manifest import HeatmapCounts
from ..store.run_folder import RunFolder
from ..store.sample_writer import SampleWriter
from .disturbances import Interrupted, SignalGuard, SplitOnOutOfMemory
from .explainer import ClipFacts, Explainer
from .predictions import Resume
from .processes import Processes
from .summary import DatasetSummary, counts_of, write_summary


@dataclass(frozen=True, slots=True)
class Context:
    """What all datasets of a run share. `cut`: for a clip detector, each dataset's clips."""

    detector: LoadedDetector
    settings: RunSettings
    options: RunOptions
    processes: Processes
    guard: SignalGuard
    predicting: SplitOnOutOfMemory
    cut: Mapping[str, CutClips] = field(default_factory=dict)
    order: OrderTest | None = None  # whether the detector uses the order of frames, once known

    def predict(self, pixels: Tensor, frames: Sequence[Frame]) -> tuple[Tensor, Tensor]:
        """Predict the uint8 images (B, 3, H, W) of `frames`: scores (B, 2), and P(fake) (B,) in [0, 1]."""
        parts = self.predicting.run(lambda part: self.detector.predict(pixels[part], frames[part]), len(pixels))
        return torch.cat([logits for logits, _ in parts]), torch.cat([prob for _, prob in parts])


class DeferredStep:
    """Keeps the device busy: launches the next step before it reads and writes the results of the last one.

    The final results are read at the end of the `with` block, even after an error or a first interrupt.
    """

    def __init__(self) -> None:
        self._left: Callable[[], None] | None = None

    def add(self, second_half: Callable[[], None]) -> None:
        """Finish the previous step, and keep `second_half` for later."""
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
    """Tell whether every frame is explained, so that one forward pass yields logits and maps."""
    gradcam = settings.detector.gradcam
    return gradcam.enabled and options.save_all and gradcam.samples is None


def samples_at_most(frames: int, settings: RunSettings, options: RunOptions) -> int:
    """Return the maximum number of a dataset's frames to explain."""
    gradcam = settings.detector.gradcam
    if not gradcam.enabled:
        return 0
    return frames if explains_every_frame(settings, options) else min(frames, gradcam.samples or MOST_MISTAKES)


class DatasetRun:
    """The work on one dataset, or the rest of it after an interruption."""

    def __init__(self, context: Context, folder: RunFolder, frames: Sequence[Frame]) -> None:
        self.context, self.frames, self.of_run, self.name = context, frames, folder, frames[0].dataset
        self.database, self.folder = folder.database, folder.path / frames[0].dataset
        self.clips = context.cut[self.name].clips if context.cut else ()
        self.processes, self.target = context.processes, context.detector.gradcam.target
        self.map_key = ""
        self._is_predicted = False
        with folder.reading() as database:
            self.resume = Resume(frames, database.rows("frame", "WHERE dataset = ?", self.name), folder.key)
        self.predictions = self.resume.predictions
        if self.processes.first:
            for table in ("sample", "map", "feature"):  # of images that have changed
                self.database.forget(table, self.name, self.resume.replaced)

    def evaluate(self, choice: Choice | None) -> DatasetSummary:
        """Evaluate the dataset with the chosen map, and write all tables and samples."""
        self._draw(choice)
        counts = self._predict_and_explain()
        if self.context.options.save_features:
            self.save_features()
        cut = self.context.cut.get(self.name)
        return self.processes.on_rank_zero(lambda: write_summary(self.of_run, self.predictions, counts, cut))

    def _draw(self, choice: Choice | None) -> None:
        self.map_key = self.of_run.manifest.key(self.of_run.key, choice.to_json() if choice else None)

    def evaluate_shard(self, choice: Choice | None) -> None:
        """Predict every k-th batch; explain it too if every frame is explained."""
        self._draw(choice)
        settings, options = self.context.settings, self.context.options
        if not explains_every_frame(settings, options):
            self.predict_all()
            return
        with self._writer() as writer:
            self.predict_all(self._explainer(writer))
        self.processes.gather(self.of_run)

    def save_features(self) -> None:
        """Save the head's input for every readable frame that lacks it, in a separate pass."""
        detector, key = self.context.detector, self.of_run.key
        with self.of_run.reading() as database:
            rows = database.rows("feature", "WHERE dataset = ?", self.name)
            there = {row[1] for row in rows if row[-1] == key}
        seen = [int(index) for index in self.predictions.seen.nonzero()[0]]
        missing = [batch for batch in self._in_batches(seen) if not there.issuperset(batch)]

        def step(batch: Batch) -> Callable[[], None]:
            indices = [frame.index for frame in batch.frames]
            coming = FromDevice([detector.features(batch.pixels, batch.frames)] if batch.frames else [])

            def keep() -> None:
                for tensor in coming.read():
                    rows = zip(indices, tensor.float().numpy(), strict=True)
                    self.database.put("feature", [(self.name, index, row.tobytes()) for index, row in rows], key)
                self.database.end_batch()

            return keep

        self._for_each(self.processes.broadcast(missing), step, ", features")
        self.processes.gather(self.of_run)

    def _predict_and_explain(self) -> HeatmapCounts:
        settings, options = self.context.settings, self.context.options
        gradcam = settings.detector.gradcam
        if not gradcam.enabled:
            self._say(self.resume.remarks())
            self.predict_all()
            return HeatmapCounts()
        with self._writer() as writer:
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
        self.processes.gather(self.of_run)
        return self.processes.on_rank_zero(lambda: counts_of(self.database, self.name, chosen))

    def _writer(self) -> SampleWriter:
        options = self.context.options
        how = options.image_format, options.save_raw, options.save_images
        return SampleWriter(self.database, self.map_key, self.folder, *how)

    def _explainer(self, writer: SampleWriter) -> Explainer:
        """Build the explainer, which skips existing samples."""
        context, counterparts = self.context, None
        checker: MapChecker | ClipChecker | None = None
        with self.of_run.reading() as database:
            rows = database.rows("sample", "WHERE dataset = ?", self.name)
            self.resume.take_samples(rows, self.map_key, self.folder, context.options.save_images)
        self._say(self.resume.remarks())
        transplants = context.settings.detector.gradcam.recipe.method == TRANSPLANT
        judges = context.options.check_maps != "off"
        subject = None if self.clips else context.detector.as_subject()
        compares = subject is not None and subject.bank is not None
        if transplants or (compares and context.options.paired_reals == AUTO and (judges or draws_contrast(subject))):
            counterparts = RealCounterparts(context.settings.data)
        if context.options.checks_maps(verdicts=compares) and not transplants:  # transplant checks itself
            if self.clips and context.options.paired_reals == AUTO:
                counterparts = RealCounterparts(context.settings.data)
            kind = ClipChecker if self.clips else MapChecker
            checker = kind(context.detector, context.settings.batch_size)
        of = context.detector, self.resume, writer, context.predict
        return Explainer(*of, checker, counterparts, judges, ClipFacts(self.clips, context.order))

    def _say(self, lines: Sequence[str]) -> None:
        if self.processes.first and lines:
            print("\n".join(lines), file=sys.stderr)

    def _say_cost(self, frames: Sequence[Frame], counterparts: RealCounterparts | None) -> None:
        """Print beforehand how many passes transplant takes: hundreds per image."""
        transplants = self.context.settings.detector.gradcam.recipe.method == TRANSPLANT
        if counterparts is None or not transplants or not self.processes.first:
            return
        side = self.context.settings.detector.resolution
        rows, columns = self.context.detector.model.patch_grid(side, side) or CELLS
        paired = sum(counterparts.path(frame) is not None for frame in frames)
        print(
            f"{self.frames[0].dataset}: transplant takes up to {2 * rows * columns} forward passes for each of"
            f" {len(frames)} images; {paired} are compared with their original real frame,"
            f" {len(frames) - paired} with a blurred copy"
        )

    def predict_all(self, explainer: Explainer | None = None) -> None:
        """Predict every frame once. With an explainer, also write its maps from the same forward pass."""
        if self._is_predicted:
            return
        number, shards = self.context.options.shard or (1, 1)
        batches = self._in_batches(range(len(self.frames)))[number - 1 :: shards]
        missing = self.resume.missing(batches, predictions=True, samples=explainer is not None)
        missing = self.processes.broadcast(missing)
        if self.processes.first and len(missing) < len(batches):
            done = len(batches) - len(missing)
            print(f"{self.frames[0].dataset}: {done} of {len(batches)} batches were already done")
        what = ", with heatmaps" if explainer else ""
        self._for_each(missing, lambda batch: self._predict_batch(batch, explainer), what)
        self._collect_predictions(batches)
        self._is_predicted = True

    def _predict_batch(self, batch: Batch, explainer: Explainer | None) -> Callable[[], None]:
        """Launch a batch. Return the function that reads and records its results."""
        frames = sorted([*batch.frames, *(frame for frame, _ in batch.unreadable)], key=lambda frame: frame.index)
        if explainer is None:
            coming = FromDevice(self.context.predict(batch.pixels, batch.frames) if batch.frames else ())
        else:
            targets: list[str | int] = [self.target] * len(batch.frames)
            begun = explainer.begin(batch, targets)

        def record() -> None:
            if explainer and self.resume.is_recorded([frame.index for frame in frames]):  # only samples are missing
                explainer.explain(batch, targets, begun)
                self.database.end_batch()
                return
            self.predictions.stamp(batch.stamps)
            for frame, reason in batch.unreadable:
                self.predictions.add_unreadable(frame.index, reason)
            if explainer:
                explainer.predict_and_explain(batch, begun)
            elif batch.frames:
                self.predictions.add(batch.frames, *coming.read())
            self.database.put("frame", self.predictions.rows(frames, batch.stamps), self.of_run.key)
            self.database.end_batch()

        return record

    def explain_chosen(self, chosen: Sequence[int], explainer: Explainer) -> None:
        """Explain the chosen frames in full batches. A batch with a missing sample is explained completely."""
        missing = self.resume.missing(self._in_batches(chosen), predictions=False, samples=True)
        missing = self.processes.broadcast(missing)

        def step(batch: Batch) -> Callable[[], None]:
            targets = self._targets(batch.frames)
            begun = explainer.begin(batch, targets)

            def explain() -> None:
                explainer.explain(batch, targets, begun)
                self.database.end_batch()

            return explain

        self._for_each(missing, step, ", heatmaps")

    def _targets(self, frames: Sequence[Frame]) -> list[str | int]:
        """Return the target per frame. "predicted" means the recorded class, since another batch might change it."""
        if self.target != "predicted":
            return [self.target] * len(frames)
        return [self.predictions.predicted(frame.index) for frame in frames]

    def _in_batches(self, indices: Sequence[int]) -> list[Sequence[int]]:
        size = self.context.settings.batch_size
        return [indices[start : start + size] for start in range(0, len(indices), size)]

    def _for_each(self, batches: list[Sequence[int]], step: Callable[[Batch], Callable[[], None]], what: str) -> None:
        """Run `step` on this rank's share of the batches until a signal; finish each step during the next one."""
        guard = self.context.guard
        frames = [self.frames[index] for batch in self.processes.share(batches) for index in batch]
        if not frames:
            return
        title, quiet = frames[0].dataset + what, not self.processes.first
        bar = tqdm(total=len(frames), unit="clip" if self.clips else "frame", desc=title, disable=quiet)
        with guard.between_batches(), bar, DeferredStep() as deferred:
            for batch in self._loader(frames):
                deferred.add(step(batch))
                bar.update(len(batch.frames) + len(batch.unreadable))
                guard.check()

    def _loader(self, frames: Sequence[Frame]) -> Iterable[Batch]:
        settings = self.context.settings
        how = settings.detector.resolution, settings.batch_size, settings.workers
        return (
            clip_loader([self.clips[frame.index] for frame in frames], *how)
            if self.clips
            else frame_loader(frames, *how)
        )

    def _collect_predictions(self, batches: Sequence[Sequence[int]]) -> None:
        """Read the other ranks' predictions. Raises RunError if a frame still has none."""
        self.processes.gather(self.of_run)
        if self.processes.size > 1:
            with self.of_run.reading() as database:
                rows = database.rows("frame", "WHERE dataset = ?", self.name)
                self.predictions.restore(row for row in rows if row[-1] == self.of_run.key)
        missing = int((~self.predictions.done[[index for batch in batches for index in batch]]).sum())
        if missing:
            raise RunError(
                f"{self.of_run.path}: {missing} predictions of {self.name} are missing; all processes need the same"
                " folder; continue with --resume"
            )


def draws_contrast(subject: Subject | None) -> bool:
    """Tell whether a map that is drawn compares patches with real ones; a verdict always does."""
    return subject is not None and any(recipe.method in CONTRASTS for recipe in subject.all_drawn())
