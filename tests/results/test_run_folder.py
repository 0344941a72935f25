"""The output folder of a run: what its manifest records, who may write there, what of an earlier run is removed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
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
import torch
import yaml

from tests.helpers.command_server import CommandServer
from tests.helpers.datasets import DataTree
from tests.helpers.fake_run import Row, write_row
from tests.helpers.fake_run import some_manifest as manifest
from tests.helpers.paths import SCRIPT
from tests.helpers.watch import PRIVATE_MOUNTS
from utils.gradcam_kit.base.errors import InputError, RunError
from utils.gradcam_kit.base.files import write_json
from utils.gradcam_kit.store.journal import Journal
from utils.gradcam_kit.store.manifest import DatasetRecord, HeatmapCounts, Numbers
from utils.gradcam_kit.store.run_folder import RunFolder

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
    assert manifest["versions"]["torch"] == torch.__version__
    for package in ("transformers", "numpy"):
        assert manifest["versions"][package] == version(package)
    assert datetime.fromisoformat(manifest["started"]) <= datetime.fromisoformat(manifest["finished"])
    assert set(manifest) == {
        "command", "started", "finished", "config", "settings", "weights", "datasets", "options", "device", "threads",
        "versions", "heatmaps", "top_files", "detector", "checksum",
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
    if not (folder / ".lock").exists():
        return "free"
    command = [sys.executable, "-c", TRY_LOCK, str(folder / ".lock")]
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
        with Journal(folder.path / "toy", 0):
            pass
        write_json(out / "metrics.json", {})
        write_json(out / "toy" / "regions.csv", [1])
        write_row(out, Row(7, "toy", "swap", "003", 1, 0.25, "/data/a.png"))
        folder.finish({"toy": HeatmapCounts()})


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


EMPTY = {".lock", "manifest.partial.json", "toy", "written.partial.sha256"}  # a run that has just begun


def test_overwriting_removes_what_the_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    """Also an export that this version does not know; not a file that has a run's name or place, but is not the run's."""
    out = tmp_path / "out"
    finished_run(out)
    write_json(out / "export_of_the_future.parquet", {})
    (out / "thesis.tex").write_text("mine")
    (out / "toy" / ".DS_Store").write_text("the system's")
    (out / "toy" / ".sample3.partial").mkdir()
    with RunFolder.open(out, manifest(), overwrite=True):
        assert names(out) == EMPTY | {"thesis.tex", "toy/.DS_Store"}
        assert (out / "written.partial.sha256").read_text() == ""
    assert names(out) == EMPTY - {".lock"} | {"thesis.tex", "toy/.DS_Store"}


def test_a_run_that_was_killed_is_overwritten_too(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, manifest()) as folder:
        with Journal(folder.path / "toy", 3):
            pass
        write_row(tmp_path, Row(7, "toy", "swap", "003", 1, 0.25, "/data/a.png"))
        (tmp_path / ".metrics.json.partial").write_text("{")
    with RunFolder.open(tmp_path, manifest(), overwrite=True):
        assert names(tmp_path) == EMPTY


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("toy/sample7/gradcam_comparison.png", "retouched"),
        ("toy/sample7/sample7.json", "{}"),
        ("toy/sample7/notes.txt", "seen by me"),
        ("toy/regions.csv", "my own table"),
        ("toy/notes.txt", "what I think"),
        ("toy/predictions.4.partial", "another program's"),
        ("metrics.json", "edited"),
        ("index.html", "my home page"),
    ],
)
def test_what_somebody_put_there_or_changed_stops_overwriting(name: str, content: str, tmp_path: Path) -> None:
    finished_run(tmp_path)
    (tmp_path / name).write_text(content)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        InputError, match="did not write this, or it was changed since, so nothing is removed"
    ) as refused:
        RunFolder.open(tmp_path, manifest(), overwrite=True)
    assert str(tmp_path / name) in str(refused.value) or "sample7" in name
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_without_a_list_is_not_a_run(tmp_path: Path) -> None:
    """Another program's manifest.json, which happens to have a key `datasets`."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "wedding.jpg").write_bytes(b"x")
    (tmp_path / "manifest.json").write_text(json.dumps({"name": "web app", "datasets": {"photos": {}}}))
    before = names(tmp_path)
    with pytest.raises(
        InputError, match=r"has a manifest.json, but no written\.sha256, .*: nothing is removed .*; give another"
    ):
        RunFolder.open(tmp_path, manifest(), overwrite=True)
    assert names(tmp_path) == before


