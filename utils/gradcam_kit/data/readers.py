"""From the name of a dataset to its frames. The first reader that recognises the name reads it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import NamedTuple

from ..base.errors import InputError, did_you_mean
from ..base.files import sha256_of
from ..base.text import in_number_order, printable, shortened
from .dataset_json import dataset_file, read_videos
from .folder_dataset import read_labelled
from .frame import DataSettings, Frame, Video, evenly_spaced
from .frame_paths import Prefix, find_lmdb, find_prefix, first_prefix, lmdb_path, no_lmdb

Places = Mapping[str, Callable[[str], str]]  # label → function from a listed path to the path on disk


class DatasetReader(NamedTuple):
    """A kind of dataset; the fields are the arguments of `register_reader`."""

    kind: str
    reads: Callable[[str, DataSettings], bool]  # tells whether this reader reads a name of `test_dataset`
    frames: Callable[[str, DataSettings, str], list[Frame]]  # name, settings, split → frames in a fixed order
    sha256: Callable[[str, DataSettings], str]  # hash of the list of frames, for a run's manifest


def read_dataset(name: str, settings: DataSettings, split: str = "test") -> list[Frame]:
    """Read the frames of one split of a dataset, in a fixed order. Opens no image. Raises InputError."""
    return reader_of(name, settings).frames(name, settings, split)


def reader_of(name: str, settings: DataSettings) -> DatasetReader:
    """Return the reader that recognises the dataset's name, else the one for dataset JSON files."""
    return next((reader for reader in READERS if reader.reads(name, settings)), JSON_READER)


def json_frames(name: str, settings: DataSettings, split: str) -> list[Frame]:
    """Read the frames of a dataset JSON, in its order. Raises InputError, also for an unknown label."""
    videos = read_videos(name, settings.json_folder, settings.compression, split)
    by_label: dict[str, list[Video]] = {}
    for video in videos:
        by_label.setdefault(video.label, []).append(video)
    numbers = {label: _class_of(label, name, settings) for label in by_label}
    places = _locations(name, by_label, settings)
    return _frames(name, settings, ((numbers[video.label], video) for video in videos), places)


def folder_frames(name: str, settings: DataSettings, split: str) -> list[Frame]:
    """Read the frames of a folder or a CSV of `settings.folders`, which has no splits. Raises InputError."""
    return _frames(name, settings, read_labelled(settings.folders[name]), {})


def _frames(name: str, settings: DataSettings, videos: Iterable[tuple[int, Video]], places: Places) -> list[Frame]:
    """Return the sampled frames of `videos`, pairs of a class and a video."""
    frames: list[Frame] = []
    classes: dict[str, int] = {}  # path → class
    labels: dict[str, str] = {}  # one string object per label: there may be millions of frames
    for number, video in videos:
        label, on_disk = labels.setdefault(video.label, video.label), places.get(video.label, str)
        for path in _sample(video.frames, settings.frame_num, settings.sampling):
            place = on_disk(path)
            if classes.setdefault(place, number) != number:
                raise InputError(f"{name}: {shortened(place, 300)!r} is real and fake in this dataset: which is it?")
            frames.append(Frame(place, name, label, video.name, number, len(frames)))
    return frames


def _folder_sha256(name: str, settings: DataSettings) -> str:
    """Return the hash of the CSV, or of the list of images and labels."""
    path = settings.folders[name]
    if path.is_file():
        return sha256_of(path)
    listed = "\n".join(repr((number, tuple(video))) for number, video in read_labelled(path))
    return hashlib.sha256(listed.encode("utf-8", "surrogatepass")).hexdigest()


def _locations(dataset: str, by_label: dict[str, list[Video]], settings: DataSettings) -> Places:
    """Map each label to a function from its listed paths to paths on disk, or in an LMDB."""
    lmdb = None if settings.lmdb_dir is None else find_lmdb(dataset, settings.lmdb_dir)
    if lmdb is not None:
        return dict.fromkeys(by_label, partial(lmdb_path, lmdb))
    found = {label: find_prefix(videos, settings.root) for label, videos in by_label.items()}
    if settings.lmdb_dir is not None:
        missing = no_lmdb(dataset, settings.lmdb_dir)
        if not any(found.values()):
            raise missing
        _note_once(f"note: {missing}; its frames exist as files, which are read instead")
    if not any(found.values()) and settings.root is None and settings.named_root:
        raise InputError(
            f"dataset_root_rgb (rgb_dir) {settings.named_root!r} does not exist, and no frame of {dataset} is found"
            f" without it, for example {shortened(next(iter(by_label.values()))[0].frames[0], 200)!r}: give the folder"
            " that the paths start from"
        )
    first = {label: videos[0].frames[0] for label, videos in by_label.items()}

    def prefix_of_neighbour(label: str) -> Prefix:
        """Return the prefix of a label whose paths begin with the same folders, for a label without any file.

        So its folder is expected, and reported as missing, next to the other label's.
        """
        for other, prefix in found.items():
            if prefix is not None and prefix.dropped(first[other]) == prefix.dropped(first[label]):
                return prefix
        return first_prefix(by_label[label], settings.root)

    return {label: (prefix or prefix_of_neighbour(label)).of for label, prefix in found.items()}


@cache
def _note_once(text: str) -> None:
    """Print a note once, although a dataset is read several times."""
    print(printable(text), file=sys.stderr)


def _class_of(label: str, dataset: str, settings: DataSettings) -> int:
    if label not in settings.label_dict:
        raise InputError(
            f"{settings.json_folder / dataset}.json has the label {shortened(label)!r}, which is not in label_dict: "
            f"{did_you_mean(label, settings.label_dict)}add {shortened(label)!r}: 1 (fake) or 0 (real) to label_dict "
            f"in config/test_config.yaml"
        )
    return int(settings.label_dict[label] != 0)


def _sample(paths: list[str], count: int | None, sampling: str) -> list[str]:
    if sampling != "host":
        paths = sorted(paths, key=in_number_order)
    return paths[:count] if sampling != "even" or count is None else evenly_spaced(paths, count)


JSON_READER = DatasetReader(
    "dataset JSON", lambda *_: True, json_frames, lambda name, data: sha256_of(dataset_file(name, data.json_folder))
)
# Tried in order, before the dataset JSON.
READERS: list[DatasetReader] = [
    DatasetReader("folder of images, or CSV", lambda name, data: name in data.folders, folder_frames, _folder_sha256)
]


def register_reader(
    kind: str,
    reads: Callable[[str, DataSettings], bool],
    frames: Callable[[str, DataSettings, str], list[Frame]],
    sha256: Callable[[str, DataSettings], str],
) -> None:
    """Register a reader for another kind of dataset; see `docs/how_to/add_a_dataset_reader.md`.

    It is tried before the existing readers and replaces one of the same `kind`. The arguments are the fields of
    `DatasetReader`.
    """
    READERS[:] = [DatasetReader(kind, reads, frames, sha256), *(one for one in READERS if one.kind != kind)]
