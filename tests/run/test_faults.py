"""What a machine does to a run: full disk, lost files and processes, too little memory. One plain line, and nothing lost."""

from __future__ import annotations

import csv
import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.command_server import CommandServer, Finished
from tests.helpers.compare_runs import assert_only_whole_files, assert_same_run, outputs
from tests.helpers.datasets import DataTree, make_data_tree, rows_of
from tests.helpers.fake_run import LAYERS, Row, drawn_of
from tests.helpers.paths import SCRIPT
from tests.helpers.watch import PRIVATE_MOUNTS
from utils.gradcam_kit.base.errors import RunError
from utils.gradcam_kit.data.frames import frame_loader
from utils.gradcam_kit.data.readers import read_dataset
from utils.gradcam_kit.model.load import load_detector
from utils.gradcam_kit.run.dataset_run import DeferredStep
from utils.gradcam_kit.run.disturbances import Interrupted, SplitOnOutOfMemory, is_out_of_memory, report_workers_once
from utils.gradcam_kit.run.explainer import Explainer
from utils.gradcam_kit.run.predictions import Resume
from utils.gradcam_kit.settings.config import run_settings
from utils.gradcam_kit.store.database import RunDatabase
from utils.gradcam_kit.store.sample_writer import SampleWriter

pytestmark = pytest.mark.slow  # each fault breaks a run of its own

