"""Dataset JSON made by hand, images on disk, read back through read_dataset and frame_loader."""

from __future__ import annotations

import json
import os
import signal
import time
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.helpers.datasets import data_settings
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.data.dataset_json import dataset_names
from utils.gradcam_kit.data.frame import COMPRESSED, Frame
from utils.gradcam_kit.data.frame_paths import landmark_path, mask_path
from utils.gradcam_kit.data.frames import Batch, frame_loader
from utils.gradcam_kit.data.readers import read_dataset


def videos(label: str, **frames: list[str]) -> dict[str, Any]:
    return {name: {"label": label, "frames": paths} for name, paths in frames.items()}


def write(folder: Path, name: str, content: Any, *, raw: bool = False) -> None:
    text = content if raw else json.dumps(content)
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def celeb(**frames: list[str]) -> dict[str, Any]:
    return {"Celeb": {"Celeb_Real": {"test": videos("Celeb_Real", **frames)}}}


# ------------------------------------------------------------------------------------------ what is listed


def test_frames_carry_all_that_the_json_says(tmp_path: Path) -> None:
    real, fake = (
        videos("Celeb_Real", id0=["a/0.png", "a/1.png"]),
        videos("Celeb_Fake", id0=["b/0.png"], id1=["c/0.png"]),
    )
    other = {"train": videos("other", v=["d/0.png"]), "test": videos("other", v=["e/0.png"])}
    write(tmp_path, "Celeb", {"Celeb": {"r": {"test": real}, "f": {"test": fake}, "o": other}})
    touch(tmp_path / "rgb/a/0.png")
    root = str(tmp_path / "rgb")
    assert read_dataset("Celeb", data_settings(tmp_path)) == [
        Frame(f"{root}/a/0.png", "Celeb", "Celeb_Real", "id0", 0, 0),
        Frame(f"{root}/a/1.png", "Celeb", "Celeb_Real", "id0", 0, 1),
        Frame(f"{root}/b/0.png", "Celeb", "Celeb_Fake", "id0", 1, 2),
        Frame(f"{root}/c/0.png", "Celeb", "Celeb_Fake", "id1", 1, 3),
        Frame(f"{root}/e/0.png", "Celeb", "other", "v", 1, 4),  # 7 is not 0, hence fake
    ]
    assert dataset_names(tmp_path) == ["Celeb"]


def test_splits_are_kept_apart_and_empty_videos_left_out(tmp_path: Path) -> None:
    splits = {"train": videos("Celeb_Real", a=["a/0.png"]), "val": videos("Celeb_Real", b=[], c=["c/0.png"])}
    write(tmp_path, "Celeb", {"Celeb": {"Celeb_Real": splits}})
    assert [frame.video for frame in read_dataset("Celeb", data_settings(tmp_path), "train")] == ["a"]
    assert [frame.video for frame in read_dataset("Celeb", data_settings(tmp_path), "val")] == ["c"]


@pytest.mark.parametrize("name", COMPRESSED)
def test_compression_level(tmp_path: Path, name: str) -> None:
    levels = {level: videos("FF-DF", v=[f"{level}/v/0.png"]) for level in ("raw", "c23", "c40")}
    write(tmp_path, name, {name: {"FF-DF": {"test": levels}}})
    write(tmp_path, f"{name}_c40", {name: {"FF-DF": {"test": levels}}})
    for asked, compression, expected in [(name, "c23", "c23"), (name, "raw", "raw"), (f"{name}_c40", "c23", "c40")]:
        (frame,) = read_dataset(asked, data_settings(tmp_path, compression=compression))
        assert frame.path.endswith(f"/{expected}/v/0.png")
        assert frame.dataset == asked
    with pytest.raises(InputError, match=r"no compression level 'c10'.*'raw', 'c23', 'c40'"):
        read_dataset(name, data_settings(tmp_path, compression="c10"))


def test_c40_of_another_family_is_just_a_name(tmp_path: Path) -> None:
    write(tmp_path, "Celeb_c40", {"Celeb_c40": {"Celeb_Real": {"test": videos("Celeb_Real", v=["v/0.png"])}}})
    assert read_dataset("Celeb_c40", data_settings(tmp_path))[0].dataset == "Celeb_c40"


def numbers(frames: list[Frame]) -> list[int]:
    return [int(frame.path.rsplit("/", 1)[1].split(".")[0]) for frame in frames]


