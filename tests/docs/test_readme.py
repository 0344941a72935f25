"""Every command and every snippet of README_gradcam.md, as written there, on stand-in data where the reader's own is meant."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from transformers import CLIPVisionConfig, CLIPVisionModel

import test_with_gradcam
from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.helpers.hosts import MINIMAL_HOST, write_data
from tests.helpers.paths import ROOT
from utils import gradcam_demo
from utils.gradcam_kit.app.command import parser as app_parser
from utils.gradcam_kit.settings.flags import OptionParser
from utils.gradcam_kit.settings.options_page import page

README = (ROOT / "README_gradcam.md").read_text(encoding="utf-8")
OPTIONS = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
# 24 blocks as ViT-L/14 has, so that every layer the README names is there, but narrow.
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 24, "num_attention_heads": 2,
         "patch_size": 32, "image_size": 224}  # fmt: skip
# Run elsewhere (make test is this very run), for ever (tensorboard), or over the network (pip).
NOT_RUN_HERE = ("make ", "pip install", "tensorboard ", "source ")
# Part of a command → flags that make it short without changing what it does.
SHORTER = {
    "python examples/make_demo_data.py": "--videos 2",
    "python examples/train_demo_detector.py": "--epochs 1 --workers 0",
    "--sweep": "--gradcam_layers encoder.layers.23 encoder.layers.20",
}

# A part of a command → the start of one that has to run before it.
NEEDS = {
    "python path/to/training/": "python -m utils.install_into_host path/to/training",
    "--uninstall": "python -m utils.install_into_host path/to/training",
    "--data data/training": "python examples/make_demo_data.py",
    "report figure": "python test_with_gradcam.py",
    "report compare": "python test_with_gradcam.py",
}
# Command → what its output folder holds afterwards.
OUTPUTS = {
    "gradcam_demo.py": ["*/gradcam_comparison.png", "*/gradcam_*_sample0.png", "*/*.json"],
    "report": ["index.html", "frames.csv"],
    "test_with_gradcam.py": ["metrics.json", "manifest.json", "index.html", "*/predictions.csv"],
    "make_demo_data.py": ["dataset_json/demo.json", "*/frames/*/*.png", "*/masks/*/*.png"],
    "train_demo_detector.py": ["*.safetensors", "events.out.tfevents.*"],
}


def commands() -> list[str]:
    """Command lines of all bash blocks, continued lines joined."""
    lines: list[str] = []
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL):
        lines += [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return [re.sub(r" +", " ", line) for line in lines]


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which the reader's image, weights and dataset are stand-ins."""
    tree = tmp_path_factory.mktemp("my host") / "training"
    for folder in ("detectors", "utils", "tools", "config", "examples", "assets"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "test_with_gradcam.py", tree)
    detector_yaml = tree / "config" / "detector" / "clip_gradcam.yaml"
    config = yaml.safe_load(detector_yaml.read_text())
    config["backbone_config"] = {"architecture": TOWER}
    config["workers"] = 0
    detector_yaml.write_text(yaml.safe_dump(config))
    (tree / "path" / "to" / "your").mkdir(parents=True)
    (tree / "data" / "demo" / "mouthswap_Fake" / "frames" / "test_mouthswap_0007").mkdir(parents=True)
    torch.manual_seed(0)
    model = CLIPDetectorWithGradCAM({**config, "gradcam_enabled": False})
    torch.save(model.state_dict(), tree / "path" / "to" / "your" / "weights.pth")
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    cv2.imwrite(str(tree / "path" / "to" / "your" / "image.jpg"), image)
    cv2.imwrite(str(tree / "data" / "demo" / "mouthswap_Fake" / "frames" / "test_mouthswap_0007" / "000.png"), image)
    write_stand_in_faceforensics(tree)
    write_stand_in_host(tree / "path" / "to" / "training")
    return tree


def write_stand_in_host(training: Path) -> None:
    """The folder that the library is installed into."""
    shutil.copytree(MINIMAL_HOST, training, ignore=shutil.ignore_patterns("__pycache__"))
    detector_yaml = training / "config" / "detector" / "clip.yaml"
    config = yaml.safe_load(detector_yaml.read_text())
    detector_yaml.write_text(yaml.safe_dump({**config, "backbone_config": {"architecture": TOWER}, "resolution": 224}))
    write_data(training.parent)


def write_stand_in_faceforensics(tree: Path) -> None:
    rng = np.random.default_rng(1)
    labels: dict[str, Any] = {}
    for label in ("FF-real", "FF-DF"):
        frames = []
        for i in range(3):
            path = tree / "data" / "ff" / label / "frames" / "000" / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            frames.append(str(path))
        labels[label] = {"test": {"c23": {"000": {"label": label, "frames": frames}}}}
    (tree / "json").mkdir()
    (tree / "json" / "FaceForensics++.json").write_text(json.dumps({"FaceForensics++": labels}))
    test_yaml = tree / "config" / "test_config.yaml"
    config = yaml.safe_load(test_yaml.read_text())
    config["dataset_json_folder"] = str(tree / "json")
    test_yaml.write_text(yaml.safe_dump(config))


