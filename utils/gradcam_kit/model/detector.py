"""A loaded detector on its device, for batches of decoded images."""

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
from ..engine.frozen import Structure, plain_forward
from ..engine.heads import Head, HeadReader, Prediction, Target
from ..engine.maps import NonFiniteMapError
from ..engine.outputs.probabilities import Reading
from ..engine.spatial_layers import SpatialLayer
from ..explaining.clips.one_pass import explain_clips
from ..explaining.clips.subject import ClipSubject
from ..explaining.explanation import Explanation
from ..explaining.images import Batch
from ..explaining.one_pass import IMAGE, BatchRequest, Pending, explained_in
from ..explaining.precision import faster_precision
from ..explaining.real_tokens import bank_of
from ..explaining.subject import Subject
from ..settings.config import DetectorSettings
from ..settings.config_values import GradCAMSettings
from .clip_tower import activation_of
from .host.inputs import HostInputs

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Scores(NamedTuple):
    """Scores of B images: real and fake (B, 2), the logits if there are two; margin (B,) float32; P(fake) (B,)."""

    real_and_fake: Tensor
    margin: Tensor
    prob_fake: Tensor


NOTHING: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedDetector:
    """A detector in evaluation mode on its device. `precision` is one of PRECISIONS.

    `weights_sha256`: hash of the weights file, or of the state dict if a function built the model; "" if random.
    `compiled_model` is the model through torch.compile. It only predicts batches of `compiled_size` images: explaining
    needs hooks in the model itself, and another batch size would be compiled again, which takes minutes.
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
        """The settings for explaining, with nothing left to choose: the model's own, if it has heatmaps."""
        return self.model.drawn_settings() if hasattr(self.model, "drawn_settings") else self.settings.gradcam

    def facts(self) -> dict[str, str]:
        """Return what scores depend on but checkpoints do not record, in words; `classes` if not just real and fake."""
        activation, classes = activation_of(self.model), self.settings.gradcam.classes
        found = {"activation": f"{activation} (assumed; checkpoints do not record it)"} if activation else {}
        for key, values in (("mean", self.settings.gradcam.mean), ("std", self.settings.gradcam.std)):
            default = "" if key in self.settings.config else " (default)"
            found[key] = " ".join(f"{value:g}" for value in values) + default
        if classes is not None:
            found["classes"] = ", ".join(f"{name} ({'fake' if fake else 'real'})" for name, fake in classes.items())
        return found

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 images (B, 3, H, W) to float32 on the device: (x / 255 - mean) / std."""
        divisor, mean, std = _divisor_mean_std(self.settings.gradcam.mean, self.settings.gradcam.std, self.device)
        on_device = pixels.to(self.device, non_blocking=True)
        # Channels first in memory: another layout may select another kernel and change the last bits.
        plain = torch.empty(pixels.shape, device=self.device).copy_(on_device)
        return plain.div_(divisor).sub_(mean).div_(std)

    normalised = normalise  # its name until 1.4

    def as_subject(self) -> Subject:
        """Return the detector as a Subject for normalised images, in its precision."""
        return replace(self.model.as_subject(), predict=self._evaluated, reading=self.reading)

    def as_clip_subject(self) -> ClipSubject:
        """Return a clip detector as a ClipSubject for normalised clips, in its precision."""
        return replace(self.model.as_clip_subject(), predict=self._evaluated, reading=self.reading)

    def _evaluated(self, batch: Batch) -> Any:
        data = batch if isinstance(batch, HostInputs) else self.inputs(batch["image"])
        with self._as_evaluated():
            return self.model.evaluated(data)

    @property
    def found_layer(self) -> SpatialLayer | None:
        """The layer that a pass found for a registered detector; None if none was searched for."""
        if self.settings.clip_size is not None or self.settings.build:
            return None
        return self.model.tower.known("default layer")

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context with the detector's precision. Maps are always float32."""
        return nullcontext() if self.precision == "fp32" else torch.autocast(self.device.type, DTYPES[self.precision])

    @contextmanager
    def _as_evaluated(self) -> Iterator[None]:
        lists = [(value, len(value)) for value in vars(self.model).values() if isinstance(value, list)]
        try:
            with self.autocast():
                yield
        finally:
            for value, length in lists:  # some hosts' detectors append in every pass
                del value[length:]

    def inputs(self, image: Tensor, frames: Sequence[Frame] | None = None) -> HostInputs:
        """Return the model's input for normalised images (B, 3, H, W), with data of `frames` that it may read."""
        settings, labels = self.settings.gradcam, self.settings.config.get("label_dict")
        return HostInputs({"image": image}, self.settings.model_name, settings.mean, settings.std, frames, labels)

    def predict(self, pixels: Tensor, frames: Sequence[Frame] | None = None) -> tuple[Tensor, Tensor]:
        """Predict uint8 images (B, 3, H, W) without a graph: scores for real and fake (B, 2), P(fake) (B,) in [0, 1].

        `frames`: the images' frames, if they belong to a dataset. Some detectors also read a frame's label or mask.
        """
        with torch.no_grad():
            model = self.compiled_model if len(pixels) == self.compiled_size else self.model
            scores = self.scores(self.normalise(pixels), model, frames)
        return scores.real_and_fake, scores.prob_fake

    def scores(self, images: Tensor, model: Any = None, frames: Sequence[Frame] | None = None) -> Scores:
        """Score normalised images (B, 3, H, W); differentiable. `model`: a compiled one; None: the model itself."""
        prediction, head = self._read(self.inputs(images, frames), model)
        logits = prediction["cls"]
        return Scores(head.real_and_fake(logits), head.margin(logits.float()), prediction["prob"])

    def features(self, pixels: Tensor, frames: Sequence[Frame] | None = None) -> Tensor:
        """Return the head's input for uint8 images (B, 3, H, W): (B, D) float32; feature maps are averaged.

        Raises InputError if the detector returns no "feat".
        """
        with torch.no_grad(), self._as_evaluated():
            output = self.model(self.inputs(self.normalise(pixels), frames), inference=True)
        found = output.get("feat") if isinstance(output, Mapping) else None
        if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(pixels):
            raise InputError(
                f"--save_features: detector {self.settings.model_name!r} returns no features of its images under"
                " 'feat'; leave --save_features out"
            )
        return (found.flatten(2).mean(dim=2) if found.ndim > 2 else found).float()

    def _read(self, data: HostInputs, model: Any = None) -> tuple[Prediction, Head]:
        """Run the model, or a compiled one, on `data`."""
        own = self.model if model is None or not self.reading.known else model
        gradcam, name = self.settings.gradcam, f"detector {self.settings.model_name!r}"

        def predict(images: Tensor) -> Any:
            return own(data if images is data["image"] else self.inputs(images), inference=True)

        # The origin of an output cannot be traced through a compiled module.
        followed = nullcontext() if self.reading.known else plain_forward(Structure(self.model))
        with followed, self._as_evaluated():
            output = self.reading.output(predict, data["image"], name)
        clips = f"{size} frames of {self.settings.resolution} pixels" if (size := self.settings.clip_size) else ""
        return HeadReader(name, gradcam.classes, gradcam.labels, len(data["image"]), clips).read(output)

    def explain(
        self, pixels: Tensor, label: Tensor | None = None, target: Target | None = None, completeness: bool = True
    ) -> Explanation:
        """Explain uint8 images (B, 3, H, W) and wait for the result. Raises the errors of `GradCAMMixin.explain`."""
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
        """Launch one forward pass for logits and maps of uint8 images (B, 3, H, W), without waiting for the device.

        `label` (B,): for target "label". `target`: None means the configured one. `frames`: as for `predict`.
        `beside`, by name: `reference` (uint8 like `pixels`, for method "transplant"), `paired_real` (uint8 too, the
        real frames these were made from) and `has_pair` (B,) bool. `completeness`: as for `GradCAMMixin.explain`.
        """
        data = self.inputs(self.normalise(pixels), frames)
        for name, tensor in beside.items():
            data[name] = self.normalise(tensor) if tensor.dtype == torch.uint8 else tensor
        if frames is not None and self.model.gradcam_bank is not None:  # which skips an image's own video
            data["video"] = [frame.whole_video for frame in frames]
        if label is not None:
            data["label"] = label.to(self.device)
        subject = self.as_subject() if self.model.clip_size is None else self.as_clip_subject()
        request = BatchRequest(subject.all_drawn(), subject.target if target is None else target, completeness)

        def explain(checks: Checks) -> Explanation:
            if isinstance(subject, ClipSubject):
                return explain_clips(subject, data, request, IMAGE)
            with self.autocast():
                return explained_in(subject, data, request, checks)

        return Pending(explain)

    def explain_finite(
        self,
        pixels: Tensor,
        target: Sequence[str | int],
        frames: Sequence[Frame] | None = None,
        beside: Mapping[str, Tensor] = NOTHING,
        completeness: bool = True,
        begun: Pending | None = None,
    ) -> tuple[Explanation | None, list[int]]:
        """Explain uint8 images (B, 3, H, W) whose maps are finite. Return also the positions of these images.

        `begun`: the result of `begin_explaining` for the same arguments.
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
        """Predict noise twice. Raises InputError if the detector fails, is random, or reads its labels."""
        noise, name = self.normalise(self._noise(2)), self.settings.model_name
        inputs = self.inputs(noise)
        first, again = self._try_logits(inputs), self._try_logits(self.inputs(noise))
        if not _same(first, again):
            raise InputError(
                f"detector {name!r} is random in evaluation mode: its logits for the same images differ by up to"
                f" {float((first - again).abs().max()):.3g} from pass to pass, so they cannot be measured or"
                " explained; draw random numbers only if self.training is True"
            )
        try:  # some hosts' `.squeeze()` drops the batch dimension of a last batch with one image
            self._try_logits(self.inputs(noise[:1]))
        except InputError:
            if not hasattr(self.model, "loses_batch_of_one"):
                raise
            self.model.loses_batch_of_one = True
            self._try_logits(self.inputs(noise[:1]))
        if "label" in inputs:  # the detector has read it
            relabelled = self.inputs(noise)
            relabelled["label"] = 1 - inputs["label"]
            if not _same(first, self._try_logits(relabelled)):
                raise InputError(
                    f"detector {name!r} gives different logits if data_dict['label'] changes: it reads the label,"
                    " so it cannot be evaluated"
                )

    def check_features(self) -> None:
        """Raise InputError if the detector has no features to save."""
        self.features(self._noise(1))

    def _try_logits(self, data: HostInputs) -> Tensor:
        """Return the logits, float32 (B, K). Raises InputError for any error in the host's code."""
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
        """Explain one image of noise, so that an unusable layer raises before hours of evaluation."""
        if self.settings.gradcam.recipe.method != TRANSPLANT:  # reads no layer, and takes hundreds of passes
            with self._bank_of_noise() if self.settings.gradcam.compares else nullcontext():
                self.explain_finite(self._noise(1), ["margin"])

    @contextmanager
    def _bank_of_noise(self) -> Iterator[None]:
        """Give "contrast" a bank of noise inside the block, because real images are known only later."""
        known = self.model.gradcam_bank
        self.model.gradcam_bank = bank_of(self.as_subject(), self.normalise(self._noise(1)), ["noise"])
        try:
            yield
        finally:
            self.model.gradcam_bank = known

    def with_compiled(self, batch_size: int) -> LoadedDetector:
        """Return the detector with predictions through torch.compile. Takes minutes. Raises InputError if it fails."""
        faster = replace(self, compiled_model=torch.compile(self.model), compiled_size=batch_size)
        try:
            faster.predict(self._noise(batch_size))
        except Exception as error:  # from torch, the C++ compiler or Triton
            raise InputError(f"torch.compile does not work here ({one_line(error)})", "compile") from error
        return faster

    def _noise(self, count: int) -> Tensor:
        frames = () if self.settings.clip_size is None else (self.settings.clip_size,)
        size = (count, *frames, 3, self.settings.resolution, self.settings.resolution)
        return torch.randint(64, 192, size, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@functools.cache
def _divisor_mean_std(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Return 255, mean and std on the device, transferred once, because each transfer makes the device wait.

    With a tensor CUDA divides exactly as the CPU does. With a Python number it multiplies by the reciprocal, which
    changes the last bit.
    """
    divisor = torch.tensor(255.0, device=device)
    return divisor, *(torch.tensor(values, device=device).view(3, 1, 1) for values in (mean, std))


def _same(first: Tensor, second: Tensor) -> bool:
    """Compare logits, with a tolerance for kernels that add in no fixed order."""
    return torch.allclose(first, second, rtol=1e-2, atol=1e-3, equal_nan=True)


def print_choices(detector: LoadedDetector) -> None:
    """Print the layer that was found if none was named, and the precision that "auto" selected."""
    layer = detector.found_layer
    if layer is not None:
        print(
            f"explained layer: {layer.name} ({layer.shape}), the last grid of activations that the score depends on;"
            " gradcam_layers names others"
        )
    if detector.gradcam.backward_precision == AUTO:
        chosen, gain = faster_precision(detector.device.type)
        faster = f": matrix products are {gain:.1f} times faster here" if gain > 1 else ": nothing is faster here"
        print(f"backward precision {chosen}{faster}")
