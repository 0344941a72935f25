"""The frames of a data set, from the dataset JSON to decoded batches. A `Frame` travels with its pixels all the way.

Nothing is shuffled, and no frame is ever replaced by another: what cannot be read is listed with its reason.
"""

from __future__ import annotations

import re
import signal
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Sequence, TypeVar

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from utils.data.dataset_json import Video, dataset_file, dataset_names, read_videos
from utils.data.pictures import UnreadablePicture, decode_picture
from utils.data.storage import beside_key, in_lmdb, lmdb_folder, lmdb_path, read_bytes
from utils.errors import InputError, did_you_mean
from utils.text import shortened

__all__ = [
    "Batch",
    "DataSettings",
    "Frame",
    "UnreadablePicture",
    "dataset_file",
    "dataset_names",
    "decode_picture",
    "frame_loader",
    "landmark_path",
    "mask_path",
    "read_dataset",
]

T = TypeVar("T")
_PROBES = 100  # videos looked at, per label, to find out which folder the paths of a dataset JSON start from


class Frame(NamedTuple):
    """One picture of a data set and all that is known of it."""

    path: str  # on disk
    dataset: str  # as asked for, e.g. "FF-DF_c40"
    forgery: str  # label name in the dataset JSON, e.g. "FF-DF", "simswap_Fake"
    video: str  # video name in the dataset JSON
    label: int  # 0 real, 1 fake
    index: int  # type: ignore[assignment]  # position in the data set after sampling; hides tuple.index, which nobody asks


class DataSettings(NamedTuple):
    """What the configuration says of the data."""

    json_folder: Path
    root: Path | None  # dataset_root_rgb (DeepfakeBench: rgb_dir)
    label_dict: Mapping[str, int]  # label name → 0 real, anything else fake
    compression: str
    frame_num: int | None  # frames taken of each video; None takes all
    # "even": spread over the video; "host": the first ones in the order of the JSON, as DF40 does; "host_sorted": the
    # first ones by number, as DeepfakeBench and Effort do.
    sampling: str
    resolution: int
    lmdb_dir: Path | None = None  # where the LMDBs lie, if the pictures are in them


class Batch(NamedTuple):
    """Some frames in order, and apart from them those that could not be read, with the reason."""

    frames: list[Frame]
    pixels: torch.Tensor  # uint8 (len(frames), 3, resolution, resolution), RGB, on the CPU
    unreadable: list[tuple[Frame, str]]


# ---------------------------------------------------------------------------------------------------- listing


def read_dataset(name: str, settings: DataSettings, split: str = "test") -> list[Frame]:
    """The frames of one split of a data set, video after video in the order of the JSON; no picture is opened.

    Raises InputError: data set not there, JSON of another shape, split or compression level missing, label not in
    `settings.label_dict`.
    """
    videos = read_videos(name, settings.json_folder, settings.compression, split)
    by_label: dict[str, list[Video]] = {}
    for video in videos:
        by_label.setdefault(video.label, []).append(video)
    numbers = {label: _class_of(label, name, settings) for label in by_label}
    # Each label once, as (its one string object, its class, where its frames lie): frames come by the million.
    known = {label: (label, numbers[label], _location(name, group, settings)) for label, group in by_label.items()}
    frames: list[Frame] = []
    for video in videos:
        label, number, on_disk = known[video.label]
        for path in _sampled(video.frames, settings.frame_num, settings.sampling):
            frames.append(Frame(on_disk(path), name, label, video.name, number, len(frames)))
    return frames


def _location(dataset: str, videos: list[Video], settings: DataSettings) -> Callable[[str], str]:
    """How the paths of one label become paths on disk, or in an LMDB."""
    if settings.lmdb_dir is not None:
        return partial(lmdb_path, lmdb_folder(dataset, settings.lmdb_dir))
    return _prefix(videos, settings.root).of


def _class_of(label: str, dataset: str, settings: DataSettings) -> int:
    if label not in settings.label_dict:
        raise InputError(
            f"{settings.json_folder / dataset}.json has the label {shortened(label)!r}, which label_dict does not: "
            f"{did_you_mean(label, settings.label_dict)}add {shortened(label)!r}: 1 (fake) or 0 (real) to label_dict "
            f"in config/test_config.yaml"
        )
    return int(settings.label_dict[label] != 0)


