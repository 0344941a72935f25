"""The output folder of a run: what its manifest records, who may write there, what becomes of an earlier run."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import pickle
import platform
import shutil
import sqlite3
import subprocess
import sys
import time
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
from tests.helpers.paths import ROOT, SCRIPT
from tests.helpers.watch import PRIVATE_MOUNTS, until
from utils.gradcam_kit.base.errors import InputError, RunError
from utils.gradcam_kit.data.frame import Frame
from utils.gradcam_kit.run.predictions import Resume
from utils.gradcam_kit.store.database import RunDatabase
from utils.gradcam_kit.store.manifest import DatasetRecord, HeatmapCounts, Numbers
from utils.gradcam_kit.store.read_run import read_run
from utils.gradcam_kit.store.run_folder import RunFolder
from utils.gradcam_kit.store.tables import write_run_tables

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


def seen_from_outside(folder: Path) -> str:
    """The database's lock as another process meets it."""
    code = f"""
import sqlite3
database = sqlite3.connect({str(folder / "run.sqlite")!r}, timeout=0, isolation_level=None)
try:
    database.execute("BEGIN IMMEDIATE")
    print("free")
except sqlite3.OperationalError as error:
    print("locked" if "locked" in str(error) else error)
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_folder_is_locked_until_the_end_of_the_block_and_no_longer(tmp_path: Path) -> None:
    """Not until this process ends: a notebook may begin the run a second time."""
    out = tmp_path / "out"
    with RunFolder.open(out, manifest()) as folder:
        assert seen_from_outside(out) == "locked"
        with pickle.loads(pickle.dumps(folder)) as sent:  # as another rank gets it
            assert (sent.path, sent.manifest, sent.finished) == (out, manifest(), False)
        folder.database.put("calibration", [("map", "{}")])
        folder.database.commit()
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
        write_row(out / "elsewhere", Row(7, "toy", "swap", "003", 1, 0.25, "/data/a.png")).rename(
            out / "toy" / "sample7"
        )
        shutil.rmtree(out / "elsewhere")
        folder.finish({}, {"toy": HeatmapCounts()})
        write_run_tables(folder.database, out)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_overwriting_renames_and_deletes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is there, the run's or not, edited or not, goes on being there under another name."""
    out = tmp_path / "out"
    finished_run(out)
    (out / "thesis.tex").write_text("mine")
    (out / "toy" / "sample7" / "notes.txt").write_text("seen by me")
    (out / "toy" / ".sample3.partial").mkdir()
    before = content(out)
    with RunFolder.open(out, manifest(), overwrite=True):
        assert sorted(path.name for path in out.iterdir()) == ["run.sqlite", "toy"]
    (aside,) = tmp_path.glob("out.before-*")
    assert content(aside) == before and (aside / "toy" / ".sample3.partial").is_dir()
    assert f"--overwrite: {out} is now {aside}" in capsys.readouterr().err
    with RunFolder.open(out, manifest(), overwrite=True):  # within the same second
        pass
    assert len(list(tmp_path.glob("out.before-*"))) == 2 and content(aside) == before


@pytest.mark.parametrize("name", ["manifest.json", "manifest.partial.json", "photo.jpg"])
def test_a_folder_without_a_database_is_left_alone(name: str, tmp_path: Path) -> None:
    """Another program's manifest.json, a run of an earlier version, or anything else."""
    (tmp_path / name).write_text(json.dumps({"name": "web app", "datasets": {"photos": {}}}))
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError, match=r"earlier version, without run\.sqlite|is not empty") as refused:
            RunFolder.open(tmp_path, manifest(), **flags)  # type: ignore[arg-type]
        assert "give another --gradcam_output_dir, or rename it yourself" in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("found", [b"SQLite format 3\0" + bytes(84), b"a text", None])
def test_another_programs_database_is_left_alone(found: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    if found is None:
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE photos (name)")
    else:
        path.write_bytes(found)
    before = path.read_bytes()
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError):
            RunFolder.open(tmp_path, manifest(), **flags)  # type: ignore[arg-type]
    assert path.read_bytes() == before


