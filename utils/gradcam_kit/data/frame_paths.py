"""The files of a frame, on disk or in an LMDB: their paths, their bytes, and stamps that detect later changes.

DeepfakeBench stores images, masks and landmarks in an LMDB, one value per file, under the file's path. Here such a
path reads `<lmdb folder>!/<key>`, so that a frame's path is all one needs to read it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..base.errors import InputError
from ..base.text import one_line
from .frame import COMPRESSED, Video
from .images import UnreadableImage, read_file

MARK = "_lmdb!/"
_PROBES = 100  # videos per label that are tried to find the folder from which a dataset JSON's paths start

# LMDB maps its file into memory unchecked: reading a damaged one may kill the process (SIGBUS, SIGSEGV). So another
# process reads all keys first, and all values too if the file is shorter than its header claims.
_WALK = """
import lmdb, os, sys
options = dict(create=False, subdir=True, readonly=True, lock=False, readahead=False)
with lmdb.open(sys.argv[1], **options) as environment, environment.begin(buffers=True) as transaction:
    whole = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    values = os.path.getsize(os.path.join(sys.argv[1], "data.mdb")) < whole
    for one in transaction.cursor().iternext(keys=not values, values=values):
        one[-1:].tobytes()
"""

_open: dict[str, Any] = {}  # folder of an LMDB → environment


class Prefix(NamedTuple):
    """The mapping from a path in a dataset JSON to one on disk: drop `drop` leading folders, then prepend `folder`."""

    folder: str
    drop: int

    def of(self, path: str) -> str:
        plain = _plain(path)
        if self.drop:
            plain = plain.lstrip("/").split("/", self.drop)[-1]
        return f"{self.folder}/{plain}" if self.folder else plain

    def dropped(self, path: str) -> list[str]:
        """Return the leading folders that `of` drops from `path`."""
        return _plain(path).lstrip("/").split("/")[: self.drop]


def first_prefix(videos: list[Video], root: Path | None) -> Prefix:
    return _candidates(videos[0].frames[0], root)[0]


def find_prefix(videos: list[Video], root: Path | None) -> Prefix | None:
    """Find the folder from which the paths of one label's videos start, by trying the first frames of some videos.

    DF40 opens the paths unchanged, DeepfakeBench prepends `rgb_dir`, and JSON files in circulation contain the folders
    of another machine (`D:\\data\\...`). So three readings are tried: below the root; unchanged; below the root without
    one, two, ... leading folders. The first one with a file is used for the whole label, because reals and fakes often
    come from different archives. Returns None if no file is found.
    """
    step = max(1, len(videos) // _PROBES)
    for video in videos[::step]:
        for prefix in _candidates(video.frames[0], root):
            if os.path.isfile(prefix.of(video.frames[0])):  # noqa: PTH113 (Path's method raises for a name of 300 characters)
                return prefix
    return None


def _candidates(path: str, root: Path | None) -> list[Prefix]:
    plain = _plain(path)
    absolute = re.match("/|[A-Za-z]:/", plain) is not None
    as_it_is = Prefix("" if absolute else str(Path.cwd()), 0)
    if root is None:
        return [as_it_is]
    below = str(root.absolute())
    first = [as_it_is] if absolute else [Prefix(below, 0), as_it_is]
    # Keep at least the video's folder and the file, so that no other image of the same name matches.
    folders = plain.lstrip("/").count("/")
    return first + [Prefix(below, drop) for drop in range(1, folders)]


def _plain(path: str) -> str:
    """Replace `\\` by `/`, for files made on Windows, and remove a leading `./`."""
    return re.sub(r"^(\./+)+", "", path.replace("\\", "/"))


def mask_path(frame_path: str) -> str:
    """Return the path of a frame's mask: `.../frames/<video>/000.png` → `.../masks/<video>/000.png`."""
    return _sibling(frame_path, "masks", ".png")


def landmark_path(frame_path: str) -> str:
    """Return the path of a frame's landmarks: `.../frames/<video>/000.png` → `.../landmarks/<video>/000.npy`."""
    return _sibling(frame_path, "landmarks", ".npy")


def _sibling(frame_path: str, folder: str, suffix: str) -> str:
    """Replace the last folder named `frames` by `folder`; without one, use a folder of that name next to the image."""
    if in_lmdb(frame_path):
        return sibling_key(frame_path, folder, suffix)
    parts = list(Path(frame_path).with_suffix(suffix).parts)
    places = [i for i, part in enumerate(parts[:-1]) if part == "frames"]
    if places:
        parts[places[-1]] = folder
    else:
        parts.insert(-1, folder)
    return str(Path(*parts))


def in_lmdb(path: str) -> bool:
    """Tell whether `path` is a key in an LMDB."""
    return MARK in path


def read_bytes(path: str) -> bytes:
    """Read a file, or a key's value in an LMDB. Raises UnreadableImage if it is missing."""
    if not in_lmdb(path):
        return read_file(path)
    value = _value(path)
    if value is None:
        raise UnreadableImage(f"no such key in the LMDB: {path!r}")
    return value


