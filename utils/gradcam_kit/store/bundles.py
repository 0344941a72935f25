"""Sample folders packed a thousand to a file, for runs of tens of thousands: `<dataset>/samples_<n>.zip`.

A path goes on inside: `samples_0.zip/sample12/sample12.json` is read by `base.files.read_text` and
`data.images.read_file` as if the folders were still there.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ..base.files import bundle_entries, whole_file

PER_BUNDLE = 1_000
BUNDLE = re.compile(r"samples_([0-9]+)\.zip")


def bundles_of(dataset_folder: Path) -> list[Path]:
    """The bundles of a dataset, in the order of their numbers."""
    found = [path for path in dataset_folder.iterdir() if BUNDLE.fullmatch(path.name) and path.is_file()]
    return sorted(found, key=_number)


def _number(bundle: Path) -> int:
    return int(bundle.stem.removeprefix("samples_"))


def bundled_samples(dataset_folder: Path) -> list[tuple[int, Path]]:
    """Index and folder of the samples in bundles; the folder's path leads into the bundle."""
    found = {}
    for bundle in bundles_of(dataset_folder):
        for name in bundle_entries(bundle):
            match = re.match(r"(sample([0-9]+))/", name)
            if match:
                found[int(match[2])] = bundle / match[1]
    return sorted(found.items())


def pack_samples(dataset_folder: Path, folders: Sequence[tuple[int, Path]]) -> None:
    """Pack `folders` into bundles, each whole before its folders are removed; after a kill, what is left of them."""
    packed = {index for index, _ in bundled_samples(dataset_folder)}
    for index, folder in folders:
        if index in packed:
            shutil.rmtree(folder)
    left = [(index, folder) for index, folder in folders if index not in packed]
    first = 1 + max(map(_number, bundles_of(dataset_folder)), default=-1)
    for number, start in enumerate(range(0, len(left), PER_BUNDLE), start=first):
        part = left[start : start + PER_BUNDLE]
        with whole_file(dataset_folder / f"samples_{number}.zip") as file, zipfile.ZipFile(file, "w") as bundle:
            for _, folder in part:
                for path in sorted(folder.rglob("*")):
                    if path.is_file():  # stored as it is: images do not get smaller
                        entry = zipfile.ZipInfo(path.relative_to(dataset_folder).as_posix())
                        bundle.writestr(entry, path.read_bytes())
        for _, folder in part:
            shutil.rmtree(folder)
