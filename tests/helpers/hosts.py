"""Copies of the minimal host in `tests/host_tree`, with data, below a folder with spaces and other people's letters."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.helpers.paths import ROOT

MINIMAL_HOST = ROOT / "tests" / "host_tree" / "training"
CUDA_LINE = "from .cuda_detector import CUDADetector\n"


def make_host(folder: Path, whole: bool = False) -> Path:
    """The training folder of a host; `whole`: one whose `import detectors` works here."""
    training = folder / "Größe 测试 it's" / "training"
    shutil.copytree(MINIMAL_HOST, training, ignore=shutil.ignore_patterns("__pycache__"))
    if whole:
        edit(training / "detectors" / "__init__.py", CUDA_LINE, "")
        edit(training / "networks" / "__init__.py", "from .resnet34 import ResNet34\n", "")
    write_data(training.parent)
    return training


def make_effort_host(folder: Path) -> Path:
    """As Effort's own tree: no CLIP detector, the registry in `utils/registry.py`, a `utils` without `__init__.py`."""
    training = make_host(folder)
    for name in ("clip_detector", "xception_detector", "cuda_detector"):
        (training / "detectors" / f"{name}.py").unlink()
    (training / "config" / "detector" / "clip.yaml").unlink()
    (training / "utils").mkdir()
    (training / "metrics" / "registry.py").rename(training / "utils" / "registry.py")
    for path in training.rglob("*.py"):
        edit(path, "metrics.registry", "utils.registry")
    init = training / "detectors" / "__init__.py"
    for line in ("from .clip_detector import CLIPDetector\n", "from .xception_detector import XceptionDetector\n"):
        edit(init, line, "")
    edit(init, CUDA_LINE, "")
    return training


def edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def write_data(parent: Path, videos: int = 3, frames: int = 3) -> None:
    """`Celeb-DF-v2` below `datasets/`, with a JSON as made on Windows: backslashes and a byte-order mark.

    Some real and fake videos share a name, and the frames stand in the JSON in no order.
    """
    labels: dict[str, Any] = {}
    random = np.random.default_rng(5)
    for label, folder, first in (("CelebDFv2_real", "Celeb-real", 0), ("CelebDFv2_fake", "Celeb-synthesis", 1)):
        entries = {}
        for video in range(first, first + videos):
            names = []
            for number in (7, 0, 12)[:frames]:
                name = f"Celeb-DF-v2/{folder}/frames/id{video}/{number:03d}.png"
                path = parent / "datasets" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                data = cv2.imencode(".png", random.integers(0, 256, (80, 80, 3), dtype=np.uint8))[1]
                path.write_bytes(data.tobytes())
                names.append(name.replace("/", "\\"))
            entries[f"id{video}"] = {"label": label, "frames": names}
        labels[label] = {"train": {}, "val": {}, "test": entries}
    folder_of_json = parent / "preprocessing" / "dataset_json"
    folder_of_json.mkdir(parents=True)
    text = json.dumps({"Celeb-DF-v2": labels})
    (folder_of_json / "Celeb-DF-v2.json").write_text("\ufeff" + text, encoding="utf-8")


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file with its bytes and every folder, but for what Python compiles of the host's own modules."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if not (path.name == "__pycache__" or (path.suffix == ".pyc" and "gradcam" not in path.name))
    }


def run_python(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A Python process as a user starts it: nothing of this repository on its path but what `arguments` name."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTEST_CURRENT_TEST")}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )


def install(training: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """The installer, from this repository."""
    return run_python("-m", "utils.install_into_host", training, *flags, cwd=ROOT)