def test_a_damaged_run_is_refused_and_set_aside(tmp_path: Path) -> None:
    out = tmp_path / "out"
    finished_run(out)
    data = (out / "run.sqlite").read_bytes()
    (out / "run.sqlite").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"run\.sqlite: is damaged .*; --overwrite renames that run and starts again"):
        RunFolder.open(out, manifest(), resume=True)
    with RunFolder.open(out, manifest(), overwrite=True) as folder:
        assert not folder.finished
    assert len(list(tmp_path.glob("out.before-*"))) == 1


def test_a_database_may_lie_elsewhere(tmp_path: Path) -> None:
    """As where the output folder is on a file system without locks; whoever reads the folder finds it."""
    out, place = tmp_path / "out", tmp_path / "local" / "a run.sqlite"
    place.parent.mkdir()
    with RunFolder.open(out, manifest(), database=place):
        assert place.is_file() and not (out / "run.sqlite").exists()
    assert read_run(out).manifest == manifest()
    with RunFolder.open(out, manifest(), resume=True) as folder:
        assert folder.database.path == place
    with pytest.raises(InputError, match="holds an earlier run"):
        RunFolder.open(tmp_path / "other", manifest(), database=place)
    with RunFolder.open(out, manifest(), overwrite=True, database=place):
        assert len(list(place.parent.glob("a run.sqlite.before-*"))) == len(list(tmp_path.glob("out.before-*"))) == 1


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite says `locked` there, too; the operating system says what is wrong."""
    import fcntl

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    finished_run(tmp_path / "out")
    other = sqlite3.connect(tmp_path / "out" / "run.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(InputError, match="another process is writing there; wait for it or end it"):
        RunFolder.open(tmp_path / "out", manifest(), resume=True)
    monkeypatch.setattr(fcntl, "lockf", none)
    with pytest.raises(InputError, match=r"the file system has no locks \(No locks available\).*--run_database PATH"):
        RunFolder.open(tmp_path / "out", manifest(), resume=True)
    other.close()


OWN_NAMES = ["metrics.json", "index.html", "Manifest.JSON", "run.sqlite", "Run.SQLite-journal", "run.1.sqlite", "runs"]


@pytest.mark.parametrize("name", [*OWN_NAMES, ".a.partial"])
def test_a_dataset_named_like_a_file_of_the_run(name: str, tmp_path: Path) -> None:
    """`run.1.sqlite` is of another process of the run, `runs` is given for the database."""
    own, place = manifest(datasets={name: DatasetRecord(1, "", "")}), tmp_path / "out" / "runs"
    with pytest.raises(InputError, match="this name is reserved for the run's own files"):
        RunFolder.open(tmp_path / "out", own, database=place)
    assert not (tmp_path / "out").exists()


def begin(out: Path, at_it: Any, go_on: Any) -> None:
    """In a process of its own: begin a run and stay at work until `go_on`."""
    with RunFolder.open(out, manifest()):
        at_it.set()
        go_on.wait(60)


def test_one_of_two_that_begin_at_once_is_refused(tmp_path: Path) -> None:
    out, fork = tmp_path / "out", multiprocessing.get_context("fork")
    at_it, go_on = fork.Event(), fork.Event()
    one = fork.Process(target=begin, args=(out, at_it, go_on))
    one.start()
    assert at_it.wait(60)
    for flags in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError, match="another process is writing there; wait for it or end it"):
            RunFolder.open(out, manifest(), **flags)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="holds an earlier run"):
        RunFolder.open(out, manifest())
    go_on.set()
    one.join(60)
    assert one.exitcode == 0 and list(tmp_path.iterdir()) == [out]


def test_a_run_of_which_one_process_is_left_is_not_resumed_beside_it(tmp_path: Path) -> None:
    """The first was killed, the second has not noticed yet: both would write the same samples."""
    with RunFolder.open(tmp_path, manifest()) as folder:
        other = pickle.loads(pickle.dumps(folder))
        other.join(1)
        other.database.put("frame", [FRAME], folder.key)
        other.database.commit()
    with other, pytest.raises(InputError, match=r"run\.1\.sqlite: another process is writing there; wait for it"):
        RunFolder.open(tmp_path, manifest(), resume=True)
    with RunFolder.open(tmp_path, manifest(), resume=True) as folder:
        assert folder.database.count("frame") == 1
    assert [path.name for path in tmp_path.glob("run*")] == ["run.sqlite"]


def test_a_finished_run_is_resumed_by_doing_nothing(tmp_path: Path) -> None:
    finished_run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with RunFolder.open(tmp_path, manifest(top_files=["new.json"]), resume=True) as folder:
        assert folder.finished and folder.manifest.heatmaps == {"toy": HeatmapCounts()} and folder.metrics == {}
        assert folder.manifest.top_files == ["metrics.json", "index.html", "new.json"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    # Frames that are found in another way are the same frames: their paths and labels have a hash of their own.
    elsewhere = {
        **manifest().config,
        "dataset_json_folder": "/moved",
        "label_dict": {"toy": 1},
        "lmdb": False,
        "mode": "test",
    }
    with RunFolder.open(tmp_path, manifest(config=elsewhere), resume=True) as folder:
        assert folder.finished
    others = {"toy": manifest().datasets["toy"].__class__(24, "cd" * 32, "00" * 32)}
    with pytest.raises(InputError, match="is from another run: datasets.toy.frames_sha256 was"):
        RunFolder.open(tmp_path, manifest(config=elsewhere, datasets=others), resume=True)
    with pytest.raises(InputError, match="is from another run: settings.seed was 7 and is 8; give the first run's"):
        RunFolder.open(tmp_path, manifest(settings=Numbers(5, 8)), resume=True)
    with pytest.raises(InputError, match="holds an earlier run; give another --gradcam_output_dir, --resume or"):
        RunFolder.open(tmp_path, manifest())


FRAME = ("toy", 3, "/a.png", "swap", "003", 1, -1.0, 1.0, 0.75, "", "9 7 ")


@pytest.mark.parametrize("damage", ["UPDATE frame SET prob_fake = 0.5", "UPDATE frame SET hash = 'x'"])
def test_an_edited_row_is_found_and_the_run_goes_on(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder.open(tmp_path, manifest()) as folder:
        folder.database.put("frame", [FRAME, ("toy", 4, *FRAME[2:])], folder.key)
        folder.finish({}, {"toy": HeatmapCounts()})
    with sqlite3.connect(tmp_path / "run.sqlite") as database:
        database.execute(damage + " WHERE idx = 3")
    with RunFolder.open(tmp_path, manifest(), resume=True) as folder:
        assert not folder.finished and folder.manifest.finished is None
        assert [row[1] for row in folder.database.rows("frame")] == [4]
    assert "1 rows of frame were changed: computed again" in capsys.readouterr().err


def test_predictions_of_other_code_are_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunFolder.open(tmp_path, manifest(), key="one") as folder:
        folder.database.put("frame", [FRAME], folder.key)
        folder.finish({}, {"toy": HeatmapCounts()})
    with RunFolder.open(tmp_path, manifest(), resume=True, key="one") as folder:
        assert folder.finished
    with RunFolder.open(tmp_path, manifest(), resume=True, key="other") as folder:
        assert not folder.finished
        frames = [Frame("/a.png", "toy", "swap", "003", 1, i) for i in range(4)]
        assert not Resume(frames, folder.database.rows("frame"), folder.key).predictions.done.any()
    assert "1 predictions come from other code: computed again" in capsys.readouterr().err


def test_a_killed_writer_leaves_whole_batches(tmp_path: Path) -> None:
    """Killed at any moment of a commit, what is there afterwards is what was committed before, or all of it."""
    code = """