def test_frames_are_sorted_by_number_and_evenly_spread(tmp_path: Path) -> None:
    order = np.random.default_rng(3).permutation(270)
    write(tmp_path, "Celeb", celeb(v=[f"v/{i}.png" for i in order]))
    assert numbers(read_dataset("Celeb", data_settings(tmp_path))) == list(range(270))
    # 32 parts of 8.4375 frames, their middles at 4.21875 + 8.4375 k: worked out with exact fractions
    middles = [int((Fraction(k) + Fraction(1, 2)) * Fraction(270, 32)) for k in range(32)]
    assert middles[:3] == [4, 12, 21]
    assert middles[-1] == 265
    assert numbers(read_dataset("Celeb", data_settings(tmp_path, frame_num=32))) == middles
    assert numbers(read_dataset("Celeb", data_settings(tmp_path, frame_num=1))) == [135]
    assert numbers(read_dataset("Celeb", data_settings(tmp_path, frame_num=270))) == list(range(270))
    assert numbers(read_dataset("Celeb", data_settings(tmp_path, frame_num=500))) == list(range(270))


@pytest.mark.parametrize(("total", "count"), [(9, 8), (10, 3), (33, 32), (1000, 8), (2, 1), (7, 7)])
def test_spread_takes_distinct_frames_of_both_halves(tmp_path: Path, total: int, count: int) -> None:
    write(tmp_path, "Celeb", celeb(v=[f"v/{i:05d}.png" for i in range(total)]))
    got = numbers(read_dataset("Celeb", data_settings(tmp_path, frame_num=count)))
    assert len(set(got)) == count
    assert got == sorted(got)
    halves = sum(number < total / 2 for number in got), sum(number >= total / 2 for number in got)
    assert abs(halves[0] - halves[1]) <= 1
    assert max(np.diff([-1, *got, total])) <= total / count + 1


def test_host_sampling_takes_the_first_in_the_order_of_the_json(tmp_path: Path) -> None:
    order = [7, 3, 9, 1, 0, 5]
    write(tmp_path, "Celeb", celeb(v=[f"v/{i}.png" for i in order]))
    assert numbers(read_dataset("Celeb", data_settings(tmp_path, frame_num=4, sampling="host"))) == [7, 3, 9, 1]
    assert numbers(read_dataset("Celeb", data_settings(tmp_path, sampling="host"))) == order


def test_names_of_any_kind_sort_the_same_way_each_time(tmp_path: Path) -> None:
    names = ["f10.png", "f9.png", "f009.png", "a.png", "é².png", "9" * 5000 + ".png", "f9b.png", "1.png", "v\\x\\2.png"]
    results = []
    for seed in range(5):
        shuffled = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
        write(tmp_path, "Celeb", celeb(v=shuffled))
        results.append([frame.path.rsplit("/", 1)[1] for frame in read_dataset("Celeb", data_settings(tmp_path))])
    assert all(result == results[0] for result in results)
    order = results[0]
    assert order.index("1.png") < order.index("2.png") < order.index("9" * 5000 + ".png")
    assert order.index("f9.png") < order.index("f10.png")
    assert order.index("f009.png") < order.index("f10.png")


# ------------------------------------------------------------------------------------------ where the files are


@pytest.mark.parametrize(
    ("in_json", "on_disk"),
    [
        ("Celeb/frames/v/0.png", "datasets/rgb/Celeb/frames/v/0.png"),  # below the root
        ("Celeb\\frames\\v\\0.png", "datasets/rgb/Celeb/frames/v/0.png"),
        (
            ".\\datasets\\rgb\\Celeb\\frames\\v\\0.png",
            "datasets/rgb/Celeb/frames/v/0.png",
        ),  # from the working directory
        ("./datasets\\rgb/Celeb\\frames/v/0.png", "datasets/rgb/Celeb/frames/v/0.png"),
        ("datasets/rgb/Celeb/frames/v/0.png", "datasets/rgb/Celeb/frames/v/0.png"),
        ("other/frames/v/0.png", "other/frames/v/0.png"),
        ("D:\\data\\rgb\\Celeb\\frames\\v\\0.png", "datasets/rgb/Celeb/frames/v/0.png"),  # another machine's
        ("/mnt/somebody/rgb/Celeb/frames/v/0.png", "datasets/rgb/Celeb/frames/v/0.png"),
    ],
)
@pytest.mark.parametrize("from_parent", [True, False])
def test_paths_of_the_host_and_of_other_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_json: str, on_disk: str, from_parent: bool
) -> None:
    host = tmp_path / "hôst tree"
    touch(host / on_disk)
    (host / "training").mkdir()
    working_folder = host if from_parent or on_disk.startswith("other") else host / "training"
    monkeypatch.chdir(working_folder)
    write(tmp_path, "Celeb", celeb(v=[in_json]))
    root = Path("datasets/rgb") if working_folder == host else Path("../datasets/rgb")
    (frame,) = read_dataset("Celeb", data_settings(tmp_path, root=root))
    assert Path(frame.path).is_absolute()
    assert Path(frame.path).resolve() == host / on_disk


