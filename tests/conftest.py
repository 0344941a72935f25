"""Small random CLIP towers and detectors, quick enough to explain hundreds of times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import cv2
import numpy as np
import pytest
import torch
import yaml

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.command_server import CommandServer

ROOT = Path(__file__).resolve().parent.parent
BLOCKS, PATCH, PIXELS = 4, 16, 64

ARCHITECTURE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "patch_size": PATCH,
    "image_size": PIXELS,
}


def tiny_config(**changes: Any) -> dict[str, Any]:
    """The config of a detector with four blocks on a 4 x 4 grid of patches."""
    config = {"loss_func": "cross_entropy", "gradcam_enabled": True, "backbone_config": {"architecture": ARCHITECTURE}}
    return {**config, **changes}


def tiny_detector(seed: int = 0, **changes: Any) -> CLIPDetectorWithGradCAM:
    """A detector whose weights are spread widely enough that maps differ from picture to picture."""
    torch.manual_seed(seed)
    model = CLIPDetectorWithGradCAM(tiny_config(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


def pictures(count: int, seed: int = 1, pixels: int | tuple[int, int] = PIXELS) -> torch.Tensor:
    """Normalised random pictures (count, 3, H, W)."""
    size = (pixels, pixels) if isinstance(pixels, int) else pixels
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


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


def read_picture(path: str | Path) -> np.ndarray:
    """(H, W, 3) uint8, blue first, as OpenCV reads it; fails where there is no picture."""
    picture = cv2.imread(str(path))
    assert picture is not None, path
    return picture


class DataTree(NamedTuple):
    """A small test set on disk in DeepfakeBench's layout, and the YAML files that go with it."""

    folder: Path
    detector_yaml: Path
    test_yaml: Path
    frames: dict[str, list[Path]]  # label name → its frames

    def arguments(self, *more: str | Path) -> list[str]:
        """The flags every run needs, then `more`."""
        flags = ["--detector_path", self.detector_yaml, "--test_config", self.test_yaml, "--device", "cpu", *more]
        return [str(flag) for flag in flags]


def make_data_tree(folder: Path, weights: Path, videos: int = 4, frames: int = 3, **config: Any) -> DataTree:
    """`videos` real and as many fake videos of random pictures; data sets `toy` (both) and `toy_fake` (fakes only)."""
    rng = np.random.default_rng(5)
    labels: dict[str, Any] = {}
    paths: dict[str, list[Path]] = {}
    for label in ("toy_Real", "toy_Fake"):
        paths[label] = []
        for v in range(videos):
            names = []
            for f in range(frames):
                name = f"{label}/frames/{v:03d}/{f:03d}.png"
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), rng.integers(0, 256, (80, 80, 3), dtype=np.uint8))
                names.append(name)
                paths[label].append(path)
            labels.setdefault(label, {"test": {}})["test"][f"{v:03d}"] = {"label": label, "frames": names}
    (folder / "dataset_json").mkdir(exist_ok=True)
    for name, part in (("toy", labels), ("toy_fake", {"toy_Fake": labels["toy_Fake"]})):
        (folder / "dataset_json" / f"{name}.json").write_text(json.dumps({name: part}))
    detector_yaml, test_yaml = folder / "tiny.yaml", folder / "test_config.yaml"
    detector_yaml.write_text(
        yaml.safe_dump(
            {
                "model_name": "clip_gradcam",
                **{key: value for key, value in tiny_config().items() if key != "gradcam_enabled"},
                "weights_path": str(weights),
                "test_dataset": ["toy"],
                "resolution": PIXELS,
                "frame_num": {"test": 8},
                "test_batchSize": 5,
                "workers": 0,
                "gradcam_layers": ["encoder.layers.3", "encoder.layers.1"],
                **config,
            }
        )
    )
    test_yaml.write_text(
        yaml.safe_dump(
            {
                "dataset_json_folder": str(folder / "dataset_json"),
                "dataset_root_rgb": str(folder),
                "label_dict": {"toy_Real": 0, "toy_Fake": 1},
            }
        )
    )
    return DataTree(folder, detector_yaml, test_yaml, paths)


@pytest.fixture
def data_tree(tmp_path: Path, tiny_weights: Path) -> DataTree:
    """A small test set of its own for each test."""
    return make_data_tree(tmp_path / "data", tiny_weights)
