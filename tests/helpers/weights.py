"""A checkpoint into a model, as loading a detector does it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from utils.gradcam_kit.model.checkpoints import fill
from utils.gradcam_kit.model.weights_file import read_file


def load_weights(model: nn.Module, path: str | Path) -> str:
    """`fill` of the file; returns its SHA-256."""
    file = read_file(path)
    fill(model, file)
    return file.sha256
