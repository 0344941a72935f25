"""`--detector my_module:build`: a model with no class of the host's, evaluated and explained."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import test_with_gradcam
from tests.helpers.datasets import DataTree, rows_of
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.model.checkpoints import sha256_of_state
from utils.gradcam_kit.model.load import build_model

CODE = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, padding=1), nn.ReLU())
        self.head = nn.Linear(8, logits)

    def forward(self, images):
        return {"logits": self.head(self.features(images).mean((2, 3)))}

def build():
    return nn.DataParallel(Small(1))

def build_two(config):
    return Small(config["logits"])

def fails():
    raise OSError("no such weights")

def text():
    return "model"
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with that module in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_small_model", raising=False)
    (tmp_path / "my_small_model.py").write_text(CODE)
    return tmp_path


def run(tree: DataTree, detector: str, *flags: str) -> Path:
    data = ["--test_dataset", "toy", "--test_config", str(tree.test_yaml), "--device", "cpu", "--workers", "0"]
    out = tree.folder / "out"
    command = ["--detector", detector, *data, "--gradcam_output_dir", str(out), *flags]
    assert test_with_gradcam.main(command) == 0
    return out


@pytest.mark.parametrize("detector", ["my_small_model:build", "my_small_model.py:build"])
def test_a_run_without_any_yaml_of_a_detector(
    detector: str, code: Path, data_tree: DataTree, capsys: pytest.CaptureFixture[str]
) -> None:
    normalisation = ["--mean", "0.4", "0.5", "0.6", "--std", "0.2", "0.3", "0.25", "--resolution", "40"]
    out = run(data_tree, detector, "--gradcam_enabled", "--save_all_predictions", *normalisation)
    torch.manual_seed(1024)  # manualSeed, of random weights
    model: Any = build_model("my_small_model:build", {}).module.cpu()  # where the run may have left it
    for row in rows_of(out / "toy")[::7]:
        read: Any = cv2.imread(row["path"])
        image = cv2.resize(read[..., ::-1], (40, 40), interpolation=cv2.INTER_CUBIC)
        pixels = (image / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.25]
        with torch.no_grad():
            z = model(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())["logits"].item()
        assert float(row["logit_fake"]) == pytest.approx(z, abs=1e-5)
        assert float(row["prob_fake"]) == pytest.approx(1 / (1 + np.exp(-z)), abs=1e-5)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["weights"] == {"path": detector, "sha256": sha256_of_state(model)}
    assert manifest["detector"]["mean"] == "0.4 0.5 0.6"
    assert capsys.readouterr().out.startswith(f"detector {detector}: mean 0.4 0.5 0.6, std 0.2 0.3 0.25")
    said = [json.loads(path.read_text()) for path in out.glob("toy/sample*/sample*.json")]
    assert len(said) == 24 and {one["weights"] for one in said} == {detector}
    assert [layer["name"] for layer in said[0]["layers"]] == ["features"]  # the last to return a map


def test_a_yaml_beside_it_is_the_builders_config(code: Path, data_tree: DataTree) -> None:
    yaml = data_tree.folder / "mine.yaml"
    yaml.write_text("logits: 2\nresolution: 32\nmean: [0, 0, 0]\nstd: [1, 1, 1]\ngradcam_layers: [features.1]\n")
    torch.manual_seed(5)
    torch.save(build_model("my_small_model:build_two", {"logits": 2}).state_dict(), data_tree.folder / "w.pth")
    more = ["--detector_path", str(yaml), "--weights_path", str(data_tree.folder / "w.pth"), "--gradcam_enabled"]
    out = run(data_tree, "my_small_model:build_two", *more)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["weights"]["path"].endswith("w.pth") and manifest["config"]["logits"] == 2
    layers = [json.loads(path.read_text())["layers"] for path in out.glob("toy/sample*/sample*.json")]
    assert layers and all([layer["name"] for layer in one] == ["features.1"] for one in layers)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("my_small_model", "give module:function"),
        ("no_such_module:build", "no_such_module cannot be imported from"),
        ("my_small_model:construct", "has no function 'construct'"),
        ("my_small_model:fails", r"failed \(OSError: no such weights\)"),
        ("my_small_model:text", "returned str: expected a torch.nn.Module"),
    ],
)
def test_what_is_wrong_with_it_is_one_line(name: str, says: str, code: Path) -> None:
    with pytest.raises(InputError, match=says) as refused:
        build_model(name, {})
    assert "\n" not in str(refused.value)


def test_flags_that_exclude_or_need_each_other() -> None:
    with pytest.raises(InputError, match="no detector: give --detector_path YAML, or --detector"):
        test_with_gradcam.main(["--test_dataset", "toy"])
    with pytest.raises(InputError, match="--random_weights and --detector exclude each other"):
        test_with_gradcam.main(["--detector", "a:b", "--random_weights"])


SCRIPTS = {
    "parsed at import": "import argparse\nARGS = argparse.ArgumentParser().parse_args()\n",
    "parsed by hand": "import sys\nassert len(sys.argv) == 1\n",
    "with defaults": "import argparse\np = argparse.ArgumentParser()\np.add_argument('--lr', default=1)\np.parse_args()\n",
}
MODEL = "from torch import nn\nnet = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())\ndef build():\n    return net\n"


@pytest.mark.parametrize("wanted", ["build", "net"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_training_script_parses_a_command_line_without_our_flags(
    script: str, wanted: str, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["test_with_gradcam.py", "--detector", "x:y"]
    monkeypatch.setattr(sys, "argv", given)
    (code / "train_script.py").write_text(SCRIPTS[script] + MODEL)
    monkeypatch.delitem(sys.modules, "train_script", raising=False)
    assert isinstance(build_model(f"train_script:{wanted}", {}), torch.nn.Sequential)
    assert sys.argv is given


@pytest.mark.parametrize(
    "ends", ["import sys\nsys.exit(3)\n", "quit()\n", "raise SystemExit('no data')\n"], ids=["exit", "quit", "raise"]
)
@pytest.mark.parametrize("where", ["import", "build"])
def test_a_module_that_ends_the_program_is_one_line(
    ends: str, where: str, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "ends_all", raising=False)
    inside = "def build():\n" + "".join(f"    {line}\n" for line in ends.splitlines())
    (code / "ends_all.py").write_text(ends if where == "import" else inside)
    with pytest.raises(InputError, match=r"SystemExit"):
        build_model("ends_all:build", {})