def run(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, shell=True, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_option_page_is_the_tables() -> None:
    assert page() == OPTIONS, "python -m utils.gradcam_kit.settings.options_page > docs/options.md"


@pytest.mark.parametrize("parser", [test_with_gradcam.parser(), gradcam_demo.parser(), app_parser()])
def test_the_option_page_has_every_flag_of_a_parser(parser: OptionParser) -> None:
    """Both ways: no flag without a row, no row without a flag, and the YAML key that the flag overrides."""
    parts = [part for part in OPTIONS.split("\n## ") if f"`{parser.command}`" in part.splitlines()[0]]
    rows = re.findall(r"^\| (`-.*?) \| (.*?) \|", "\n".join(parts), re.MULTILINE)
    keys = {flag: key.strip("`") for flags, key in rows for flag in re.findall("`(.*?)`", flags)}
    actions = {flag: action for action in parser._actions for flag in action.option_strings}
    assert set(keys) == set(actions) - {"-h", "--help", "--version", "--help-all"}
    for key, flag in parser.flag_names.items():
        assert keys[flag] == key == actions[flag].dest


def test_readme_has_the_commands_of_all_three_ways() -> None:
    assert sum(line.startswith("python utils/gradcam_demo.py") for line in commands()) >= 2
    assert any("--test_dataset FaceForensics++" in line for line in commands())
    assert len(snippets()) >= 3


def needed_before(line: str) -> list[str]:
    """The commands further up whose result this one takes for granted."""
    earlier = commands()[: commands().index(line)]
    starts = [start for sign, start in NEEDS.items() if sign in line]
    return [command for command in earlier if command.startswith(tuple(starts)) and command != line]


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in commands() if not line.startswith(NOT_RUN_HERE)])
def test_command_runs_as_written(line: str, tree: Path) -> None:
    for command in [*needed_before(line), line]:  # tests may run in any order, and in several processes
        more = next((flags for part, flags in SHORTER.items() if part in command), "")
        if "test_with_gradcam.py" in command and "--resume" not in command:
            more += " --overwrite"  # an earlier test's
        if "report compare" in command:
            shutil.rmtree(tree / "comparison", ignore_errors=True)
        done = run(f"{command} {more}", tree)
        assert done.returncode == 0, done.stderr[-2000:]
    output = re.search(r"(?:--output|--gradcam_output_dir|-o) (\S+)", line)
    if output and output[1].endswith(".pdf"):
        assert (tree / output[1]).read_bytes().startswith(b"%PDF")
        return
    if output:
        for pattern in OUTPUTS["report" if "utils.report" in line else re.sub(r".*?([a-z_]+\.py).*", r"\1", line)]:
            found = list((tree / output[1]).glob(pattern))
            assert found and all(path.stat().st_size for path in found), pattern
            for path in found:
                if path.suffix == ".png":
                    assert np.asarray(cv2.imread(str(path))).std() > 10, f"{path} is blank"


@pytest.mark.slow
def test_make_demo_explains_the_demo_test_set(made_demo: Path) -> None:
    metrics = json.loads((made_demo / "runs" / "demo" / "metrics.json").read_text())["demo"]
    assert 0.95 <= metrics["auc"] <= 0.995
    samples = list((made_demo / "runs" / "demo" / "demo").glob("sample*/gradcam_comparison.png"))
    assert len(samples) == min(50, round((1 - metrics["acc"]) * metrics["frames"]))
    said = [json.loads(next(sample.parent.glob("sample*.json")).read_text()) for sample in samples]
    assert {one["target"] for one in said} == {"fake"}
    found = [one for one in said if one["correct"]]
    assert len(found) == 20 and all(one["label"] == 1 for one in found)
    assert len({one["forgery"] for one in found}) == 5


PRELUDE = """
import torch
from torch.utils.tensorboard import SummaryWriter

fixed_images = torch.randn(2, 3, 224, 224)
batch_data, batch_size = {'image': fixed_images}, 2
writer = SummaryWriter('log')


def train_one_epoch(model):
    model.train()
"""


@pytest.mark.slow
def test_snippets_run_as_written(tmp_path: Path) -> None:
    """One after the other in one program, as a reader would paste them; the hub's cache holds a narrow stand-in."""
    cache = tmp_path / "hub" / "models--openai--clip-vit-large-patch14"
    CLIPVisionModel(CLIPVisionConfig(**TOWER)).save_pretrained(cache / "snapshots" / "0123")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123")
    parts = snippets()
    assert any("config['nEpochs']" in part for part in parts)
    loop = next(i for i, part in enumerate(parts) if "config['nEpochs']" in part)
    program = "\n".join([PRELUDE, *parts[:loop], "config['nEpochs'] = 6", *parts[loop:]])
    program += "\nprint(sorted(cams), model.training)\n"
    (tmp_path / "program.py").write_text(program)
    face = tmp_path / re.findall(r'"(data/demo/.*?\.png)"', program)[0]  # which `make demo` renders
    face.parent.mkdir(parents=True)
    cv2.imwrite(str(face), np.full((256, 256, 3), 90, np.uint8))
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("['encoder.layers.20', 'encoder.layers.23'] True")
    assert len(list((tmp_path / "my_gradcam_output").glob("my_analysis_*.png"))) == 6
