"""`pip install .` in an empty environment: what the package says it needs is enough, and nothing of a host is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

import utils.gradcam
import utils.gradcam_kit as kit
from tests.helpers.paths import ROOT
from utils.gradcam_kit.base.version import VERSION

TOWERS = Path(sys.prefix) / "towers"

FIRST_LINES = """
import torch
from gradcam_kit import explain

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                            torch.nn.Linear(8, 2)).eval()
explain(model, torch.randn(2, 3, 32, 32)).save("out")
"""
ANY_ORDER = FIRST_LINES.replace(
    "from gradcam_kit import explain", "import gradcam_kit.explaining.mixin\nfrom gradcam_kit import explain"
)

# A torchvision beside a CPU build of torch wants two operators declared before it is imported.
DECLARED = """
import torch
operators = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""

A_TIMM_VIT = """
import timm, torch
from gradcam_kit import explain

model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=2, depth=3).eval()
explain(model, torch.randn(2, 3, 64, 64)).save("out")
"""


def test_the_package_has_the_names_of_the_face() -> None:
    assert dir(utils.gradcam) == sorted(kit.PLACES)
    for name in kit.PLACES:
        assert name in dir(kit)
        assert getattr(kit, name) is getattr(utils.gradcam, name)
        assert getattr(kit, name).__module__.startswith("utils.gradcam_kit.")
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = kit.nonsense


def needed(names: Iterable[str]) -> set[str]:
    """Packages with all that they need in turn, of those that are installed here."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        try:
            requirements = distribution(name).requires or []
        except PackageNotFoundError:  # for another platform
            continue
        if name not in found:
            found.add(name)
            left += [re.split(r"[^\w.-]", one, maxsplit=1)[0] for one in requirements if "extra ==" not in one]
    return found


def link(packages: Iterable[str], folder: Path) -> None:
    """The installed files of `packages` as if they were installed in `folder`, which is offline and takes no time."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in packages:
        files = distribution(name).files or []
        for top in {Path(str(file)).parts[0] for file in files} - {"..", "__pycache__"}:
            target = Path(str(distribution(name).locate_file(top)))
            if target.exists() and not (folder / top).exists():
                (folder / top).symlink_to(target)


def run(*command: object, cwd: Path, **variables: str) -> str:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_", "VIRTUAL_ENV"))
    }
    done = subprocess.run([str(part) for part in command], cwd=cwd, env={**environment, "OMP_NUM_THREADS": "1", **variables},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has our wheel, the packages it names, and no other."""
    folder = tmp_path_factory.mktemp("pip")
    source = folder / "source"
    shutil.copytree(ROOT / "utils", source / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README_gradcam.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.startswith(f"gradcam_kit-{VERSION}-")
    python = folder / "env" / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = re.findall(r'"([\w-]+)>=', text.split("dependencies = [")[1].split("]")[0])
    assert len(dependencies) > 5
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    link(needed(dependencies), site)
    # pip finds the links installed, and refuses where one of what the wheel names is not among them.
    run(*pip, "--python", python, "install", "--quiet", "--no-index", wheel, cwd=folder)
    return python


@pytest.mark.slow
def test_the_first_lines_in_an_empty_folder(python: Path, tmp_path: Path) -> None:
    for program in (FIRST_LINES, ANY_ORDER):
        run(python, "-c", program, cwd=tmp_path)
        assert len(list((tmp_path / "out").glob("gradcam_*.png"))) >= 2
        shutil.rmtree(tmp_path / "out")
    where = run(python, "-c", "import gradcam_kit.base.files as f; print(f.TRAINING_FOLDER, f.__file__)", cwd=tmp_path)
    assert where.startswith(f"{tmp_path} ") and str(ROOT) not in where


@pytest.mark.slow
def test_four_lines_on_a_timm_vit(python: Path, tmp_path: Path) -> None:
    if not (TOWERS / "timm").is_dir():
        pytest.skip("timm is not installed")
    link(needed(["huggingface_hub", "safetensors", "pyyaml"]), tmp_path / "of_timm")
    run(python, "-c", DECLARED + A_TIMM_VIT, cwd=tmp_path, PYTHONPATH=f"{TOWERS}:{tmp_path / 'of_timm'}")
    assert len(list((tmp_path / "out").glob("gradcam_*.png"))) >= 2


@pytest.mark.slow
def test_every_module_of_the_wheel_is_there(python: Path, tmp_path: Path) -> None:
    """With the templates of the report, and no path of version 1.1, which the package never had."""
    site = Path(run(python, "-c", "import gradcam_kit; print(gradcam_kit.__path__[0])", cwd=tmp_path).strip())
    ours = ROOT / "utils" / "gradcam_kit"
    wanted = {path.relative_to(ours) for path in ours.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(site) for path in site.rglob("*") if path.is_file() and path.suffix != ".pyc"} == wanted
    finders = run(python, "-c", "import sys, gradcam_kit; print(sys.meta_path)", cwd=tmp_path)
    assert "OldPaths" not in finders
