"""Explain batches: make samples, or say why an image has none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..base.allowed import TRANSPLANT
from ..data.clips import Clip, parts_of
from ..data.frame import Frame
from ..data.frame_paths import Stamp
from ..data.frames import Batch
from ..drawing.clips import ClipImage, DrawnClips, clip_images, mosaic_of
from ..drawing.overlays import DrawnLayers, LayerImage, layer_images
from ..engine.checks import FromDevice
from ..explaining.checking import MapChecker, verdicts_of
from ..explaining.clips.checking import ClipChecker
from ..explaining.clips.explanation import ClipExplanation
from ..explaining.explanation import Explanation
from ..explaining.one_pass import Pending
from ..judge.check import ARTEFACT, MapCheck
from ..judge.clips.time import FROZEN_SENTENCE, READS_ORDER, OrderTest
from ..measure.counterparts import RealCounterparts
from ..model.detector import LoadedDetector
from ..store.sample import Sample
from ..store.sample_folder import RenderedSample
from ..store.sample_writer import NON_FINITE, SampleWriter, Spans
from .disturbances import SplitOnOutOfMemory, is_out_of_memory
from .predictions import Resume


class _PendingBatch(NamedTuple):
    """A batch whose maps and overlays the device is computing; `numbers` and `drawn` are being copied from it."""

    targets: Sequence[str | int]
    beside: Mapping[str, Tensor]  # what these are compared with: see `LoadedDetector.begin_explaining`
    pending: Pending
    numbers: FromDevice  # logits, scores for real and fake, P(fake) of `pending.unchecked`
    drawn: DrawnLayers | DrawnClips  # drawings of `pending.unchecked`


class _Part(NamedTuple):
    """An explained part of a batch."""

    frames: Sequence[Frame]
    pixels: Tensor
    scores: tuple[Tensor, Tensor]  # on the CPU: real and fake (B, 2), P(fake) (B,)
    drawn: list[RenderedSample]  # frames whose maps are finite
    spans: Spans


class ClipFacts(NamedTuple):
    """For a clip detector: the dataset's clips, and whether the detector uses their order."""

    clips: Sequence[Clip] = ()
    order: OrderTest | None = None

    def costs(self, explanation: Explanation) -> list[tuple[float, ...]]:
        """Measure what replacing each frame costs the explained class, for each clip: windows if order is read."""
        assert isinstance(explanation, ClipExplanation), "of clips"
        reads_order = self.order is not None and self.order.word == READS_ORDER
        cost = explanation.cost_of_windows() if reads_order else explanation.cost()
        return [
            tuple((-of_clip if target == "real" else of_clip).tolist())
            for of_clip, target in zip(cost, explanation.target, strict=True)
        ]

    def sample(self, sample: Sample, cost: tuple[float, ...]) -> Sample:
        """Add the numbers of the clip's frames, their cost, and the result of the order test."""
        lines = self.order.lines() if self.order else []
        numbers = tuple(self.clips[sample.index].numbers)
        return replace(sample, frames=numbers, cost=cost, chosen=(*sample.chosen, *lines))

    def layers(self, layers: Sequence[LayerImage], cost: tuple[float, ...]) -> list[LayerImage]:
        """Add the frames' cost, and the reason to the curves over time that are drawn grey."""
        why = FROZEN_SENTENCE if self.order and self.order.freezing_costs_nothing else ""
        return [replace(layer, grey=why, cost=cost) if isinstance(layer, ClipImage) else layer for layer in layers]


