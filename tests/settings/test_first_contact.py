"""The first command of a newcomer: paths as people write them, numbers as YAML reads them, all that is wrong at once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.datasets import DataTree, change_yaml
from tests.helpers.paths import ROOT
from utils.gradcam_kit.base.command import OneLineParser
from utils.gradcam_kit.base.errors import InputError, run_checks
from utils.gradcam_kit.base.files import expanded
from utils.gradcam_kit.model.clip_tower import build_clip_tower
from utils.gradcam_kit.settings.config import detector_settings, find_path, read_yaml, run_settings
from utils.gradcam_kit.settings.config_values import gradcam_settings

SCALE_255 = [
    {"mean": [123.675, 116.28, 103.53]},
    {"std": [58.395, 57.12, 57.375]},
    {"mean": [103.53, 116.28, 123.675], "std": [1, 1, 1]},
    {"mean": [127.5] * 3, "std": [127.5] * 3},
    {"mean": [0, 0, 0], "std": [255, 255, 255]},
    {"mean": [0.485, 0.456, 0.406], "std": [58.395, 57.12, 57.375]},
    {"mean": ["1.23675e2", 116.28, 103.53]},
]


@pytest.mark.parametrize("config", SCALE_255)
def test_mean_and_std_of_pixels_up_to_255_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"config: (mean|std) is .*images are divided by 255 first"):
        gradcam_settings(config)


def test_mean_and_std_that_mean_something() -> None:
    for mean, std in (((0.0,) * 3, (1.0,) * 3), ((0.0,) * 3, (1 / 255,) * 3), ((0.485, 0.456, 0.406), (0.229,) * 3)):
        found = gradcam_settings({"mean": list(mean), "std": list(std)})
        assert (found.mean, found.std) == (mean, std)
    with pytest.raises(InputError, match="std is .*allowed: numbers above 0"):
        gradcam_settings({"std": [0.0, 0.5, 0.5]})


@pytest.mark.parametrize(
    ("text", "number"), [("1e-3", 1e-3), ("5E-1", 0.5), ("1.e-2", 0.01), (".5e0", 0.5), ("+2e1", 20)]
)
def test_numbers_that_yaml_reads_as_text(tmp_path: Path, text: str, number: float) -> None:
    assert gradcam_settings({"gradcam_pp_epsilon": text}).pp_epsilon == number
    (tmp_path / "some.yaml").write_text(
        f"gradcam_pp_epsilon: {text}\nstd: [{text}, 1e-1, 0.2]\ndeep: {{list: [{text}]}}\n"
    )
    values = read_yaml(tmp_path / "some.yaml")
    assert values["gradcam_pp_epsilon"] == number and values["std"] == [number, 0.1, 0.2]
    assert values["deep"] == {"list": [number]}


def test_whole_numbers_that_yaml_reads_as_text_and_text_that_stays() -> None:
    assert gradcam_settings({"gradcam_samples": "2e2"}).samples == 200
    for odd in ("1e400", "e3", "1e", "one", "1e-3"):
        with pytest.raises(InputError, match="gradcam_samples is .*allowed: a whole number"):
            gradcam_settings({"gradcam_samples": odd})
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "patch_size": 16,
             "image_size": 64, "layer_norm_eps": "1e-3"}  # fmt: skip
    tower: Any = build_clip_tower({"architecture": small})
    assert tower.post_layernorm.eps == 1e-3


def test_a_home_and_variables_in_every_path(
    tmp_path: Path, data_tree: DataTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(data_tree.folder))
    weights = yaml.safe_load(data_tree.detector_yaml.read_text())["weights_path"]
    shutil.copy(weights, tmp_path / "w.pth")
    (tmp_path / "set" / "real").mkdir(parents=True)
    change_yaml(
        data_tree.detector_yaml, weights_path="~/w.pth", gradcam_save_dir="~/out", test_dataset=["toy", "~/set"]
    )
    change_yaml(data_tree.test_yaml, dataset_json_folder="$PLACE/dataset_json", dataset_root_rgb="${PLACE}")
    settings = run_settings(data_tree.detector_yaml, data_tree.test_yaml, {})
    assert settings.detector.weights_path == tmp_path / "w.pth"
    assert settings.detector.gradcam.save_dir == tmp_path / "out"
    assert settings.data.json_folder == data_tree.folder / "dataset_json" and settings.data.root == data_tree.folder
    assert settings.data.folders == {"set": tmp_path / "set"}
    monkeypatch.setenv("WEIGHTS", str(Path(weights).parent))
    flags = {"weights_path": "${WEIGHTS}/" + Path(weights).name}
    assert detector_settings(data_tree.detector_yaml, flags).weights_path == Path(weights)
    assert find_path("~/w.pth", "file", "here") == tmp_path / "w.pth"
    parser = OneLineParser("", "")
    parser.add_argument("--bank", type=Path)
    assert parser.parse_args(["--bank=~/faces"]).bank == tmp_path / "faces"
    with pytest.raises(InputError, match=r"argument --bank: .*holds \$NOWHERE, but this variable is not set"):
        parser.parse_args(["--bank", "$NOWHERE/faces"])


COMMANDS = (
    "test_with_gradcam.py", "utils/gradcam_demo.py", "-m utils.app", "-m utils.dataset_json", "-m utils.report",
    "-m utils.report figure", "-m utils.report table", "-m utils.report compare", "-m utils.run merge",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_begins_with_the_line_to_type(command: str) -> None:
    run = subprocess.run([sys.executable, *command.split(), "--help"], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0 and run.stdout.startswith(f"usage: python {command} "), run.stdout + run.stderr


def test_files_that_are_named_like_variables_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("$HOME.png", "~", "a$b", "$(command).png"):
        Path(name).write_text("")
        assert expanded(name) == name
    assert expanded("plain/$(x)/100$") == "plain/$(x)/100$"


def refused(text: str) -> Any:
    raise InputError(text)


def test_everything_wrong_is_said_in_its_order() -> None:
    assert run_checks(lambda: 1, lambda: "two") == [1, "two"]
    with pytest.raises(InputError, match="^only$"):
        run_checks(lambda: 1, lambda: refused("only"))
    with pytest.raises(InputError, match=r"^3 things are wrong: \(1\) weights; \(2\) data; \(3\) packages$"):
        run_checks(lambda: refused("weights"), lambda: run_checks(lambda: refused("data"), lambda: refused("packages")))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands as a fresh clone has them, without data that some command makes."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("utils", "detectors", "config"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "test_with_gradcam.py", folder)
    return folder


MODEL = """
import torch
from torch import nn
def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
"""


def command(clone: Path, work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(clone / "test_with_gradcam.py"), "--workers", "0", *arguments, "--device", "cpu",
         "--resolution", "32", "--gradcam_output_dir", "out"],
        cwd=work, capture_output=True, text=True, check=False,
    )  # fmt: skip


def images(work: Path) -> None:
    import cv2
    import numpy as np

    (work / "my_module.py").write_text(MODEL)
    for label in ("real", "fake"):
        (work / "set" / label).mkdir(parents=True)
        cv2.imwrite(str(work / "set" / label / "0.png"), np.full((32, 32, 3), 90, np.uint8))
    (work / "list.csv").write_text("path;label\nset/real/0.png;0\nset/fake/0.png;1\n")


def test_a_csv_in_a_fresh_clone_needs_no_json_and_no_lmdb(clone: Path, tmp_path: Path) -> None:
    images(tmp_path)
    (tmp_path / "host.yaml").write_text("lmdb: true\nlmdb_dir: ./datasets/lmdb\n")  # neither JSON nor labels
    for more in ((), ("--test_config", "host.yaml")):
        done = command(
            clone, tmp_path, "--detector", "my_module:build", "--test_dataset", "list.csv", "--overwrite", *more
        )
        assert done.returncode == 0, done.stderr


def test_weights_data_and_packages_are_said_at_once(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tmp_path)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("import sys\nsys.modules['tensorboard'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    asked = ("--detector_path", "config/detector/clip_gradcam.yaml", "--tensorboard", "t", "--test_dataset")
    done = command(clone, tmp_path, *asked, "nowhere/at/all", "set/", "--weights_path", "gone.pth")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    places = [
        done.stderr.index(text)
        for text in ("no weights file at 'gone.pth'", "nowhere/at/all", "pip install tensorboard")
    ]
    assert places == sorted(places) and done.stderr.startswith("error: 3 things are wrong: (1) ")
    done = command(clone, tmp_path, *asked[:2], "--test_dataset", "no_such_set")
    assert done.stderr.startswith("error: 2 things are wrong: (1) no weights: weights_path is not set"), done.stderr
    assert "dataset_json_folder" in done.stderr


USES_UTILS = MODEL.replace("import torch\n", "import torch\nfrom {module} import {name}\n", 1).replace("8", "{name}()")
LAZY = MODEL.replace("def build():\n", "def build():\n    from utils.sizes import width\n").replace("8", "width()")


def write_own_modules(work: Path, how: str) -> str:
    """A project with a module `utils` of its own; returns what --detector names."""
    width = "def width():\n    return 8\n"
    module, name, text = "utils", "my_module:build", USES_UTILS
    if how == "utils.py":
        (work / "utils.py").write_text(width)
    elif how in ("package", "namespace", "lazy"):
        (work / "utils").mkdir()
        (work / "utils" / "sizes.py").write_text(width)
        module = "utils.sizes"
        if how == "package":
            (work / "utils" / "__init__.py").write_text("")
    elif how == "file elsewhere":
        (work / "code").mkdir()
        (work / "code" / "utils.py").write_text(width)
        name = "code/my_module.py:build"
    else:  # "detectors.py": another name that this library has
        module = "detectors"
        (work / "detectors.py").write_text(width)
    target = work / ("code/my_module.py" if how == "file elsewhere" else "my_module.py")
    target.write_text(LAZY if how == "lazy" else text.replace("{module}", module).replace("{name}", "width"))
    return name


@pytest.mark.parametrize("how", ["utils.py", "package", "namespace", "lazy", "file elsewhere", "detectors.py"])
def test_a_users_own_modules_keep_their_names(clone: Path, tmp_path: Path, how: str) -> None:
    images(tmp_path)
    name = write_own_modules(tmp_path, how)
    done = command(clone, tmp_path, "--detector", name, "--test_dataset", "set/")
    assert done.returncode == 0, done.stderr


def test_own_utils_and_workers_that_are_started_anew(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS and Windows, and from Python 3.14 on everywhere: they import by the path of the first process."""
    images(tmp_path)
    name = write_own_modules(tmp_path, "utils.py")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import multiprocessing\nif multiprocessing.parent_process() is None:\n"
        "    multiprocessing.set_start_method('spawn', force=True)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    done = command(clone, tmp_path, "--detector", name, "--test_dataset", "set/", "--workers", "2")
    assert done.returncode == 0, done.stderr


def test_the_demo_says_everything_at_once_too(clone: Path, tmp_path: Path) -> None:
    asked = ["--input", "nowhere/*.png", "--weights_path", "gone.pth", "--landmark_model", "gone.dat", "--output", "o"]
    done = subprocess.run(
        [sys.executable, str(clone / "utils" / "gradcam_demo.py"), *asked],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: 3 things are wrong: (1) ")
    weights, data = done.stderr.index("no weights file at 'gone.pth'"), done.stderr.index("--input 'nowhere/*.png'")
    assert weights < data < done.stderr.index("(3) ")
