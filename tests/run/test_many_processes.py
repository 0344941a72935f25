"""torchrun: whatever the number of processes, the outputs are those of one; and none waits for a dead one."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.command_server import CommandServer, run_ranks, start_ranks
from tests.helpers.compare_runs import assert_only_whole_files, assert_same_run
from tests.helpers.datasets import DataTree, make_data_tree, rows_of
from tests.helpers.paths import ROOT, SCRIPT
from tests.helpers.watch import WATCHED, recorded, until
from utils.gradcam_kit.run.disturbances import resume_command
from utils.gradcam_kit.run.processes import Processes

# 42 frames in 11 batches, which neither 2 nor 3 divide; the last batch is short.
MODES = {
    "plain": [],
    "two phases": ["--gradcam_enabled", "--gradcam_samples", "13", "--gradcam_select", "random"],
    "one pass": ["--gradcam_enabled", "--save_all_predictions"],
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> DataTree:
    tree = make_data_tree(tmp_path_factory.mktemp("data"), tiny_weights, videos=7)
    tree.frames["toy_Real"][7].write_bytes(b"")
    tree.frames["toy_Fake"][20].unlink()  # in the last batch
    return tree


def flags_of(tree: DataTree, out: Path, *more: str) -> list[str]:
    return tree.arguments("--max_unreadable", "10%", "--batch_size", "4", "--gradcam_output_dir", out, *more)


@pytest.mark.parametrize(
    "mode", ["plain", *(pytest.param(mode, marks=pytest.mark.slow) for mode in MODES if mode != "plain")]
)
def test_two_and_three_processes_write_what_one_writes(
    mode: str, tree: DataTree, commands: CommandServer, tmp_path: Path
) -> None:
    for size in (1, 2, 3):
        done = run_ranks(commands, flags_of(tree, tmp_path / str(size), *MODES[mode]), tmp_path, size)
        assert [one.code for one in done] == [0] * size, "\n".join(one.err for one in done)
        assert "video AUC" in done[0].out and "frame/s" in done[0].err
        assert all(one.out == "" and "frame/s" not in one.err for one in done[1:])  # one speaks for all
        assert_same_run(tmp_path / str(size), tmp_path / "1")
    assert len(rows_of(tmp_path / "3" / "toy")) == 40
    assert len(list(csv.DictReader((tmp_path / "3" / "toy" / "unreadable.csv").open()))) == 2


def test_work_is_shared_and_no_batch_is_done_twice(tree: DataTree, commands: CommandServer, tmp_path: Path) -> None:
    """11 batches on 3 processes: 4, 4 and 3 of them."""
    seen = tmp_path / "seen"
    counted = WATCHED.format(path=str(seen), seconds=0).replace('f"{', "f\"{__import__('os').environ['RANK']} {")
    done = [one.wait() for one in start_ranks(commands, flags_of(tree, tmp_path / "out"), tmp_path, 3, counted)]
    assert [one.code for one in done] == [0, 0, 0], done[0].err
    batches = [line.split() for line in seen.read_text().splitlines()]
    assert len({batch for _, batch in batches}) == len(batches) == 11
    assert sorted([rank for rank, _ in batches].count(rank) for rank in "012") == [3, 4, 4]


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_and_resume_finishes_it(
    tree: DataTree, commands: CommandServer, tmp_path: Path
) -> None:
    """SIGKILL for one of three; the others end by themselves, and two processes do the rest."""
    out, flags = tmp_path / "out", MODES["two phases"]
    slow = WATCHED.format(path=str(tmp_path / "seen"), seconds=0.2)
    processes = start_ranks(commands, flags_of(tree, out, *flags), tmp_path, 3, slow)
    until(lambda: recorded(out) >= 5)
    os.kill(processes[1].pid, signal.SIGKILL)
    begin = time.monotonic()
    done = [process.wait() for process in processes]
    assert time.monotonic() - begin < 30
    assert [one.code for one in done] == [1, -signal.SIGKILL, 1]
    for one in (done[0], done[2]):
        assert "another process of this run has ended" in one.err.splitlines()[-1] and "--resume" in one.err
        assert "Traceback" not in one.err
    done = run_ranks(commands, flags_of(tree, tmp_path / "whole", *flags), tmp_path, 1)
    assert_only_whole_files(out, tmp_path / "whole")
    done = run_ranks(commands, flags_of(tree, out, *flags, "--resume"), tmp_path, 2)
    assert [one.code for one in done] == [0, 0], done[0].err
    assert_same_run(out, tmp_path / "whole")


def test_a_signal_ends_all_processes_with_one_line(tree: DataTree, commands: CommandServer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    slow = WATCHED.format(path=str(tmp_path / "seen"), seconds=0.2)
    processes = start_ranks(commands, flags_of(tree, out), tmp_path, 2, slow)
    until(lambda: recorded(out) >= 5)
    for process in processes:
        os.kill(process.pid, signal.SIGINT)
    done = [process.wait() for process in processes]
    assert [one.code for one in done] == [130, 130], done[0].err
    assert "continue with: " in done[0].err and done[1].err == ""


def test_what_is_wrong_is_told_once(tree: DataTree, commands: CommandServer, tmp_path: Path) -> None:
    """Bad input, which all processes meet, and a folder in use, which the first one meets for all."""
    done = run_ranks(commands, flags_of(tree, tmp_path / "out", "--test_dataset", "tay"), tmp_path, 2)
    assert [one.code for one in done] == [2, 2] and "tay" in done[0].err and done[1].err == ""
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").write_text("years of work")
    done = run_ranks(commands, flags_of(tree, tmp_path / "used"), tmp_path, 2)
    assert [one.code for one in done] == [2, 2] and "not empty" in done[0].err and done[1].err == ""


# RANKS start and end at once, ROUNDS times. Forked, so that a round takes no second; many, so that some are late.
RANKS, ROUNDS = 8, 5
ENDS_AT_ONCE = f"""
import multiprocessing, os, socket
from utils.gradcam_kit.run.processes import Processes
import torch.distributed.nn

