"""Files below the output folder, each written whole or not at all; a symbolic link found there is never followed.

A folder may keep a list of what was written into it, `written.sha256`, as `sha256sum` does: so ours are known.
"""

from __future__ import annotations

import csv
import errno
import functools
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from .errors import InputError
from .text import AS_IT_CAME

# The folder that holds config/, detectors/ and test_with_gradcam.py: this repository's root or the host's training/.
# The package that pip installs has no host: there it is the working directory.
_KIT = Path(__file__).resolve().parents[1]
TRAINING_FOLDER = _KIT.parents[1] if _KIT.parent.name == "utils" else Path.cwd()

OPEN_LIST, LIST = "written.partial.sha256", "written.sha256"  # as files come, and once it is in order
LEVELS = 3  # a file is entered in a list at most so many folders above it
LONGEST_FIELD = 1 << 24  # of a CSV file, in letters; a path has at most some thousands
MOST_TEXT_BYTES = 64 * 1024**2  # of a configuration or of a JSON file that a run has written
_BUNDLE = re.compile(r"(.*/samples_[0-9]+\.zip)/(.+)", re.DOTALL)
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}


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
    """The text of an ordinary file, or of a bundle's entry. Raises OSError, UnicodeDecodeError."""
    if in_bundle(path):
        return read_bundled(path, most_bytes).decode(encoding)
    check_ordinary(path, most_bytes)
    return path.read_text(encoding=encoding)


def in_bundle(path: str | Path) -> bool:
    """Whether a path goes on inside a bundle of samples, `…/samples_0.zip/sample12/…`."""
    return ".zip/" in str(path) and _BUNDLE.fullmatch(Path(path).as_posix()) is not None


def read_bundled(path: str | Path, most_bytes: int = MOST_TEXT_BYTES) -> bytes:
    """An entry of a bundle of at most `most_bytes`. Raises OSError, a FileNotFoundError where it is not there."""
    found = _BUNDLE.fullmatch(Path(path).as_posix())
    assert found is not None  # as `in_bundle` has said
    try:
        bundle = _opened(found[1], os.stat(found[1]).st_mtime_ns)  # noqa: PTH116
        if bundle.getinfo(found[2]).file_size > most_bytes:
            raise OSError(errno.EFBIG, f"more than the {most_bytes:,} bytes allowed", str(path))
        return bundle.read(found[2])
    except KeyError:
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path)) from None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise OSError(errno.EIO, f"the bundle is damaged ({error})", str(path)) from error


def bundle_entries(path: Path) -> list[str]:
    """The names in a bundle; a damaged one has none."""
    try:
        return _opened(str(path), path.stat().st_mtime_ns).namelist()
    except (OSError, zipfile.BadZipFile):
        return []


def names_in(folder: Path) -> list[str]:
    """The names in a folder, also one in a bundle, sorted. Raises OSError."""
    if not in_bundle(folder):
        return sorted(path.name for path in folder.iterdir())
    parts = (name.split("/", 2) for name in bundle_entries(folder.parent))
    return sorted({names[1] for names in parts if names[0] == folder.name and len(names) > 1})


@functools.lru_cache(maxsize=4)
def _opened(path: str, changed: int) -> zipfile.ZipFile:
    """A bundle, kept open: its list of entries is read once. `changed` tells one from another of the same name."""
    return zipfile.ZipFile(path)


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
def whole_file(path: Path, listed: bool = True) -> Iterator[BinaryIO]:
    """A file to write that appears under its name, complete and on disk, when the block ends without error.

    If `listed`, it is entered in the list that a folder above keeps, if there is one.
    """
    partial = path.with_name(f".{path.name}.partial")
    with new_file(partial) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())  # else a crash of the machine could keep the name and lose the bytes
    if listed:
        _enter(path, sha256_of(partial))  # before it has its name: what stands under it is always on the list
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


