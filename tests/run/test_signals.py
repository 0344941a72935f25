"""SIGTERM and Ctrl-C in every phase of a run: it ends within a batch, and what follows does only the rest."""

from __future__ import annotations

import os
import shlex
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.command_server import CommandServer
from tests.helpers.compare_runs import assert_same_run
from tests.helpers.datasets import DataTree, make_data_tree
from tests.helpers.paths import SCRIPT
from tests.helpers.watch import until

FLAGS = ["--gradcam_enabled", "--gradcam_samples", "6", "--gradcam_select", "random", "--evaluate_explanations",
         "--explanation_samples", "4", "--leave_out", "attack", "transplant"]  # fmt: skip
# Phase → what takes long in it.
PHASES = {
    "choosing": ("utils.gradcam_kit.run.calibration", "choose_map"),
    "predicting": ("utils.gradcam_kit.model.detector:LoadedDetector", "predict"),
    "explaining": ("utils.gradcam_kit.model.detector:LoadedDetector", "explain_finite"),
    "measuring": ("utils.gradcam_kit.measure.perturbation", "saco_metrics"),
    "exporting": ("utils.gradcam_kit.report.aggregates", "mean_map_table"),
}
SLOW = """
import importlib, pathlib, time
module, _, owner = {place!r}.partition(":")
owner = getattr(importlib.import_module(module), owner) if owner else importlib.import_module(module)
plain = getattr(owner, {name!r})
def slow(*given, **named):
    pathlib.Path({seen!r}).touch()
    for _ in range(30):
        time.sleep(0.05)
    return plain(*given, **named)
setattr(owner, {name!r}, slow)
"""
NEVER = """
import utils.gradcam_kit.measure.perturbation as causal
def never(*given, **named): raise AssertionError("measured a second time")
causal.deletion_metrics = never
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> DataTree:
    """24 frames in 5 batches."""
    return make_data_tree(tmp_path_factory.mktemp("data"), tiny_weights)


@pytest.fixture(scope="module")
def whole(tree: DataTree, commands: CommandServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody has interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = commands.run(SCRIPT, *tree.arguments(*FLAGS, "--gradcam_output_dir", out), cwd=tree.folder)
    assert done.code == 0, done.err
    return out


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_every_phase(
    phase: str, tree: DataTree, commands: CommandServer, whole: Path, tmp_path: Path
) -> None:
    out, seen, (place, name) = tmp_path / "out", tmp_path / "seen", PHASES[phase]
    flags = tree.arguments(*FLAGS, "--gradcam_output_dir", out)
    first = SLOW.format(place=place, name=name, seen=str(seen))
    run = commands.start(SCRIPT, *flags, cwd=tmp_path, first=first)
    until(seen.exists)
    begin = time.monotonic()
    os.kill(run.pid, signal.SIGTERM if len(phase) % 2 else signal.SIGINT)
    done = run.wait()
    assert time.monotonic() - begin < 10
    assert done.code == 130 and "Traceback" not in done.err, done.err
    python, script, *arguments = shlex.split(done.err.splitlines()[-1].partition("continue with: ")[2])
    assert Path(python).exists() and arguments[-1] == "--resume"
    again = commands.start(script, *arguments, cwd=tmp_path, first=NEVER if phase == "measuring" else "").wait()
    assert again.code == 0, again.err
    assert_same_run(out, whole)
