"""From settings and weights to a detector on its device, and from image files to its input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.errors import InputError, did_you_mean
from ..base.text import one_line
from ..data.images import UnreadableImage, decode_image, read_file
from ..explain.any_model import AnyModelWithGradCAM
from ..settings.backbone_config import without_pretrained
from ..settings.config import DetectorSettings, detector_settings, find_path
from .built_model import build_model
from .checkpoints import fill, sha256_of_state, translated
from .detector import DTYPES, LoadedDetector
from .fitted_config import fitted_config
from .host.registry import find_detectors, import_alone
from .weights_file import read_file as read_weights


def load_gradcam_detector(
    detector_path: str | Path, weights_path: str | Path | None = None, device: str = "auto", **settings: Any
) -> Any:
    """The detector of a YAML with its weights, in evaluation mode, heatmaps switched on.

        model = load_gradcam_detector("clip_gradcam.yaml", "weights.pth")
        explanation = model.explain(read_images(model, ["face.png"]))

    Args:
        detector_path: its YAML, looked for from the working directory and from the training folder.
        weights_path: checkpoint of the whole detector, .pth or .safetensors; None: what the YAML names.
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:<n>".
        settings: keys of the YAML to be set otherwise, for example `gradcam_method="hirescam"`.

    Returns:
        An nn.Module with `explain`, `generate_gradcam`, `show_gradcam` and the rest of
        `explain.mixin.GradCAMMixin`.

    Raises:
        InputError: the YAML, the weights or a setting is missing or unusable.
    """
    yaml_path = find_path(detector_path, "detector YAML", "detector_path")
    weights = None if weights_path is None else str(weights_path)
    overridden = {"gradcam_enabled": True, **settings, "weights_path": weights}
    return load_detector(detector_settings(yaml_path, overridden), find_device(device)).model


def read_images(model: Any, files: Sequence[str | Path] | str | Path) -> Tensor:
    """Image files → (B, 3, R, R) float32, resized and normalised as `model` wants them, on its device.

    Both sides are resized to the config's `resolution`, as the hosts do with face crops. Raises InputError for a file
    that cannot be read as an image.
    """
    named = [files] if isinstance(files, (str, Path)) else list(files)
    decoded = []
    for file in named:
        try:
            decoded.append(decode_image(read_file(str(file)), model.usual_size))
        except UnreadableImage as error:
            raise InputError(f"{file}: {error}") from error
    if not decoded:
        raise InputError("files is empty: give at least one image")
    pixels = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float().div(255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.gradcam.mean, model.gradcam.std))
    return ((pixels - mean) / std).to(next(model.parameters()).device)


def load_detector(
    settings: DetectorSettings, device: torch.device, precision: str = "fp32", random_weights: bool = False
) -> LoadedDetector:
    """The detector with the weights of `settings.weights_path` or, if `random_weights`, with none.

    A model that `settings.build` builds may have its weights from there. Whether its logits can be used,
    `LoadedDetector.check_predictions` tells.

    No pretrained tower is downloaded in either case: a weights file has to cover the whole model. Raises InputError.
    """
    if not settings.weights_name and not random_weights:
        raise InputError(
            "no weights: weights_path is not set in the detector's YAML; give the checkpoint of the whole detector",
            "weights",
        )
    check_precision(precision, device)
    file = None if settings.weights_path is None else read_weights(settings.weights_path)
    if file is not None and not settings.build:
        settings = settings._replace(config=fitted_config(settings.config, translated(file)))
    model = untrained_detector(settings, settings.gradcam.enabled)
    if hasattr(model, "gradcam"):
        model.gradcam = settings.gradcam  # the checked settings themselves, so that there is one object and no copy
    if hasattr(model, "weights_at_first"):
        model.weights_at_first = None  # a file fills it, or random weights were asked for and are marked as such
    sha256 = ""
    if file is not None:
        sha256 = file.sha256
        fill(model.model if settings.build else model, file)
    elif settings.build:
        sha256 = sha256_of_state(model.model)
    return LoadedDetector(model.to(device).eval(), device, precision, settings, sha256)


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
    if precision == "fp32":
        return
    unit = torch.ones(1, 1, device=device)
    try:
        with torch.autocast(device.type, dtype=DTYPES[precision]):
            found = torch.nn.functional.linear(unit, unit).dtype
    except RuntimeError as error:
        raise InputError(f"precision {precision}: {one_line(error)}; use fp32 or bf16", "precision") from error
    if found != DTYPES[precision]:
        raise InputError(
            f"precision {precision} on {device.type} is not available in torch {torch.__version__}; use fp32 or bf16",
            "precision",
        )


def import_sooner(settings: DetectorSettings) -> None:
    """For a command, before it loads the detector: import nothing of the host that this one does not need."""
    if not settings.build:
        import_alone(settings.model_name, settings.config)


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


def untrained_detector(settings: DetectorSettings, explainable: bool) -> Any:
    """The detector without the weights of its file: a registered one, or what `settings.build` names. InputError."""
    if settings.build:
        return AnyModelWithGradCAM(build_model(settings.build, settings.config), settings.config)
    if settings.config.get("video_mode"):
        raise InputError(
            f"detector {settings.model_name!r} reads clips of frames (video_mode: true in its YAML); detectors of"
            " single images are evaluated and explained"
        )
    cls = detector_class(settings.model_name, explainable, settings.config)
    return cls(deepcopy(without_pretrained(settings.config)))  # some hosts write into their config
