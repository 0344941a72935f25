"""The run itself: data sets → predictions → metrics → the samples worth looking at → heatmaps on disk.

The unit of work is a batch: batch k of a data set holds the same frames however many processes share the run and
however often it was interrupted, so that the arithmetic, and every byte that is written, is the same too.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from utils.data.frames import Batch, Frame, frame_loader
from utils.data.readers import read_dataset
from utils.errors import InputError, RunError
from utils.explanation_metrics.evaluate import ExplanationOptions, check_options
from utils.explanation_metrics.output import EvaluationText, evaluate_explanations
from utils.files import write_json
from utils.model.config import RunSettings
from utils.model.detector import LoadedDetector, find_device, load_detector
from utils.report.exports import PAGE, ViewOptions, check_views, write_views
from utils.results.journal import Journal, next_number, read_rows
from utils.results.run_folder import STARTED, RunFolder
from utils.results.sample_folder import RANDOM_WEIGHTS, SampleWriter
from utils.run.explainer import Counts, Explainer, merged, whole_samples
from utils.run.interruption import Interruption, resume_command
from utils.run.out_of_memory import Halving
from utils.run.predictions import Predictions
from utils.run.processes import Processes
from utils.run.summary import DatasetResult, counts_json, exit_code, metrics_json, metrics_table, summary
from utils.text import plain_words

DEFAULT_SAMPLES = 50


class RunOptions(NamedTuple):
    """What only the command line says."""

    output_dir: Path
    device: str = "auto"
    precision: str = "fp32"
    compile: bool = False
    save_all: bool = False
    select: str = "confident"
    random_weights: bool = False
    max_unreadable: float = 0.05
    image_format: str = "png"
    save_raw: bool = False
    overwrite: bool = False
    resume: bool = False
    views: ViewOptions = ViewOptions()
    explanations: ExplanationOptions | None = None  # None: not evaluated
    command: Sequence[str] = ()


def run(settings: RunSettings, options: RunOptions) -> int:
    """Evaluate and explain; returns the exit code.

    Raises InputError before anything is written, RunError later, Interrupted after SIGINT or SIGTERM.
    """
    check_views(options.views)
    go_on = f"interrupted; go on with: {resume_command(options.command[1:])}"
    with Processes.start() as processes, Interruption(go_on, quiet=not processes.first) as stop:
        datasets = {name: read_dataset(name, settings.data) for name in dict.fromkeys(settings.datasets)}
        device = find_device(processes.device_name(options.device))
        torch.manual_seed(settings.seed)  # of random weights
        detector = load_detector(settings.detector, device, options.precision, options.random_weights)
        if settings.detector.gradcam.enabled:
            detector.dry_run()
        if options.explanations is not None:
            check_options(detector)
        if options.compile:
            if _is_one_pass(settings, options):
                raise InputError(
                    "--compile: the heatmaps of all samples come from the pass that predicts them, which hooks into the"
                    " model, and a compiled one does not allow that; leave the flag out, or give --gradcam_samples"
                )
            detector = detector.compiled(settings.batch_size)
        folder = processes.first_does(lambda: RunFolder.open(options.output_dir, settings, options, device, datasets))
        if folder.finished:
            return _say_complete(folder, options, processes)
        with _in_plain_words(folder.path, stop):
            if not (folder.path / STARTED).is_file():
                raise RunError(f"process {processes.rank} does not see {folder.path}: all need one and the same folder")
            # Sums are split among the threads, so another number may change the last bit.
            torch.set_num_threads(folder.manifest["threads"])
            work = Work(detector, settings, options, processes, stop)
            results = [work.evaluate(frames, folder.dataset(name)) for name, frames in datasets.items()]
            judged = processes.first_does(lambda: _judged(detector, datasets, folder, settings, options))
            print(judged.text if processes.first else "", end="")
            code = processes.first_does(lambda: _conclude(results, folder, settings, options))
    if judged.problem:
        raise RunError(judged.problem)
    return code


def _is_one_pass(settings: RunSettings, options: RunOptions) -> bool:
    """Whether every frame is to be explained, so that logits and maps come from the same forward pass."""
    gradcam = settings.detector.gradcam
    return gradcam.enabled and options.save_all and gradcam.samples is None


def _say_complete(folder: RunFolder, options: RunOptions, processes: Processes) -> int:
    if not processes.first:
        return 0
    print(f"{folder.path}: this run is complete, nothing is left to do")
    if not (folder.path / PAGE).is_file():  # killed in its last moments, or its page removed
        print("\n".join(write_views(folder.path, options.views)))
    metrics = json.loads((folder.path / "metrics.json").read_text(encoding="utf-8"))
    return exit_code(metrics, folder.manifest["heatmaps"], options.max_unreadable)


def _judged(
    detector: LoadedDetector,
    datasets: Mapping[str, Sequence[Frame]],
    folder: RunFolder,
    settings: RunSettings,
    options: RunOptions,
) -> EvaluationText:
    """What is to be said of the explanations, nothing where they are not asked about."""
    if options.explanations is None:
        return EvaluationText("", "")
    return evaluate_explanations(detector, datasets, folder.path, settings, options.explanations)


def _conclude(results: Sequence[DatasetResult], folder: RunFolder, settings: RunSettings, options: RunOptions) -> int:
    metrics = {result.name: metrics_json(result) for result in results}
    heatmaps = {result.name: counts_json(result.counts) for result in results}
    write_json(folder.path / "metrics.json", metrics)
    folder.finish(heatmaps)
    print(metrics_table(results))
    explained = ("samples" if options.save_all else "wrong predictions") if settings.detector.gradcam.enabled else ""
    print(summary(results, options.output_dir, explained, options.random_weights))
    print("\n".join(write_views(folder.path, options.views)))
    return exit_code(metrics, heatmaps, options.max_unreadable)


@contextmanager
def _in_plain_words(output_dir: Path, stop: Interruption) -> Iterator[None]:
    """What the machine can do to a run, as a RunError of one line; after a signal, as the interruption it is."""
    go_on = "every finished file is whole: remedy that and go on with --resume"
    worker_gone = (
        "a process that decodes pictures was ended from outside ({}), perhaps for want of memory: use fewer --workers; "
    )
    try:
        yield
    except ConnectionError as error:  # a decoding process that dies while it hands over a batch
        stop.check()
        raise RunError(worker_gone.format(plain_words(error)) + go_on) from error
    except OSError as error:
        stop.check()  # a signal to the whole group also ends the decoding processes, and the other processes' waiting
        raise RunError(f"{error.filename or output_dir}: {plain_words(error)}; {go_on}") from error
    except MemoryError as error:
        raise RunError(f"out of memory outside the detector (decoding or drawing a picture); {go_on}") from error
    except RuntimeError as error:  # RunError too
        stop.check()
        if "DataLoader worker" not in str(error):
            raise
        raise RunError(worker_gone.format(plain_words(error)) + go_on) from error


@dataclass
class Work:
    """What every step of a run needs."""

    detector: LoadedDetector
    settings: RunSettings
    options: RunOptions
    processes: Processes
    stop: Interruption

    def __post_init__(self) -> None:
        self._halving = Halving("evaluating")

    def evaluate(self, frames: Sequence[Frame], folder: Path) -> DatasetResult:
        """One data set, or what is left of it. Its tables are complete afterwards, and every sample is on disk."""
        predictions = Predictions(frames)
        predictions.restore(read_rows(folder))
        gradcam = self.settings.detector.gradcam
        if not gradcam.enabled:
            self._first_pass(predictions, folder, None)
            return self._concluded(predictions, folder, Counts())
        whole = self.processes.first_does(lambda: whole_samples(folder))
        weights = RANDOM_WEIGHTS if self.options.random_weights else str(self.settings.detector.weights_path)
        with SampleWriter(self.options.image_format, save_raw=self.options.save_raw) as writer:
            explainer = Explainer(self.detector, predictions, folder, weights, writer, whole, self.predict)
            if _is_one_pass(self.settings, self.options):
                self._first_pass(predictions, folder, explainer)
                chosen = predictions.choose(None, False, "first", 0)
            else:
                self._first_pass(predictions, folder, None)
                count = gradcam.samples or DEFAULT_SAMPLES
                chosen = predictions.choose(count, not self.options.save_all, self.options.select, self.settings.seed)
                self._explain(chosen, explainer)
        if self.processes.first:
            for index in chosen:
                if index in whole:
                    explainer.counts.add_sample(whole[index])
        return self._concluded(predictions, folder, merged(self.processes.gathered(explainer.counts)))

    def predict(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 pictures → logits (B, 2) and probability of fake (B,)."""
        parts = self._halving.run(lambda part: self.detector.predict(pixels[part]), len(pixels))
        return torch.cat([logits for logits, _ in parts]), torch.cat([prob for _, prob in parts])

    def _first_pass(self, predictions: Predictions, folder: Path, explainer: Explainer | None) -> None:
        """Plain evaluation at full speed or, with an explainer, logits and maps of every frame from the same pass."""
        frames, size = predictions.frames, self.settings.batch_size
        done = predictions.done
        batches = [range(start, min(start + size, len(frames))) for start in range(0, len(frames), size)]
        recorded = {batch.start for batch in batches if done[batch.start : batch.stop].all()}
        missing = [
            batch for batch in batches
            if batch.start not in recorded or (explainer is not None and explainer.lacks(batch))
        ]  # fmt: skip
        missing = self.processes.agreed(missing)
        if self.processes.first and len(missing) < len(batches):
            print(f"{frames[0].dataset}: {len(batches) - len(missing)} of {len(batches)} batches were done before")
        number = self.processes.agreed(next_number(folder)) + self.processes.rank
        own = [frames[index] for batch in self.processes.share(missing) for index in batch]
        with Journal(folder, number) as journal:
            for batch in self._batches(own, ", with heatmaps" if explainer else ""):
                every = sorted(
                    [*batch.frames, *(frame for frame, _ in batch.unreadable)], key=lambda frame: frame.index
                )
                record = every[0].index not in recorded
                for frame, reason in batch.unreadable if record else ():
                    predictions.add_unreadable(frame.index, reason)
                if explainer:
                    explainer.explain(batch, one_pass=True, record=record)
                elif batch.frames:
                    predictions.add(batch.frames, *self.predict(batch.pixels))
                if record:
                    journal.append(predictions.journal_rows(every))
        if self.processes.size > 1:
            self.processes.gathered(None)
            predictions.restore(read_rows(folder))  # the other processes' rows
        if not predictions.done.all():
            raise RunError(
                f"{folder}: {int((~predictions.done).sum())} predictions are in no journal there; does every process"
                " write into the same folder? go on with --resume"
            )

    def _explain(self, chosen: Sequence[int], explainer: Explainer) -> None:
        """Second phase: the chosen frames, in full batches, of which those that lack a sample are done as a whole."""
        size = self.settings.batch_size
        batches = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        missing = self.processes.agreed([batch for batch in batches if explainer.lacks(batch)])
        frames = [explainer.predictions.frames[index] for batch in self.processes.share(missing) for index in batch]
        for batch in self._batches(frames, ", heatmaps"):
            explainer.explain(batch, one_pass=False)

    def _batches(self, frames: Sequence[Frame], what: str) -> Iterator[Batch]:
        """Frames of whole batches → these batches. Stops after a signal, when the batch in hand is done."""
        self.stop.check()
        if not frames:
            return
        loader = frame_loader(
            frames, self.settings.detector.resolution, self.settings.batch_size, self.settings.workers
        )
        desc = frames[0].dataset + what
        with tqdm(total=len(frames), unit="frame", desc=desc, disable=not self.processes.first) as bar:
            for batch in loader:
                yield batch
                bar.update(len(batch.frames) + len(batch.unreadable))
                self.stop.check()

    def _concluded(self, predictions: Predictions, folder: Path, counts: Counts) -> DatasetResult:
        return self.processes.first_does(lambda: _tables(predictions, folder, counts))


def _tables(predictions: Predictions, folder: Path, counts: Counts) -> DatasetResult:
    predictions.write(folder)
    frames, unreadable = predictions.frames, predictions.unreadable
    if not predictions.seen.any():
        reason = f" ({unreadable[0]})" if unreadable else ""
        raise RunError(
            f"data set {frames[0].dataset}: none of its {len(frames)} frames could be read,"
            f" first {frames[0].path}{reason}"
        )
    return DatasetResult(frames[0].dataset, predictions.metrics(), len(unreadable), counts)