def end_at_once(rank, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="{RANKS}", RANK=str(rank))
    with Processes.start():
        os._exit(2)

for _ in range({ROUNDS}):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=end_at_once, args=(rank, port)) for rank in range({RANKS})]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(20)
        rank.kill()
        rank.join()
    print(*(rank.exitcode for rank in ranks))
"""


def test_a_rank_that_ends_at_once_does_not_fail_the_others() -> None:
    """Bad input: no rank ends before every rank has joined."""
    done = subprocess.run([sys.executable, "-c", ENDS_AT_ONCE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["2"] * RANKS * ROUNDS, done.stderr


# Leaves the names of the threads that are still there when the interpreter ends. Started as `sitecustomize`.
THREADS = """
import atexit, contextlib, os, pathlib

def leave_names():
    names = []
    for task in pathlib.Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended since it was listed
            names.append(task.joinpath("comm").read_text())
    pathlib.Path(__file__).with_name("threads" + os.environ["RANK"]).write_text("".join(names))

if "RANK" in os.environ:
    atexit.register(leave_names)
"""


@pytest.mark.slow
def test_under_torchrun_itself(tree: DataTree, tmp_path: Path) -> None:
    """The launcher as a user types it, from another folder."""
    out, flags = tmp_path / "out", MODES["two phases"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ROOT / SCRIPT)]
    command = [*launcher, *flags_of(tree, out, *flags)]
    (tmp_path / "sitecustomize.py").write_text(THREADS)
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONPATH": str(tmp_path)}
    environment = {**os.environ, **threads}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    if Path("/proc/self/task").is_dir():  # a thread of gloo's that is still there aborts the process now and then
        assert not [rank for rank in "01" if "gloo" in (tmp_path / f"threads{rank}").read_text()]
    # A process of its own: the number of threads, which the last bits depend on, is read when torch is imported.
    alone = [sys.executable, str(ROOT / SCRIPT), *flags_of(tree, tmp_path / "one", *flags)]
    assert subprocess.run(alone, cwd=tmp_path, capture_output=True, check=False, env=environment).returncode == 0
    assert_same_run(out, tmp_path / "one")


def test_every_process_gets_the_cuda_device_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [Processes(rank, 4, rank % 2).device_name("auto") for rank in range(4)] == ["cuda:0", "cuda:1"] * 2
    assert Processes(1, 2, 1).device_name("cpu") == "cpu" and Processes().device_name("cuda") == "cuda"
    with pytest.raises(RuntimeError, match="nproc_per_node=2"):
        Processes(2, 3, 2).device_name("cuda")


def test_the_line_to_go_on_names_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["my dir/test_with_gradcam.py"])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    line = resume_command(["--overwrite", "--test_dataset", "a b"])
    expected = "-m torch.distributed.run --nproc_per_node=4 'my dir/test_with_gradcam.py' --test_dataset 'a b' --resume"
    assert line == f"{sys.executable} {expected}"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert resume_command([]) == "the same torchrun commands with --resume"
