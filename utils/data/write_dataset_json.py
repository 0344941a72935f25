"""A folder of images or a CSV → the dataset JSON that the hosts read too: `python -m utils.data.dataset_json`."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from utils.command import OneLineParser
from utils.data.dataset_json import is_dataset_name
from utils.data.folder_dataset import dataset_name, read_labelled
from utils.errors import InputError
from utils.files import write_json
from utils.text import printable


def main(argv: Sequence[str]) -> int:
    """Flags → one JSON file. Returns the exit code; raises InputError."""
    p = OneLineParser(description=__doc__ or "")
    p.add_argument("folder", help="folder with real/ and fake/ (or 0_real/ and 1_fake/) in it, or a CSV path,label")
    p.add_argument("-o", "--output", required=True, metavar="NAME.json", help="the file to write; not replaced")
    args = p.parse_args(argv)
    source, output = Path(args.folder), Path(args.output)
    dataset_name(source)  # is it there?
    if output.suffix != ".json" or not is_dataset_name(output.stem) or not output.absolute().parent.is_dir():
        raise InputError(f"--output {args.output!r}: give NAME.json in a folder that is there")
    if output.exists():
        raise InputError(f"--output {args.output!r} is there already: remove it, or give another name")
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
