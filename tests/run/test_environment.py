"""What the environment and the settings can hold that no run can use: one line each, and nothing is waited for."""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta
from pathlib import Path

import pytest

import test_with_gradcam
from tests.helpers.command_server import CommandServer
from tests.helpers.datasets import DataTree, change_yaml, data_settings
from utils.gradcam_kit.base.errors import InputError, RunError
from utils.gradcam_kit.data.frame import MAX_DATASET_NAME_BYTES
from utils.gradcam_kit.data.frames import frame_loader
from utils.gradcam_kit.data.readers import read_dataset
from utils.gradcam_kit.model.checkpoints import read_weights
from utils.gradcam_kit.run import processes
from utils.gradcam_kit.run.processes import Processes
from utils.gradcam_kit.settings.config import read_yaml, run_settings

pytestmark = pytest.mark.slow  # each environment has a run of its own

RENDEZVOUS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE='x'; allowed: a whole number from 1 to"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0'"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE='999"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 but not RANK, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE=2 but not MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "2", **RENDEZVOUS}, "RANK='2'; allowed: a whole number from 0 to 1"),
        ({"WORLD_SIZE": "2", "RANK": "-1", **RENDEZVOUS}, "RANK='-1'"),
        ({"WORLD_SIZE": "2", "RANK": "1.0", **RENDEZVOUS}, "RANK='1.0'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "7", **RENDEZVOUS}, "LOCAL_RANK='7'"),
        ({"WORLD_SIZE": "2", "RANK": "0", **RENDEZVOUS, "MASTER_PORT": "http"}, "MASTER_PORT='http'"),
    ],
)
def test_processes_that_nobody_started(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert Processes.start() == Processes(0, 1, 0)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as refused:
        Processes.start()
    assert message in str(refused.value) and "unset WORLD_SIZE" in str(refused.value)


def test_a_process_that_never_starts_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", **RENDEZVOUS, "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "JOINING", timedelta(seconds=1))
    start = time.monotonic()
    with pytest.raises(RunError, match="another process of this run has ended or does not answer"):
        Processes.start()
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "1" * 26], "--seed is 1111"),
        (["--seed", str(2**63)], "of 64 bits"),
        (["--batch_size", "1" * 26], "--batch_size is 1111"),
        (["--batch_size", "1000001"], "at least 1 and at most 1,000,000"),
        (["--workers", "100000"], "workers is 100000; allowed: a whole number of at least 0 and at most 1,000"),
        (["--weights_path", "x" * 5000], "weights file at 'xxx"),
        (["--detector_path", "x" * 5000], "detector YAML at 'xxx"),
        (["--test_dataset", "x" * (MAX_DATASET_NAME_BYTES + 1)], "is not a dataset name"),
        (["--test_dataset", "x" * 5000], "is not a dataset name"),
        (["--test_dataset", "x/" + "x" * 5000], "no folder or CSV"),
    ],
)
def test_numbers_and_names_that_no_machine_takes(
    flags: list[str], message: str, data_tree: DataTree, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        test_with_gradcam.main(data_tree.arguments("--gradcam_output_dir", tmp_path / "out", *flags))
    assert message in str(refused.value) and len(str(refused.value)) < 1500
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [None, ..., 7, ["cross_entropy"]])
def test_a_loss_that_is_none(value: object, data_tree: DataTree, tmp_path: Path) -> None:
    change_yaml(data_tree.detector_yaml, loss_func=value)
    with pytest.raises(InputError, match=r"loss_func is .*; allowed: the name of a loss"):
        test_with_gradcam.main(data_tree.arguments("--gradcam_output_dir", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("resolution", [0, 8193, 10**12])
def test_resolutions_that_no_detector_has(resolution: int, data_tree: DataTree) -> None:
    change_yaml(data_tree.detector_yaml, resolution=resolution)
    with pytest.raises(InputError, match=f"resolution is {resolution}; allowed: .* at most 8,192"):
        run_settings(data_tree.detector_yaml, data_tree.test_yaml, {})


def test_pipes_in_place_of_files(data_tree: DataTree, tmp_path: Path) -> None:
    """Each would be waited for, for ever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="it is a pipe, not a file.*give the path of a YAML file"):
        read_yaml(pipe)
    with pytest.raises(InputError, match="it is a pipe, not a file"):
        read_weights(pipe)
    frame = data_tree.frames["toy_Fake"][0]
    frame.unlink()
    os.mkfifo(frame)
    frames = read_dataset("toy", run_settings(data_tree.detector_yaml, data_tree.test_yaml, {}).data)
    (batch,) = frame_loader(frames, 64, 100, 0)
    assert [(one.path, reason) for one, reason in batch.unreadable] == [
        (str(frame), f"not a file but a pipe: {str(frame)!r}")
    ]


def test_names_of_hundreds_and_of_thousands_of_letters(tmp_path: Path) -> None:
    """A frame that no file system can hold is a frame that is not there; a name beyond all paths refuses the JSON."""
    import json

    (tmp_path / "rgb").mkdir()
    for letters in (300, 5_000):
        videos = {"v": {"label": "Celeb_Fake", "frames": ["x" * letters + ".png"]}}
        (tmp_path / "toy.json").write_text(json.dumps({"toy": {"Celeb_Fake": {"test": videos}}}))
        frames = read_dataset("toy", data_settings(tmp_path))
        (batch,) = frame_loader(frames, 64, 4, 0)
        assert len(batch.unreadable) == 1 and "too long" in batch.unreadable[0][1]
    for video, label in (("v" * 140_000, "Celeb_Fake"), ("v", "l" * 40_000)):
        content = {"toy": {"Celeb_Fake": {"test": {video: {"label": label, "frames": ["a.png"]}}}}}
        (tmp_path / "toy.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"has 1?40,000 characters; allowed: at most 32,768"):
            read_dataset("toy", data_settings(tmp_path))


def test_workers_that_are_spawned_read_the_same(data_tree: DataTree) -> None:
    """As on macOS and Windows, where a worker is a new interpreter that is sent everything it needs."""
    frames = read_dataset("toy", run_settings(data_tree.detector_yaml, data_tree.test_yaml, {}).data)
    here = list(frame_loader(frames, 48, 10, 0))
    loader = frame_loader(frames, 48, 10, 1)
    loader.multiprocessing_context = "spawn"
    spawned = list(loader)
    assert [batch.frames for batch in spawned] == [batch.frames for batch in here]
    assert all((one.pixels == other.pixels).all() for one, other in zip(spawned, here, strict=True))


def test_no_further_thread(commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    first = """
import threading
start = threading.Thread.start
def refuse(thread):
    if thread.name.startswith("draw"):
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = refuse
"""
    flags = data_tree.arguments("--gradcam_enabled", "--save_all_predictions", "--gradcam_output_dir", tmp_path / "out")
    done = commands.start("test_with_gradcam.py", *flags, cwd=tmp_path, first=first).wait()
    assert done.code == 1 and "Traceback" not in done.err
    assert done.err.splitlines()[-1].startswith("error: this machine or account allows no more threads")
    assert not list((tmp_path / "out").glob("toy/sample*"))
    again = commands.run("test_with_gradcam.py", *flags, "--resume", cwd=tmp_path)
    assert again.code == 0 and len(list((tmp_path / "out").glob("toy/sample*"))) == 24


def test_a_forgery_whose_folder_is_absent(commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    """Half of the frames: said at the start, in the table, on the page, and no failure; heatmaps are of the rest."""
    (data_tree.folder / "toy_Fake").rename(data_tree.folder / "toyFake_v2")
    out = tmp_path / "out"
    flags = data_tree.arguments("--gradcam_enabled", "--save_all_predictions", "--gradcam_output_dir", out)
    done = commands.run("test_with_gradcam.py", *flags, cwd=tmp_path)
    assert done.code == 0, done.err
    line = f"all 12 frames of toy_Fake are missing: there is no folder {data_tree.folder / 'toy_Fake'}; a similar name next to it is toyFake_v2"
    assert done.err.splitlines()[0] == f"toy: {line}" and f"toy: {line}" in done.out.splitlines()
    assert "toy: all 12 frames are real: AUC, EER, AP and video AUC need both classes" in done.out
    assert (out / "toy" / "gaps.csv").read_text().splitlines()[1:] == [
        f"toy_Fake,12,4,12,4,0,{data_tree.folder / 'toy_Fake'},toyFake_v2"
    ]
    page = (out / "index.html").read_text()
    assert f"{line}." in page and '<th scope="row">toy_Fake</th><td>12</td><td>12</td><td>4 of 4</td>' in page
    assert len(list(out.glob("toy/sample*"))) == 12
    again = commands.run("test_with_gradcam.py", *flags, "--resume", cwd=tmp_path)
    assert again.code == 0


def test_the_demo_where_nothing_can_be_written(commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    image = data_tree.frames["toy_Fake"][0]
    flags = ["--detector_path", str(data_tree.detector_yaml), "--device", "cpu", "--input", str(image), "--output"]
    below_a_file = commands.run("utils/gradcam_demo.py", *flags, image / "out", cwd=tmp_path)
    assert below_a_file.code == 2 and below_a_file.err.startswith("error: --output ")
    quota = commands.start(
        "utils/gradcam_demo.py", *flags, tmp_path / "out", cwd=tmp_path,
        first="import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))",
    ).wait()  # fmt: skip
    assert quota.code == 1 and quota.err.startswith("error: ") and quota.err.count("\n") == 1
    assert not [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]
