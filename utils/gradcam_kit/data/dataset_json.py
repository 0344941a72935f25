"""Reading and writing of the dataset JSON of DF40 and DeepfakeBench. Its structure is checked here, once.

    { dataset: { label: { split: { video: {"label": label, "frames": [path, ...]} } } } }

The FaceForensics++ family has one more level, the compression (c23, c40, raw), between split and videos.
`python -m utils.dataset_json FOLDER -o NAME.json` writes one from a folder of images or a CSV.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..base.command import OneLineParser
from ..base.errors import InputError, did_you_mean
from ..base.files import read_text, write_json
from ..base.text import one_line, printable, shortened
from ..base.typed import MISSING, Filled, Misfit, fit
from .folder_dataset import dataset_name, read_labelled
from .frame import COMPRESSED, MAX_DATASET_NAME_BYTES, Video, is_dataset_name

MAX_JSON_BYTES = 2 * 1024**3
MAX_NAME = 32_768  # characters of a label, a video or a path; no system opens a longer path


@dataclass(frozen=True, slots=True)
class Entry:
    """A video in the file."""

    label: str
    frames: list[Filled]  # paths


def dataset_names(json_folder: Path) -> list[str]:
    """List the datasets: the sorted names of the `.json` files in `json_folder`. Raises InputError."""
    try:
        return sorted(entry.stem for entry in json_folder.iterdir() if entry.suffix == ".json")
    except (OSError, ValueError) as error:
        raise InputError(
            f"dataset_json_folder {str(json_folder)!r} cannot be listed ({one_line(error)}): set it in "
            f"config/test_config.yaml to the folder that holds the datasets' JSON files"
        ) from error


def dataset_file(name: str, json_folder: Path) -> Path:
    """Return the JSON file of a dataset. Raises InputError that lists the datasets if there is none."""
    if not is_dataset_name(name):
        raise InputError(
            f"{shortened(name)!r} is not a dataset name: it must be printable, without '/' and '\\', not '..', and have"
            f" at most {MAX_DATASET_NAME_BYTES} bytes"
        )
    names = dataset_names(json_folder)
    if name not in names:
        there = f"it holds {_name_list(names)}" if names else "it holds no JSON file"
        where = f"no dataset {shortened(name)!r} in dataset_json_folder {str(json_folder)!r}"
        raise InputError(f"{where}: {did_you_mean(name, names)}{there}")
    return json_folder / f"{name}.json"


def read_videos(name: str, json_folder: Path, compression: str, split: str) -> list[Video]:
    """Read all videos of one split, in the order of the file, without empty ones.

    `name` is the file's name. For the FaceForensics++ family, `<name>_c40` means the key `<name>` in the file
    `<name>_c40.json`, with compression c40. Raises InputError if the file is missing or its structure is wrong.
    """
    key = name
    if name.endswith("_c40") and name.removesuffix("_c40") in COMPRESSED:
        key, compression = name.removesuffix("_c40"), "c40"
    top = _load(dataset_file(name, json_folder))
    videos = []
    for label in top.child(key, "dataset").entries():
        found = label.child(split, "split")
        if key in COMPRESSED and found.object():
            found = found.child(compression, "compression level")
        videos += [_video(entry) for entry in found.entries()]
    videos = [video for video in videos if video.frames]
    if not videos:
        raise InputError(f"{top.path}: no video of the split {split!r} of {shortened(key)!r} holds a frame")
    return videos


class _Place(NamedTuple):
    """A value in the file and the keys that lead to it."""

    path: Path
    value: Any
    keys: tuple[str, ...] = ()

    def wrong(self, text: str, inside: Sequence[str] = ()) -> InputError:
        """Return an InputError that names this place, or one inside it."""
        place = " > ".join(repr(shortened(key)) for key in (*self.keys, *inside)) or "the top"
        return InputError(f"{self.path}: at {place}: {text}")

    def object(self) -> dict[str, Any]:
        """The value, which must be an object."""
        if not isinstance(self.value, dict):
            raise self.wrong(f"expected an object {{...}}, found {_typename(self.value)}")
        return self.value

    def child(self, key: str, what: str) -> _Place:
        """Return the value under `key`. Raises InputError if there is none; `what` is dataset, split, ..."""
        values = self.object()
        if key not in values:
            there = f"there are {_name_list(values)}" if values else "there is none"
            raise self.wrong(f"no {what} {shortened(key)!r}; {did_you_mean(key, values)}{there}")
        return _Place(self.path, values[key], (*self.keys, key))

    def entries(self) -> Iterator[_Place]:
        """Yield the value under each key."""
        for key, value in self.object().items():
            yield _Place(self.path, value, (*self.keys, key))


def _load(path: Path) -> _Place:
    try:
        # Files made on Windows may begin with a byte-order mark.
        return _Place(path, json.loads(read_text(path, "utf-8-sig", MAX_JSON_BYTES)))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply to be a dataset JSON") from error
    except ValueError as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise InputError(f"{path}: not a JSON file ({one_line(error)})") from error


def _video(place: _Place) -> Video:
    entry, name = place.object(), place.keys[-1]
    try:
        fit(entry, Entry)
    except Misfit as misfit:
        if misfit.problem == MISSING:
            found = _name_list(entry)
            raise place.wrong(f"expected a video with the keys 'label' and 'frames', found {found}") from None
        text = f"expected {misfit.allowed}, found {_typename(misfit.value)}"
        raise place.wrong(text, misfit.place) from None
    longest = max([entry["label"], name, *entry["frames"]], key=len)
    if len(longest) > MAX_NAME:
        raise place.wrong(
            f"the name {shortened(longest)!r} has {len(longest):,} characters; allowed: at most {MAX_NAME:,}"
        )
    return Video(entry["label"], name, entry["frames"])  # no copy: there may be a million frames


def _name_list(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - 20} more" if len(every) > 20 else ""
    return (", ".join(repr(shortened(name)) for name in every[:20]) or "nothing") + more


def _typename(value: Any) -> str:
    known = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return "an empty string" if value == "" else known.get(type(value), "a number")


def main(argv: Sequence[str]) -> int:
    """Write the dataset JSON of a folder or CSV, and print the lines for the host's `label_dict`. Raises InputError."""
    p = OneLineParser(
        "python -m utils.dataset_json FOLDER -o NAME.json",
        "Write the dataset JSON, which DF40 and DeepfakeBench read, of a folder or a CSV.",
    )
    p.add_argument(
        "folder", type=Path, help="folder with real/ and fake/ (or 0_real/ and 1_fake/), or a CSV path,label"
    )
    p.add_argument("-o", "--output", type=Path, required=True, metavar="NAME.json", help="file to write; must be new")
    args = p.parse_args(argv)
    source, output = args.folder, args.output
    dataset_name(source)  # raises if it is missing
    if output.suffix != ".json" or not is_dataset_name(output.stem) or not output.absolute().parent.is_dir():
        raise InputError(f"--output {str(output)!r}: give NAME.json in an existing folder")
    if output.exists():
        raise InputError(f"--output {str(output)!r} exists already: remove it, or give another name")
    labels: dict[str, dict[str, dict[str, object]]] = {}
    numbers: dict[str, int] = {}
    for number, video in read_labelled(source.absolute()):
        if numbers.setdefault(video.label, number) != number:
            raise InputError(
                f"{source}: the forgery {video.label!r} is real in one row and fake in another: rename one"
            )
        videos = labels.setdefault(video.label, {"train": {}, "val": {}, "test": {}})["test"]
        videos[video.name] = {"label": video.label, "frames": video.frames}
    write_json(output, {output.stem: labels})
    print(printable(f"{output}: {sum(len(split['test']) for split in labels.values())} videos, all in the split test"))
    print("label_dict of config/test_config.yaml needs these lines:")
    for label, number in sorted(numbers.items()):
        print(printable(f"  {label}: {number}"))
    return 0
