"""The machine's clock is set forward and back while a run goes on: nothing depends on it but the times that are told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.datasets import DataTree
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow  # four runs one after another

JUMPS = """
import itertools, time
by, clock, clock_ns = itertools.cycle((0, 86_400, -7_200, 3_600, -400_000_000)), time.time, time.time_ns
time.time = lambda: clock() + next(by)
time.time_ns = lambda: clock_ns() + next(by) * 10**9
"""


def evaluate(tree: DataTree, out: Path, jumps: Path | None, *more: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(jumps)} if jumps else dict(os.environ)
    flags = ("--gradcam_enabled", "--save_all_predictions", "--gradcam_output_dir", str(out), *more)
    command = [sys.executable, str(ROOT / "test_with_gradcam.py"), *map(str, tree.arguments(*flags))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def files(folder: Path) -> dict[str, bytes]:
    """All but the manifest and the database, which hold times, and the page, which shows them."""
    told = {"manifest.json", "run.sqlite", "index.html"}
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in told
    }


def test_a_clock_that_jumps_changes_no_file(data_tree: DataTree, tmp_path: Path) -> None:
    jumps = tmp_path / "jumps"
    jumps.mkdir()
    (jumps / "sitecustomize.py").write_text(JUMPS)
    evaluate(data_tree, tmp_path / "steady", None)
    evaluate(data_tree, tmp_path / "jumping", jumps)
    assert files(tmp_path / "jumping") == files(tmp_path / "steady")
    evaluate(data_tree, tmp_path / "jumping", jumps, "--resume")  # complete: nothing is done
    evaluate(data_tree, tmp_path / "jumping", jumps, "--overwrite")
    evaluate(data_tree, tmp_path / "jumping", jumps, "--overwrite")
    aside = [path for path in tmp_path.iterdir() if path.name.startswith("jumping.before-")]
    assert len(aside) == 2  # of one name or another, none lost
    for folder in (tmp_path / "jumping", *aside):
        assert files(folder) == files(tmp_path / "steady")
