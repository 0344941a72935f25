"""Option 2 of the first guide: its command, its flags, its keys of the YAML, and the outputs that it promises."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.helpers.hosts import run_python
from tests.helpers.paths import ROOT
from tests.seed.conftest import typed

COMMAND = """python test_with_gradcam.py \\
    --detector_path config/detector/clip_gradcam.yaml \\
    --weights_path path/to/your/weights.pth \\
    --test_dataset FaceForensics++ \\
    --gradcam_enabled \\
    --gradcam_samples 50 \\
    --gradcam_output_dir ./test_gradcam_results"""
LAYERS = ("encoder.layers.23", "encoder.layers.20", "encoder.layers.15", "encoder.layers.10")


@pytest.fixture(scope="module")
def done(training: Path) -> subprocess.CompletedProcess[str]:
    """The command, with the flag that explains right predictions too: three frames may all be right."""
    return typed(f"{COMMAND} --save_all_predictions --overwrite", training)


@pytest.mark.slow
def test_the_command(training: Path, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    assert typed(f"{COMMAND} --overwrite", training).returncode == 0
    assert (training / "test_gradcam_results" / "metrics.json").is_file()


@pytest.mark.slow
def test_the_outputs(training: Path, done: subprocess.CompletedProcess[str]) -> None:
    """One heatmap a layer, a comparison, and five lines about the prediction."""
    assert done.returncode == 0, done.stderr
    typed(f"{COMMAND} --save_all_predictions --overwrite", training)
    folders = sorted((training / "test_gradcam_results" / "FaceForensics++").glob("sample*"))
    assert folders
    for folder in folders:
        number = folder.name.removeprefix("sample")
        for layer in LAYERS:
            assert (folder / f"gradcam_{layer}_sample{number}.png").is_file()
        assert (folder / "gradcam_comparison.png").is_file()
        text = (folder / f"sample{number}_metadata.txt").read_text(encoding="utf-8")
        lines = [line.partition(": ")[0] for line in text.splitlines()[:5]]
        assert lines == ["True Label", "Predicted Label", "Confidence", "Correct", "Dataset"]
        assert "Dataset: FaceForensics++" in text


@pytest.mark.parametrize(
    "flag", ["--gradcam_enabled", "--gradcam_samples", "--gradcam_output_dir", "--save_all_predictions"]
)
def test_a_flag_is_known(flag: str) -> None:
    import test_with_gradcam

    assert flag in {name for action in test_with_gradcam.parser()._actions for name in action.option_strings}


def test_the_keys_of_the_yaml() -> None:
    config = yaml.safe_load((ROOT / "config" / "detector" / "clip_gradcam.yaml").read_text(encoding="utf-8"))
    assert config["gradcam_enabled"] is True and config["gradcam_save_dir"] == "./gradcam_visualizations"
    assert tuple(config["gradcam_layers"]) == LAYERS


def test_the_command_is_a_replacement_of_the_hosts(training: Path) -> None:
    """It is called as the host's test.py is, also from the folder above."""
    done = run_python("training/test_with_gradcam.py", "--detector_path", "training/config/detector/clip_gradcam.yaml",
                      "--list_layers", cwd=training.parent)  # fmt: skip
    assert done.returncode == 0 and all(layer in done.stdout for layer in LAYERS), done.stderr
