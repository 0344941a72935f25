"""The output folder of a run: what its manifest records, who may write there, what of an earlier run is removed."""

from __future__ import annotations

import hashlib
import json
import pickle
import platform
import shutil
import subprocess
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.command_server import CommandServer
from tests.helpers.datasets import DataTree
from tests.helpers.fake_run import some_manifest as manifest
from tests.helpers.paths import SCRIPT
from tests.helpers.watch import PRIVATE_MOUNTS
from utils.errors import InputError, RunError
from utils.results.journal import Journal
from utils.results.manifest import HeatmapCounts
from utils.results.run_folder import RunFolder

READ_ONLY = (
    PRIVATE_MOUNTS
    + """
check(libc.mount(b"none", {path!r}.encode(), b"tmpfs", 1, None))  # MS_RDONLY, which binds root too
"""
)


def test_the_manifest_says_how_the_run_came_about_and_nothing_of_the_environment(
    commands: CommandServer, data_tree: DataTree, tiny_weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = data_tree.arguments("--gradcam_output_dir", out, "--seed", "11")
    secret = {"GRADCAM_TEST_TOKEN": "never-to-be-written", "HF_TOKEN": "nor-is-this"}
    done = commands.start(SCRIPT, *arguments, cwd=tmp_path, environment=secret).wait()
    assert done.code == 0, done.err
    text = (out / "manifest.json").read_text()
    manifest = json.loads(text)
    json_file = data_tree.folder / "dataset_json" / "toy.json"
    assert manifest["command"] == [SCRIPT, *arguments]
    assert manifest["weights"]["sha256"] == hashlib.sha256(tiny_weights.read_bytes()).hexdigest()
    assert manifest["datasets"]["toy"]["json_sha256"] == hashlib.sha256(json_file.read_bytes()).hexdigest()
    assert manifest["settings"] == {"batch_size": 5, "seed": 11} and manifest["device"] == "cpu"
    given = yaml.safe_load(data_tree.detector_yaml.read_text())
    assert {key: manifest["config"][key] for key in ("backbone_config", "test_dataset", "resolution")} == {
        key: given[key] for key in ("backbone_config", "test_dataset", "resolution")
    }
    assert manifest["versions"]["python"] == platform.python_version()
    for package in ("torch", "transformers", "numpy"):
        assert manifest["versions"][package] == version(package)
    assert datetime.fromisoformat(manifest["started"]) <= datetime.fromisoformat(manifest["finished"])
    assert set(manifest) == {
        "command", "started", "finished", "config", "settings", "weights", "datasets", "options", "device", "threads",
        "versions", "heatmaps", "top_files", "detector",
    }  # fmt: skip
    written = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file()).decode(errors="replace")
    assert not any(part in written for pair in secret.items() for part in pair)


