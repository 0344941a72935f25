"""A detector with its weights on its device, for batches of decoded images."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base.allowed import AUTO, TRANSPLANT
from ..base.errors import InputError
from ..base.text import one_line
from ..data.frame import Frame
from ..engine.checks import Checks
from ..engine.frozen import plain_forward
from ..engine.heads import Head, HeadReader, Prediction
from ..engine.maps import NonFiniteMapError
from ..engine.outputs.probabilities import Reading
from ..engine.spatial_layers import SpatialLayer
from ..engine.targets import Target
from ..engine.towers.tower import Structure
from ..explaining.clips.one_pass import explain_clips
from ..explaining.clips.subject import ClipSubject
from ..explaining.explanation import Explanation
from ..explaining.images import Batch
from ..explaining.one_pass import IMAGE, Asked, Pending, explained_in
from ..explaining.precision import faster_precision
from ..explaining.real_tokens import bank_of
from ..explaining.subject import Subject
from ..settings.config import DetectorSettings
from ..settings.config_values import GradCAMSettings
from .clip_tower import activation_of
from .host.inputs import HostInputs, nothing_collected

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Scores(NamedTuple):
    """Of B images: real and fake (B, 2), with two logits these; margin (B,) float32; probability of fake (B,)."""

    real_and_fake: Tensor
    margin: Tensor
    prob_fake: Tensor


NOTHING: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedDetector:
    """A detector in evaluation mode on its device. `precision` is one of PRECISIONS.

    `weights_sha256`: of the file's bytes or, of a model that a function built, of its state dict; "" if random.
    `compiled_model` is the model through torch.compile, for predictions of `compiled_size` images alone: explaining
    hooks into the model itself, and another batch size would be compiled anew, for minutes.
    """

    model: Any
    device: torch.device
    precision: str
    settings: DetectorSettings
    weights_sha256: str = ""
    compiled_model: Any = None
    compiled_size: int = 0
    reading: Reading = field(default_factory=Reading)

    @property
    def gradcam(self) -> GradCAMSettings:
        """How to explain: the model's own settings, where it has heatmaps; nothing in them is left to be chosen."""
        return self.model.drawn_settings() if hasattr(self.model, "drawn_settings") else self.settings.gradcam

    def facts(self) -> dict[str, str]:
        """What the scores depend on and no checkpoint shows, in words; `classes` where they are not real and fake."""
        activation, classes = activation_of(self.model), self.settings.gradcam.classes
        found = {"activation": f"{activation} (assumed, no checkpoint shows it)"} if activation else {}
        for key, values in (("mean", self.settings.gradcam.mean), ("std", self.settings.gradcam.std)):
            default = "" if key in self.settings.config else " (default)"
            found[key] = " ".join(f"{value:g}" for value in values) + default
        if classes is not None:
            found["classes"] = ", ".join(f"{name} ({'fake' if fake else 'real'})" for name, fake in classes.items())
        return found

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) → float32 on the device, (x / 255 - mean) / std."""
        divisor, mean, std = _divisor_mean_std(self.settings.gradcam.mean, self.settings.gradcam.std, self.device)
        on_device = pixels.to(self.device, non_blocking=True)
        # In the order of channels that detectors are written for: another one may take another kernel, and other bits.
        plain = torch.empty(pixels.shape, device=self.device).copy_(on_device)
        return plain.div_(divisor).sub_(mean).div_(std)

    def as_subject(self) -> Subject:
        """This detector as all that explains it sees it: of normalised images, in its precision."""
        subject: Subject = self.model.as_subject()
        return replace(subject, predict=self._evaluated, reading=self.reading)

    def as_clip_subject(self) -> ClipSubject:
        """As `as_subject`, of a detector that reads clips."""
        subject: ClipSubject = self.model.as_clip_subject()
        return replace(subject, predict=self._evaluated, reading=self.reading)

    def _evaluated(self, batch: Batch) -> Any:
        data = batch if isinstance(batch, HostInputs) else self.inputs(batch["image"])
        with self._as_evaluated():
            return self.model.evaluated(data)

    @property
    def found_layer(self) -> SpatialLayer | None:
        """The layer of a registered detector that a pass had to find; None where none was looked for."""
        if self.settings.clip_size is not None:
            return None
        found: SpatialLayer | None = self.model.tower.known("default layer")
        return None if self.settings.build else found

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the detector's own arithmetic; maps are always computed in float32."""
        plain = self.precision == "fp32"
        return nullcontext() if plain else torch.autocast(self.device.type, dtype=DTYPES[self.precision])

    @contextmanager
    def _as_evaluated(self) -> Iterator[None]:
        with self.autocast(), nothing_collected(self.model):
            yield

    def inputs(self, image: Tensor, frames: Sequence[Frame] | None = None) -> HostInputs:
        """Normalised images → what the model is given: the image, and what it may ask for beside it of `frames`."""
        settings, labels = self.settings.gradcam, self.settings.config.get("label_dict")
        return HostInputs({"image": image}, self.settings.model_name, settings.mean, settings.std, frames, labels)

    def predict(self, pixels: Tensor, frames: Sequence[Frame] | None = None) -> tuple[Tensor, Tensor]:
        """uint8 images → scores (B, 2) for real and fake and probability of fake (B,), no graph recorded.

        `frames`, where they belong to a dataset: some detectors read a frame's label or mask, too.
        """
        with torch.no_grad():
            model = self.compiled_model if len(pixels) == self.compiled_size else self.model
            scores = self.scores(self.normalised(pixels), model, frames)
        return scores.real_and_fake, scores.prob_fake

    def scores(self, images: Tensor, model: Any = None, frames: Sequence[Frame] | None = None) -> Scores:
        """Normalised images (B, 3, H, W) → what the head says of them; differentiable. `model`: None means its own."""
        prediction, head = self._read(self.inputs(images, frames), model)
        logits = prediction["cls"]
        return Scores(head.real_and_fake(logits), head.margin(logits.float()), prediction["prob"])

    def features(self, pixels: Tensor, frames: Sequence[Frame] | None = None) -> Tensor:
        """uint8 images → what the head reads, (B, D) float32, maps averaged. Raises InputError for no "feat"."""
        with torch.no_grad(), self._as_evaluated():
            output = self.model(self.inputs(self.normalised(pixels), frames), inference=True)
        found = output.get("feat") if isinstance(output, Mapping) else None
        if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(pixels):
            raise InputError(
                f"--save_features: detector {self.settings.model_name!r} returns no features of its images under"
                " 'feat'; leave --save_features out"
            )
        return (found.flatten(2).mean(dim=2) if found.ndim > 2 else found).float()

    def _read(self, data: HostInputs, model: Any = None) -> tuple[Prediction, Head]:
        """What the model, or a compiled one, says of `data`."""
        own = self.model if model is None or not self.reading.known else model
        gradcam, name = self.settings.gradcam, f"detector {self.settings.model_name!r}"

        def predict(images: Tensor) -> Any:
            return own(data if images is data["image"] else self.inputs(images), inference=True)

        # What a compiled part of a model computes cannot be followed to what made its output.
        followed = nullcontext() if self.reading.known else plain_forward(Structure(self.model))
        with followed, self._as_evaluated():
            output = self.reading.output(predict, data["image"], name)
        size = self.settings.clip_size
        clips = f"{size} frames of {self.settings.resolution} pixels" if size else ""
        return HeadReader(name, gradcam.classes, gradcam.labels, len(data["image"]), clips).read(output)

    def explain(
        self, pixels: Tensor, label: Tensor | None = None, target: Target | None = None, completeness: bool = True
    ) -> Explanation:
        """As `begin_explaining`, and its result. Errors as `GradCAMMixin.explain`."""
        return self.begin_explaining(pixels, label, target, completeness=completeness).result()

    def begin_explaining(
        self,
        pixels: Tensor,
        label: Tensor | None = None,
        target: Target | None = None,
        frames: Sequence[Frame] | None = None,
        beside: Mapping[str, Tensor] = NOTHING,
        completeness: bool = True,
    ) -> Pending:
        """uint8 images → logits and maps from one forward pass, handed to the device and not waited for.

        `label` (B,) is for target "label"; `target` None means the configured one. `frames` as for `predict`;
        `beside`, by name: `reference`, uint8 as `pixels`, for method "transplant"; `paired_real`, uint8 too, the real
        frames that these were made from, and `has_pair` (B,) bool. `completeness` as for `GradCAMMixin.explain`.
        """
        data = self.inputs(self.normalised(pixels), frames)
        for name, tensor in beside.items():
            data[name] = self.normalised(tensor) if tensor.dtype == torch.uint8 else tensor
        if frames is not None:
            data["video"] = [frame.whole_video for frame in frames]
        if label is not None:
            data["label"] = label.to(self.device)

        if self.settings.clip_size is not None:
            clips = self.as_clip_subject()
            drawn = Asked(clips.all_drawn(), clips.target if target is None else target)
            return Pending(lambda checks: explain_clips(clips, data, drawn, IMAGE))
        subject = self.as_subject()
        asked = Asked(subject.all_drawn(), subject.target if target is None else target, completeness)

        def explained(checks: Checks) -> Explanation:
            with self._as_evaluated():
                return explained_in(subject, data, asked, IMAGE, checks)

        return Pending(explained)

    def explain_finite(
        self,
        pixels: Tensor,
        target: Sequence[str | int],
        frames: Sequence[Frame] | None = None,
        beside: Mapping[str, Tensor] = NOTHING,
        completeness: bool = True,
        begun: Pending | None = None,
    ) -> tuple[Explanation | None, list[int]]:
        """As `explain`, without images whose maps are not finite; returns the positions that were kept.

        `begun`: what `begin_explaining` gave for the same arguments, without labels.
        """
        kept = list(range(len(pixels)))
        while kept:
            try:
                if begun is None:
                    some = None if frames is None else [frames[i] for i in kept]
                    others = {name: tensor[kept] for name, tensor in beside.items()}
                    targets = [target[i] for i in kept]
                    begun = self.begin_explaining(pixels[kept], None, targets, some, others, completeness)
                return begun.result(), kept
            except NonFiniteMapError as error:
                begun = None
                kept = [position for i, position in enumerate(kept) if i not in error.samples]
        return None, []

    def check_predictions(self) -> None:
        """Predict noise, twice. Raises InputError for a detector that fails on it, is random, or reads its labels."""
        noise, name = self.normalised(self._noise(2)), self.settings.model_name
        inputs = self.inputs(noise)
        first, again = self._tried(inputs), self._tried(self.inputs(noise))
        if not _same(first, again):
            raise InputError(
                f"detector {name!r} is random in evaluation mode: its logits for the same images differ by up to"
                f" {float((first - again).abs().max()):.3g} from pass to pass, so nothing about them can be measured or"
                " explained; switch off what draws random numbers where self.training is False"
            )
        try:  # the last batch of a data set may hold one image alone, which some hosts' `.squeeze()` takes out of it
            self._tried(self.inputs(noise[:1]))
        except InputError:
            if not hasattr(self.model, "loses_batch_of_one"):
                raise
            self.model.loses_batch_of_one = True
            self._tried(self.inputs(noise[:1]))
        if "label" in inputs:  # it has asked
            relabelled = self.inputs(noise)
            relabelled["label"] = 1 - inputs["label"]
            if not _same(first, self._tried(relabelled)):
                raise InputError(
                    f"detector {name!r} gives other logits where data_dict['label'] is another: it is told the answer,"
                    " so it cannot be evaluated"
                )

    def check_features(self) -> None:
        """Raises InputError for a detector that has no features to save."""
        self.features(self._noise(1))

    def _tried(self, data: HostInputs) -> Tensor:
        """Logits, float32. Raises InputError for whatever the host's own code raises."""
        try:
            with torch.no_grad():
                prediction, _ = self._read(data)
            return prediction["cls"].float()
        except (InputError, MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            raise InputError(
                f"detector {self.settings.model_name!r} does not run on images of shape {tuple(data['image'].shape)}:"
                f" {type(error).__name__}: {one_line(error)}"
            ) from error

    def dry_run(self) -> None:
        """Explain one image of noise, so that an unusable layer is refused before hours of evaluation."""
        if self.settings.gradcam.recipe.method != TRANSPLANT:  # it reads no layer and takes hundreds of passes an image
            with self._bank_of_noise() if self.settings.gradcam.compares else nullcontext():
                self.explain_finite(self._noise(1), ["margin"])

    @contextmanager
    def _bank_of_noise(self) -> Iterator[None]:
        """Within, "contrast" has something to compare with; real images are known later."""
        known = self.model.gradcam_bank
        self.model.gradcam_bank = bank_of(self.as_subject(), self.normalised(self._noise(1)), ["noise"])
        try:
            yield
        finally:
            self.model.gradcam_bank = known

    def compiled(self, batch_size: int) -> LoadedDetector:
        """The same with predictions through torch.compile. Takes minutes. Raises InputError where it does not work."""
        faster = replace(self, compiled_model=torch.compile(self.model), compiled_size=batch_size)
        try:
            faster.predict(self._noise(batch_size))
        except Exception as error:  # of the compiler, of the C++ compiler it calls, of Triton
            raise InputError(f"torch.compile does not work here ({one_line(error)})", "compile") from error
        return faster

    def _noise(self, count: int) -> Tensor:
        frames = () if self.settings.clip_size is None else (self.settings.clip_size,)
        size = (count, *frames, 3, self.settings.resolution, self.settings.resolution)
        return torch.randint(64, 192, size, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@functools.cache
def _divisor_mean_std(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, ...]:
    """On the device, once: each transfer of a number makes the device wait.

    CUDA divides by a tensor exactly as the CPU does, but multiplies by the reciprocal of a Python number, which moves
    the last bit.
    """
    divisor = torch.tensor(255.0, device=device)
    return divisor, *(torch.tensor(values, device=device).view(3, 1, 1) for values in (mean, std))


def _same(first: Tensor, second: Tensor) -> bool:
    """But for the rounding of kernels that add in no fixed order."""
    return torch.allclose(first, second, rtol=1e-2, atol=1e-3, equal_nan=True)


def print_choices(detector: LoadedDetector) -> None:
    """Say which layer a pass has found where none was named, and what "auto" is for the backward pass."""
    layer = detector.found_layer
    if layer is not None:
        print(
            f"layer {layer.name} ({layer.shape}) is explained: the last activation on a grid that the score depends on;"
            " others by gradcam_layers"
        )
    if detector.gradcam.backward_precision == AUTO:
        chosen, gain = faster_precision(detector.device.type)
        faster = f": its products are {gain:.1f} times faster here" if gain > 1 else ": nothing is faster here"
        print(f"backward precision {chosen}{faster}")
