"""A run that is killed again and again, in every phase, alone and with two ranks: its files are an unbroken run's.

By hand: KILLS=40 SEED=1 pytest tests/kills/test_kills.py. So many kills in each phase, at moments that the seed draws.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.command_server import CommandServer, run_ranks, start_ranks
from tests.helpers.compare_runs import assert_only_whole_files, assert_same_run
from tests.helpers.datasets import DataTree, make_data_tree
from tests.helpers.watch import recorded

KILLS, SEED = int(os.environ.get("KILLS", "5")), int(os.environ.get("SEED", "1"))
pytestmark = pytest.mark.slow
# Phase → the function that is all of it.
PHASES = {
    "opening": "utils.gradcam_kit.run.evaluation:_open_folder",
    "choosing": "utils.gradcam_kit.store.run_folder:RunFolder.join",
    "predicting": "utils.gradcam_kit.run.dataset_run:DatasetRun.predict_all",
    "in one pass": "utils.gradcam_kit.run.dataset_run:DatasetRun.predict_all",  # predicting and explaining
    "explaining": "utils.gradcam_kit.run.dataset_run:DatasetRun.explain_chosen",
    "features": "utils.gradcam_kit.run.dataset_run:DatasetRun.save_features",
    "measuring": "utils.gradcam_kit.run.evaluation:_measure",
    "exporting": "utils.gradcam_kit.run.evaluation:finish_run",
}
OF_THE_FIRST = ("opening", "measuring", "exporting")  # phases of rank 0 only
FLAGS = ["--gradcam_enabled", "--test_dataset", "toy", "toy_fake", "--max_unreadable", "10%"]
ONE_PASS = ["--save_all_predictions"]
MANY_PHASES = ["--gradcam_samples", "12", "--gradcam_select", "random", "--save_features", "--evaluate_explanations",
               "--explanation_samples", "4", "--leave_out", "attack", "transplant"]  # fmt: skip
# Every batch is committed. Where a phase begins, `{then}` is done.
HOOKED = """
import importlib, json, pathlib, signal, time
import utils.gradcam_kit.store.database as database
database.PAUSE = 0
def hook(phase, place):
    module, _, names = place.partition(":")
    owner, *inner, name = importlib.import_module(module), *names.split(".")
    for one in inner:
        owner = getattr(owner, one)
    plain = getattr(owner, name)
    def hooked(*given, **named):
        begin = time.monotonic()
        {then}
        return plain(*given, **named)
    setattr(owner, name, hooked)
for phase, place in {places!r}.items():
    hook(phase, place)
"""
NOTE = """with open({path!r}, "a") as file: file.write(json.dumps([phase, begin]) + "\\n")"""
# The system ends the process at that moment, whatever it is at, as SIGKILL does.
FUSE = "signal.setitimer(signal.ITIMER_REAL, {seconds})"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> DataTree:
    """30 frames in 6 batches and 15 in 3; some cannot be read."""
    tree = make_data_tree(tmp_path_factory.mktemp("data"), tiny_weights, videos=5)
    tree.frames["toy_Real"][7].write_bytes(b"")
    tree.frames["toy_Fake"][3].unlink()
    return tree


def flags_of(phase: str, tree: DataTree, out: Path) -> list[str]:
    more = ONE_PASS if phase == "in one pass" else MANY_PHASES
    return tree.arguments(*FLAGS, *more, "--gradcam_output_dir", out, "--resume")


class Unbroken(NamedTuple):
    """A run that nobody has killed."""

    folder: Path
    seconds: dict[str, float]  # phase → how long it took


@pytest.fixture(scope="module")
def unbroken(
    tree: DataTree, commands: CommandServer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Unbroken]:
    """The unbroken run with the flags of a phase."""

    @functools.cache
    def made(one_pass: bool) -> Unbroken:
        folder, of = tmp_path_factory.mktemp("whole"), "in one pass" if one_pass else "exporting"
        places = {phase: place for phase, place in PHASES.items() if (phase == "in one pass") == one_pass}
        note = HOOKED.format(then=NOTE.format(path=str(folder / "begun")), places=places)
        (run,) = start_ranks(commands, flags_of(of, tree, folder / "out"), folder, 1, note)
        done, end = run.wait(), time.monotonic()
        assert done.code == 0, done.err
        begun = [json.loads(line) for line in (folder / "begun").read_text().splitlines()]
        seconds: dict[str, float] = {}
        for (phase, begin), (_, following) in zip(begun, [*begun[1:], ("", end)], strict=True):
            seconds[phase] = max(seconds.get(phase, 0), following - begin)
        return Unbroken(folder / "out", seconds)

    return lambda phase: made(phase == "in one pass")


@contextmanager
def somebody_reading(out: Path) -> Iterator[None]:
    """Another program reads the database all the while, as `recorded` does."""
    ended = threading.Event()

    def read() -> None:
        while not ended.wait(0.02):
            recorded(out)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        ended.set()
        reader.join()


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("phase", PHASES)
def test_kills_at_random_moments_of_a_phase(
    phase: str,
    size: int,
    tree: DataTree,
    commands: CommandServer,
    unbroken: Callable[[str], Unbroken],
    tmp_path: Path,
) -> None:
    moments, (whole, seconds) = random.Random(f"{SEED} {phase} {size}"), unbroken(phase)
    killed, attempts, out = 0, 0, tmp_path / "out"
    while killed < KILLS:
        attempts += 1
        assert attempts < 6 * KILLS + 6, "the kills come too late to mean anything"
        victims = {0} if size == 1 or phase in OF_THE_FIRST else set(moments.choice([(0,), (1,), (0, 1)]))
        sources = [
            HOOKED.format(
                then=FUSE.format(seconds=max(1e-4, moments.uniform(0, seconds[phase]))),
                places={phase: PHASES[phase]} if rank in victims else {},
            )
            for rank in range(size)
        ]
        with somebody_reading(out):
            begin = time.monotonic()
            processes = start_ranks(commands, flags_of(phase, tree, out), tmp_path, size, *sources)
            done = [process.wait() for process in processes]
            assert time.monotonic() - begin < 120
        codes = [one.code for one in done]
        if -signal.SIGALRM in codes:
            killed += 1
            # One that is left ends by itself, unless it had nothing left to wait for.
            assert all(code in (-signal.SIGALRM, 0, 1) for code in codes), [one.err for one in done]
            assert all("Traceback" not in one.err for one in done), [one.err for one in done]
            if out.exists():
                assert_only_whole_files(out, whole)
        else:
            assert codes == [0] * size, [one.err for one in done]
            assert_same_run(out, whole)
            shutil.rmtree(out)
    done = run_ranks(commands, flags_of(phase, tree, out), tmp_path, size)
    assert [one.code for one in done] == [0] * size, [one.err for one in done]
    assert_same_run(out, whole)
    assert not list(out.glob("run.*.sqlite"))
    print(f"seed {SEED}, {phase}, {size} processes: {killed} kills in {attempts} runs")
