"""Files below the output folder, each written whole or not at all; a symbolic link found there is never followed."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from .errors import InputError
from .text import AS_IT_CAME, as_it_was, harmless

# The folder that holds config/, detectors/ and test_with_gradcam.py: this repository's root or the host's training/.
# The package that pip installs has no host: there it is the working directory.
_KIT = Path(__file__).resolve().parents[1]
TRAINING_FOLDER = _KIT.parents[1] if _KIT.parent.name == "utils" else Path.cwd()

_VARIABLE = re.compile(r"\$(\w+)|\$\{([^}]*)\}")
LONGEST_FIELD = 1 << 24  # of a CSV file, in letters; a path has at most some thousands
MOST_TEXT_BYTES = 64 * 1024**2  # of a configuration or of a JSON file that a run has written
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}


def expanded(path: str) -> str:
    """`path` with `~` and `$VARIABLES` replaced, which no shell does in a YAML; a file that is named so stays.

    Raises InputError for a variable that is not set: a folder of that name is hardly what is meant.
    """
    if (not path.startswith("~") and "$" not in path) or os.path.lexists(path):
        return path
    found = os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111
    unset = _VARIABLE.search(found)
    if unset:
        raise InputError(f"the path {path!r} holds {unset[0]}, and no such variable is set: set it, or give the path")
    return found


def kind_of(mode: int) -> str:
    """The kind of a file by its mode: "file", "folder", "pipe", "socket" or "device"."""
    return _KINDS.get(stat.S_IFMT(mode), "device")


def check_ordinary(path: str | Path, most_bytes: int | None = None) -> None:
    """Raises OSError unless `path` is an ordinary file of at most `most_bytes`: a pipe or a device might never end."""
    info = os.stat(path)  # noqa: PTH116
    kind = kind_of(info.st_mode)
    if kind != "file":
        raise OSError(errno.EISDIR if kind == "folder" else errno.EINVAL, f"it is a {kind}, not a file", str(path))
    if most_bytes is not None and info.st_size > most_bytes:
        raise OSError(errno.EFBIG, f"{info.st_size:,} bytes, more than the {most_bytes:,} allowed", str(path))


def read_text(path: Path, encoding: str = "utf-8", most_bytes: int = MOST_TEXT_BYTES) -> str:
    """The text of an ordinary file. Raises OSError, UnicodeDecodeError."""
    check_ordinary(path, most_bytes)
    return path.read_text(encoding=encoding)


def new_file(path: Path) -> BinaryIO:
    """`path` opened for writing as a file that did not exist: what stood there, also a symbolic link, is removed."""
    path.unlink(missing_ok=True)
    return path.open("xb")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Raises InputError while another process is in such a block with the same folder; where that can be known."""
    handle = None
    try:
        import fcntl  # Windows has none

        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle or 0)
        raise InputError(f"{folder}: another process is changing it: wait until that has ended, then again") from None
    except (ImportError, OSError):  # no such folder, which others will say, or a file system without locks
        pass
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


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
    """A file to write that appears under its name, complete and on disk, when the block ends without error."""
    partial = path.with_name(f".{path.name}.partial")
    with new_file(partial) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())  # else a crash of the machine could keep the name and lose the bytes
    partial.replace(path)


def replace_folder(partial: Path, folder: Path) -> None:
    """Give a finished folder its name; what stood there is removed, and never stands there half removed."""
    old = folder.with_name(f".{folder.name}.old.partial")
    if folder.exists():
        new_folder(old)
        folder.replace(old)
    partial.replace(folder)
    if old.exists():
        shutil.rmtree(old)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it appears under its name complete or not at all."""
    with whole_file(path) as file:
        file.write(data)


def write_json(path: Path, values: object) -> None:
    """`values` as indented JSON; NaN is refused, what JSON does not know (paths, dates) becomes a string."""
    write_whole(path, (json.dumps(values, indent=1, allow_nan=False, default=str) + "\n").encode())


def set_aside(path: Path) -> Path:
    """Rename what stands at `path` to `<name>.before-<time>`, and return that: nothing is ever deleted."""
    stem = path.with_name(f"{path.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
    aside, number = stem, 1
    while os.path.lexists(aside):
        number += 1
        aside = stem.with_name(f"{stem.name}-{number}")
    path.rename(aside)
    return aside


def take_place(made: Path, place: Path) -> None:
    """Give a finished folder its name. What stood there is set aside, unless it holds the very same files."""
    if place.exists():
        there = hashes_below(place)
        if all(there.get(name) == sha256 for name, sha256 in hashes_below(made).items()):
            shutil.rmtree(made)
            return
        set_aside(place)
    made.rename(place)


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def hashes_below(folder: Path) -> dict[str, str]:
    """Every file below `folder` → its SHA-256; a link that is found there → an empty string."""
    return {
        path.relative_to(folder).as_posix(): "" if path.is_symlink() else sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or not path.is_dir()
    }


def write_row(table: IO[str], fields: Sequence[object]) -> None:
    """One line of a CSV file, in which a spreadsheet finds no formula; `read_table` gives the fields as they were.

    Older Pythons leave a field with a carriage return unquoted, which splits the row.
    """
    fields = [harmless(field) for field in fields]
    split = any("\r" in str(field) for field in fields)
    csv.writer(table, lineterminator="\n", quoting=csv.QUOTE_ALL if split else csv.QUOTE_MINIMAL).writerow(fields)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A CSV file, row by row, that appears whole; names from outside come back as they came."""
    with whole_file(path) as raw:
        table = io.TextIOWrapper(raw, encoding="utf-8", errors=AS_IT_CAME, newline="")
        for row in itertools.chain([columns], rows):
            write_row(table, row)
        table.detach()  # flushes; `raw` is closed by its own block


def read_table(path: Path, columns: Collection[str] = ()) -> Iterator[dict[str, str]]:
    """The rows of such a file, by column. Raises InputError for a file without these `columns`, or a damaged row."""
    csv.field_size_limit(LONGEST_FIELD)  # of the process; csv's own limit is shorter than a text that was written here
    try:
        with path.open(newline="", encoding="utf-8", errors=AS_IT_CAME) as file:
            table = csv.DictReader(file)
            for column in columns:
                if column not in (table.fieldnames or ()):
                    raise InputError(f"{path}: the column {column} is missing in its first line; run again")
            for row in table:
                if None in row or None in row.values():
                    line = f"line {table.line_num} has more or fewer fields than the first"
                    raise InputError(f"{path}: {line}; run again")
                yield {column: as_it_was(cell) for column, cell in row.items()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except csv.Error as error:  # a field without end, NUL bytes
        raise InputError(f"{path}: is damaged ({error}); run again") from error
