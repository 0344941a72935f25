"""Batches of one data set → samples on disk, and a count of what came out empty or not at all."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterable, Mapping, NamedTuple, Sequence

import numpy as np
import torch
from torch import Tensor

from utils.data.frames import Batch, Frame
from utils.gradcam import Explanation
from utils.model.detector import LoadedDetector
from utils.results.overlays import LayerPicture, layer_pictures
from utils.results.sample_folder import SIGNED_TARGET, Sample, SampleWriter, read_whole_sample
from utils.run.out_of_memory import Halving
from utils.run.predictions import Predictions

Empties = Mapping[str, bool]  # layer → whether its map is empty


@dataclass
class Counts:
    """What explaining one data set gave."""

    heatmaps: int = 0
    empty_maps: dict[str, int] = field(default_factory=dict)  # layer → samples whose map is empty
    non_finite: list[int] = field(default_factory=list)  # samples without heatmaps, because a map was NaN or infinite
    vanished: list[tuple[int, str]] = field(default_factory=list)  # readable at first, no longer when to be explained

    def add_sample(self, empties: Empties) -> None:
        """One more sample with heatmaps."""
        self.heatmaps += 1
        for layer, empty in empties.items():
            self.empty_maps[layer] = self.empty_maps.get(layer, 0) + empty


def merged(parts: Iterable[Counts]) -> Counts:
    """The counts of several processes as one."""
    total = Counts()
    for part in parts:
        total.heatmaps += part.heatmaps
        for layer, count in part.empty_maps.items():
            total.empty_maps[layer] = total.empty_maps.get(layer, 0) + count
        total.non_finite = sorted(total.non_finite + part.non_finite)
        total.vanished = sorted(total.vanished + part.vanished)
    return total


def whole_samples(folder: Path) -> dict[int, dict[str, bool]]:
    """The samples that an earlier, killed run has left whole: index → layer → whether its map is empty."""
    found = {}
    for path in folder.iterdir():
        name = re.fullmatch(r"sample([0-9]+)", path.name)
        details = read_whole_sample(path, int(name[1])) if name else None
        if name and details is not None:
            found[int(name[1])] = {str(layer["name"]): bool(layer["empty"]) for layer in details["layers"]}
    return found


class _Part(NamedTuple):
    """Part of a batch, explained. `kept` are the positions in `frames` that have finite maps."""

    frames: Sequence[Frame]
    pixels: Tensor
    kept: list[int]
    explanation: Explanation | None
    drawn: list[list[LayerPicture]]


class Explainer:
    """Explains batches of one data set. Samples in `whole` are not written again."""

    def __init__(
        self,
        detector: LoadedDetector,
        predictions: Predictions,
        folder: Path,
        weights: str,
        writer: SampleWriter,
        whole: Mapping[int, Empties],
        predict: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> None:
        self.detector = detector
        self.predictions = predictions
        self.folder = folder
        self.weights = weights
        self.writer = writer
        self.whole = whole
        self.predict = predict
        self.counts = Counts()
        self._halving = Halving("explaining")

    def lacks(self, indices: Iterable[int]) -> bool:
        """Whether one of these frames, among those that could be read, has no whole sample yet."""
        return any(index not in self.whole for index in indices if index not in self.predictions.unreadable)

    def explain(self, batch: Batch, one_pass: bool, record: bool = False) -> None:
        """One batch.

        `one_pass`: no earlier pass has decided what a "predicted" target means. `record`: add its predictions.
        """
        parts = self._halving.run(
            lambda part: self._part(batch.frames[part], batch.pixels[part], one_pass), len(batch.frames)
        )
        for part in parts:
            if record:
                self._record(part)
            self._write(part)
            lost = (frame.index for i, frame in enumerate(part.frames) if i not in part.kept)
            self.counts.non_finite += [index for index in lost if self.predictions.seen[index]]
        if not record:
            gone = [(frame.index, reason) for frame, reason in batch.unreadable if frame.index not in self.whole]
            self.counts.vanished += [(i, reason) for i, reason in gone if i not in self.predictions.unreadable]

    def _part(self, frames: Sequence[Frame], pixels: Tensor, one_pass: bool) -> _Part:
        gradcam = self.detector.gradcam
        label = torch.tensor([frame.label for frame in frames])
        target: list[str | int] = [gradcam.target] * len(frames)
        if not one_pass and gradcam.target == "predicted":
            target = [self.predictions.predicted(frame.index) for frame in frames]
        explanation, kept = self.detector.explain_finite(pixels, label, target)
        drawn: list[list[LayerPicture]] = []
        if explanation is not None:
            on_device = pixels[kept].to(self.detector.device)
            drawn = layer_pictures(on_device, explanation.layers, gradcam.colormap, gradcam.signed)
        return _Part(frames, pixels, kept, explanation, drawn)

    def _record(self, part: _Part) -> None:
        if part.explanation is not None and len(part.kept) == len(part.frames):
            self.predictions.add(part.frames, part.explanation.logits, part.explanation.prediction["prob"])
        else:  # the pass that gave finite maps left some frames out
            self.predictions.add(part.frames, *self.predict(part.pixels))

    def _write(self, part: _Part) -> None:
        if part.explanation is None:
            return
        for position, target, layers in zip(part.kept, part.explanation.target, part.drawn):
            frame = part.frames[position]
            if frame.index in self.whole or not self.predictions.seen[frame.index]:
                continue
            self.counts.add_sample({layer.name: layer.empty for layer in layers})
            picture = part.pixels[position].permute(1, 2, 0).numpy()
            self.writer.write(self.folder / f"sample{frame.index}", self._sample(frame, picture, target, layers))

    def _sample(self, frame: Frame, picture: np.ndarray, target: str, layers: list[LayerPicture]) -> Sample:
        real, fake = self.predictions.logits[frame.index]
        return Sample(
            index=frame.index,
            path=frame.path,
            dataset=frame.dataset,
            forgery=frame.forgery,
            video=frame.video,
            label=frame.label,
            logits=(float(real), float(fake)),
            prob_fake=float(self.predictions.prob_fake[frame.index]),
            target=self._target_text(target),
            method=self.detector.gradcam.method,
            site=self.detector.model.gradcam_site(),
            weights=self.weights,
            picture=picture,
            layers=layers,
        )

    def _target_text(self, class_name: str) -> str:
        if self.detector.gradcam.signed:
            return SIGNED_TARGET
        asked = self.detector.gradcam.target
        return asked if asked == class_name else f"{asked} ({class_name})"
