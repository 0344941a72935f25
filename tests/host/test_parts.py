"""A host without the optional parts: a run ends well with one line, what needs a part is one line before it begins."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.hosts import install, make_host, run_python
from utils.gradcam_kit import parts
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.parts import DEFAULT_PARTS, PARTS, load_part, missing_part

EVALUATE = ("test_with_gradcam.py", "--detector_path", "config/detector/clip.yaml", "--test_dataset", "Celeb-DF-v2",
            "--random_weights", "--device", "cpu", "--gradcam_output_dir", "out")  # fmt: skip


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host that has no optional part."""
    training = make_host(tmp_path_factory.mktemp("bare"), whole=True)
    assert install(training, "--parts").returncode == 0
    return training


def test_all_parts_are_here() -> None:
    assert [missing_part(part) for part in PARTS] == [""] * len(PARTS)
    assert load_part("report.page", "the page").__name__ == "utils.gradcam_kit.report.page"
    assert set(DEFAULT_PARTS) == set(PARTS) - {"app"}


def test_what_is_missing_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "__package__", "utils.gradcam_kit.base")  # a folder in which they are not
    with pytest.raises(InputError) as raised:
        load_part("app.page", "the live app")
    assert str(raised.value).startswith("the live app: the part 'app' is not installed here: ")
    assert "--parts report exports media app" in str(raised.value) and "gradcam_kit[app]" in str(raised.value)


def test_a_run_without_the_report_ends_well(bare: Path) -> None:
    done = run_python(*EVALUATE, "--gradcam_enabled", "--overwrite", cwd=bare)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("report: skipped, ")]
    assert len(lines) == 1 and "the part 'report' is not installed here" in lines[0]
    assert (bare / "out" / "manifest.json").is_file() and not (bare / "out" / "index.html").exists()
    again = run_python(*EVALUATE, "--gradcam_enabled", "--resume", cwd=bare)  # nothing is lacking
    assert again.returncode == 0 and "skipped" not in again.stderr, again.stderr


@pytest.mark.parametrize(
    ("command", "part"),
    [((*EVALUATE, "--fiftyone"), "exports"), ((*EVALUATE, "--tensorboard", "tb"), "exports"),
     (("utils/gradcam_demo.py", "--input", "a.png", "--output", "out"), "media")],
)  # fmt: skip
def test_what_needs_a_part_is_one_line(bare: Path, command: tuple[str, ...], part: str) -> None:
    done = run_python(*command, cwd=bare)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"the part {part!r} is not installed here" in done.stderr and os.linesep not in done.stdout
