"""Run folders with bytes changed, cut out or doubled: a page or one line, and a resumed run believes nothing damaged."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.harness import CASES, SECONDS, Outcome, at_most, fuzzed, mutate
from tests.helpers.fake_run import Row, image_of, layer_image, sample_of, some_rows, write_run
from tests.helpers.fake_run import some_manifest as manifest
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.data.frame import Frame
from utils.gradcam_kit.data.frame_paths import Stamp, hash_of
from utils.gradcam_kit.report.page import render, write_report
from utils.gradcam_kit.run.predictions import Predictions, Resume
from utils.gradcam_kit.store.read_run import read_run
from utils.gradcam_kit.store.run_folder import RunFolder
from utils.gradcam_kit.store.sample_folder import RenderedSample
from utils.gradcam_kit.store.sample_writer import SampleWriter


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    rows = some_rows(folder / "data")
    return write_run(folder / "run", [*rows[:2], rows[8], rows[20]])


def damage(copy: Path, files: list[Path], which: int, seed: int) -> Path:
    """One of the files mutated; never left as it was."""
    path = copy / files[which % len(files)]
    content = path.read_bytes()
    while (changed := mutate(seed, content)) == content:
        seed += 1
    path.write_bytes(changed)
    return path


@given(seed=st.integers(0, 2**32 - 1))
@fuzzed(CASES // 4)
def test_a_damaged_run_is_reported_or_refused(outcome: Outcome, scratch: Path, finished: Path, seed: int) -> None:
    """Its database; images in the test below."""
    copy = scratch / "run"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(finished, copy)
    damage(copy, [Path("run.sqlite")], 0, seed)
    with at_most(SECONDS):
        outcome.of(lambda: render(read_run(copy), []), InputError)


@given(which=st.integers(0, 99), seed=st.integers(0, 2**32 - 1))
@fuzzed(max(5, CASES // 40))
def test_a_run_with_damaged_images_is_reported(scratch: Path, finished: Path, which: int, seed: int) -> None:
    copy = scratch / "images"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(finished, copy)
    damage(copy, [path.relative_to(finished) for path in sorted(finished.rglob("*.png"))], which, seed)
    with at_most(SECONDS):
        assert write_report(copy).is_file()


class Half(NamedTuple):
    """A half-finished run: `predictions` are in its database, some of them have samples."""

    folder: Path
    frames: list[Frame]
    predictions: Predictions


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Half:
    folder = tmp_path_factory.mktemp("half")
    frames = []
    for index in range(8):
        path = folder / f"{index}.png"
        path.write_bytes(bytes([index]) * 9)
        frames.append(Frame(str(path), "toy", "swap, one", f"{index // 2:03d}", index % 2, index))
    predictions = Predictions(frames)
    logits = torch.randn(7, 2, generator=torch.Generator().manual_seed(1))
    predictions.add(frames[:7], logits, logits.softmax(1)[:, 1])
    predictions.add_unreadable(7, "no such file")
    stamps = {frame.index: Stamp.of(frame.path)._replace(content=hash_of(frame.path)) for frame in frames}
    predictions.stamp(stamps)
    with RunFolder.open(folder / "run", manifest(top_files=["metrics.json"])) as run:
        run.database.put("frame", predictions.rows(frames, stamps), run.key)
        writer = SampleWriter(run.database, "maps", folder / "run" / "toy")
        for index in range(3):
            row = Row(index, "toy", "swap, one", frames[index].video, frames[index].label, 0.5, frames[index].path)
            layer = layer_image("a", image_of(row), np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32))
            sample = sample_of(row, [layer])
            real, fake = predictions.logits[index].tolist()
            sample = replace(sample, logit_real=real, logit_fake=fake, prob_fake=float(predictions.prob_fake[index]))
            writer.write(RenderedSample(sample, image_of(row), [layer]), {"a": (64, 64)})
        writer.__exit__(None, None, None)
    return Half(folder / "run", frames, predictions)


def resumed(folder: Path, frames: list[Frame]) -> Resume:
    with RunFolder.open(folder, manifest(top_files=["metrics.json"]), resume=True) as run:
        state = Resume(frames, run.database.rows("frame"), run.key)
        state.take_samples(run.database.rows("sample"), "maps", folder / "toy", "all")
    return state


def test_undamaged_everything_is_taken_over(half: Half, tmp_path: Path) -> None:
    shutil.copytree(half.folder, tmp_path / "run")
    state = resumed(tmp_path / "run", half.frames)
    assert state.predictions.done.all() and sorted(state.whole) == [0, 1, 2] and state.remarks() == []


@given(which=st.integers(0, 99), seed=st.integers(0, 2**32 - 1))
@fuzzed(CASES // 4)
def test_a_resumed_run_takes_over_nothing_that_was_damaged(
    outcome: Outcome, scratch: Path, half: Half, which: int, seed: int
) -> None:
    """What is taken over is bit for bit what was recorded; a sample with a changed file is done again."""
    copy = scratch / "half"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(half.folder, copy)
    files = [path.relative_to(half.folder) for path in sorted(half.folder.rglob("*.*")) if path.is_file()]
    path = damage(copy, [*files, *[Path("run.sqlite")] * 20], which, seed)
    with at_most(SECONDS):
        state = outcome.of(lambda: resumed(copy, half.frames), InputError)
    if state is None:
        assert path.name == "run.sqlite"
        return
    done = state.predictions.done
    np.testing.assert_array_equal(state.predictions.logits[done], half.predictions.logits[done])
    np.testing.assert_array_equal(state.predictions.prob_fake[done], half.predictions.prob_fake[done])
    assert all(half.predictions.unreadable[index] == text for index, text in state.predictions.unreadable.items())
    if path.name != "run.sqlite":
        number = int(path.relative_to(copy / "toy").parts[0].removeprefix("sample"))
        assert number not in state.whole and len(state.whole) == 2