import os, sys
from pathlib import Path
from utils.gradcam_kit.store.database import RunDatabase
database = RunDatabase(Path(sys.argv[1]), writes=True, new=True)
for batch in range(10_000):
    rows = [("toy", 5 * batch + i, "p", "f", "v", 1, 0.0, 0.0, 0.5, "", "0 0 ") for i in range(5)]
    database.put("frame", rows, "key")
    database.commit()
"""
    for round_ in range(5):
        path = tmp_path / f"{round_}.sqlite"
        run = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
        until(lambda path=path: path.is_file() and path.stat().st_size > 100_000)  # type: ignore[misc]
        time.sleep(0.01 * round_)
        run.kill()
        run.wait()
        with RunDatabase(path, writes=False) as database:  # also where half a transaction is to be taken back
            count = database.count("frame")
            assert count and count % 5 == 0 and len(list(database.rows("frame"))) == count
        with sqlite3.connect(path) as plain:
            assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)


KILLED_HALF_WAY = """
import os, sys
from pathlib import Path
from utils.gradcam_kit.store.database import RunDatabase
row = ("p" * 4000, "f", "v", 1, 0.0, 0.0, 0.5, "", "0 0 ")
database = RunDatabase(Path(sys.argv[1]), writes=True, new=True)
database.put("frame", [("toy", i, *row) for i in range(5)], "key")
database.commit()
database._connection.execute("PRAGMA cache_size = 1")  # so that the file is written to before the commit
database.put("frame", [("toy", i, *row) for i in range(5, 500)], "key")
os._exit(9)
"""
# As a program has it for a moment that looks at a database: SQLite's lock of readers.
READS = """
import fcntl, sys, time
with open(sys.argv[1], "rb") as file:
    fcntl.lockf(file, fcntl.LOCK_SH, 510, 0x40000002)
    print("reads", flush=True)
    time.sleep(1)
