"""Where the files of a frame are, on disk or in an LMDB, how they are read, and what they were when they were read.

DeepfakeBench keeps images, masks and landmarks in an LMDB, one value per file, under the file's path. Such a file is
written `<lmdb folder>!/<key>`, so that a frame's path says all that is needed to read it.
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
_PROBES = 100  # videos looked at, per label, to find out which folder the paths of a dataset JSON start from

# LMDB maps its file and believes it: of a damaged one reading a page may kill the process (SIGBUS, SIGSEGV). So another
# process goes through all keys first, and through all values where the file is shorter than it says itself.
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
    """How paths of a dataset JSON become paths on disk: `drop` leading folders off, `folder` (or nothing) in front."""

    folder: str
    drop: int

    def of(self, path: str) -> str:
        plain = _plain(path)
        if self.drop:
            plain = plain.lstrip("/").split("/", self.drop)[-1]
        return f"{self.folder}/{plain}" if self.folder else plain

    def dropped(self, path: str) -> list[str]:
        """The leading folders of `path` that are taken off."""
        return _plain(path).lstrip("/").split("/")[: self.drop]


def first_prefix(videos: list[Video], root: Path | None) -> Prefix:
    """Where the videos are looked for first."""
    return _candidates(videos[0].frames[0], root)[0]


def find_prefix(videos: list[Video], root: Path | None) -> Prefix | None:
    """Which folder the paths of one label's videos start from, found out on the first frames of some of them.

    DF40 opens the paths as they are, DeepfakeBench puts `rgb_dir` in front, and the JSON files that circulate carry the
    folders of the machine they were made on (`D:\\data\\...`). So they are tried below the root, as they are, and below
    the root with one, two, ... leading folders off. The first that holds a file decides, once per label (reals and
    fakes often come from different archives), never per frame. None where none is there.
    """
    step = max(1, len(videos) // _PROBES)
    for video in videos[::step]:
        for prefix in _candidates(video.frames[0], root):
            if os.path.isfile(prefix.of(video.frames[0])):  # noqa: PTH113 (Path's fails for a name of 300 letters)
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
    # At least the video's folder and the file stay, so that no image of the same name elsewhere is taken for it.
    folders = plain.lstrip("/").count("/")
    return first + [Prefix(below, drop) for drop in range(1, folders)]


def _plain(path: str) -> str:
    """With `/` throughout and no `./` in front, for files made on Windows."""
    return re.sub(r"^(\./+)+", "", path.replace("\\", "/"))


def mask_path(frame_path: str) -> str:
    """Where a frame's mask lies: `.../frames/<video>/000.png` → `.../masks/<video>/000.png`."""
    return _beside(frame_path, "masks", ".png")


def landmark_path(frame_path: str) -> str:
    """Where a frame's landmarks lie: `.../frames/<video>/000.png` → `.../landmarks/<video>/000.npy`."""
    return _beside(frame_path, "landmarks", ".npy")


def _beside(frame_path: str, folder: str, suffix: str) -> str:
    """The last folder named `frames` replaced; where there is none, a folder of that name beside the image."""
    if in_lmdb(frame_path):
        return beside_key(frame_path, folder, suffix)
    parts = list(Path(frame_path).with_suffix(suffix).parts)
    places = [i for i, part in enumerate(parts[:-1]) if part == "frames"]
    if places:
        parts[places[-1]] = folder
    else:
        parts.insert(-1, folder)
    return str(Path(*parts))


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


def find_lmdb(dataset: str, lmdb_dir: Path) -> Path | None:
    """The LMDB of a dataset, None where it is not there. Raises InputError where it cannot be read."""
    folder = _lmdb_folder(dataset, lmdb_dir)
    if not (folder / "data.mdb").is_file():
        return None
    _lmdb()
    check_lmdb(str(folder))
    return folder


@cache
def check_lmdb(folder: str) -> None:
    """Raises InputError where the LMDB is damaged so that its pages or keys cannot be read."""
    walked = subprocess.run([sys.executable, "-c", _WALK, folder], capture_output=True, text=True, check=False)
    if walked.returncode:
        last = walked.stderr.strip().rpartition("\n")[2] or f"reading it kills the process, code {walked.returncode}"
        raise InputError(
            f"the LMDB {folder!r} is damaged or cut off ({one_line(last)}): copy or download it again, or set lmdb:"
            " false to read files"
        )


def no_lmdb(dataset: str, lmdb_dir: Path) -> InputError:
    """The error for an LMDB that is not there."""
    file = _lmdb_folder(dataset, lmdb_dir) / "data.mdb"
    package = "" if importlib.util.find_spec("lmdb") else "; it needs a package, too: pip install lmdb"
    return InputError(
        f"no LMDB of dataset {dataset!r}: {str(file)!r} is not there; set lmdb_dir in"
        f" config/test_config.yaml to the folder that holds it, or lmdb: false to read files{package}"
    )


def _lmdb_folder(dataset: str, lmdb_dir: Path) -> Path:
    """`<name>_lmdb`, one for the whole FaceForensics++ family."""
    family = dataset.replace("_c40", "")
    return lmdb_dir / f"{'FaceForensics++' if family in COMPRESSED else dataset}_lmdb"


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


def content_hash(data: bytes) -> str:
    """The first 16 digits of the SHA-256: chance makes no two of a million files alike."""
    return hashlib.sha256(data).hexdigest()[:16]


def hash_of(path: str) -> str:
    """Of a file or a key in an LMDB; empty where there is none."""
    try:
        return content_hash(read_bytes(path))
    except UnreadableImage:
        return ""


class Stamp(NamedTuple):
    """What a file was, or the LMDB that holds it."""

    size: int  # in bytes, 0 where there is no file
    changed: int  # its time in ns, 0 where there is no file
    content: str  # the hash, empty where it could not be read as an image

    @classmethod
    def of(cls, path: str) -> Stamp:
        """Of the file at `path` as it is, without its content."""
        try:
            info = os.stat(path.partition(MARK)[0] + "_lmdb/data.mdb" if in_lmdb(path) else path)  # noqa: PTH116
        except (OSError, ValueError):
            return cls(0, 0, "")
        return cls(info.st_size, info.st_mtime_ns, "")

    @classmethod
    def parse(cls, text: str) -> Stamp:
        """From `str()` of one. Raises ValueError."""
        size, changed, content = text.split(" ")
        return cls(int(size), int(changed), content)

    def __str__(self) -> str:
        return f"{self.size} {self.changed} {self.content}"

    def fits(self, path: str) -> bool:
        """Whether `path` is still the same file, by size and time, or else by its content."""
        now = Stamp.of(path)
        return now[:2] == self[:2] or (bool(self.content) and hash_of(path) == self.content)