ALL = ["--gradcam_enabled", "--save_all_predictions"]
SOME = [*ALL, "--gradcam_samples", "16"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> DataTree:
    """24 frames in 5 batches."""
    return make_data_tree(tmp_path_factory.mktemp("data"), tiny_weights)


@pytest.fixture(scope="module")
def whole(tree: DataTree, commands: CommandServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Output folders of undisturbed runs."""
    folders = {}
    for name, flags in (("all", ALL), ("some", SOME)):
        folders[name] = tmp_path_factory.mktemp("whole") / "out"
        done = run(commands, tree, folders[name], flags)
        assert done.code == 0, done.err
    return folders


def run(commands: CommandServer, tree: DataTree, out: Path, flags: list[str], first: str = "") -> Finished:
    """A run in which `first`, Python source, has done its mischief beforehand."""
    arguments = tree.arguments("--gradcam_output_dir", out, *flags)
    return commands.start(SCRIPT, *arguments, cwd=tree.folder, first=first).wait()


def assert_one_plain_line(done: Finished, *says: str) -> None:
    assert done.code == 1, done
    assert "Traceback" not in done.err
    last = done.err.splitlines()[-1]
    assert last.startswith("error: ") and all(part in last for part in says), last


# ---------------------------------------------------------------------------------------------------------- the disk


FULL_DISK = (
    PRIVATE_MOUNTS
    + """
pathlib.Path({path!r}).mkdir()
check(libc.mount(b"none", {path!r}.encode(), b"tmpfs", 0, b"size={kib}k"))
import atexit, shutil
leave = os._exit
def copy_out(code):  # the mount goes with this process
    shutil.copytree({path!r}, {copy!r})
    leave(code)
os._exit = copy_out
"""
)
SMALL_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, 70_000))
"""


@pytest.mark.parametrize(
    "kib", [300, *(pytest.param(kib, marks=pytest.mark.slow) for kib in range(20, 1500, 50) if kib != 300)]
)
def test_full_disk(kib: int, tree: DataTree, commands: CommandServer, whole: dict[str, Path], tmp_path: Path) -> None:
    """A small disk: an error of one line, whole files, and with more room the rest."""
    disk, out = tmp_path / "disk", tmp_path / "kept"
    done = run(commands, tree, disk, ALL, FULL_DISK.format(path=str(disk), copy=str(out), kib=kib))
    if done.code == 77:
        pytest.skip("mounting a small file system is not permitted here")
    assert_only_whole_files(out, whole["all"])
    if done.code:
        assert_one_plain_line(done, "--resume")
        assert any(why in done.err for why in ("No space left on device", "database or disk is full")), done.err
    else:
        assert_same_run(out, whole["all"])
    if kib == 300:
        assert list((out / "toy").glob("sample*")) and not (out / "manifest.json").exists()
    again = run(commands, tree, out, [*ALL, "--resume"])
    assert again.code == 0, again.err
    assert_same_run(out, whole["all"])


def test_a_quota_met_by_the_writer(
    tree: DataTree, commands: CommandServer, whole: dict[str, Path], tmp_path: Path
) -> None:
    """No file may exceed 70,000 bytes, which the database does in the midst of the run."""
    out = tmp_path / "out"
    done = run(commands, tree, out, SOME, SMALL_FILES)
    assert_one_plain_line(done, "run.sqlite", "--resume")
    assert_only_whole_files(out, whole["some"])
    assert run(commands, tree, out, [*SOME, "--resume"]).code == 0
    assert_same_run(out, whole["some"])


def test_an_output_folder_that_cannot_be_made(tree: DataTree, commands: CommandServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (Path("/proc/gradcam"), tmp_path / "file" / "out"):
        done = run(commands, tree, out, ALL)
        assert done.code == 2 and str(out) in done.err and len(done.err.splitlines()) == 1, done.err


@pytest.mark.parametrize("flags", [[], SOME])
def test_an_output_folder_that_vanishes(
    flags: list[str], tree: DataTree, commands: CommandServer, tmp_path: Path
) -> None:
    """Removed after the third batch: never a run that looks whole and lacks what was removed."""
    out = tmp_path / "out"
    vanish = f"""
import shutil
from utils.gradcam_kit.run.predictions import Predictions
add, calls = Predictions.add, []
def vanishing(self, *batch):
    calls.append(1)
    if len(calls) == 3: shutil.rmtree({str(out)!r})
    return add(self, *batch)
Predictions.add = vanishing
"""
    done = run(commands, tree, out, flags, vanish)
    assert done.code == 1 and "Traceback" not in done.err and str(out) in done.err.splitlines()[-1], done.err
    assert not (out / "manifest.json").exists()


# -------------------------------------------------------------------------------------------------------- the frames


def test_a_frame_gone_between_listing_and_reading(commands: CommandServer, tiny_weights: Path, tmp_path: Path) -> None:
    tree = make_data_tree(tmp_path / "data", tiny_weights)
    gone = tree.frames["toy_Fake"][4]
    first = f"""
import os, utils.gradcam_kit.run.evaluation as evaluation
listing = evaluation.read_dataset
def then_gone(*args):
    frames = listing(*args)
    os.unlink({str(gone)!r})
    return frames
evaluation.read_dataset = then_gone
"""
    done = run(commands, tree, tmp_path / "out", ALL, first)
    assert done.code == 0, done.err
    assert [row["path"] for row in csv.DictReader((tmp_path / "out" / "toy" / "unreadable.csv").open())] == [str(gone)]
    assert len(rows_of(tmp_path / "out" / "toy")) == 23 and str(gone) not in {
        row["path"] for row in rows_of(tmp_path / "out" / "toy")
    }


def test_a_frame_gone_between_the_phases(commands: CommandServer, tiny_weights: Path, tmp_path: Path) -> None:
    """It keeps its prediction, has no heatmap, and the run says so and fails; the others have theirs."""
    tree = make_data_tree(tmp_path / "data", tiny_weights)
    out = tmp_path / "out"
    first = """
import os
from utils.gradcam_kit.run.predictions import Predictions
choose = Predictions.choose
def then_gone(self, *args):
    chosen = choose(self, *args)
    os.unlink(self.frames[chosen[3]].path)
    return chosen
Predictions.choose = then_gone
"""
    done = run(commands, tree, out, SOME, first)
    assert_one_plain_line(done, "1 frames vanished or changed", "no such file")
    rows = rows_of(out / "toy")
    lost = [int(row["index"]) for row in rows if not Path(row["path"]).exists()]
    assert len(rows) == 24 and len(lost) == 1
    vanished = json.loads((out / "manifest.json").read_text())["heatmaps"]["toy"]["vanished"]
    assert [one["index"] for one in vanished] == lost and "vanished" in done.out
    samples = {int(path.name[len("sample") :]) for path in (out / "toy").glob("sample*")}
    assert len(samples) == 15 and not samples & set(lost)


def test_a_frame_replaced_between_the_phases(
    tree: DataTree, commands: CommandServer, whole: dict[str, Path], tiny_weights: Path, tmp_path: Path
) -> None:
    """As one that is gone; the same file written again is no other image, whatever its time."""
    own = make_data_tree(tmp_path / "data", tiny_weights)
    out = tmp_path / "out"
    first = """
import pathlib, time
from utils.gradcam_kit.run.predictions import Predictions
choose = Predictions.choose
def then_replaced(self, *args):
    chosen = choose(self, *args)
    paths = [pathlib.Path(self.frames[index].path) for index in chosen]
    content = [path.read_bytes() for path in paths]
    paths[0].write_bytes(content[0])  # again, later
    paths[3].write_bytes(content[7])
    return chosen
Predictions.choose = then_replaced
"""
    done = run(commands, own, out, SOME, first)
    chosen = json.loads((out / "manifest.json").read_text())["heatmaps"]["toy"]["vanished"]
    assert len(chosen) == 1 and "replaced by another image" in chosen[0]["reason"]
    assert_one_plain_line(done, "1 frames vanished or changed", "replaced by another image")
    samples = {path.name for path in (out / "toy").glob("sample*")}
    assert samples == {path.name for path in (whole["some"] / "toy").glob("sample*")} - {f"sample{chosen[0]['index']}"}


# ------------------------------------------------------------------------------------------- processes and threads


def test_a_decoding_process_that_is_killed(
    tree: DataTree, commands: CommandServer, whole: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = """
import os, signal
import utils.gradcam_kit.data.frames as frames
decode, calls = frames.decode_image, []
def killed(*args):
    calls.append(1)
    if len(calls) == 9: os.kill(os.getpid(), signal.SIGKILL)
    return decode(*args)
frames.decode_image = killed
"""
    done = run(commands, tree, out, [*ALL, "--workers", "1"], first)
    assert_one_plain_line(done, "decodes images was killed", "--workers", "--resume")
    assert_only_whole_files(out, whole["all"])
    assert run(commands, tree, out, [*ALL, "--resume"]).code == 0
    ours, theirs = outputs(out), outputs(whole["all"])
    assert ours == theirs


def test_a_dead_worker_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch raises about it in a data loader's `__del__` is not printed; what others raise there is."""
    printed: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: printed.append(str(found.exc_value)))

    class Deleted:
        def __init__(self, message: str) -> None:
            self.message = message

        def __del__(self) -> None:
            raise RuntimeError(self.message)

    report_workers_once()
    for message in ("DataLoader worker (pid 7) is killed by signal: Killed. ", "another fault"):
        Deleted(message)
    assert printed == ["another fault"]


def test_a_writer_threads_exception_stops_the_run(
    tree: DataTree, commands: CommandServer, whole: dict[str, Path], tmp_path: Path
) -> None:
    """Whatever it is: no sample is silently missing from a run that ends well."""
    out = tmp_path / "out"
    first = """
import utils.gradcam_kit.store.sample_folder as results
draw, calls = results.comparison_image, []
def broken(*args):
    calls.append(1)
    if len(calls) == 7: raise ZeroDivisionError("a slip in the drawing")
    return draw(*args)
results.comparison_image = broken
"""
    done = run(commands, tree, out, SOME, first)
    assert done.code == 1 and "a slip in the drawing" in done.err  # a fault of the program shows where it is
    assert not (out / "manifest.json").exists()
    assert_only_whole_files(out, whole["some"])
    assert run(commands, tree, out, [*SOME, "--resume"]).code == 0
    assert_same_run(out, whole["some"])


def test_the_writer_passes_on_its_threads_exceptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, *_: object) -> Path:
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr("utils.gradcam_kit.store.sample_writer.write_sample", fail)
    with RunDatabase(tmp_path / "run.sqlite", writes=True, new=True) as database:
        for threads, count in ((2, 1), (1, 20)):  # reaches the caller while there is more to write, too
            with (
                pytest.raises(OSError, match="No space"),
                SampleWriter(database, "", tmp_path, threads=threads) as writer,
            ):
                write_many(writer, count)
        assert database.count("sample") == 0


def write_many(writer: SampleWriter, count: int) -> None:
    for i in range(count):
        writer.write(drawn_of(Row(i, "toy", "swap", "0", 1, 0.9, "/a.png")), dict.fromkeys(LAYERS, (64, 64)))
    if count > 1:
        pytest.fail("twenty failures and nobody was told")


# -------------------------------------------------------------------------------------------------------- memory, NaN


SHORT_OF_MEMORY = """
import torch
from utils.gradcam_kit.model.detector import LoadedDetector
for name in ("predict", "begin_explaining"):
    def wrap(method):
        def short(self, pixels, *rest):
            if len(pixels) > {fits}: {mischief}
            return method(self, pixels, *rest)
        return short
    setattr(LoadedDetector, name, wrap(getattr(LoadedDetector, name)))
"""
MISCHIEF = {
    "CUDA": "raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')",
    "Python": "raise MemoryError",
    "CPU allocator": "torch.empty(1 << 60, dtype=torch.uint8)",
}


@pytest.mark.parametrize("flags", [ALL, SOME], ids=["one pass", "two phases"])
@pytest.mark.parametrize("kind", MISCHIEF)
def test_out_of_memory_halves_the_batch_and_says_so(
    kind: str, flags: list[str], tree: DataTree, commands: CommandServer, whole: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = run(commands, tree, out, flags, SHORT_OF_MEMORY.format(fits=2, mischief=MISCHIEF[kind]))
    assert done.code == 0, done.err
    assert "out of memory while" in done.err and "at most 2 at a time" in done.err
    reference = whole["all" if flags is ALL else "some"]
    ours, theirs = rows_of(out / "toy"), rows_of(reference / "toy")
    assert [row["path"] for row in ours] == [row["path"] for row in theirs]
    for column in ("prob_fake", "logit_real", "logit_fake"):  # other sums, so not to the last bit
        np.testing.assert_allclose(
            [float(row[column]) for row in ours], [float(row[column]) for row in theirs], rtol=1e-4, atol=1e-6
        )
    assert {path.name for path in (out / "toy").iterdir()} == {path.name for path in (reference / "toy").iterdir()}


def test_memory_that_is_short_beside_the_batch_before(
    tree: DataTree, commands: CommandServer, whole: dict[str, Path], tmp_path: Path
) -> None:
    """Alone the batch fits: it is explained as a whole, and none is begun any more before the last is done."""
    first = """
from utils.gradcam_kit.model.detector import LoadedDetector
begin, calls = LoadedDetector.begin_explaining, []
def short(self, pixels, *rest):
    calls.append(len(pixels))
    if len(calls) == 3:  # the dry run, one batch, and the next beside it
        raise MemoryError
    return begin(self, pixels, *rest)
LoadedDetector.begin_explaining = short
"""
    done = run(commands, tree, tmp_path / "out", ALL, first)
    assert done.code == 0 and "out of memory" not in done.err
    assert outputs(tmp_path / "out") == outputs(whole["all"])


def test_a_batch_begun_before_memory_ran_out_is_explained_in_parts(tree: DataTree, tmp_path: Path) -> None:
    """The batch before it runs out of memory when it is read, at which time this one was handed over as a whole."""
    settings = run_settings(tree.detector_yaml, tree.test_yaml, {"gradcam_enabled": True})
    detector = load_detector(settings.detector, torch.device("cpu"))
    frames = read_dataset("toy", settings.data)[:4]
    batch = next(iter(frame_loader(frames, settings.detector.resolution, 4, 0)))
    with (
        RunDatabase(tmp_path / "run.sqlite", writes=True, new=True) as database,
        SampleWriter(database, "", tmp_path) as writer,
    ):
        explainer = Explainer(detector, Resume(frames, [], ""), writer, detector.predict)
        begun = explainer.begin(batch, [explainer.gradcam.target] * 4)
        explainer._memory.most = 2
        explainer.predict_and_explain(batch, begun)
    assert begun is not None
    with RunDatabase(tmp_path / "run.sqlite", writes=False) as database:
        assert [row[4] for row in database.rows("sample")] == [""] * 4 and database.count("map") == 8
    assert {path.name for path in tmp_path.glob("sample*")} == {f"sample{i}" for i in range(4)}


@pytest.mark.parametrize("end", [None, RunError("disk"), Interrupted("signal"), KeyboardInterrupt()], ids=repr)
def test_what_is_under_way_is_finished_but_for_a_second_signal(end: BaseException | None) -> None:
    done: list[int] = []
    with pytest.raises(type(end)) if end else nullcontext(), DeferredStep() as deferred:
        for i in range(3):
            deferred.add(partial(done.append, i))
            assert done == list(range(i))
        if end:
            raise end
    assert done == ([0, 1] if type(end) is KeyboardInterrupt else [0, 1, 2])


def test_after_a_failure_nothing_is_done_for_the_batch_behind() -> None:
    done: list[int] = []

    def two_batches() -> None:
        with DeferredStep() as deferred:
            deferred.add(lambda: done.append(1 // 0))
            deferred.add(lambda: done.append(1))

    with pytest.raises(ZeroDivisionError):
        two_batches()
    assert done == []


def test_memory_for_not_even_one_image(tree: DataTree, commands: CommandServer, tmp_path: Path) -> None:
    done = run(commands, tree, tmp_path / "out", [], SHORT_OF_MEMORY.format(fits=0, mischief="raise MemoryError"))
    assert_one_plain_line(done, "a single image")


def test_halving_covers_every_image_once_and_passes_other_errors_on() -> None:
    for size in range(1, 20):
        for fits in range(1, size + 1):
            halving, done = SplitOnOutOfMemory("testing"), []

            def work(part: slice, fits: int = fits, size: int = size) -> list[int]:
                if part.stop - part.start > fits:
                    raise MemoryError
                return list(range(size))[part]

            for _ in range(2):
                done = [i for part in halving.run(work, size) for i in part]
                assert done == list(range(size))
            assert halving.most is None or fits / 2 < halving.most <= fits

    def broken(part: slice) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        SplitOnOutOfMemory("testing").run(broken, 4)
    with pytest.raises(RunError, match="a single image"):
        SplitOnOutOfMemory("testing").run(lambda part: (_ for _ in ()).throw(MemoryError), 4)
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(real.value) and not is_out_of_memory(RuntimeError("shape"))


@pytest.mark.parametrize("flags", [ALL, SOME], ids=["one pass", "two phases"])
def test_a_nan_in_one_samples_gradient(
    flags: list[str], tree: DataTree, commands: CommandServer, whole: dict[str, Path], tmp_path: Path
) -> None:
    """That sample is flagged and has no heatmap; the others' are what they were, and so is every prediction."""
    out, reference = tmp_path / "out", whole["all" if flags is ALL else "some"]
    poisoned = sorted(int(path.name[len("sample") :]) for path in (reference / "toy").glob("sample*"))[6]
    path = rows_of(reference / "toy")[poisoned]["path"]
    first = f"""
import torch
import utils.gradcam_kit.engine.tokens as tokens
from utils.gradcam_kit.model.detector import LoadedDetector
from utils.gradcam_kit.data.images import decode_image
image = torch.from_numpy(decode_image(open({path!r}, "rb").read(), 64)).permute(2, 0, 1)
batch = []
explain, gradients = LoadedDetector.begin_explaining, tokens.score_gradients
def watched(self, pixels, *rest):
    batch[:] = [bool((one == image).all()) for one in pixels]
    return explain(self, pixels, *rest)
def poisoned(*args, **options):
    found = gradients(*args, **options)
    for G in (one for one in found if one is not None and len(one) == len(batch)):
        G[torch.tensor(batch)] = float("nan")
    return found
LoadedDetector.begin_explaining, tokens.score_gradients = watched, poisoned
"""
    done = run(commands, tree, out, flags, first)
    assert done.code == 0 and f"samples [{poisoned}]" in done.out, done.err
    assert json.loads((out / "manifest.json").read_text())["heatmaps"]["toy"]["non_finite"] == [poisoned]
    ours, theirs = outputs(out), outputs(reference)
    lost = {name for name in theirs if name.startswith(f"toy/sample{poisoned}/")}
    assert lost and set(theirs) - set(ours) == lost
    assert ours["toy/predictions.csv"] == theirs["toy/predictions.csv"]
    assert ours["metrics.json"] == theirs["metrics.json"]