def is_there(path: str) -> bool:
    """Tell whether the file, or the key in an LMDB, exists."""
    # Path.exists would raise for a name that is too long.
    return _value(path) is not None if in_lmdb(path) else os.path.exists(path)  # noqa: PTH110


def find_lmdb(dataset: str, lmdb_dir: Path) -> Path | None:
    """Find a dataset's LMDB; None if there is none. Raises InputError if it cannot be read."""
    folder = _lmdb_folder(dataset, lmdb_dir)
    if not (folder / "data.mdb").is_file():
        return None
    _lmdb()
    check_lmdb(str(folder))
    return folder


@cache
def check_lmdb(folder: str) -> None:
    """Raise InputError if the LMDB is too damaged to read its pages or keys."""
    walked = subprocess.run([sys.executable, "-c", _WALK, folder], capture_output=True, text=True, check=False)
    if walked.returncode:
        last = walked.stderr.strip().rpartition("\n")[2] or f"reading it kills the process, code {walked.returncode}"
        raise InputError(
            f"the LMDB {folder!r} is damaged or cut off ({one_line(last)}): copy or download it again, or set lmdb:"
            " false to read files"
        )


def no_lmdb(dataset: str, lmdb_dir: Path) -> InputError:
    file = _lmdb_folder(dataset, lmdb_dir) / "data.mdb"
    package = "" if importlib.util.find_spec("lmdb") else "; an LMDB also needs a package: pip install lmdb"
    return InputError(
        f"no LMDB of dataset {dataset!r} at {str(file)!r}; in config/test_config.yaml set lmdb_dir to the folder"
        f" that holds it, or lmdb: false to read image files{package}"
    )


def _lmdb_folder(dataset: str, lmdb_dir: Path) -> Path:
    """Return `<name>_lmdb`; the FaceForensics++ family shares one."""
    family = dataset.replace("_c40", "")
    return lmdb_dir / f"{'FaceForensics++' if family in COMPRESSED else dataset}_lmdb"


def lmdb_path(folder: Path, frame: str) -> str:
    """Return the path of a frame in the LMDB: the first spelling that is a key, else the host's spelling."""
    paths = [f"{folder}!/{key}" for key in _spellings(frame)]
    return next((path for path in paths if is_there(path)), paths[0])


def _spellings(frame: str) -> Iterator[str]:
    """Yield the keys under which the host may have stored a frame.

    It looks a path up without `./datasets\\`, but stores it as `<dataset>\\` plus the rest, with its machine's
    separators. So a JSON from Windows has to find keys in an LMDB from Linux, and the reverse.
    """
    yield frame.replace("./datasets\\", "") if frame.startswith(".") else frame
    plain = re.sub(r"^(\./)?(datasets/)?(rgb/)?", "", frame.replace("\\", "/"))
    yield plain.replace("/", "\\")
    yield plain.replace("/", "\\", 1)
    yield plain


def sibling_key(path: str, folder: str, suffix: str) -> str:
    """Map `...\\frames\\<video>\\000.png` to `...\\<folder>\\<video>\\000<suffix>`, with the key's own separators."""
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
    """Return this process's LMDB environment, which cannot survive a fork: a DataLoader worker opens its own."""
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


def content_hash(data: bytes) -> str:
    """Return the first 16 digits of the SHA-256, enough to tell a million files apart."""
    return hashlib.sha256(data).hexdigest()[:16]


def hash_of(path: str) -> str:
    """Return the content hash of a file or a key in an LMDB; "" if there is none."""
    try:
        return content_hash(read_bytes(path))
    except UnreadableImage:
        return ""


class Stamp(NamedTuple):
    """A file's size, time and content, or those of the LMDB that holds it."""

    size: int  # in bytes; 0 if there is no file
    changed: int  # modification time in ns; 0 if there is no file
    content: str  # content hash; "" if the file could not be read as an image

    @classmethod
    def of(cls, path: str) -> Stamp:
        """Return the stamp of the file at `path`, without its content."""
        try:
            info = os.stat(path.partition(MARK)[0] + "_lmdb/data.mdb" if in_lmdb(path) else path)  # noqa: PTH116
        except (OSError, ValueError):
            return cls(0, 0, "")
        return cls(info.st_size, info.st_mtime_ns, "")

    @classmethod
    def parse(cls, text: str) -> Stamp:
        """Parse `str()` of a stamp. Raises ValueError."""
        size, changed, content = text.split(" ")
        return cls(int(size), int(changed), content)

    def __str__(self) -> str:
        return f"{self.size} {self.changed} {self.content}"

    def fits(self, path: str) -> bool:
        """Tell whether `path` is still the same file: by size and time, else by its content."""
        now = Stamp.of(path)
        return now[:2] == self[:2] or (bool(self.content) and hash_of(path) == self.content)
