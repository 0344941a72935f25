"""From weights to a detector that explains, and from image files to its input, in one line each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

import numpy as np
import torch
from torch import Tensor

from utils.data.images import UnreadableImage, decode_image, read_file
from utils.errors import InputError
from utils.model.config import detector_settings, find_path
from utils.model.detector import find_device, load_detector


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
        `detectors.gradcam_mixin.GradCAMMixin`.

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
