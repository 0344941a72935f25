"""Files Overview and Setup of the first guide: the files are there, and the line of registration works."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.hosts import edit, install, make_host, run_python
from tests.helpers.paths import ROOT

LINE = "from .clip_detector_gradcam import CLIPDetectorWithGradCAM\n"


@pytest.mark.parametrize("name", ["utils/gradcam.py", "detectors/clip_detector_gradcam.py", "utils/gradcam_demo.py",
                                  "config/detector/clip_gradcam.yaml", "test_with_gradcam.py", "README_gradcam.md"])  # fmt: skip
def test_a_file_of_the_overview_is_there(training: Path, name: str) -> None:
    assert (training / name).is_file() and (ROOT / name).is_file()


def test_both_formulas_are_in_the_main_file() -> None:
    """Grad-CAM weighs each channel of A by the mean of its gradient G, Grad-CAM++ by powers of it."""
    program = "import utils.gradcam as g; print(g.grad_cam.__module__, g.grad_cam_plus_plus.__name__)"
    done = run_python("-c", program, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.startswith("utils.gradcam_kit.engine."), done.stderr


@pytest.mark.parametrize("with_ours", [True, False])
def test_the_line_of_registration(tmp_path: Path, with_ours: bool) -> None:
    """With the installer's own line behind it, and in its place."""
    training = make_host(tmp_path, whole=True)
    assert install(training).returncode == 0
    init = training / "detectors" / "__init__.py"
    ours = init.read_text(encoding="utf-8").splitlines(keepends=True)[-1]
    edit(init, ours, LINE + (ours if with_ours else ""))
    program = "from detectors import DETECTOR; print(DETECTOR['clip_gradcam'].__name__)"
    done = run_python("-c", program, cwd=training)
    assert done.stdout.endswith("CLIPDetectorWithGradCAM\n"), done.stderr
