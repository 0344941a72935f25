"""Files below the output folder, each written whole or not at all; a symbolic link found there is never followed."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Iterable, Iterator, Sequence

from utils.errors import InputError
from utils.text import AS_IT_CAME

# The folder that holds config/, detectors/ and test_with_gradcam.py: this repository's root or the host's training/.
TRAINING_FOLDER = Path(__file__).resolve().parent.parent

MOST_TEXT_BYTES = 64 * 1024**2  # of a configuration or of a JSON file that a run has written


def kind_of(mode: int) -> str:
    """What a file's mode says it is: "file", "folder", "pipe", "socket" or "device"."""
    known = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return known.get(stat.S_IFMT(mode), "device")


def check_ordinary(path: str | Path, most_bytes: int | None = None) -> None:
    """Raises OSError, its `strerror` the reason, unless `path` is an ordinary file of at most `most_bytes`.

    Called before a file from outside is opened: a pipe, a socket or a device might never end, or never begin.
    """
    info = os.stat(path)  # noqa: PTH116
    kind = kind_of(info.st_mode)
    if kind != "file":
        raise OSError(errno.EISDIR if kind == "folder" else errno.EINVAL, f"it is a {kind}, not a file", str(path))
    if most_bytes is not None and info.st_size > most_bytes:
        raise OSError(errno.EFBIG, f"{info.st_size:,} bytes, more than the {most_bytes:,} allowed", str(path))


def read_text(path: Path, encoding: str = "utf-8", most_bytes: int = MOST_TEXT_BYTES) -> str:
    """The text of an ordinary file of at most `most_bytes`. Raises OSError or UnicodeDecodeError."""
    check_ordinary(path, most_bytes)
    return path.read_text(encoding=encoding)


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
    """A file to write that appears under its name, complete and synced to disk, when the block ends without error."""
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
    """`values` as indented JSON; NaN is refused, what JSON does not know (paths, dates) becomes a string."""
    write_whole(path, (json.dumps(values, indent=1, allow_nan=False, default=str) + "\n").encode())


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------------- CSV


def write_row(table: IO[str], fields: Sequence[object]) -> None:
    """One line of a CSV file that every reader takes for one row, also where a field holds a carriage return.

    Older versions of Python leave such a field unquoted.
    """
    split = any("\r" in str(field) for field in fields)
    csv.writer(table, lineterminator="\n", quoting=csv.QUOTE_ALL if split else csv.QUOTE_MINIMAL).writerow(fields)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A CSV file, row by row, that appears whole; names from outside come back as they came."""
    with whole_file(path) as raw:
        table = io.TextIOWrapper(raw, encoding="utf-8", errors=AS_IT_CAME, newline="")
        write_row(table, columns)
        for row in rows:
            write_row(table, row)
        table.detach()  # flushes; `raw` is closed by its own block


def read_table(path: Path) -> Iterator[dict[str, str]]:
    """The rows of such a file, by column."""
    with path.open(newline="", encoding="utf-8", errors=AS_IT_CAME) as file:
        yield from csv.DictReader(file)
