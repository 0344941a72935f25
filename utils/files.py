"""Writing below the output folder and nowhere else: a symbolic link found there is never written or removed through."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Iterator

from utils.errors import InputError


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