def _sampled(paths: list[str], count: int | None, sampling: str) -> list[str]:
    """At most `count` of a video's frames."""
    if sampling == "host":
        return paths[:count]
    paths = sorted(paths, key=_by_number)
    if sampling == "host_sorted":
        return paths[:count]
    if count is None or count >= len(paths):
        return paths
    return evenly_spaced(paths, count)


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """`count` of n items: the middles of `count` equal parts, items floor((k + 1/2) n / count)."""
    return [items[(2 * k + 1) * len(items) // (2 * count)] for k in range(count)]


def _by_number(path: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key: 9.png before 10.png, 9.png and 09.png side by side; the whole path decides between equals."""
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    pieces = re.split("([0-9]+)", name)  # text, digits, text, digits, ...
    numbers = [piece.lstrip("0") if i % 2 else piece for i, piece in enumerate(pieces)]
    # A number with more digits is larger; texts compare as texts, so their length is not looked at.
    return [(len(piece) if i % 2 else 0, piece) for i, piece in enumerate(numbers)], path


class _Prefix(NamedTuple):
    """How paths of a dataset JSON become paths on disk: `drop` leading folders off, `folder` (or nothing) in front."""

    folder: str
    drop: int

    def of(self, path: str) -> str:
        plain = _plain(path)
        if self.drop:
            plain = plain.lstrip("/").split("/", self.drop)[-1]
        return f"{self.folder}/{plain}" if self.folder else plain


def _prefix(videos: list[Video], root: Path | None) -> _Prefix:
    """Which folder the paths of one label's videos start from, found out on the first frames of some of them.

    DF40 opens the paths as they are (from the working directory), DeepfakeBench puts `rgb_dir` in front, and the JSON
    files that circulate carry the folders of the machine they were made on (`D:\\data\\...`, `./datasets/rgb/...`). So
    these are tried: below the root, as they are, and below the root with one, two, ... leading folders off. The first
    that holds a file decides, once per label (reals and fakes often come from different archives), never per frame.
    """
    step = max(1, len(videos) // _PROBES)
    for video in videos[::step]:
        for prefix in _candidates(video.frames[0], root):
            if Path(prefix.of(video.frames[0])).is_file():
                return prefix
    return _candidates(videos[0].frames[0], root)[
        0
    ]  # nothing is there: each frame will be listed as missing, by this path


def _candidates(path: str, root: Path | None) -> list[_Prefix]:
    plain = _plain(path)
    absolute = re.match("/|[A-Za-z]:/", plain) is not None
    as_it_is = _Prefix("" if absolute else str(Path.cwd()), 0)
    if root is None:
        return [as_it_is]
    below = str(root.absolute())
    first = [as_it_is] if absolute else [_Prefix(below, 0), as_it_is]
    # At least the video's folder and the file stay, so that no picture of the same name elsewhere is taken for it.
    folders = plain.lstrip("/").count("/")
    return first + [_Prefix(below, drop) for drop in range(1, folders)]


def _plain(path: str) -> str:
    """With `/` throughout and no `./` in front, for files made on Windows."""
    path = path.replace("\\", "/")
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return path


def mask_path(frame_path: str) -> str:
    """Where a frame's mask lies: `.../frames/<video>/000.png` → `.../masks/<video>/000.png`."""
    return _beside(frame_path, "masks", ".png")


def landmark_path(frame_path: str) -> str:
    """Where a frame's landmarks lie: `.../frames/<video>/000.png` → `.../landmarks/<video>/000.npy`."""
    return _beside(frame_path, "landmarks", ".npy")


def _beside(frame_path: str, folder: str, suffix: str) -> str:
    """The last folder named `frames` replaced; where there is none, a folder of that name beside the picture."""
    if in_lmdb(frame_path):
        return beside_key(frame_path, folder, suffix)
    parts = list(Path(frame_path).with_suffix(suffix).parts)
    places = [i for i, part in enumerate(parts[:-1]) if part == "frames"]
    if places:
        parts[places[-1]] = folder
    else:
        parts.insert(-1, folder)
    return str(Path(*parts))


# ---------------------------------------------------------------------------------------------------- loading


class _FrameDataset(Dataset[Any]):
    """Frame i with its pixels, or with the reason why there are none."""

    def __init__(self, frames: Sequence[Frame], resolution: int) -> None:
        self.frames = frames
        self.resolution = resolution

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, i: int) -> tuple[Frame, np.ndarray | str]:
        frame = self.frames[i]
        try:
            return frame, decode_picture(read_bytes(frame.path), self.resolution)
        except UnreadablePicture as reason:
            return frame, str(reason)

    def collate(self, items: Iterable[tuple[Frame, np.ndarray | str]]) -> Batch:
        frames, pictures, unreadable = [], [], []
        for frame, picture in items:
            if isinstance(picture, str):
                unreadable.append((frame, picture))
            else:
                frames.append(frame)
                pictures.append(torch.from_numpy(picture).permute(2, 0, 1))
        empty = torch.empty((0, 3, self.resolution, self.resolution), dtype=torch.uint8)
        return Batch(frames, torch.stack(pictures) if pictures else empty, unreadable)


def frame_loader(frames: Sequence[Frame], resolution: int, batch_size: int, workers: int) -> DataLoader[Any]:
    """A DataLoader that yields a `Batch` for frames[0 : batch_size], frames[batch_size : 2 * batch_size], ...

    Batch k holds frames[k * batch_size : (k + 1) * batch_size], in order, less those that cannot be read, which are in
    `Batch.unreadable`; a batch without one readable frame has pixels of shape (0, 3, resolution, resolution). Decoding
    happens in `workers` processes, or here where workers is 0. The global random state is neither used nor changed.
    """
    dataset = _FrameDataset(frames, resolution)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=False,
        num_workers=workers,
        collate_fn=dataset.collate,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else each pass draws from the global one
    )


def _start_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends its workers itself
    cv2.setNumThreads(0)  # the workers are the parallelism
    # What OpenCV would print of a damaged file comes back as its reason. Before 4.6 the switch is in another place.
    getattr(cv2.utils, "logging", cv2).setLogLevel(0)
