"""Writing below the output folder and nowhere else: a symbolic link found there is never written or removed through."""

from __future__ import annotations

import io
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Iterator, Sequence

from utils.errors import InputError
from utils.text import AS_IT_CAME, write_row


def new_file(path: Path) -> BinaryIO:
    """`path` opened for writing as a file that did not exist: what stood there, also a symbolic link, is removed."""
    path.unlink(missing_ok=True)
    return path.open("xb")


def new_folder(path: Path) -> None:
    """Make `path`, empty: what stood there is removed, of a symbolic link the link alone."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)


def own_folder(path: Path) -> None:
    """Make a folder of the outputs, or take it as it is. Raises InputError for a symbolic link, which may lead away."""
    if path.is_symlink():
        raise InputError(f"{path}: is a symbolic link, which is not followed: remove it, or give another output folder")
    path.mkdir(parents=True, exist_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears under its name, complete and on the disk itself, when the block ends well."""
    partial = path.with_name(f".{path.name}.partial")
    with new_file(partial) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())  # else a crash of the machine could keep the name and lose the bytes
    partial.replace(path)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it appears under its name complete or not at all."""
    with whole_file(path) as file:
        file.write(data)


def write_json(path: Path, values: object) -> None:
    """`values` as indented JSON; NaN is refused, what JSON does not know (paths, dates) becomes text."""
    write_whole(path, (json.dumps(values, indent=1, allow_nan=False, default=str) + "\n").encode())


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A CSV that appears whole; names from outside come back as they came."""
    text = io.StringIO(newline="")
    for row in (columns, *rows):
        write_row(text, row)
    write_whole(path, text.getvalue().encode("utf-8", AS_IT_CAME))