def test_absolute_paths_stand_with_and_without_a_root(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere/v/0.png")
    write(tmp_path, "Celeb", celeb(v=[f"{tmp_path}/elsewhere/v/0.png"]))
    for root in (None, tmp_path / "rgb"):
        assert read_dataset("Celeb", data_settings(tmp_path, root=root))[0].path == f"{tmp_path}/elsewhere/v/0.png"


def test_the_folder_is_found_although_the_first_videos_are_not_there(tmp_path: Path) -> None:
    """Many download the fakes only; reals and fakes may start from different folders."""
    real = videos("Celeb_Real", **{f"r{i}": [f"data/real/r{i}/0.png"] for i in range(500)})
    fake = videos("Celeb_Fake", **{f"f{i}": [f"E:\\x\\fake\\f{i}\\0.png"] for i in range(5)})
    write(tmp_path, "Celeb", {"Celeb": {"Celeb_Real": {"test": real}, "Celeb_Fake": {"test": fake}}})
    touch(tmp_path / "rgb/fake/f3/0.png")
    frames = read_dataset("Celeb", data_settings(tmp_path))
    assert frames[0].path == str(tmp_path / "rgb/data/real/r0/0.png")  # the place that will be named as empty
    assert [frame.path for frame in frames[500:]] == [str(tmp_path / f"rgb/fake/f{i}/0.png") for i in range(5)]


def test_one_base_for_all_frames_of_a_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame missing below the root is missing: no file of another folder slips in for it."""
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "rgb/v/0.png")
    touch(tmp_path / "v/1.png")
    write(tmp_path, "Celeb", celeb(v=["v/0.png", "v/1.png"]))
    assert [frame.path for frame in read_dataset("Celeb", data_settings(tmp_path))] == [
        str(tmp_path / "rgb/v/0.png"),
        str(tmp_path / "rgb/v/1.png"),
    ]


def test_a_file_of_the_same_name_elsewhere_is_not_taken(tmp_path: Path) -> None:
    touch(tmp_path / "rgb/0.png")
    write(tmp_path, "Celeb", celeb(v=["Celeb/frames/v/0.png"]))
    assert read_dataset("Celeb", data_settings(tmp_path))[0].path == str(tmp_path / "rgb/Celeb/frames/v/0.png")


def test_masks_and_landmarks_replace_the_last_folder_named_frames() -> None:
    assert mask_path("/my frames/frames/set/frames/v/000.png") == "/my frames/frames/set/masks/v/000.png"
    assert landmark_path("/d/frames/frames_v/000.jpg") == "/d/landmarks/frames_v/000.npy"
    assert mask_path("/d/frames/v/frames.jpg") == "/d/masks/v/frames.png"
    assert mask_path("d/v/000.png") == "d/v/masks/000.png"  # never the image itself
    assert landmark_path("000.png") == "landmarks/000.npy"


# ------------------------------------------------------------------------------------------ bad input


def test_label_that_label_dict_does_not_hold(tmp_path: Path) -> None:
    write(tmp_path, "Celeb", {"Celeb": {"x": {"test": videos("Celeb_fake", v=["a/0.png"])}}})
    with pytest.raises(InputError, match=r"Celeb\.json.*'Celeb_fake'.*did you mean 'Celeb_Fake'.*add 'Celeb_fake': 1"):
        read_dataset("Celeb", data_settings(tmp_path))


def test_data_set_that_is_not_there(tmp_path: Path) -> None:
    for i in range(60):
        write(tmp_path, f"set{i:02d}", {})
    write(tmp_path, "Celeb-DF-v2", {})
    with pytest.raises(InputError) as error:
        read_dataset("CelebDF-v2", data_settings(tmp_path))
    message = str(error.value)
    assert str(tmp_path) in message
    assert "did you mean 'Celeb-DF-v2'" in message
    assert "and 41 more" in message
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no JSON"):
        read_dataset("A", data_settings(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"dataset_json_folder .*nowhere.* cannot be listed"):
        read_dataset("A", data_settings(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["", "..", "../Celeb", "/etc/Celeb", "a\\b", "a\0b", "sub/Celeb"])
def test_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="not a dataset name"):
        read_dataset(name, data_settings(tmp_path))


video = {"label": "Celeb_Real", "frames": ["a/0.png"]}
SHAPES = [
    ("", r"not a JSON file"),
    ("{", r"not a JSON file.*line 1"),
    ("[" * 100_000, r"nested too deeply|not a JSON"),
    ('{"a":' * 100_000, r"nested too deeply|not a JSON"),
    ('{"Celeb": ' + "1" * 5000 + "}", r"not a JSON file|found a number"),
    ("[1]", r"at the top: expected an object \{...\}, found a list"),
    ({"celeb": {}}, r"at the top: no dataset 'Celeb'; did you mean 'celeb'\? there are 'celeb'"),
    ({"Celeb": []}, r"at 'Celeb': expected an object.*found a list"),
    ({"Celeb": {}}, r"no video of the split 'test'"),
    ({"Celeb": {"r": 3}}, r"at 'Celeb' > 'r': expected an object.*a number"),
    (
        {"Celeb": {"r": {"train": {}, "tset": {}}}},
        r"'Celeb' > 'r': no split 'test'; did you mean 'tset'\? there are 'train'",
    ),
    ({"Celeb": {"r": {}}}, r"no split 'test'; there is none"),
    ({"Celeb": {"r": {"test": None}}}, r"'r' > 'test': expected an object.*found null"),
    ({"Celeb": {"r": {"test": {"v": ["a"]}}}}, r"'test' > 'v': expected an object.*found a list"),
    (
        {"Celeb": {"r": {"test": {"c23": {"v": video}}}}},
        r"'c23': expected a video with the keys 'label' and 'frames', found 'v'",
    ),
    ({"Celeb": {"r": {"test": {"v": {**video, "label": 1}}}}}, r"'v' > 'label': expected a string, found a number"),
    ({"Celeb": {"r": {"test": {"v": {**video, "frames": "a"}}}}}, r"'v' > 'frames': expected a list, found a string"),
    (
        {"Celeb": {"r": {"test": {"v": {**video, "frames": ["a", 5]}}}}},
        r"'frames' > '1': expected a string that is not empty, found a number",
    ),
    (
        {"Celeb": {"r": {"test": {"v": {**video, "frames": [""]}}}}},
        r"'frames' > '0': expected a string that is not empty, found an empty",
    ),
    (
        {"Celeb": {"r": {"test": {"v": {**video, "frames": []}}}}},
        r"no video of the split 'test' of 'Celeb' holds a frame",
    ),
]


@pytest.mark.parametrize(("content", "message"), SHAPES, ids=range(len(SHAPES)))
def test_json_of_another_shape(tmp_path: Path, content: Any, message: str) -> None:
    write(tmp_path, "Celeb", content, raw=isinstance(content, str))
    with pytest.raises(InputError, match=message) as error:
        read_dataset("Celeb", data_settings(tmp_path))
    assert str(tmp_path / "Celeb.json") in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_family_without_compression_level(tmp_path: Path) -> None:
    write(tmp_path, "FF-DF", {"FF-DF": {"FF-DF": {"test": {"000_001": {**video}}}}})
    with pytest.raises(InputError, match=r"no compression level 'c23'.*'000_001'"):
        read_dataset("FF-DF", data_settings(tmp_path))


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "Celeb.json").write_bytes(b'{"\xff\xfe": 1}')
    with pytest.raises(InputError, match="not a JSON file"):
        read_dataset("Celeb", data_settings(tmp_path))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        read_dataset("folder", data_settings(tmp_path))


def test_byte_order_mark_of_windows(tmp_path: Path) -> None:
    (tmp_path / "Celeb.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(celeb(v=["v/0.png"])).encode())
    assert len(read_dataset("Celeb", data_settings(tmp_path))) == 1


def test_label_and_video_names_may_be_anything(tmp_path: Path) -> None:
    odd = ["../../x", "/abs", "a\0b", "<script>", "", "line\nbreak", "\ud800"]
    labels = dict.fromkeys(odd, 1)
    write(
        tmp_path,
        "Celeb",
        {"Celeb": {name: {"test": {name: {"label": name, "frames": [f"v/{i}.png"]}}} for i, name in enumerate(odd)}},
    )
    frames = read_dataset("Celeb", data_settings(tmp_path, label_dict=labels))
    assert [(frame.forgery, frame.video) for frame in frames] == [(name, name) for name in odd]


def test_a_hundred_thousand_frames(tmp_path: Path) -> None:
    many = {f"v{i}": [f"Celeb-DF-v2\\Celeb-real\\frames\\v{i}\\{j:03d}.png" for j in range(100)] for i in range(1_000)}
    write(tmp_path, "Celeb", celeb(**many))
    start = time.process_time()
    frames = read_dataset("Celeb", data_settings(tmp_path))
    assert time.process_time() - start < 6
    assert len(frames) == 100_000
    assert frames[-1].index == 99_999
    assert len({id(frame.forgery) for frame in frames}) == len({id(frame.dataset) for frame in frames}) == 1
    assert len({id(frame.video) for frame in frames}) == 1_000


# ------------------------------------------------------------------------------------------ batches


@pytest.fixture
def images(tmp_path: Path) -> list[Frame]:
    """23 frames of distinct plain colours: 4 and 11 cut off, 5 missing, 6 and 7 no images: batch 1 is empty."""
    frames = []
    for i in range(23):
        path = tmp_path / f"{i:03d}.png"
        data = cv2.imencode(".png", np.full((20, 30, 3), (i, 100 + i, 200), np.uint8))[1].tobytes()
        data = {4: data[:-30], 6: b"", 7: b"<html>", 11: data[: len(data) // 2]}.get(i, data)
        if i != 5:
            path.write_bytes(data)
        frames.append(Frame(str(path), "D", "L", "v", i % 2, 100 + i))
    return frames


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_in_order_and_hold_their_own_pixels(images: list[Frame], workers: int) -> None:
    batches: list[Batch] = list(frame_loader(images, 16, 4, workers))
    assert len(batches) == 6
    for k, batch in enumerate(batches):
        mine = images[4 * k : 4 * k + 4]
        assert batch.frames == [frame for frame in mine if frame.index - 100 not in (4, 5, 6, 7, 11)]
        assert [frame for frame, _ in batch.unreadable] == [frame for frame in mine if frame not in batch.frames]
        assert batch.pixels.dtype == torch.uint8
        assert batch.pixels.shape == (len(batch.frames), 3, 16, 16)
        for frame, pixels in zip(batch.frames, batch.pixels, strict=True):
            i = frame.index - 100  # written as blue, green, red
            assert pixels.amax((1, 2)).tolist() == pixels.amin((1, 2)).tolist() == [200, 100 + i, i]
    reasons = {frame.index - 100: reason for batch in batches for frame, reason in batch.unreadable}
    assert "cut off" in reasons[4]
    assert "cut off" in reasons[11]
    assert "no such file" in reasons[5]
    assert "empty" in reasons[6]
    assert "not an image" in reasons[7]


def test_loading_leaves_the_random_state_alone(images: list[Frame]) -> None:
    before = torch.random.get_rng_state()
    for workers in (0, 1):
        list(frame_loader(images, 16, 8, workers))
    assert torch.equal(before, torch.random.get_rng_state())


def test_no_frames_no_batches() -> None:
    assert list(frame_loader([], 16, 4, 0)) == []


def test_memory_does_not_grow_with_the_frames_read(images: list[Frame]) -> None:
    loader = frame_loader(images[:4] * 60, 224, 8, 0)
    sizes = []
    tracemalloc.start()
    for k, _ in enumerate(loader):
        if k in (5, 25):
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert abs(sizes[1] - sizes[0]) < 200_000  # a batch has 1.2 MB


def test_worker_that_is_interrupted_finishes(images: list[Frame]) -> None:
    """Ctrl-C reaches the workers too; the main process decides when they end."""
    iterator: Any = iter(frame_loader(images, 16, 2, 1))
    next(iterator)
    os.kill(iterator._workers[0].pid, signal.SIGINT)
    assert len(list(iterator)) == 11
