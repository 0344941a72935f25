"""`make demo`, run once however many processes share the tests."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT


@pytest.fixture(scope="session")
def made_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository after `make demo` as it stands: data/demo, runs/demo, runs/demo_pictures."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    folder = tmp_path_factory.getbasetemp().parent
    with (folder / f"demo-{run}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / f"demo-{run}.done"
        if not done.exists():
            environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            made = subprocess.run(
                ["make", "demo"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
            )
            assert made.returncode == 0, made.stderr[-2000:]
            done.touch()
    return ROOT
