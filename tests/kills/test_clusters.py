"""What docs/clusters.md promises: torchrun over two nodes (on this machine), and a file system without locks."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.compare_runs import assert_same_run
from tests.helpers.datasets import DataTree, make_data_tree
from tests.helpers.paths import ROOT, SCRIPT

pytestmark = pytest.mark.slow
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


def test_a_file_system_without_locks(tree: DataTree, whole: Path, tmp_path: Path) -> None:
    """One line that names --run_database; with it the run is any other."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler, to take the locks away")
    library, source, out = tmp_path / "without_locks.so", tmp_path / "without_locks.c", tmp_path / "disk" / "out"
    source.write_text(WITHOUT_LOCKS)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    out.parent.mkdir()
    environment = {"LD_PRELOAD": str(library), "NO_LOCKS": str(out.parent)}
    run = start(command_of(tree, out), tmp_path, **environment)
    _, said = run.communicate()
    last = said.splitlines()[-1]
    assert run.returncode == 2 and "Traceback" not in said, said
    assert last.startswith(f"error: {out / 'run.sqlite'}: the file system has no locks (No locks available)")
    assert "give --run_database PATH on another disk" in last
    elsewhere: list[str | Path] = ["--run_database", tmp_path / "local.sqlite"]
    for more in ((), ("--resume",)):
        run = start(command_of(tree, out, *elsewhere, *more), tmp_path, **environment)
        _, said = run.communicate()
        assert run.returncode == 0, said
    pointer = out / "run_database.txt"
    assert pointer.read_text() == f"{tmp_path / 'local.sqlite'}\n"
    pointer.unlink()
    assert_same_run(out, whole)
