"""What docs/clusters.md promises: torchrun over two nodes (on this machine), and a file system without locks."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.compare_runs import assert_same_run
from tests.helpers.datasets import DataTree, make_data_tree
from tests.helpers.paths import ROOT, SCRIPT
from tests.helpers.watch import until

pytestmark = pytest.mark.slow
Environment = tuple[Path, dict[str, str]]
FLAGS = [
    "--batch_size",
    "4",
    "--gradcam_enabled",
    "--gradcam_samples",
    "9",
    "--gradcam_select",
    "random",
    "--save_features",
]
# Every lock below the folder NO_LOCKS is refused, as on a network file system whose server has none.
WITHOUT_LOCKS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int refused(int file, int what) {
    char link[64], path[4096], *below = getenv("NO_LOCKS");
    if (what != F_SETLK && what != F_SETLKW && what != F_GETLK) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    return below && length > 0 && !strncmp(path, below, strlen(below));
}
#define WRAP(NAME) int NAME(int file, int what, ...) { \
    va_list given; va_start(given, what); void *more = va_arg(given, void *); va_end(given); \
    if (refused(file, what)) { errno = ENOLCK; return -1; } \
    return ((int (*)(int, int, void *))dlsym(RTLD_NEXT, #NAME))(file, what, more); }
WRAP(fcntl)
WRAP(fcntl64)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> DataTree:
    """30 frames in 8 batches, two of them unreadable."""
    tree = make_data_tree(tmp_path_factory.mktemp("data"), tiny_weights, videos=5)
    tree.frames["toy_Real"][7].write_bytes(b"")
    tree.frames["toy_Fake"][14].unlink()
    return tree


def command_of(tree: DataTree, out: Path, *more: str | Path) -> list[str]:
    flags = tree.arguments("--max_unreadable", "10%", "--gradcam_output_dir", out, *FLAGS, *more)
    return [str(ROOT / SCRIPT), *flags]


def start(command: list[str], cwd: Path, **environment: str) -> subprocess.Popen[str]:
    own = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, *command], cwd=cwd, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def whole(tree: DataTree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run = start(command_of(tree, out), out.parent)
    _, said = run.communicate()
    assert run.returncode == 0, said
    return out


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def nodes(tree: DataTree, out: Path, each: int, *more: str) -> list[subprocess.Popen[str]]:
    """A launcher for each of two nodes, which find each other at a port."""
    launcher = ["-m", "torch.distributed.run", "--nnodes=2", f"--nproc_per_node={each}", "--rdzv_backend=c10d",
                f"--rdzv_endpoint=localhost:{free_port()}", "--rdzv_id=7"]  # fmt: skip
    return [start([*launcher, *command_of(tree, out, *more)], out.parent) for _ in range(2)]


@pytest.mark.parametrize("each", [1, 2])
def test_two_nodes_write_what_one_process_writes(each: int, tree: DataTree, whole: Path, tmp_path: Path) -> None:
    started = nodes(tree, tmp_path / "out", each)
    said = [node.communicate(timeout=300) for node in started]
    assert [node.returncode for node in started] == [0, 0], said
    assert sum("video AUC" in out for out, _ in said) == 1  # one process speaks for all
    assert_same_run(tmp_path / "out", whole)
    assert not list((tmp_path / "out").glob("run.*.sqlite"))


@pytest.fixture(scope="module")
def locked_out(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The folder below which the system refuses every lock, and the environment of a process that this befalls."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler, to take the locks away")
    folder = tmp_path_factory.mktemp("locks")
    library, source, disk = folder / "without_locks.so", folder / "without_locks.c", folder / "disk"
    source.write_text(WITHOUT_LOCKS)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    disk.mkdir()
    return disk, {"LD_PRELOAD": str(library), "NO_LOCKS": str(disk)}


def refusal(command: list[str], cwd: Path, environment: dict[str, str]) -> str:
    """The one line of a command that is refused."""
    run = start(command, cwd, **environment)
    _, said = run.communicate(timeout=300)
    assert run.returncode == 2 and "Traceback" not in said and said.count("error: ") == 1, said
    return said.splitlines()[-1]


def test_a_file_system_without_locks(tree: DataTree, whole: Path, locked_out: Environment, tmp_path: Path) -> None:
    """One line that names --run_database; with it the run is any other: killed, continued and reported."""
    disk, environment = locked_out
    out, place = disk / "out", tmp_path / "local.sqlite"
    said = refusal(command_of(tree, out), tmp_path, environment)
    assert said.startswith(f"error: {out / 'run.sqlite'}: the file system has no locks (No locks available)")
    assert "give --run_database PATH on another disk" in said
    elsewhere: list[str | Path] = ["--run_database", place]
    killed = start(command_of(tree, out, *elsewhere), tmp_path, **environment)
    until(lambda: bool(predictions_in(place)))
    killed.kill()
    killed.communicate()
    assert not (out / "manifest.json").exists()
    for more in (elsewhere, []):  # continued, and complete
        run = start(command_of(tree, out, *more, "--resume"), tmp_path, **environment)
        _, said = run.communicate()
        assert run.returncode == 0, said
    (out / "index.html").unlink()
    run = start(["-m", "utils.report", str(out)], ROOT, **environment)
    _, said = run.communicate()
    assert run.returncode == 0, said
    pointer = out / "run_database.txt"
    assert pointer.read_text() == f"{place}\n"
    pointer.unlink()
    assert_same_run(out, whole)


def test_two_at_once_in_a_folder_whose_database_is_elsewhere(
    tree: DataTree, locked_out: Environment, tmp_path: Path
) -> None:
    """The second is refused, whichever database it names, and the first one's results stay."""
    disk, environment = locked_out
    out, place = disk / "shared", tmp_path / "local.sqlite"
    first = start(command_of(tree, out, "--run_database", place), tmp_path, **environment)
    until(lambda: bool(predictions_in(place)))
    first.send_signal(signal.SIGSTOP)
    before, busy = predictions_in(place), f"error: {place}: another process is writing there; wait for it or end it"
    ways: list[list[str | Path]] = [["--run_database", place], []]
    for given in ways:
        assert refusal(command_of(tree, out, *given, "--resume"), tmp_path, environment) == busy
        assert refusal(command_of(tree, out, *given, "--overwrite"), tmp_path, environment) == busy
        assert "holds an earlier run" in refusal(command_of(tree, out, *given), tmp_path, environment)
    for flag in ([], ["--resume"], ["--overwrite"]):
        other = command_of(tree, out, "--run_database", tmp_path / "other.sqlite", *flag)
        assert f"holds a run with the database {place}" in refusal(other, tmp_path, environment)
    assert predictions_in(place) == before and not (tmp_path / "other.sqlite").exists()
    first.send_signal(signal.SIGCONT)
    _, said = first.communicate(timeout=300)
    assert first.returncode == 0, said


def test_a_run_that_was_copied_to_a_file_system_without_locks_can_be_read(
    whole: Path, locked_out: Environment, tmp_path: Path
) -> None:
    disk, environment = locked_out
    shutil.copytree(whole, disk / "copy")
    (disk / "copy" / "index.html").unlink()
    begin = time.monotonic()
    run = start(["-m", "utils.report", str(disk / "copy")], ROOT, **environment)
    _, said = run.communicate()
    assert run.returncode == 0 and (disk / "copy" / "index.html").is_file(), said
    assert time.monotonic() - begin < 50  # it waits for no lock


def predictions_in(database: Path) -> int:
    """The number of committed predictions; 0 before the first commit."""
    if not database.is_file():
        return 0
    with (
        contextlib.suppress(sqlite3.OperationalError),
        contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as open_one,
    ):
        return int(open_one.execute("SELECT count(*) FROM frame").fetchone()[0])
    return 0