def test_a_read_only_output_folder(commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run = commands.start(
        SCRIPT,
        *data_tree.arguments("--gradcam_output_dir", out),
        cwd=tmp_path,
        first=READ_ONLY.format(path=str(out)),
    )
    done = run.wait()
    if done.code == 77:
        pytest.skip("mounting a file system is not permitted here")
    assert done.code == 2 and len(done.err.splitlines()) == 1, done.err
    assert f"output folder {out}: cannot be written (Read-only file system)" in done.err


TRY_LOCK = """
import fcntl, sys
try:
    fcntl.lockf(open(sys.argv[1], "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("free")
except OSError:
    print("locked")
"""


def seen_from_outside(folder: Path) -> str:
    """The folder's lock as another process meets it: a process never meets its own."""
    command = [sys.executable, "-c", TRY_LOCK, str(folder / "manifest.partial.json")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_folder_is_locked_until_the_end_of_the_block_and_no_longer(tmp_path: Path) -> None:
    """Not until this process ends: a notebook may begin the run a second time."""
    out = tmp_path / "out"
    with RunFolder.open(out, manifest()) as folder:
        assert seen_from_outside(out) == "locked"
        with pickle.loads(pickle.dumps(folder)) as sent:  # as another rank gets it
            assert (sent.path, sent.manifest, sent.finished) == (out, manifest(), False)
        assert seen_from_outside(out) == "locked"
    assert seen_from_outside(out) == "free"
    with RunFolder.open(out, manifest(), overwrite=True):
        assert seen_from_outside(out) == "locked"
    with RunFolder.open(out, manifest(), resume=True) as folder:
        assert seen_from_outside(out) == "locked" and not folder.finished
    assert seen_from_outside(out) == "free"


def finished_run(out: Path, **changes: Any) -> None:
    """A folder as a run leaves it."""
    with RunFolder.open(out, manifest(**changes)) as folder:
        with Journal(folder.dataset("toy"), 0):
            pass
        (out / "metrics.json").write_text("{}")
        folder.finish({"toy": HeatmapCounts()})


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_overwriting_removes_what_the_run_lists_and_nothing_else(tmp_path: Path) -> None:
    """Also the files of an export that this version does not know, and those that a manifest without a list left."""
    out = tmp_path / "out"
    finished_run(out, top_files=["metrics.json", "export_of_the_future.parquet"])
    for name in ("export_of_the_future.parquet", "index.html", "thesis.tex"):
        (out / name).write_text("")
    with RunFolder.open(out, manifest(), overwrite=True):
        assert names(out) == {"toy", "manifest.partial.json", "thesis.tex"}
    finished_run(tmp_path / "old")
    path = tmp_path / "old" / "manifest.json"
    values = json.loads(path.read_text())
    del values["top_files"], values["threads"]  # of an earlier version, whatever else it had
    path.write_text(json.dumps(values))
    with RunFolder.open(tmp_path / "old", manifest(), overwrite=True):
        assert names(tmp_path / "old") == {"toy", "manifest.partial.json"}


@pytest.mark.parametrize("top_files", [["../victim"], ["/etc/passwd"], [""], [".."], "metrics.json", [7], None])
def test_a_list_of_files_from_elsewhere_removes_nothing(top_files: Any, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("keep me")
    finished_run(tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "top_files": top_files}))
    before = names(tmp_path)
    with pytest.raises(InputError, match=r"manifest\.json: not as a run writes it, so nothing is removed"):
        RunFolder.open(tmp_path / "out", manifest(), overwrite=True)
    assert names(tmp_path) == before


def test_a_finished_run_is_resumed_by_doing_nothing(tmp_path: Path) -> None:
    finished_run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    with RunFolder.open(tmp_path, manifest(top_files=["new.json"]), resume=True) as folder:
        assert folder.finished and folder.manifest.heatmaps == {"toy": HeatmapCounts()}
        assert folder.manifest.top_files == ["metrics.json", "index.html", "new.json"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before
    with pytest.raises(InputError, match="is of another run: settings.seed was 7 and is 8; give the first run's"):
        RunFolder.open(tmp_path, manifest(seed=8), resume=True)
    with pytest.raises(InputError, match="holds an earlier run; give another --gradcam_output_dir, --resume or"):
        RunFolder.open(tmp_path, manifest())


def test_a_resumed_run_is_cleared_of_what_was_half_written(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, manifest()), Journal(tmp_path / "toy", 0):
        pass
    (tmp_path / "toy" / ".sample3.partial").mkdir()
    (tmp_path / "toy" / ".predictions.csv.partial").write_text("index,pa")
    with RunFolder.open(tmp_path, manifest(), resume=True):
        assert names(tmp_path) == {"toy", "toy/predictions.0.partial", "manifest.partial.json"}


def test_an_emptied_folder_is_no_finished_run(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "out", manifest()) as folder:
        shutil.rmtree(tmp_path / "out")
        with pytest.raises(RunError, match="was removed or emptied while the run was at work"):
            folder.finish({})


@pytest.mark.parametrize("threads", ["many", 0, 10**9, None])
def test_a_manifest_that_someone_edited(threads: object, tmp_path: Path) -> None:
    finished_run(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "threads": threads}))
    with pytest.raises(InputError) as refused:
        RunFolder.open(tmp_path, manifest(), resume=True)
    assert str(refused.value).startswith(f"{path}: threads is {threads!r}, which no run writes; give another")
    with RunFolder.open(tmp_path, manifest(), overwrite=True) as folder:  # the way out that the message names
        assert not folder.finished
