"""Option 1 of the first guide, its very first command, from the folder that it names and from the one above."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.hosts import run_python
from tests.helpers.paths import ROOT
from tests.seed.conftest import typed

COMMAND = "python detectors/utils/gradcam_demo.py --input path/to/your/image.jpg --output ./gradcam_results"


@pytest.mark.slow
@pytest.mark.parametrize("above", [False, True])
def test_the_first_command_in_a_host(training: Path, above: bool) -> None:
    command = COMMAND
    if above:
        command = command.replace("detectors/", "training/detectors/").replace("path/to", "training/path/to")
    cwd = training.parent if above else training
    done = typed(command, cwd)
    assert done.returncode == 0, done.stderr
    assert list((cwd / "gradcam_results").glob("*/gradcam_comparison.png"))


@pytest.mark.slow
def test_the_first_command_in_this_repository(training: Path, tmp_path: Path) -> None:
    image = training / "path" / "to" / "your" / "image.jpg"
    done = run_python("detectors/utils/gradcam_demo.py", "--input", image, "--output", tmp_path / "out", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").glob("*/gradcam_comparison.png"))


def test_the_hosts_folder_of_that_name_is_its_own(training: Path) -> None:
    """Ours is one file in it, and what the host imports from there goes on being imported."""
    assert [path.name for path in (training / "detectors" / "utils").glob("*.py")].count("gradcam_demo.py") == 1
    done = run_python("-c", "import detectors.utils.slowfast as s; print(s.THEIRS)", cwd=training)
    assert done.stdout.endswith("1\n"), done.stderr


def test_the_shim_takes_the_same_flags(training: Path) -> None:
    old, new = (
        run_python(path, "--help", cwd=training)
        for path in ("detectors/utils/gradcam_demo.py", "utils/gradcam_demo.py")
    )
    assert old.returncode == 0 and old.stdout == new.stdout
