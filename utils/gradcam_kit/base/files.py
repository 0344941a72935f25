"""Files below the output folder. Each is written completely or not at all; symbolic links are not followed."""

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
# A pip installation has no host: there it is the working directory.
_KIT = Path(__file__).resolve().parents[1]
TRAINING_FOLDER = _KIT.parents[1] if _KIT.parent.name == "utils" else Path.cwd()

_VARIABLE = re.compile(r"\$(\w+)|\$\{([^}]*)\}")
LONGEST_FIELD = 1 << 24  # characters of a CSV field; a path has a few thousand at most
MOST_TEXT_BYTES = 64 * 1024**2  # of a configuration, or of a JSON file of a run
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}


def expanded(path: str) -> str:
    """Replace `~` and `$VARIABLES` in `path`, unless a file has exactly this name. No shell does it in a YAML.

    Raises InputError for a variable that is not set.
    """
    if (not path.startswith("~") and "$" not in path) or os.path.lexists(path):
        return path
    full = os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111
    unset = _VARIABLE.search(full)
    if unset:
        raise InputError(f"the path {path!r} holds {unset[0]}, but this variable is not set: set it, or write the path")
    return full


def kind_of(mode: int) -> str:
    """Return the kind of a file by its mode: "file", "folder", "pipe", "socket" or "device"."""
    return _KINDS.get(stat.S_IFMT(mode), "device")


def check_ordinary(path: str | Path, most_bytes: int | None = None) -> None:
    """Raise OSError unless `path` is an ordinary file of at most `most_bytes`: a pipe or a device might never end."""
    info = os.stat(path)  # noqa: PTH116
    kind = kind_of(info.st_mode)
    if kind != "file":
        raise OSError(errno.EISDIR if kind == "folder" else errno.EINVAL, f"it is a {kind}, not a file", str(path))
    if most_bytes is not None and info.st_size > most_bytes:
        raise OSError(errno.EFBIG, f"{info.st_size:,} bytes, more than the {most_bytes:,} allowed", str(path))


def read_text(path: Path, encoding: str = "utf-8", most_bytes: int = MOST_TEXT_BYTES) -> str:
    """Read the text of an ordinary file. Raises OSError, UnicodeDecodeError."""
    check_ordinary(path, most_bytes)
    return path.read_text(encoding=encoding)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock `folder` for this block. Raise InputError if another process has locked it.

    Without locks in the file system, nothing is locked.
    """
    handle = None
    try:
        import fcntl  # Windows has none

        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle or 0)
        raise InputError(f"{folder}: another process is changing it: wait until it has ended, then try again") from None
    except (ImportError, OSError):  # no such folder (a later check reports it), or a file system without locks
        pass
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def made_folder(path: str | Path) -> Path:
    """Create the folder that a Python call writes into, unless it exists; see `expanded`. Raises InputError."""
    folder = Path(expanded(str(path)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: this folder cannot be created ({error.strerror}); give another one") from error
    return folder


def new_folder(path: Path) -> None:
    """Create `path` as an empty folder. An old folder there is removed; of a symbolic link, only the link."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)


def partial_folder(output: Path, flag: str) -> Path:
    """Create the folder that `replace_folder` makes `output` once it is complete. Raises InputError about `flag`."""
    partial = output.with_name(f".{output.name}.partial")
    try:
        new_folder(partial)
    except OSError as error:
        raise InputError(f"{flag} {output}: cannot be created ({error.strerror}); give another folder") from error
    return partial


def create_output_folder(path: Path) -> None:
    """Create an output folder unless it exists. Raise InputError for a symbolic link, which may lead elsewhere."""
    if path.is_symlink():
        raise InputError(f"{path}: is a symbolic link, which is not followed: remove it, or give another output folder")
    path.mkdir(parents=True, exist_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing. It appears under its name, complete and on disk, if the block ends without an error."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # of a symbolic link, only the link
    with partial.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())  # without it a crash of the machine could keep the name and lose the bytes
    partial.replace(path)


def replace_folder(partial: Path, folder: Path) -> None:
    """Rename a finished folder to `folder`. An old folder there disappears at once, never by halves."""
    old = folder.with_name(f".{folder.name}.old.partial")
    if folder.exists():
        new_folder(old)
        folder.replace(old)
    partial.replace(folder)
    if old.exists():
        shutil.rmtree(old)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears under its name complete or not at all."""
    with whole_file(path) as file:
        file.write(data)


def write_json(path: Path, values: object) -> None:
    """Write `values` as indented JSON. Paths and dates become strings; NaN raises ValueError."""
    write_whole(path, (json.dumps(values, indent=1, allow_nan=False, default=str) + "\n").encode())


def set_aside(path: Path) -> Path:
    """Rename `path` to `<name>.before-<time>` and return the new path. Nothing is deleted."""
    stem = path.with_name(f"{path.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
    aside, number = stem, 1
    while os.path.lexists(aside):
        number += 1
        aside = stem.with_name(f"{stem.name}-{number}")
    path.rename(aside)
    return aside


def take_place(made: Path, place: Path) -> None:
    """Rename a finished folder to `place`. An old folder there is set aside, unless it holds the same files."""
    if place.exists():
        there = hashes_below(place)
        if all(there.get(name) == sha256 for name, sha256 in hashes_below(made).items()):
            shutil.rmtree(made)
            return
        set_aside(place)
    made.rename(place)


def second_name(path: Path, name: str) -> None:
    """Give a file the name `name` as well, in the same folder: by a hard link, or a copy where there are none."""
    other = path.with_name(name)
    other.unlink(missing_ok=True)
    try:
        other.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, other)


def sha256_of(path: str | Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def hashes_below(folder: Path) -> dict[str, str]:
    """Map each file below `folder` to its SHA-256, and each symbolic link to ""."""
    return {
        path.relative_to(folder).as_posix(): "" if path.is_symlink() else sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or not path.is_dir()
    }


def write_row(table: IO[str], fields: Sequence[object]) -> None:
    """Write a CSV row that contains no formula for a spreadsheet; `read_table` returns the original fields.

    Older Pythons leave a field with a carriage return unquoted, which splits the row.
    """
    fields = [harmless(field) for field in fields]
    split = any("\r" in str(field) for field in fields)
    csv.writer(table, lineterminator="\n", quoting=csv.QUOTE_ALL if split else csv.QUOTE_MINIMAL).writerow(fields)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file that appears complete or not at all. `read_table` returns names from outside unchanged."""
    with whole_file(path) as raw:
        table = io.TextIOWrapper(raw, encoding="utf-8", errors=AS_IT_CAME, newline="")
        for row in itertools.chain([columns], rows):
            write_row(table, row)
        table.detach()  # flushes; `raw` is closed by its own block


def read_table(path: Path, columns: Collection[str] = ()) -> Iterator[dict[str, str]]:
    """Yield the rows of a file from `write_table`, by column.

    Raises InputError for a file without these `columns`, or for a damaged row.
    """
    csv.field_size_limit(LONGEST_FIELD)  # for the process; csv's own limit is shorter than our longest text
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
    except csv.Error as error:  # an unclosed field, NUL bytes
        raise InputError(f"{path}: is damaged ({error}); run again") from error
