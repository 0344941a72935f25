"""Memory and the number of frames: what grows is a few hundred bytes a row, nothing that was decoded or drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from tests.helpers.command_server import CommandServer
from tests.helpers.paths import SCRIPT

# 300 MiB for 200,000 rows.
BYTES_A_ROW = 300 * 2**20 / 200_000
TELL_PEAK = """
import os
leave = os._exit
def tell(code):
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    open({path!r}, "w").write(peak.split()[1])
    leave(code)
os._exit = tell
"""
ARCHITECTURE = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "patch_size": 8,
    "image_size": 16,
}  # fmt: skip


def peak_bytes(rows: int, folder: Path, commands: CommandServer, *flags: str) -> int:
    """Peak memory of a run over `rows` frames, of which 200 files are in truth."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    videos: dict[str, Any] = {"toy_Real": {"test": {}}, "toy_Fake": {"test": {}}}
    for label in videos:
        for i in range(100):
            cv2.imwrite(str(folder / f"{label}{i}.png"), rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
        for v in range(rows // 200):
            names = [f"{folder}/{label}{i}.png" for i in range(100)]
            videos[label]["test"][f"{v:06d}"] = {"label": label, "frames": names}
    (folder / "big.json").write_text(json.dumps({"big": videos}))
    detector, test = folder / "detector.yaml", folder / "test.yaml"
    detector.write_text(
        yaml.safe_dump(
            {"model_name": "clip_gradcam", "loss_func": "cross_entropy", "backbone_config": {"architecture": ARCHITECTURE},
             "test_dataset": ["big"], "resolution": 16, "test_batchSize": 64, "workers": 0}
        )
    )  # fmt: skip
    test.write_text(yaml.safe_dump({"dataset_json_folder": str(folder), "label_dict": {"toy_Real": 0, "toy_Fake": 1}}))
    arguments: list[str | Path] = [
        "--detector_path",
        detector,
        "--test_config",
        test,
        "--random_weights",
        "--device",
        "cpu",
        *flags,
    ]
    first = TELL_PEAK.format(path=str(folder / "peak"))
    run = commands.start(SCRIPT, *arguments, "--gradcam_output_dir", folder / "out", cwd=folder, first=first)
    done = run.wait()
    assert done.code == 0, done.err
    assert json.loads((folder / "out" / "metrics.json").read_text())["big"]["frames"] == rows
    return int((folder / "peak").read_text()) * 1024


@pytest.mark.slow
def test_memory_grows_by_little_more_than_the_names_of_the_frames(commands: CommandServer, tmp_path: Path) -> None:
    flags = ["--gradcam_enabled", "--gradcam_samples", "4"]
    few, many = 2_000, 20_000
    growth = peak_bytes(many, tmp_path / "many", commands, *flags) - peak_bytes(few, tmp_path / "few", commands, *flags)
    assert growth < BYTES_A_ROW * (many - few)
