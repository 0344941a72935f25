"""The run itself: data sets → predictions → metrics → the samples worth looking at → heatmaps on disk."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple, Sequence

import torch
from tqdm import tqdm

from utils.config import RunSettings
from utils.detection_metrics import DetectionMetrics
from utils.errors import RunError
from utils.frames import Frame, frame_loader, read_dataset
from utils.gradcam import Explanation
from utils.inference import LoadedDetector, find_device, load_detector
from utils.plain_words import AS_IT_CAME, write_row
from utils.predictions import Predictions
from utils.results import RANDOM_WEIGHTS, Sample, SampleWriter, layer_pictures, write_json, write_whole
from utils.run_folder import RunFolder


class RunOptions(NamedTuple):
    """What only the command line says."""

    output_dir: Path
    device: str = "auto"
    precision: str = "fp32"
    save_all: bool = False
    select: str = "confident"
    random_weights: bool = False
    max_unreadable: float = 0.05
    image_format: str = "png"
    save_raw: bool = False
    overwrite: bool = False
    command: Sequence[str] = ()


class DatasetResult(NamedTuple):
    """One data set evaluated."""

    name: str
    metrics: DetectionMetrics
    unreadable: int
    heatmaps: int
    empty_maps: dict[str, int]  # layer → samples whose map is empty
    non_finite: list[int]  # samples without heatmaps, because a map was NaN or infinite


def run(settings: RunSettings, options: RunOptions) -> int:
    """Evaluate and explain; returns the exit code. Raises InputError before anything is written, RunError later."""
    datasets = {name: read_dataset(name, settings.data) for name in dict.fromkeys(settings.datasets)}
    detector = load_detector(settings.detector, find_device(options.device), options.precision, options.random_weights)
    if settings.detector.gradcam.enabled:
        detector.check_layers()
    folder = RunFolder.open(options.output_dir, settings, options, datasets)
    results = [
        _evaluate(detector, frames, folder.dataset(name), settings, options) for name, frames in datasets.items()
    ]
    write_json(folder.path / "metrics.json", {result.name: metrics_json(result) for result in results})
    folder.finish({result.name: _counts(result) for result in results})
    print(metrics_table(results))
    print(summary(results, settings, options))
    return _exit_code(results, options.max_unreadable)


def _evaluate(
    detector: LoadedDetector, frames: Sequence[Frame], folder: Path, settings: RunSettings, options: RunOptions
) -> DatasetResult:
    dataset = frames[0].dataset
    predictions = Predictions(frames, folder)
    explainer = Explainer(detector, predictions, folder, settings, options)
    with SampleWriter(options.image_format, save_raw=options.save_raw) as writer:
        if settings.detector.gradcam.enabled and options.save_all and settings.detector.gradcam.samples is None:
            unreadable = _predict_and_explain(detector, predictions, settings, explainer, writer)
        else:
            unreadable = _predict(detector, predictions, settings)
            if settings.detector.gradcam.enabled:
                chosen = predictions.choose(
                    settings.detector.gradcam.samples or DEFAULT_SAMPLES,
                    not options.save_all,
                    options.select,
                    settings.seed,
                )
                explainer.explain_chosen(chosen, writer)
    predictions.close()
    _write_unreadable(folder, unreadable)
    if not predictions.seen.any():
        reason = f" ({unreadable[0][1]})" if unreadable else ""
        raise RunError(
            f"data set {dataset}: none of its {len(frames)} frames could be read, first {frames[0].path}{reason}"
        )
    return DatasetResult(
        dataset, predictions.metrics(), len(unreadable), writer.written, explainer.empty_maps, explainer.non_finite
    )


DEFAULT_SAMPLES = 50


def _predict(detector: LoadedDetector, predictions: Predictions, settings: RunSettings) -> list[tuple[Frame, str]]:
    """Plain evaluation at full speed; returns the unreadable frames with their reasons."""
    unreadable: list[tuple[Frame, str]] = []
    frames = predictions.frames
    loader = frame_loader(frames, settings.detector.resolution, settings.batch_size, settings.workers)
    with tqdm(total=len(frames), unit="frame", desc=frames[0].dataset) as bar:
        for batch in loader:
            if batch.frames:
                predictions.add(batch.frames, *detector.predict(batch.pixels))
            unreadable += batch.unreadable
            bar.update(len(batch.frames) + len(batch.unreadable))
    return unreadable


def _predict_and_explain(
    detector: LoadedDetector,
    predictions: Predictions,
    settings: RunSettings,
    explainer: Explainer,
    writer: SampleWriter,
) -> list[tuple[Frame, str]]:
    """One pass: logits and maps of every frame from the same forward pass; returns the unreadable frames."""
    unreadable: list[tuple[Frame, str]] = []
    frames = predictions.frames
    loader = frame_loader(frames, settings.detector.resolution, settings.batch_size, settings.workers)
    with tqdm(total=len(frames), unit="frame", desc=f"{frames[0].dataset}, with heatmaps") as bar:
        for batch in loader:
            if batch.frames:
                explainer.explain(batch.frames, batch.pixels, writer, first_pass=True)
            unreadable += batch.unreadable
            bar.update(len(batch.frames) + len(batch.unreadable))
    return unreadable


class Explainer:
    """Batches of one data set → samples handed to the writer; counts what came out empty."""

    def __init__(
        self,
        detector: LoadedDetector,
        predictions: Predictions,
        folder: Path,
        settings: RunSettings,
        options: RunOptions,
    ) -> None:
        self.detector = detector
        self.predictions = predictions
        self.folder = folder
        self.settings = settings
        self.weights = RANDOM_WEIGHTS if options.random_weights else str(settings.detector.weights_path)
        self.empty_maps: dict[str, int] = {}
        self.non_finite: list[int] = []

    def explain_chosen(self, chosen: Sequence[int], writer: SampleWriter) -> None:
        """Second phase: the chosen frames, in full batches."""
        frames = [self.predictions.frames[index] for index in chosen]
        if not frames:
            return
        loader = frame_loader(
            frames, self.settings.detector.resolution, self.settings.batch_size, self.settings.workers
        )
        with tqdm(total=len(frames), unit="frame", desc=f"{frames[0].dataset}, heatmaps") as bar:
            for batch in loader:
                if batch.unreadable:
                    frame, reason = batch.unreadable[0]
                    raise RunError(f"{frame.path} was readable a moment ago and no longer is ({reason}): run again")
                self.explain(batch.frames, batch.pixels, writer, first_pass=False)
                bar.update(len(batch.frames))

    def explain(self, frames: Sequence[Frame], pixels: torch.Tensor, writer: SampleWriter, first_pass: bool) -> None:
        """One batch. On the first pass its predictions are recorded too; later those on record set the target."""
        label = torch.tensor([frame.label for frame in frames])
        target: list[str | int] = [self.settings.detector.gradcam.target] * len(frames)
        if not first_pass and self.settings.detector.gradcam.target == "predicted":
            target = [self.predictions.predicted(frame.index) for frame in frames]
        explanation, kept = self.detector.explain_what_can(pixels, label, target)
        if first_pass:
            self._record(frames, pixels, explanation, kept)
        lost = set(range(len(frames))) - set(kept)
        self.non_finite += [frames[i].index for i in sorted(lost)]
        if explanation is not None:
            self._write([frames[i] for i in kept], pixels[kept], explanation, writer)

    def _record(
        self, frames: Sequence[Frame], pixels: torch.Tensor, explanation: Explanation | None, kept: Sequence[int]
    ) -> None:
        if explanation is not None and len(kept) == len(frames):
            self.predictions.add(frames, explanation.logits, explanation.prediction["prob"])
        else:  # the pass that gave finite maps left some frames out
            self.predictions.add(frames, *self.detector.predict(pixels))

    def _write(
        self, frames: Sequence[Frame], pixels: torch.Tensor, explanation: Explanation, writer: SampleWriter
    ) -> None:
        gradcam = self.settings.detector.gradcam
        drawn = layer_pictures(pixels.to(self.detector.device), explanation.layers, gradcam.colormap)
        pictures = pixels.permute(0, 2, 3, 1).numpy()
        for i, frame in enumerate(frames):
            for layer in drawn[i]:
                self.empty_maps[layer.name] = self.empty_maps.get(layer.name, 0) + layer.empty
            real, fake = self.predictions.logits[frame.index]
            sample = Sample(
                index=frame.index,
                path=frame.path,
                dataset=frame.dataset,
                forgery=frame.forgery,
                video=frame.video,
                label=frame.label,
                logits=(float(real), float(fake)),
                prob_fake=float(self.predictions.prob_fake[frame.index]),
                target=self._target_text(explanation.target[i]),
                method=gradcam.method,
                site=gradcam.site,
                weights=self.weights,
                picture=pictures[i],
                layers=drawn[i],
            )
            writer.write(self.folder / f"sample{frame.index}", sample)

    def _target_text(self, class_name: str) -> str:
        asked = self.settings.detector.gradcam.target
        return asked if asked == class_name else f"{asked} ({class_name})"


# ---------------------------------------------------------------------------------------------------- what is told


def _write_unreadable(folder: Path, unreadable: Sequence[tuple[Frame, str]]) -> None:
    if not unreadable:
        return
    text = io.StringIO(newline="")
    write_row(text, ("index", "path", "reason"))
    for frame, reason in unreadable:
        write_row(text, (frame.index, frame.path, reason))
    write_whole(folder / "unreadable.csv", text.getvalue().encode("utf-8", AS_IT_CAME))


def metrics_json(result: DatasetResult) -> dict[str, Any]:
    """The entry of one data set in `metrics.json`; what one class alone cannot give is null, with a note."""
    metrics = result.metrics
    entry: dict[str, Any] = {
        "acc": metrics.acc,
        "auc": metrics.auc,
        "eer": metrics.eer,
        "ap": metrics.ap,
        "video_auc": metrics.video_auc,
        "frames": metrics.frames,
        "videos": metrics.videos,
        "unreadable": result.unreadable,
    }
    return {**entry, "note": metrics.note} if metrics.note else entry


def _counts(result: DatasetResult) -> dict[str, Any]:
    return {"heatmaps": result.heatmaps, "empty_maps": result.empty_maps, "non_finite": result.non_finite}


def metrics_table(results: Sequence[DatasetResult]) -> str:
    """One line a data set, for the terminal."""
    width = max(len("data set"), *(len(result.name) for result in results))
    lines = [f"{'data set':<{width}}     ACC     AUC     EER      AP  video AUC  frames  videos  unreadable"]
    for result in results:
        m = result.metrics
        numbers = "".join(f"{'–' if value is None else f'{value:.4f}':>8}" for value in (m.acc, m.auc, m.eer, m.ap))
        video = "–" if m.video_auc is None else f"{m.video_auc:.4f}"
        lines.append(f"{result.name:<{width}}{numbers}{video:>11}{m.frames:>8}{m.videos:>8}{result.unreadable:>12}")
    return "\n".join(lines)


def summary(results: Sequence[DatasetResult], settings: RunSettings, options: RunOptions) -> str:
    """Where the outputs are and what the user should know of them."""
    lines = []
    for result in results:
        if settings.detector.gradcam.enabled:
            kind = "samples" if options.save_all else "wrong predictions"
            lines.append(f"{result.name}: heatmaps of {result.heatmaps} {kind} in {options.output_dir / result.name}")
        for layer, count in result.empty_maps.items():
            if count:
                lines.append(f"{result.name}: {layer}: {count} of {result.heatmaps} maps are empty")
        if result.non_finite:
            lines.append(f"{result.name}: no heatmap (NaN or infinite) for samples {result.non_finite}")
        if result.unreadable:
            listed = options.output_dir / result.name / "unreadable.csv"
            lines.append(f"{result.name}: {result.unreadable} frames could not be read, listed in {listed}")
        if result.metrics.note:
            lines.append(f"{result.name}: {result.metrics.note}")
    if options.random_weights:
        lines.append("random weights: this detector was never trained, its scores and maps mean nothing")
    lines.append(f"metrics and manifest: {options.output_dir}")
    return "\n".join(lines)


def _exit_code(results: Sequence[DatasetResult], max_unreadable: float) -> int:
    """Raises RunError for what makes a finished run a failed one."""
    for result in results:
        total = result.metrics.frames + result.unreadable
        if result.unreadable > max_unreadable * total:
            raise RunError(
                f"data set {result.name}: {result.unreadable} of {total} frames could not be read, more than"
                f" --max_unreadable {100 * max_unreadable:g}%; everything else was written"
            )
    for result in results:
        if result.metrics.auc is None:
            raise RunError(f"data set {result.name}: {result.metrics.note}; everything else was written")
    return 0
