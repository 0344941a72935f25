"""A run that is killed, interrupted or repeated: nothing is lost, nothing doubled, and the bytes are the same."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.command_server import CommandServer
from tests.helpers.compare_runs import assert_same_run, outputs
from tests.helpers.datasets import DataTree, change_yaml, make_data_tree, rows_of
from tests.helpers.paths import SCRIPT
from tests.helpers.watch import WATCHED, recorded, until
from utils.gradcam_kit.data.frame import Frame
from utils.gradcam_kit.data.frame_paths import Stamp
from utils.gradcam_kit.run.predictions import Predictions
from utils.gradcam_kit.store.database import RunDatabase


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> DataTree:
    """48 frames in 10 batches, some of them unreadable."""
    tree = make_data_tree(tmp_path_factory.mktemp("data"), tiny_weights, videos=8)
    tree.frames["toy_Real"][7].write_bytes(b"")
    tree.frames["toy_Fake"][3].unlink()
    return tree


def flags_of(tree: DataTree, out: Path, *more: str) -> list[str]:
    return tree.arguments("--max_unreadable", "10%", "--gradcam_output_dir", out, *more)


PLAIN: list[str] = []
TWO_PHASES = ["--gradcam_enabled", "--gradcam_samples", "12", "--gradcam_select", "random"]
ONE_PASS = ["--gradcam_enabled", "--save_all_predictions"]
FEATURES = [*TWO_PHASES, "--save_features"]


@pytest.fixture(scope="module")
def whole_run(
    tree: DataTree, commands: CommandServer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[list[str]], Path]:
    """The output folder of an uninterrupted run with the given flags, each made once."""
    made: dict[str, Path] = {}

    def folder(flags: list[str]) -> Path:
        key = " ".join(flags)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole") / "out"
            done = commands.run(SCRIPT, *flags_of(tree, made[key], *flags), cwd=tree.folder)
            assert done.code == 0, done.err
        return made[key]

    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_tells_how_to_go_on_and_does_only_the_rest(
    number: int, tree: DataTree, commands: CommandServer, whole_run: Callable[[list[str]], Path], tmp_path: Path
) -> None:
    out, seen = tmp_path / "my out", tmp_path / "seen"
    watched = WATCHED.format(path=str(seen), seconds=0.1)
    run = commands.start(SCRIPT, *flags_of(tree, out, *TWO_PHASES), cwd=tmp_path, first=watched)
    until(lambda: recorded(out) >= 10)
    os.kill(run.pid, number)
    done = run.wait()
    assert done.code == 130 and "Traceback" not in done.err
    assert not (out / "manifest.json").exists() and 10 <= recorded(out) < 48
    line = done.err.splitlines()[-1].partition("continue with: ")[2]
    python, script, *arguments = shlex.split(line)
    assert Path(python).exists() and Path(script).name == SCRIPT and arguments[-1] == "--resume"
    again = commands.start(script, *arguments, cwd=tmp_path, first=watched).wait()
    assert again.code == 0, again.err
    batches = seen.read_text().splitlines()
    assert len(batches) == 10 == len(set(batches))  # each batch once: nothing lost, nothing done twice
    assert_same_run(out, whole_run(TWO_PHASES))


def test_a_complete_run_is_left_alone(
    tree: DataTree, commands: CommandServer, whole_run: Callable[[list[str]], Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole_run(PLAIN), out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    done = commands.run(SCRIPT, *flags_of(tree, out, "--resume"), cwd=tmp_path)
    assert done.code == 0 and "complete" in done.out, done.err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.*")} == before
    strict = commands.run(SCRIPT, *flags_of(tree, out, "--resume", "--max_unreadable", "1%"), cwd=tmp_path)
    assert strict.code == 1 and "2 of 48 frames" in strict.err


def test_another_run_is_refused_and_the_difference_named(
    commands: CommandServer, tiny_weights: Path, tmp_path: Path
) -> None:
    tree = make_data_tree(tmp_path / "data", tiny_weights)
    out = tmp_path / "out"
    flags = tree.arguments("--gradcam_output_dir", out)
    assert commands.run(SCRIPT, *flags, cwd=tmp_path).code == 0
    plain = commands.run(SCRIPT, *flags, cwd=tmp_path)
    assert plain.code == 2 and "--resume or --overwrite" in plain.err
    weights = torch.load(tiny_weights, weights_only=True)
    torch.save({key: value + 1 for key, value in weights.items()}, tmp_path / "other.pth")
    more: list[tuple[list[str], str]] = [
        (["--weights_path", str(tmp_path / "other.pth")], "weights.sha256"),
        (["--gradcam_enabled", "--precision", "bf16"], "config.gradcam_enabled"),
    ]
    for flag, says in more:
        done = commands.run(SCRIPT, *flags, *flag, "--resume", cwd=tmp_path)
        assert done.code == 2 and says in done.err and len(done.err.splitlines()) == 1, done.err
    both = commands.run(SCRIPT, *flags, "--resume", "--overwrite", cwd=tmp_path)
    assert both.code == 2 and "exclude each other" in both.err
    json_file = tree.folder / "dataset_json" / "toy.json"
    json_file.write_text(json_file.read_text().replace("003", "009"))
    done = commands.run(SCRIPT, *flags, "--resume", cwd=tmp_path)
    assert done.code == 2 and "datasets.toy.json_sha256" in done.err and "datasets.toy.frames_sha256" in done.err
    change_yaml(tree.detector_yaml, workers=1)  # nothing that an output depends on
    json_file.write_text(json_file.read_text().replace("009", "003"))
    assert commands.run(SCRIPT, *flags, "--resume", cwd=tmp_path).code == 0


def test_two_runs_in_one_folder_are_refused(tree: DataTree, commands: CommandServer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    slow = WATCHED.format(path=str(tmp_path / "seen"), seconds=0.3)
    run = commands.start(SCRIPT, *flags_of(tree, out), cwd=tmp_path, first=slow)
    until(lambda: recorded(out) > 0)
    os.kill(run.pid, signal.SIGSTOP)  # at work, however long the others take to start
    for flag in ("--resume", "--overwrite"):
        done = commands.run(SCRIPT, *flags_of(tree, out, flag), cwd=tmp_path)
        assert done.code == 2 and "another process is writing" in done.err, done.err
    os.kill(run.pid, signal.SIGCONT)
    assert run.wait().code == 0


def test_what_a_crash_of_the_machine_left_cut_off_is_done_again(
    tree: DataTree, commands: CommandServer, whole_run: Callable[[list[str]], Path], tmp_path: Path
) -> None:
    """Files that had their names but lost their ends, a folder half written."""
    out = tmp_path / "out"
    reference = whole_run(ONE_PASS)
    slow = "import time, utils.gradcam_kit.store.sample_writer as r\nw = r.write_sample\nr.write_sample = lambda *a: (time.sleep(0.1), w(*a))[1]\n"
    run = commands.start(SCRIPT, *flags_of(tree, out, *ONE_PASS), cwd=tmp_path, first=slow)
    until(lambda: len(list((out / "toy").glob("sample*"))) >= 14)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    folders = sorted((out / "toy").glob("sample*"))
    image = next(folders[0].glob("gradcam_encoder*"))
    image.write_bytes(image.read_bytes()[:50])
    next(folders[1].glob("*.json")).write_bytes(b"")
    next(folders[2].glob("*_metadata.txt")).unlink()
    (out / "toy" / ".sample4.partial").mkdir(exist_ok=True)
    (out / "toy" / ".predictions.csv.partial").write_text("index,pa")
    done = commands.run(SCRIPT, *flags_of(tree, out, *ONE_PASS, "--resume"), cwd=tmp_path)
    assert done.code == 0, done.err
    assert_same_run(out, reference)


def test_files_replaced_since_the_first_run_are_named_and_done_again(
    commands: CommandServer, tiny_weights: Path, tmp_path: Path
) -> None:
    """The outputs are those of a run that begins now, features too; a file that was only written again is no other."""
    tree = make_data_tree(tmp_path / "data", tiny_weights)
    marks = tmp_path / "data" / "toy_Real" / "landmarks" / "000"
    marks.mkdir(parents=True)
    np.save(marks / "000.npy", np.full((81, 2), 20, np.float32))
    out = tmp_path / "out"
    slow = WATCHED.format(path=str(tmp_path / "seen"), seconds=0)
    kill = "import os\nfrom utils.gradcam_kit.store.run_folder import RunFolder\nRunFolder.finish = lambda *a: os._exit(9)\n"
    assert commands.start(SCRIPT, *flags_of(tree, out, *FEATURES), cwd=tmp_path, first=kill).wait().code == 9
    first, other, same = (tree.frames["toy_Fake"][i] for i in (0, 5, 6))
    first.write_bytes(other.read_bytes())
    same.write_bytes(same.read_bytes())
    np.save(marks / "000.npy", np.full((81, 2), 21, np.float32))
    done = commands.start(SCRIPT, *flags_of(tree, out, *FEATURES, "--resume"), cwd=tmp_path, first=slow).wait()
    assert done.code == 0, done.err
    assert f"toy: 1 images have changed since their prediction, first {first}: predicted again" in done.err
    assert len((tmp_path / "seen").read_text().splitlines()) == 1  # the batch of that image, and no other
    assert commands.run(SCRIPT, *flags_of(tree, tmp_path / "new", *FEATURES), cwd=tmp_path).code == 0
    assert_same_run(out, tmp_path / "new")
    explained = (out / "toy" / "sample0").is_dir()
    assert explained == (f"1 landmark files have changed, first {marks / '000.npy'}" in done.err)


def test_exports_that_a_kill_prevented_are_made(
    tree: DataTree, commands: CommandServer, whole_run: Callable[[list[str]], Path], tmp_path: Path
) -> None:
    """Killed between two exports; and on a run that is complete those that are asked for later."""
    out, views = tmp_path / "out", ["--fiftyone", "--video_strips"]
    kill = "import os\nimport utils.gradcam_kit.exports.formats as e\ne.write_fiftyone = lambda *a: os._exit(9)\n"
    run = commands.start(SCRIPT, *flags_of(tree, out, *ONE_PASS, *views), cwd=tmp_path, first=kill)
    assert run.wait().code == 9 and (out / "manifest.json").is_file() and not (out / "index.html").exists()
    done = commands.run(SCRIPT, *flags_of(tree, out, *ONE_PASS, *views, "--resume"), cwd=tmp_path)
    assert done.code == 0 and "complete" in done.out, done.err
    assert (out / "fiftyone_samples.json").is_file() and (out / "toy" / "strips" / "consistency.csv").is_file()
    assert not list(out.glob(".*"))
    later = tmp_path / "later"
    shutil.copytree(whole_run(ONE_PASS), later)
    done = commands.run(SCRIPT, *flags_of(tree, later, *ONE_PASS, *views, "--resume"), cwd=tmp_path)
    assert done.code == 0, done.err
    ours, theirs = outputs(later), outputs(out)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == ["fiftyone_samples.json"]  # its name


def frame(index: int, path: str) -> Frame:
    return Frame(path, "toy", "a, b", 'v "1"', index % 2, index)


def test_predictions_come_back_to_the_last_bit(tmp_path: Path) -> None:
    """Whatever the names: also bytes that UTF-8 does not have, and half of a surrogate pair."""
    names = ["plain.png", 'two\nlines,"quoted".png', "gone\r.png", "größe\udcff.png", "half\ud800.png", "nul\0.png"]
    frames = [frame(i, name) for i, name in enumerate(names)]
    predictions = Predictions(frames)
    logits = torch.randn(5, 2, generator=torch.Generator().manual_seed(3)) * 1e-3
    readable = [one for one in frames if one.index != 2]
    predictions.add(readable, logits, logits.softmax(1)[:, 1])
    predictions.add_unreadable(2, "no such file: 'gone\\r.png'")
    stamps = {frame.index: Stamp(0, 0, "" if frame.index == 2 else f"{frame.index:016x}") for frame in frames}
    with RunDatabase(tmp_path / "run.sqlite", writes=True, new=True) as database:
        database.put("frame", predictions.rows(frames, stamps), "key")
    with RunDatabase(tmp_path / "run.sqlite", writes=False) as database:
        rows = list(database.rows("frame"))
        assert database.skipped == 0
    again = Predictions(frames)
    assert all(map(again.belongs, rows))
    again.restore(rows)
    np.testing.assert_array_equal(again.logits, predictions.logits)  # to the last bit, NaN for the unreadable one
    np.testing.assert_array_equal(again.prob_fake, predictions.prob_fake)
    assert again.unreadable == predictions.unreadable and again.done.all()
    with sqlite3.connect(tmp_path / "run.sqlite") as plain:  # as another program reads it
        (found,) = plain.execute("SELECT logit_real FROM frame WHERE path = 'plain.png'").fetchone()
    assert np.float32(found) == predictions.logits[0, 0]


def test_the_same_command_twice_gives_the_same_bytes(
    tree: DataTree, commands: CommandServer, whole_run: Callable[[list[str]], Path], tmp_path: Path
) -> None:
    first = whole_run(TWO_PHASES)
    done = commands.run(SCRIPT, *flags_of(tree, tmp_path / "again", *TWO_PHASES, "--workers", "2"), cwd=tmp_path)
    assert done.code == 0, done.err
    ours, theirs = outputs(tmp_path / "again"), outputs(first)
    assert ours == theirs
    done = commands.run(SCRIPT, *flags_of(tree, tmp_path / "seed", *TWO_PHASES, "--seed", "5"), cwd=tmp_path)
    assert done.code == 0 and rows_of(tmp_path / "seed" / "toy") == rows_of(first / "toy")
    chosen = {path.name for path in (tmp_path / "seed" / "toy").glob("sample*")}
    assert len(chosen) == 12 and chosen != {path.name for path in (first / "toy").glob("sample*")}
    untrained = ["--random_weights", "--gradcam_enabled", "--gradcam_samples", "2"]
    for name in ("random1", "random2"):
        done = commands.run(SCRIPT, *flags_of(tree, tmp_path / name, *untrained), cwd=tmp_path)
        assert done.code == 0, done.err
    assert_same_run(tmp_path / "random1", tmp_path / "random2")
