"""Dataset name → frames. One reader per kind of dataset; the first that recognises the name reads it."""

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

Places = Mapping[str, Callable[[str], str]]  # label → path as it is listed → path on disk


class DatasetReader(NamedTuple):
    """One kind of dataset; the fields are the arguments of `register_reader`."""

    kind: str
    reads: Callable[[str, DataSettings], bool]  # whether a name in `test_dataset` is for this reader
    frames: Callable[[str, DataSettings, str], list[Frame]]  # name, settings, split → frames in a fixed order
    sha256: Callable[[str, DataSettings], str]  # of what says which frames there are, for a run's manifest


def read_dataset(name: str, settings: DataSettings, split: str = "test") -> list[Frame]:
    """The frames of one split of a dataset, in a fixed order; no image is opened. Raises InputError."""
    return reader_of(name, settings).frames(name, settings, split)


def reader_of(name: str, settings: DataSettings) -> DatasetReader:
    """The reader of the dataset of that name: a dataset JSON's where no other recognises it."""
    return next((reader for reader in READERS if reader.reads(name, settings)), JSON_READER)


def json_frames(name: str, settings: DataSettings, split: str) -> list[Frame]:
    """The frames of a dataset JSON, video after video in its order. Raises InputError, also for an unknown label."""
    videos = read_videos(name, settings.json_folder, settings.compression, split)
    by_label: dict[str, list[Video]] = {}
    for video in videos:
        by_label.setdefault(video.label, []).append(video)
    numbers = {label: _class_of(label, name, settings) for label in by_label}
    places = _locations(name, by_label, settings)
    return _frames(name, settings, ((numbers[video.label], video) for video in videos), places)


def folder_frames(name: str, settings: DataSettings, split: str) -> list[Frame]:
    """The frames of a folder or a CSV of `settings.folders`; it has no splits. Raises InputError."""
    return _frames(name, settings, read_labelled(settings.folders[name]), {})


def _frames(name: str, settings: DataSettings, videos: Iterable[tuple[int, Video]], places: Places) -> list[Frame]:
    """Those that are wanted of the videos, which come with their class."""
    frames: list[Frame] = []
    classes: dict[str, int] = {}  # path → class
    labels: dict[str, str] = {}  # each as one string object: frames come by the million
    for number, video in videos:
        label, on_disk = labels.setdefault(video.label, video.label), places.get(video.label, str)
        for path in _sampled(video.frames, settings.frame_num, settings.sampling):
            place = on_disk(path)
            if classes.setdefault(place, number) != number:
                raise InputError(f"{name}: {shortened(place, 300)!r} is real and fake in this dataset: which is it?")
            frames.append(Frame(place, name, label, video.name, number, len(frames)))
    return frames


def _folder_sha256(name: str, settings: DataSettings) -> str:
    """Of the CSV, or of the list of images and their labels."""
    path = settings.folders[name]
    if path.is_file():
        return sha256_of(path)
    listed = "\n".join(repr((number, tuple(video))) for number, video in read_labelled(path))
    return hashlib.sha256(listed.encode("utf-8", "surrogatepass")).hexdigest()


def _locations(dataset: str, by_label: dict[str, list[Video]], settings: DataSettings) -> Places:
    """How the paths of each label become paths on disk, or in an LMDB."""
    lmdb = None if settings.lmdb_dir is None else find_lmdb(dataset, settings.lmdb_dir)
    if lmdb is not None:
        return dict.fromkeys(by_label, partial(lmdb_path, lmdb))
    found = {label: find_prefix(videos, settings.root) for label, videos in by_label.items()}
    if settings.lmdb_dir is not None:
        lacks = no_lmdb(dataset, settings.lmdb_dir)
        if not any(found.values()):
            raise lacks
        _note_once(f"note: {lacks}; its frames are there as files, which are read")
    if not any(found.values()) and settings.root is None and settings.named_root:
        raise InputError(
            f"dataset_root_rgb (rgb_dir) {settings.named_root!r} is not there, and no frame of {dataset} is found"
            f" without it, for example {shortened(next(iter(by_label.values()))[0].frames[0], 200)!r}: give the folder"
            " that the paths start from"
        )
    first = {label: videos[0].frames[0] for label, videos in by_label.items()}

    def beside_others(label: str) -> Prefix:
        """For a label of which nothing is found: as of one that begins with the same folders, so that its own folder is
        looked for, and named as missing, where the other's is."""
        for other, prefix in found.items():
            if prefix is not None and prefix.dropped(first[other]) == prefix.dropped(first[label]):
                return prefix
        return first_prefix(by_label[label], settings.root)

    return {label: (prefix or beside_others(label)).of for label, prefix in found.items()}


@cache
def _note_once(text: str) -> None:
    """A dataset is read more than once."""
    print(printable(text), file=sys.stderr)


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
    """Read another kind of dataset, too: `docs/how_to/add_a_dataset_reader.md`. It is asked before the readers so far.

    A reader registered under the same `kind` is replaced; the arguments are the fields of `DatasetReader`.
    """
    READERS[:] = [DatasetReader(kind, reads, frames, sha256), *(one for one in READERS if one.kind != kind)]
