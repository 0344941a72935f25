"""Small random CLIP towers and detectors, quick enough to explain hundreds of times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.helpers.command_server import CommandServer
from tests.helpers.datasets import DataTree, make_data_tree
from tests.helpers.detectors import tiny_detector
from utils.gradcam_kit.engine import hooks
from utils.gradcam_kit.engine.backward import balanced


@pytest.fixture(autouse=True)
def whatever_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small towers stand for large ones: what pays for those alone is done for these, too."""
    for module, name in ((hooks, "PATH_WORTH"), (hooks, "GELU_WORTH"), (balanced, "P_WORTH")):
        monkeypatch.setattr(module, name, 0)


@pytest.fixture
def detector() -> CLIPDetectorWithGradCAM:
    """A tiny detector of its own for each test."""
    return tiny_detector()


@pytest.fixture(scope="session")
def commands() -> Iterator[CommandServer]:
    """Runs the repository's commands as processes."""
    server = CommandServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of `tiny_detector()`, in DDP's spelling."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save({f"module.{key}": value for key, value in tiny_detector().state_dict().items()}, path)
    return path


@pytest.fixture
def data_tree(tmp_path: Path, tiny_weights: Path) -> DataTree:
    """A small test set of its own for each test."""
    return make_data_tree(tmp_path / "data", tiny_weights)