def test_a_list_from_elsewhere_removes_nothing_outside(tmp_path: Path) -> None:
    """Paths that lead out of the folder, also by links, with the right hashes."""
    out, victim = tmp_path / "out", tmp_path / "victim"
    finished_run(out)
    victim.mkdir()
    (victim / "precious.txt").write_text("keep me")
    (out / "link").symlink_to(victim)
    (out / "linked.txt").symlink_to(victim / "precious.txt")
    sha256 = hashlib.sha256(b"keep me").hexdigest()
    with (out / "written.partial.sha256").open("a") as table:
        for name in (
            "../victim/precious.txt",
            str(victim / "precious.txt"),
            "link/precious.txt",
            "linked.txt",
            "..",
            "",
        ):
            table.write(f"{sha256}  {name}\n")
        table.write('"\0damaged\n')
    with RunFolder.open(out, manifest(), overwrite=True):
        assert names(out) == EMPTY | {"link", "linked.txt"}
    assert (victim / "precious.txt").read_text() == "keep me"


@pytest.mark.parametrize(
    "name", ["metrics.json", "index.html", "Manifest.JSON", "written.sha256", ".lock", ".a.partial"]
)
def test_a_dataset_named_like_a_file_of_the_run(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its folder would have the name of a file"):
        RunFolder.open(tmp_path / "out", manifest(datasets={name: DatasetRecord(1, "", "")}))
    assert not (tmp_path / "out").exists()


def begin_slowly(out: Path, at_it: Any, go_on: Any) -> None:
    """In a process of its own: begin a run where making the dataset's folder takes until `go_on`."""
    make = Path.mkdir

    def slow(path: Path, *how: Any, **more: Any) -> None:
        if path.name == "toy":
            at_it.set()
            go_on.wait(60)
        make(path, *how, **more)

    Path.mkdir = slow  # type: ignore[method-assign,assignment]  # of this process alone
    with RunFolder.open(out, manifest()):
        pass


@pytest.mark.parametrize("module", ["a_module_that_nobody_needs", "fcntl"])
def test_one_of_two_that_begin_at_once_is_refused(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one of them makes its folders, on a slow disk; also where there are no locks, as without fcntl and msvcrt."""
    monkeypatch.setitem(sys.modules, module, None)
    out, fork = tmp_path / "out", multiprocessing.get_context("fork")
    at_it, go_on = fork.Event(), fork.Event()
    one = fork.Process(target=begin_slowly, args=(out, at_it, go_on))
    one.start()
    assert at_it.wait(60)
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError, match="another process is at work there; wait for it or end it"):
            RunFolder.open(out, manifest(), **flags)
    go_on.set()
    one.join(60)
    assert one.exitcode == 0 and names(out) == EMPTY - {".lock"}


def test_a_finished_run_is_resumed_by_doing_nothing(tmp_path: Path) -> None:
    finished_run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    with RunFolder.open(tmp_path, manifest(top_files=["new.json"]), resume=True) as folder:
        assert folder.finished and folder.manifest.heatmaps == {"toy": HeatmapCounts()}
        assert folder.manifest.top_files == ["metrics.json", "index.html", "new.json"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before
    with pytest.raises(InputError, match="is of another run: settings.seed was 7 and is 8; give the first run's"):
        RunFolder.open(tmp_path, manifest(settings=Numbers(5, 8)), resume=True)
    with pytest.raises(InputError, match="holds an earlier run; give another --gradcam_output_dir, --resume or"):
        RunFolder.open(tmp_path, manifest())


def test_a_resumed_run_is_cleared_of_what_was_half_written(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, manifest()), Journal(tmp_path / "toy", 0):
        pass
    (tmp_path / "toy" / ".sample3.partial").mkdir()
    (tmp_path / "toy" / ".predictions.csv.partial").write_text("index,pa")
    with RunFolder.open(tmp_path, manifest(), resume=True):
        assert names(tmp_path) == EMPTY | {"toy/predictions.0.partial"}


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
    edited = path.read_text()
    with RunFolder.open(tmp_path, manifest(), overwrite=True) as folder:  # the way out that the message names
        assert not folder.finished and (tmp_path / "manifest.json.edited").read_text() == edited


@pytest.mark.parametrize(("field", "value"), [("threads", 3), ("device", "CPU"), ("top_files", [])])
def test_a_manifest_that_was_changed_a_little_is_not_resumed(field: str, value: object, tmp_path: Path) -> None:
    """Of values that a run might have written, so that the checksum alone tells."""
    finished_run(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(InputError, match=r"manifest\.json: was changed since the run wrote it"):
        RunFolder.open(tmp_path, manifest(), resume=True)


def test_runs_of_the_same_work_have_the_same_checksum() -> None:
    """Whenever, however and into whatever folder they were started."""
    moment = {
        "started": "later",
        "command": ["again"],
        "options": {"resume": True},
        "config": {"gradcam_save_dir": "x"},
    }
    assert manifest(**moment).to_json()["checksum"] == manifest().to_json()["checksum"]
    assert manifest(threads=3).to_json()["checksum"] != manifest().to_json()["checksum"]
