"""Images, masks and landmarks in an LMDB, as DeepfakeBench stores them: one value per file, under the file's path.

A file in an LMDB is written `<lmdb folder>!/<key>`, so that a frame's path says all that is needed to read it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..base.errors import InputError
from ..base.text import one_line
from .dataset_names import COMPRESSED
from .images import UnreadableImage, read_file

MARK = "_lmdb!/"

_open: dict[str, Any] = {}  # folder → environment


def in_lmdb(path: str) -> bool:
    """Whether `path` is a key in an LMDB, not a file."""
    return MARK in path


def read_bytes(path: str) -> bytes:
    """The content of a file, or the value of a key in an LMDB. Raises UnreadableImage where it is not there."""
    if not in_lmdb(path):
        return read_file(path)
    value = _value(path)
    if value is None:
        raise UnreadableImage(f"no such key in the LMDB: {path!r}")
    return value


def is_there(path: str) -> bool:
    """Whether there is such a file or such a key."""
    # Unlike Path.exists, False also for a name that is longer than a name can be.
    return _value(path) is not None if in_lmdb(path) else os.path.exists(path)  # noqa: PTH110


def lmdb_folder(dataset: str, lmdb_dir: Path) -> Path:
    """The LMDB of a dataset: `<name>_lmdb`, one for the whole FaceForensics++ family. Raises InputError."""
    _lmdb()
    family = dataset.replace("_c40", "")
    folder = lmdb_dir / f"{'FaceForensics++' if family in COMPRESSED else dataset}_lmdb"
    if not (folder / "data.mdb").is_file():
        raise InputError(
            f"no LMDB of dataset {dataset!r}: {str(folder / 'data.mdb')!r} is not there; set lmdb_dir in"
            " config/test_config.yaml to the folder that holds it, or lmdb: false to read files"
        )
    return folder


def lmdb_path(folder: Path, frame: str) -> str:
    """Where a frame of the dataset JSON lies: the first spelling of it that is a key; if none is, the host's own."""
    paths = [f"{folder}!/{key}" for key in _spellings(frame)]
    return next((path for path in paths if is_there(path)), paths[0])


def _spellings(frame: str) -> Iterator[str]:
    """The host takes `./datasets\\` off and looks the rest up; it writes `<dataset>\\` and the path below that, with
    the separators of the machine it runs on. So a JSON made on Windows meets an LMDB made on Linux, and the reverse."""
    yield frame.replace("./datasets\\", "") if frame.startswith(".") else frame
    plain = re.sub(r"^(\./)?(datasets/)?(rgb/)?", "", frame.replace("\\", "/"))
    yield plain.replace("/", "\\")
    yield plain.replace("/", "\\", 1)
    yield plain


def beside_key(path: str, folder: str, suffix: str) -> str:
    """`...\\frames\\<video>\\000.png` → `...\\<folder>\\<video>\\000<suffix>`, keeping the separators of the key."""
    lmdb, mark, key = path.partition(MARK)
    pieces = re.split(r"([\\/])", re.sub(r"\.[^.\\/]*$", "", key) + suffix)
    places = [i for i, piece in enumerate(pieces[:-1]) if piece == "frames"]
    if places:
        pieces[places[-1]] = folder
    return lmdb + mark + "".join(pieces)


def _value(path: str) -> bytes | None:
    folder, _, key = path.partition("!/")
    try:
        with _environment(folder).begin() as transaction:
            return transaction.get(key.encode("utf-8", "surrogatepass"))
    except _lmdb().BadValsizeError:  # longer than a key can be
        return None
    except _lmdb().Error as error:
        raise UnreadableImage(f"the LMDB {folder!r} cannot be read ({one_line(error)})") from error


def _environment(folder: str) -> Any:
    """The LMDB of this process: a DataLoader worker opens its own, as an environment does not survive a fork."""
    if folder not in _open:
        _open[folder] = _lmdb().open(folder, create=False, subdir=True, readonly=True, lock=False, readahead=False)
    return _open[folder]


def _close_all() -> None:
    for environment in _open.values():
        environment.close()
    _open.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_close_all)


def _lmdb() -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise InputError("lmdb: true needs a package: pip install lmdb") from error
    return lmdb
