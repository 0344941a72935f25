"""A detector with its weights on its device, for batches of decoded images."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, ContextManager, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor

from utils.cam.maps import NonFiniteMapError
from utils.cam.targets import Target
from utils.errors import InputError, did_you_mean
from utils.gradcam import Explanation
from utils.model.backbone_config import without_pretrained
from utils.model.checkpoints import load_weights
from utils.model.config import DetectorSettings
from utils.model.gradcam_settings import GradCAMSettings
from utils.model.host_registry import find_detectors
from utils.text import one_line

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class LoadedDetector(NamedTuple):
    """A detector in evaluation mode on its device. `precision` is one of PRECISIONS.

    `compiled_model` is the model through torch.compile, for predictions of `compiled_size` images alone: explaining
    hooks into the model itself, and another batch size would be compiled anew, for minutes.
    """

    model: Any
    device: torch.device
    precision: str
    settings: DetectorSettings
    compiled_model: Any = None
    compiled_size: int = 0

    @property
    def gradcam(self) -> GradCAMSettings:
        """How to explain: the model's own settings, where it has heatmaps; nothing in them is left to be chosen."""
        return self.model.drawn_settings() if hasattr(self.model, "drawn_settings") else self.settings.gradcam

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) → float32 on the device, (x / 255 - mean) / std.

        Divisors are tensors on the device: CUDA divides by a tensor exactly as the CPU does, but multiplies by the
        reciprocal of a Python number, which moves the last bit.
        """
        divisor = torch.tensor(255.0, device=self.device)
        mean = torch.tensor(self.gradcam.mean, device=self.device).view(3, 1, 1)
        std = torch.tensor(self.gradcam.std, device=self.device).view(3, 1, 1)
        return pixels.to(self.device, non_blocking=True).float().div(divisor).sub_(mean).div_(std)

    def autocast(self) -> ContextManager[Any]:
        """The precision of the detector's own arithmetic; maps are always computed in float32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=PRECISIONS[self.precision])

    def predict(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images → logits (B, 2) and probability of fake (B,), no graph recorded."""
        with torch.no_grad(), self.autocast():
            model = self.compiled_model if len(pixels) == self.compiled_size else self.model
            prediction = model({"image": self.normalised(pixels)}, inference=True)
        return prediction["cls"], prediction["prob"]

    def explain(self, pixels: Tensor, label: Tensor | None = None, target: Target | None = None) -> Explanation:
        """uint8 images → logits and maps from one forward pass. Errors as `GradCAMMixin.explain`.

        `label` (B,) is for target "label"; `target` None means the configured one.
        """
        data = {"image": self.normalised(pixels)}
        if label is not None:
            data["label"] = label.to(self.device)
        with self.autocast():
            return self.model.explain(data, target=target)

    def explain_finite(
        self, pixels: Tensor, label: Tensor | None, target: Sequence[str | int]
    ) -> tuple[Explanation | None, list[int]]:
        """As `explain`, but images whose maps are not finite are left out; returns the positions that were kept."""
        kept = list(range(len(pixels)))
        while kept:
            try:
                labels = None if label is None else label[kept]
                return self.explain(pixels[kept], labels, [target[i] for i in kept]), kept
            except NonFiniteMapError as error:
                kept = [position for i, position in enumerate(kept) if i not in error.samples]
        return None, []

    def dry_run(self) -> None:
        """Explain one image of noise, so that an unusable layer is refused before hours of evaluation."""
        self.explain_finite(self._noise(1), None, ["margin"])

    def compiled(self, batch_size: int) -> LoadedDetector:
        """The same with predictions through torch.compile. Takes minutes. Raises InputError where it does not work."""
        if not hasattr(torch, "compile"):
            raise InputError(f"torch.compile needs PyTorch 2.0 or newer, here is {torch.__version__}", "compile")
        faster = self._replace(compiled_model=torch.compile(self.model), compiled_size=batch_size)
        try:
            faster.predict(self._noise(batch_size))
        except Exception as error:  # of the compiler, of the C++ compiler it calls, of Triton
            raise InputError(f"torch.compile does not work here ({one_line(error)})", "compile") from error
        return faster

    def _noise(self, count: int) -> Tensor:
        resolution = self.settings.resolution
        size = (count, 3, resolution, resolution)
        return torch.randint(64, 192, size, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def find_device(name: str) -> torch.device:
    """ "auto", "cpu", "cuda" or "cuda:n" → a device that is there. Raises InputError; `auto` falls back to the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        print("device: cpu (no CUDA device found)")
        return torch.device("cpu")
    family, _, number = name.partition(":")
    if family not in ("cpu", "cuda") or (number and not (family == "cuda" and number.isdigit())):
        raise InputError(f"device is {name!r}; allowed: auto, cpu, cuda, cuda:<n>", "device")
    if family == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name!r}: PyTorch finds no CUDA device here; use cpu or auto", "device")
    if family == "cuda" and number and int(number) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(f"device {name!r}: there are {count} CUDA devices, numbered from 0", "device")
    return torch.device(name)


def check_precision(precision: str, device: torch.device) -> None:
    """Raises InputError where this torch cannot compute in that precision on that device; older ones lack fp16."""
    unit = torch.ones(1, 1, device=device)
    try:
        with torch.autocast(device.type, dtype=PRECISIONS[precision], enabled=precision != "fp32"):
            found = torch.nn.functional.linear(unit, unit).dtype
    except RuntimeError as error:
        raise InputError(f"precision {precision}: {one_line(error)}; use fp32 or bf16", "precision") from error
    if found != PRECISIONS[precision]:
        raise InputError(
            f"precision {precision} on {device.type} is not available in torch {torch.__version__}; use fp32 or bf16",
            "precision",
        )


def detector_class(model_name: str, explainable: bool, config: Mapping[str, Any]) -> Any:
    """The registered detector of that name; `clip` means `clip_gradcam`, which predicts exactly the same.

    `config` names the networks and losses that it needs. Raises InputError for an unknown name, and, if `explainable`,
    for a detector without heatmaps.
    """
    known = find_detectors(model_name, config)
    name = f"{model_name}_gradcam" if f"{model_name}_gradcam" in known else model_name
    if name not in known:
        raise InputError(
            f"model_name {model_name!r} is no registered detector; {did_you_mean(model_name, known)}"
            f"registered: {', '.join(sorted(known))}"
        )
    if explainable and not hasattr(known[name], "generate_gradcam"):
        with_maps = sorted(other for other in known if hasattr(known[other], "generate_gradcam"))
        raise InputError(f"model_name {model_name!r} has no heatmaps; detectors that have: {', '.join(with_maps)}")
    return known[name]


def load_detector(
    settings: DetectorSettings, device: torch.device, precision: str = "fp32", random_weights: bool = False
) -> LoadedDetector:
    """The detector with the weights of `settings.weights_path` or, if `random_weights`, with none.

    No pretrained tower is downloaded in either case: a weights file has to cover the whole model. Raises InputError.
    """
    if settings.weights_path is None and not random_weights:
        raise InputError(
            "no weights: weights_path is not set in the detector's YAML; give the checkpoint of the whole detector",
            "weights",
        )
    check_precision(precision, device)
    cls = detector_class(settings.model_name, settings.gradcam.enabled, settings.config)
    model: Any = cls(without_pretrained(settings.config))
    if hasattr(model, "gradcam"):
        model.gradcam = settings.gradcam  # the checked settings themselves, so that there is one object and no copy
    if settings.weights_path is not None:
        load_weights(model, settings.weights_path)
    return LoadedDetector(model.to(device).eval(), device, precision, settings)