class Explainer:
    """Explains batches of one dataset. Complete samples from an earlier, killed run are not written again.

    `counterparts`: finds the real frame that each fake is compared with, the one it was made from; None: no such
    comparison. `judges`: whether maps get a verdict; without a checker it follows only from the contrast with real
    images. `shown`: what samples of a clip detector also show.
    """

    def __init__(
        self,
        detector: LoadedDetector,
        resume: Resume,
        writer: SampleWriter,
        predict: Callable[[Tensor, Sequence[Frame]], tuple[Tensor, Tensor]],
        checker: MapChecker | ClipChecker | None = None,
        counterparts: RealCounterparts | None = None,
        judges: bool = True,
        shown: ClipFacts | None = None,
    ) -> None:
        self.detector, self.gradcam = detector, detector.gradcam
        self.resume, self.predictions = resume, resume.predictions
        self.writer, self.predict = writer, predict
        self.checker, self.counterparts, self.judges = checker, counterparts, judges
        self.shown = shown or ClipFacts()
        self._memory = SplitOnOutOfMemory("explaining")
        self._begins = True

    def begin(self, batch: Batch, targets: Sequence[str | int]) -> _PendingBatch | None:
        """Launch a batch without synchronising. Return None if two batches in flight might not fit into memory."""
        if not batch.frames or not self._begins or self._memory.most is not None:
            return None
        try:
            return self._begin(batch.frames, batch.pixels, targets)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._begins = False
        return None

    def _begin(self, frames: Sequence[Frame], pixels: Tensor, targets: Sequence[str | int]) -> _PendingBatch:
        beside = self._beside(frames, pixels)
        # Replace "label" by the frame's label, so that it need not be read from the device.
        pairs = zip(targets, frames, strict=True)
        targets = [int(frame.label != 0) if target == "label" else target for target, frame in pairs]
        pixels = pixels.to(self.detector.device, non_blocking=True)
        pending = self.detector.begin_explaining(pixels, None, targets, frames, beside, self.checker is not None)
        return _PendingBatch(targets, beside, pending, *self._sent(pending.unchecked, pixels))

    def _beside(self, frames: Sequence[Frame], pixels: Tensor) -> Mapping[str, Tensor]:
        if self.counterparts is None:
            return {}
        if self.gradcam.recipe.method == TRANSPLANT:
            return {"reference": self.counterparts.references(frames, pixels)}
        if self.shown.clips:
            every = [frame for part in parts_of(frames, self.shown.clips) for frame in part]
            reals = self.counterparts.of(every, pixels.flatten(0, 1)).in_clips(pixels.shape[1])
        else:
            reals = self.counterparts.of(frames, pixels)
        return {"paired_real": reals.pixels, "has_pair": reals.paired} if any(reals.paired.cpu().tolist()) else {}

    def _sent(self, explanation: Explanation, pixels: Tensor) -> tuple[FromDevice, DrawnLayers | DrawnClips]:
        numbers = FromDevice([explanation.logits, explanation.real_and_fake, explanation.prob_fake])
        how = self.gradcam.colormap, self.gradcam.signed
        if pixels.ndim == 5:
            return numbers, DrawnClips(clip_images(pixels, explanation.layers, *how))
        return numbers, DrawnLayers(pixels, explanation.layers, *how, kinds=explanation.kinds)

    def predict_and_explain(self, batch: Batch, begun: _PendingBatch | None = None) -> None:
        """Record logits and write maps from the same forward pass."""
        for part in self._parts(batch, [self.gradcam.target] * len(batch.frames), begun):
            if len(part.drawn) == len(part.frames):
                self.predictions.add(part.frames, *part.scores)
            else:  # frames with NaN or infinite maps were left out of that pass
                self.predictions.add(part.frames, *self.predict(part.pixels, part.frames))
            self._write(part)

    def explain(self, batch: Batch, targets: Sequence[str | int], begun: _PendingBatch | None = None) -> None:
        """Write the maps of frames with recorded predictions, for one target per frame."""
        replaced = [f for f in batch.frames if not self.predictions.is_same_image(f.index, batch.stamps[f.index])]
        gone = [*batch.unreadable, *((frame, f"replaced by another image: {frame.path!r}") for frame in replaced)]
        for part in self._parts(batch, targets, begun):
            self._write(part, {frame.index for frame in replaced})
        for frame, reason in gone:
            if self.resume.lacks_sample(frame.index):
                self.writer.lose(frame.dataset, frame.index, reason)

    def _parts(self, batch: Batch, targets: Sequence[str | int], begun: _PendingBatch | None) -> list[_Part]:
        """Explain the batch in as many parts as memory requires."""

        def explain(part: slice) -> _Part:
            frames, pixels = batch.frames[part], batch.pixels[part]
            whole = len(frames) == len(batch.frames)  # only the whole batch was launched
            started = begun if begun and whole else self._begin(frames, pixels, targets[part])
            return self._explain(frames, pixels, batch.stamps, started)

        return self._memory.run(explain, len(batch.frames))

    def _explain(
        self, frames: Sequence[Frame], pixels: Tensor, stamps: Mapping[int, Stamp], begun: _PendingBatch
    ) -> _Part:
        explanation, kept = self.detector.explain_finite(
            pixels, begun.targets, frames, begun.beside, self.checker is not None, begun=begun.pending
        )
        if explanation is None:
            return _Part(frames, pixels, (torch.empty(0, 2), torch.empty(0)), [], {})
        numbers, drawn_layers = begun.numbers, begun.drawn
        if explanation is not begun.pending.unchecked:
            numbers, drawn_layers = self._sent(explanation, pixels[kept].to(self.detector.device))
        logits, scores, probabilities = numbers.read()
        images = drawn_layers.read()
        kept_frames = [frames[position] for position in kept]
        checks = checks_of(self.checker, explanation, kept_frames) if self.judges else {}
        costs = self.shown.costs(explanation) if self.shown.clips and self.checker and self.judges else []
        if any(map(any, denied_maps(checks).values())):
            images = drawn_on(self.detector, pixels[kept], explanation, checks)
        explanation = replace(explanation, prediction={**explanation.prediction, "cls": logits, "prob": probabilities})
        settings, choice = self.detector.settings, self.detector.model.gradcam_choice
        drawn = []
        for i, (position, layers) in enumerate(zip(kept, images, strict=True)):
            frame, of_image = frames[position], {layer: found[i] for layer, found in checks.items()}
            content = stamps[frame.index].content
            sample = Sample.of(frame, explanation, i, layers, settings, choice, of_image, content)
            has_pair = begun.beside.get("has_pair")
            if self.counterparts is not None and has_pair is not None and has_pair[position] and not self.shown.clips:
                sample = replace(sample, paired_real=self.counterparts.path(frame) or "")
            if self.shown.clips:
                cost = costs[i] if costs else ()
                shown = self.shown.sample(sample, cost), mosaic_of(pixels[position]), self.shown.layers(layers, cost)
                drawn.append(RenderedSample(*shown))
            else:
                drawn.append(RenderedSample(sample, pixels[position].permute(1, 2, 0).numpy(), layers))
        spans = {name: maps.canvas.spanned for name, maps in explanation.layers.items()}
        if self.shown.clips and drawn:
            high, wide = drawn[0].image.shape[:2]
            spans = dict.fromkeys(spans, (high, wide))
        return _Part(frames, pixels, (scores, probabilities), drawn, spans)

    def _write(self, part: _Part, without: Collection[int] = ()) -> None:
        """Queue the missing samples, with the recorded predictions, except for the frames `without`."""
        recorded = self.predictions
        for sample, image, layers, _ in part.drawn:
            if self.resume.lacks_sample(sample.index) and sample.index not in without:
                real, fake = recorded.logits[sample.index].tolist()
                prob_fake = float(recorded.prob_fake[sample.index])
                sample = replace(sample, logit_real=real, logit_fake=fake, prob_fake=prob_fake)
                self.writer.write(RenderedSample(sample, image, layers), part.spans)
        finite = {drawn.sample.index for drawn in part.drawn}
        for frame in part.frames:
            if frame.index not in finite and frame.index not in recorded.unreadable:
                self.writer.lose(frame.dataset, frame.index, NON_FINITE)


