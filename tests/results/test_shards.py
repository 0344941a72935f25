"""--shard and `python -m utils.run merge`: parts of a run that know nothing of each other, and the run they make."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command_server import CommandServer
from tests.helpers.compare_runs import assert_same_run
from tests.helpers.datasets import DataTree, make_data_tree
from tests.helpers.paths import ROOT, SCRIPT
from tests.helpers.watch import recorded, until

pytestmark = pytest.mark.slow  # many runs and merges

ALL = ["--gradcam_enabled", "--save_all_predictions"]
CHOSEN = ["--gradcam_enabled", "--gradcam_samples", "6", "--gradcam_select", "random"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> DataTree:
    """24 frames in 5 batches, two of them unreadable."""
    tree = make_data_tree(tmp_path_factory.mktemp("data"), tiny_weights)
    tree.frames["toy_Real"][7].write_bytes(b"")
    tree.frames["toy_Fake"][3].unlink()
    return tree


def evaluate(commands: CommandServer, tree: DataTree, out: Path, *flags: str) -> None:
    arguments = tree.arguments("--max_unreadable", "20%", "--gradcam_output_dir", out, *flags)
    done = commands.run(SCRIPT, *arguments, cwd=out.parent)
    assert done.code == 0, done.err


def merge(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "utils.run", "merge", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_shards_make_the_run_that_was_never_split(commands: CommandServer, tree: DataTree, tmp_path: Path) -> None:
    """One of them killed and resumed; eight of five batches, so that some have nothing to do."""
    shards = [tmp_path / f"shard{i}" for i in range(1, 9)]
    for number, out in enumerate(shards, start=1):
        flags = [*ALL, "--shard", f"{number}/8"]
        if number == 2:
            arguments = tree.arguments("--max_unreadable", "20%", "--gradcam_output_dir", out, *flags)
            run = commands.start(SCRIPT, *arguments, cwd=tmp_path)
            until(lambda: recorded(shards[1]) > 0)
            os.kill(run.pid, signal.SIGKILL)
            run.wait()
            flags.append("--resume")
        evaluate(commands, tree, out, *flags)
    done = merge(*reversed(shards), "-o", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    evaluate(commands, tree, tmp_path / "whole", *ALL)
    assert_same_run(tmp_path / "merged", tmp_path / "whole")


def test_what_depends_on_every_frame_follows_the_merge(commands: CommandServer, tree: DataTree, tmp_path: Path) -> None:
    for number in (1, 2):
        evaluate(commands, tree, tmp_path / f"shard{number}", *CHOSEN, "--save_features", "--shard", f"{number}/2")
    done = merge(tmp_path / "shard1", tmp_path / "shard2", "-o", tmp_path / "merged")
    assert done.returncode == 0 and "still to do: explaining the chosen samples, features; run " in done.stdout, (
        done.stderr
    )
    _, script, *arguments = shlex.split(done.stdout.strip().rpartition("; run ")[2])
    again = commands.run(script, *arguments, cwd=tmp_path)
    assert again.code == 0, again.err
    evaluate(commands, tree, tmp_path / "whole", *CHOSEN, "--save_features")
    assert_same_run(tmp_path / "merged", tmp_path / "whole")


def test_shards_that_do_not_belong_together(commands: CommandServer, tree: DataTree, tmp_path: Path) -> None:
    """One line each, exit code 2, and no folder is made."""
    one, two, other, whole = (tmp_path / name for name in ("one", "two", "other", "whole"))
    evaluate(commands, tree, one, "--shard", "1/2")
    evaluate(commands, tree, two, "--shard", "2/2")
    evaluate(commands, tree, other, "--shard", "2/2", "--seed", "5")
    evaluate(commands, tree, whole)
    cases: list[tuple[list[Path], str]] = [
        ([one], "shard 2 of 2 is missing"),
        ([one, two, one], "is shard 1/2, and so is"),
        ([one, other], "is not from the same run as"),
        ([one, whole], "is not a shard"),
        ([one, tmp_path / "nowhere"], "holds no run"),
    ]
    for folders, says in cases:
        done = merge(*folders, "-o", tmp_path / "merged")
        assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
        assert not (tmp_path / "merged").exists()
    done = merge(one, two, "-o", whole)
    assert done.returncode == 2 and "holds an earlier run" in done.stderr
    arguments = tree.arguments("--gradcam_output_dir", one, "--shard", "2/2", "--resume")
    resumed = commands.run(SCRIPT, *arguments, cwd=tmp_path)
    assert resumed.code == 2 and "options.shard was [1, 2] and is [2, 2]" in resumed.err
    for wrong in ("0/2", "3/2", "2", "a/b"):
        done_ = commands.run(SCRIPT, *tree.arguments("--shard", wrong), cwd=tmp_path)
        assert done_.code == 2 and "is not a shard such as 3/8" in done_.err


def test_a_shard_that_has_not_finished(commands: CommandServer, tree: DataTree, tmp_path: Path) -> None:
    evaluate(commands, tree, tmp_path / "one", "--shard", "2/2")
    slow = "import time\nfrom utils.gradcam_kit.model.detector import LoadedDetector as D\np = D.predict\n"
    slow += "D.predict = lambda *a: (time.sleep(2), p(*a))[1]\n"
    arguments = tree.arguments("--gradcam_output_dir", tmp_path / "two", "--shard", "1/2")
    run = commands.start(SCRIPT, *arguments, cwd=tmp_path, first=slow)
    until(lambda: recorded(tmp_path / "two") > 0)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    done = merge(tmp_path / "one", tmp_path / "two", "-o", tmp_path / "merged")
    assert done.returncode == 2 and "of 24 frames of toy are in the shards: one has not finished" in done.stderr
