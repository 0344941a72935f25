"""The import paths that README_gradcam.md, docs/api.md and the how-to pages of version 1.1 named: each still leads there."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path

import pytest

from tests.helpers.hosts import install, make_host, run_python
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow  # a process for each path

# Old path → names that the pages import from there.
OLD = {
    "utils.cam": ("towers",),
    "utils.cam.methods": ("METHODS",),
    "utils.cam.towers": ("AttentionModules", "FAMILIES", "TowerFamily"),
    "utils.data.frame_paths": ("mask_path",),
    "utils.data.images": ("decode_image",),
    "utils.data.readers": ("READERS", "DatasetReader", "read_dataset"),
    "utils.errors": ("InputError", "RunError"),
    "utils.files": ("sha256_of",),
    "utils.model": ("checkpoint_families",),
    "utils.model.checkpoint_families": ("FAMILIES", "CheckpointFamily"),
    "utils.model.checkpoint_families.renaming": ("renamed",),
    "utils.model.checkpoints": ("read_weights",),
    "utils.model.config": ("detector_settings",),
    "utils.model.load": ("find_device", "load_detector", "load_gradcam_detector", "read_images"),
    "utils.run.detection_metrics": ("DetectionMetrics", "detection_metrics"),
    "utils.training_log": ("log_gradcam",),
    "detectors.gradcam_any_model": ("AnyModelWithGradCAM",),
    "detectors.gradcam_mixin": ("GradCAMMixin",),
}  # fmt: skip


@pytest.mark.parametrize("path", OLD)
def test_an_old_path_is_the_new_module_and_warns(path: str) -> None:
    for name in [name for name in sys.modules if name == path or name.startswith(f"{path}.")]:
        del sys.modules[name]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        module = importlib.import_module(path)
    for name in OLD[path]:
        assert getattr(module, name, None) or importlib.import_module(f"{path}.{name}")
    if path in ("utils.cam", "utils.model"):  # rooms, of which nothing can be used alone
        return
    new = module.__name__ if path.startswith("utils") else module.__dict__[OLD[path][0]].__module__
    (warning,) = [one for one in said if f"{path} is now {new}" in str(one.message)]
    assert warning.category is DeprecationWarning and new.startswith("utils.gradcam_kit.")
    assert module.__spec__ is not None and module.__spec__.name == module.__name__


def test_both_paths_are_one_module() -> None:
    """What is registered, replaced or raised by one name is there by the other."""
    program = """
import utils.model.checkpoint_families as old, utils.gradcam_kit.model.checkpoint_families as new
from utils.cam import towers
from utils.gradcam_kit.engine import towers as same
import utils.cam.towers.family, utils.gradcam_kit.engine.towers.family, sys
from utils.errors import InputError
from utils.gradcam_kit.base.errors import InputError as Same
assert old is new and towers is same and InputError is Same
assert sys.modules["utils.cam.towers.family"] is utils.gradcam_kit.engine.towers.family
print(new.__spec__.name)
"""
    done = run_python("-W", "ignore", "-c", program, cwd=ROOT)
    assert done.stdout == "utils.gradcam_kit.model.checkpoint_families\n", done.stderr


@pytest.mark.parametrize("name", ["utils.nonsense", "utils.model.nonsense", "utils.model.load.nonsense"])
def test_a_path_that_never_was_is_not_found(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)


@pytest.mark.parametrize("first", ["from detectors.gradcam_mixin import GradCAMMixin as found",
                                   "from detectors.gradcam_any_model import AnyModelWithGradCAM as found",
                                   "from utils.model.load import read_images as found",
                                   "from utils.training_log import log_gradcam as found"])  # fmt: skip
@pytest.mark.parametrize("own", ["", "none", "theirs"])
def test_an_old_path_may_be_the_first_import(tmp_path: Path, first: str, own: str) -> None:
    """In this repository, and in hosts: with a `utils` of ours alone, and one whose `__init__.py` is the host's."""
    training = ROOT
    if own:
        training = make_host(tmp_path, whole=True)
        if own == "theirs":
            (training / "utils").mkdir()
            (training / "utils" / "__init__.py").write_text("THEIRS = 1\n")
            if first.startswith("from utils"):  # as version 1.1, which replaced such a file, never had to
                first = f"import detectors; {first}"
        assert install(training).returncode == 0
    done = run_python("-c", f"{first}; print(found.__name__)", cwd=training)
    assert done.returncode == 0 and done.stdout.strip().endswith(first.split()[-3]), done.stderr


def test_what_the_host_has_comes_first(tmp_path: Path) -> None:
    training = make_host(tmp_path, whole=True)
    (training / "utils" / "model").mkdir(parents=True)
    (training / "utils" / "errors.py").write_text("THEIRS = 1\n")
    (training / "utils" / "model" / "__init__.py").write_text("")
    (training / "utils" / "model" / "load.py").write_text("THEIRS = 2\n")
    assert install(training).returncode == 0
    program = "import detectors, utils.errors, utils.model.load; print(utils.errors.THEIRS, utils.model.load.THEIRS)"
    done = run_python("-c", program, cwd=training)
    assert done.stdout.endswith("1 2\n"), done.stderr


def test_an_old_command_still_runs(tmp_path: Path) -> None:
    done = run_python("-m", "utils.data.dataset_json", "--help", cwd=ROOT)
    assert done.returncode == 0 and "dataset JSON" in done.stdout, done.stderr


def test_a_persons_own_utils_is_the_one_that_their_module_means(tmp_path: Path) -> None:
    """`from utils import …` beside `--detector my_module:build`; our own modules go on being imported."""
    (tmp_path / "utils.py").write_text("WIDTH = 3\n")
    (tmp_path / "my_module.py").write_text(
        "from torch import nn\nfrom utils import WIDTH\n\ndef build():\n    return nn.Linear(WIDTH, 2)\n"
    )
    program = f"""
import sys; sys.path.append({str(ROOT)!r}); sys.path.remove("")
from utils.gradcam_kit.model.load import build_model
print(build_model("my_module:build", {{}}).in_features)
from utils.gradcam_kit.base.version import VERSION
import utils.gradcam_kit.drawing.overlays
from utils.gradcam_kit.store.sample import Sample
print(VERSION)
"""
    done = run_python("-c", program, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("3\n1."), done.stderr