def checks_of(
    checker: MapChecker | ClipChecker | None, explanation: Explanation, frames: Sequence[Frame]
) -> Mapping[str, list[MapCheck]]:
    """Return the checks of each layer, one per frame. Without a checker they come from the explanation itself."""
    if checker is None:
        return verdicts_of(explanation)
    seeds, videos = [frame.index for frame in frames], [frame.whole_video for frame in frames]
    return checker.checks(explanation.images, explanation, seeds, videos)


def denied_maps(checks: Mapping[str, Sequence[MapCheck]]) -> dict[str, list[bool]]:
    """Tell for each layer and image whether the verdict is artefact."""
    return {layer: [check.word == ARTEFACT for check in of_images] for layer, of_images in checks.items()}


def drawn_on(
    detector: LoadedDetector, pixels: Tensor, explanation: Explanation, checks: Mapping[str, Sequence[MapCheck]]
) -> list[list[LayerImage]]:
    """Draw overlays of uint8 images (B, 3, H, W): a list of layers per image. An artefact is drawn grey."""
    gradcam, on_device = detector.gradcam, pixels.to(detector.device)
    denied, kinds = denied_maps(checks), explanation.kinds
    if pixels.ndim == 5:
        return clip_images(on_device, explanation.layers, gradcam.colormap, gradcam.signed, denied)
    return layer_images(on_device, explanation.layers, gradcam.colormap, gradcam.signed, denied, kinds)


def explain_images(
    detector: LoadedDetector,
    pixels: Tensor,
    checker: MapChecker | None = None,
    seeds: Sequence[int] = (),
    judges: bool = False,
) -> tuple[Explanation, list[list[LayerImage]], Mapping[str, list[MapCheck]]]:
    """Explain, draw and check uint8 images (B, 3, H, W) without a dataset. `seeds`: one per image, for the check.
    `judges`: without a checker, maps get the verdict that follows from the contrast with real images, if there is one.

    Returns the explanation, a list of layers per image, and the checks by layer.
    """
    explanation = detector.explain(pixels, completeness=checker is not None)
    without_pass = verdicts_of(explanation) if judges else {}
    checks = checker.checks(explanation.images, explanation, seeds) if checker else without_pass
    return explanation, drawn_on(detector, pixels, explanation, checks), checks