"""


@pytest.mark.parametrize("writes", [True, False])
def test_half_a_transaction_is_taken_back_after_whoever_reads(writes: bool, tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    subprocess.run([sys.executable, "-c", KILLED_HALF_WAY, str(path)], cwd=ROOT, check=False)
    assert (tmp_path / "run.sqlite-journal").stat().st_size > 0
    reader = subprocess.Popen([sys.executable, "-c", READS, str(path)], stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None and reader.stdout.readline() == "reads\n"
    with RunDatabase(path, writes=writes) as database:
        assert [row[1] for row in database.rows("frame")] == list(range(5))
        assert reader.wait() == 0
    assert [file.name for file in tmp_path.iterdir()] == ["run.sqlite"]


def test_a_kill_before_the_first_commit_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    """Also where the database lies elsewhere."""
    code = """
import os, sys
from pathlib import Path
from tests.helpers.fake_run import some_manifest
from utils.gradcam_kit.store.run_folder import RunFolder
RunFolder.record = lambda self: os._exit(9)
RunFolder.open(Path(sys.argv[1]), some_manifest(), database=Path(sys.argv[2]))
"""
    out, place = tmp_path / "out", tmp_path / "a run.sqlite"
    for _ in range(2):
        command = [sys.executable, "-c", code, str(out), str(place)]
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == 9
    with RunFolder.open(out, manifest(), database=place, resume=True):
        assert place.is_file()


def test_overwriting_what_lies_elsewhere_leaves_it_there(tmp_path: Path) -> None:
    """Another run's database, which only looks like a part of this one's, stays."""
    out, place, other = tmp_path / "out", tmp_path / "a.sqlite", tmp_path / "a.2.b.sqlite"
    with RunFolder.open(out, manifest(), database=place), RunFolder.open(tmp_path / "b", manifest(), database=other):
        pass
    with RunFolder.open(out, manifest(), overwrite=True) as folder:
        assert folder.database.path == place and read_run(out).folder == out
    with RunFolder.open(out, manifest(), resume=True):
        assert read_run(tmp_path / "b").manifest == manifest()


def test_an_emptied_folder_is_no_finished_run(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "out", manifest()) as folder:
        shutil.rmtree(tmp_path / "out")
        with pytest.raises(RunError, match="was removed during the run"):
            folder.finish({}, {})
