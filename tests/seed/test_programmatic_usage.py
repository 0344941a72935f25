"""Option 3 and the other Python of the first guide, line by line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from tests.seed.conftest import TOWER

SNIPPET = """
import torch
from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM

# Initialize model with Grad-CAM enabled
config = {
    'loss_func': 'cross_entropy_loss',
    'gradcam_enabled': True,
    'gradcam_layers': ['encoder.layers.23', 'encoder.layers.20'],
    'gradcam_save_dir': './my_gradcam_output'
}

model = CLIPDetectorWithGradCAM(config)
model.eval()

# Load your image (assuming preprocessed)
data_dict = {'image': your_image_tensor}

# Generate Grad-CAM visualizations
cams = model.generate_gradcam(
    data_dict,
    save_visualizations=True,
    filename_prefix="my_analysis"
)
"""


def test_the_snippet(training: Path, tmp_path: Path) -> None:
    """In a program of its own, in the host's folder; the hub's cache holds a narrow tower in the place of ViT-L/14."""
    cache = tmp_path / "hub" / "models--openai--clip-vit-large-patch14"
    CLIPVisionModel(CLIPVisionConfig(**TOWER)).save_pretrained(cache / "snapshots" / "0123")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123")
    tensor = "import torch\nyour_image_tensor = torch.randn(1, 3, 224, 224)\n"
    said = "\nprint([(name, tuple(cam.shape), cam.min() >= 0, cam.max() <= 1) for name, cam in cams.items()])\n"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", tensor + SNIPPET + said], cwd=training, env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    one = "(1, 224, 224), tensor(True), tensor(True))"
    assert done.stdout.endswith(f"[('encoder.layers.23', {one}, ('encoder.layers.20', {one}]\n")
    names = {path.name for path in (training / "my_gradcam_output").iterdir()}
    assert {"my_analysis_encoder.layers.23_sample0.png", "my_analysis_encoder.layers.20_sample0.png"} <= names


def test_debug_layer_names(model: Any) -> None:
    names = [name for name, module in model.named_modules()]
    assert "backbone.encoder.layers.23" in names and "backbone.encoder.layers.10" in names


def test_memory_management(model: Any) -> None:
    """Samples one by one give the maps of the whole batch."""
    batch_size = 2
    batch_data = {"image": torch.randn(batch_size, 3, 224, 224, generator=torch.Generator().manual_seed(1))}
    whole = model.generate_gradcam(batch_data)
    for i in range(batch_size):
        single_data = {"image": batch_data["image"][i : i + 1]}
        cams = model.generate_gradcam(single_data)
        for layer, cam in cams.items():
            torch.testing.assert_close(cam[0], whole[layer][i], rtol=0, atol=1e-3)


def test_training_integration(model: Any) -> None:
    """Heatmaps every fifth epoch; off in between, and the weights are what they were."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = []
    for epoch in range(6):
        if epoch % 5 == 0:  # Every 5 epochs
            model.enable_gradcam()
            drawn.append(model.generate_gradcam({"image": torch.randn(1, 3, 224, 224)}))
            model.disable_gradcam()  # Disable to save memory
    assert [len(cams) for cams in drawn] == [4, 4]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
