"""Heatmaps during training: what is drawn, and that training does not notice."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.detectors import PIXELS, images, tiny_detector
from tests.helpers.paths import ROOT
from utils.gradcam_kit.explaining.training_log import LINE, captions, grid, log_gradcam


class Writer:
    """Keeps what a SummaryWriter would write."""

    def __init__(self) -> None:
        self.images: list[tuple[str, torch.Tensor, int]] = []

    def add_image(self, tag: str, image: torch.Tensor, step: int) -> None:
        self.images.append((tag, image, step))


def test_one_grid_a_layer_every_five_epochs() -> None:
    model, writer = tiny_detector(), Writer()
    for epoch in range(11):
        log_gradcam(writer, model, images(3), epoch, layers=["encoder.layers.3", "encoder.layers.0"], target="fake")
    assert [(tag, step) for tag, _, step in writer.images] == [
        (f"gradcam/encoder.layers.{layer}", epoch) for epoch in (0, 5, 10) for layer in (3, 0)
    ]
    log_gradcam(None, model, {"image": images(3)}, 0)  # a process that does not log
    # The second face's heatmap, drawn here with OpenCV over the image that the detector saw.
    heatmap = model.generate_gradcam({"image": images(3)}, layers=["encoder.layers.3"], target="fake")[
        "encoder.layers.3"
    ]
    face = ((images(3)[1].permute(1, 2, 0).numpy() * 0.5 + 0.5) * 255).round().clip(0, 255)
    colour = cv2.applyColorMap((heatmap[1].numpy() * 255).round().astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1]
    drawn = writer.images[0][1].permute(1, 2, 0).numpy().astype(float)
    assert drawn.shape == (2 * PIXELS + LINE, 3 * PIXELS, 3)
    np.testing.assert_array_equal(drawn[:PIXELS, PIXELS : 2 * PIXELS], face)
    np.testing.assert_allclose(drawn[PIXELS : 2 * PIXELS, PIXELS : 2 * PIXELS], (face + colour) / 2, atol=1)
    assert (drawn[2 * PIXELS :, PIXELS : 2 * PIXELS] < 100).any()  # the caption's ink


def test_it_draws_whether_grad_cam_is_enabled_or_not() -> None:
    enabled, disabled = Writer(), Writer()
    model = tiny_detector()
    how: dict[str, Any] = {"layers": ["encoder.layers.1"], "method": "hirescam", "site": "residual"}
    log_gradcam(enabled, model, {"image": images(2)}, 0, **how)
    model.disable_gradcam()
    log_gradcam(disabled, model, {"image": images(2)}, 0, **how)
    assert torch.equal(enabled.images[0][1], disabled.images[0][1]) and not model.gradcam_enabled


def test_more_images_than_columns_go_on_below() -> None:
    faces = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 2, 4)
    drawn = grid(faces, faces + 100, [""] * 10)
    below = 4 + LINE
    assert drawn.shape == (3, 2 * below, 32)
    assert drawn[0, below, :8].tolist() == [8] * 4 + [9] * 4
    assert drawn[0, below + 2, :8].tolist() == [108] * 4 + [109] * 4
    assert (drawn[:, below:, 8:] == 255).all()


def test_the_caption_has_the_probability_and_the_label() -> None:
    probability = torch.tensor([0.934, 0.1])
    assert captions(probability, torch.tensor([0, 1])) == ["fake 0.93, is real", "fake 0.10, is fake"]
    assert captions(probability, None) == ["fake 0.93", "fake 0.10"]


@pytest.mark.slow
def test_the_loss_curve_under_ddp_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    """Two gloo processes, with dropout; then the logged images are read back from TensorBoard's file."""
    curves: dict[str, list[Any]] = {}
    for heatmaps in ("yes", "no"):
        folder = tmp_path / heatmaps
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1",
             "--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0",
             str(ROOT / "tests" / "helpers" / "ddp_training.py"), str(folder), heatmaps],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        curves[heatmaps] = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert curves["yes"] == curves["no"]
    losses = [float.fromhex(value) for value in curves["yes"][0]["losses"]]
    assert len(set(losses)) == 30 and losses != [float.fromhex(value) for value in curves["yes"][1]["losses"]]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "yes" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert sorted(events.Tags()["images"]) == ["gradcam/encoder.layers.1", "gradcam/encoder.layers.3"]
    logged = events.Images("gradcam/encoder.layers.3")
    assert [image.step for image in logged] == [0, 5]
    first, later = (np.asarray(Image.open(io.BytesIO(image.encoded_image_string))) for image in logged)
    assert first.shape == (2 * PIXELS + LINE, 4 * PIXELS, 3)
    assert (first[:PIXELS] == later[:PIXELS]).all() and (first[PIXELS:] != later[PIXELS:]).any()
