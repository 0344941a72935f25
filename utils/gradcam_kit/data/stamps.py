"""What a file was when it was read, so that another one under the same name is noticed later."""

from __future__ import annotations

import hashlib
import os
from typing import NamedTuple

from .images import UnreadableImage
from .storage import MARK, in_lmdb, read_bytes

DIGITS = 16  # of a SHA-256, in hexadecimal: chance makes no two of a million files alike


def content_hash(data: bytes) -> str:
    """The first DIGITS of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:DIGITS]


def hash_of(path: str) -> str:
    """Of a file or a key in an LMDB; empty where there is none."""
    try:
        return content_hash(read_bytes(path))
    except UnreadableImage:
        return ""


class Stamp(NamedTuple):
    """Size in bytes and time of change in ns of a file, or of the LMDB that holds it, and the hash of its content.

    Size and time are 0 where there is no file; `content` is empty where it could not be read as an image.
    """

    size: int
    changed: int
    content: str

    @classmethod
    def of(cls, path: str, data: bytes | None = None) -> Stamp:
        """Of the file at `path` as it is; `data` is what was read of it."""
        try:
            info = os.stat(path.partition(MARK)[0] + "_lmdb/data.mdb" if in_lmdb(path) else path)  # noqa: PTH116
        except (OSError, ValueError):
            return cls(0, 0, "")
        return cls(info.st_size, info.st_mtime_ns, "" if data is None else content_hash(data))

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