def write_json(path: Path, values: object, listed: bool = True) -> None:
    """`values` as indented JSON; NaN is refused, what JSON does not know (paths, dates) becomes a string."""
    with whole_file(path, listed) as file:
        file.write((json.dumps(values, indent=1, allow_nan=False, default=str) + "\n").encode())


# ------------------------------------------------------------------------------------------------- what was written


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


def start_list(folder: Path) -> None:
    """From now on `whole_file` enters what it writes below `folder` in its list."""
    (folder / OPEN_LIST).touch()


def _enter(path: Path, sha256: str) -> None:
    folder = next((above for above in list(path.parents)[:LEVELS] if keeps_list(above)), None)
    if folder is not None:
        with (folder / OPEN_LIST).open("ab") as file:
            file.write(f"{sha256}  {path.relative_to(folder).as_posix()}\n".encode("utf-8", AS_IT_CAME))


def keeps_list(folder: Path) -> bool:
    """Whether `folder` has a list of its own files. A link in its place is none."""
    lists = folder / OPEN_LIST, folder / LIST
    return any(path.is_file() for path in lists) and not any(path.is_symlink() for path in lists)


def read_list(folder: Path) -> dict[str, set[str]]:
    """Path below `folder` → the SHA-256 of whatever was written there. A damaged line is passed over."""
    found: dict[str, set[str]] = {}
    for path in (folder / LIST, folder / OPEN_LIST) if keeps_list(folder) else ():
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors=AS_IT_CAME).split("\n"):
                sha256, separator, name = line.partition("  ")
                if separator:
                    found.setdefault(name, set()).add(sha256)
    return found


def settle_list(folder: Path) -> None:
    """The list in order, without what has been written over or removed since: the same for the same files."""
    rows = []
    for name, hashes in sorted(read_list(folder).items()):
        path = folder / name
        if path.is_file() and not path.is_symlink():
            now = sha256_of(path)
            rows += [(now, name)] if now in hashes else [(one, name) for one in sorted(hashes)]
    text = "".join(f"{sha256}  {name}\n" for sha256, name in rows)
    with whole_file(folder / LIST, listed=False) as file:
        file.write(text.encode("utf-8", AS_IT_CAME))
    (folder / OPEN_LIST).unlink(missing_ok=True)


# ---------------------------------------------------------------------- a folder whose files one JSON file in it lists


def write_listing(path: Path, details: Mapping[str, object]) -> None:
    """Write `details` and the SHA-256 of each file in the folder, which has not got its name yet, and of itself."""
    path.write_text(_with_checksum({**details, "files": hashes_below(path.parent)}), encoding="utf-8")


def _with_checksum(details: Mapping[str, object]) -> str:
    """The text of such a file; its last entry is the SHA-256 of the text without that entry."""
    text = json.dumps(details, indent=1)
    return json.dumps({**details, "checksum": hashlib.sha256(text.encode()).hexdigest()}, indent=1) + "\n"


def own_files(path: Path) -> set[Path]:
    """The files beside and below such a JSON file that are as they were written; none where it is not itself."""
    if path.parent.is_symlink() or path.is_symlink() or not path.is_file():
        return set()
    try:
        text = path.read_text(encoding="utf-8")
        details = json.loads(text)
        listed = dict(details["files"].items())
        del details["checksum"]
        if text != _with_checksum(details):
            return set()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # whatever else it holds, it is not ours
        return set()
    there = hashes_below(path.parent)
    return {path, *(path.parent / name for name, sha256 in there.items() if sha256 and listed.get(name) == sha256)}


def holds_only_own(folder: Path, names: Iterable[str]) -> bool:
    """Whether one of the JSON files of these `names` lists all that there is in `folder`, as it is."""
    return any(own_files(folder / name) == {folder / one for one in hashes_below(folder)} for name in names)


def write_row(table: IO[str], fields: Sequence[object]) -> None:
    """One line of a CSV file. Older Pythons leave a field with a carriage return unquoted, which splits the row."""
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
                yield row
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except csv.Error as error:  # a field without end, NUL bytes
        raise InputError(f"{path}: is damaged ({error}); run again") from error
