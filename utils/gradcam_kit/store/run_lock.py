"""One process at a time in a folder of outputs."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

from ..base.errors import InputError

LOCK = ".lock"
_BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)  # a file system that has none


class FolderLock:
    """Keeps other processes out of a folder until `release`, or until this process ends, however it ends.

    It is the operating system's lock on a file `.lock`. Where there are no locks, in this Python (fcntl, msvcrt) or on
    this file system, the file itself is the lock: one process alone can make it, and after a kill it is still there.
    """

    def __init__(self, folder: Path) -> None:
        """Raises InputError where another process is at work in `folder`, which must exist."""
        self._path = folder / LOCK
        busy = f"output folder {folder}: another process is at work there; wait for it or end it"
        while True:
            file, made = _opened(self._path)
            try:
                locked = _lock(file.fileno())
            except OSError as error:
                file.close()
                if error.errno not in _BUSY:
                    raise
                raise InputError(busy) from error
            if not locked and not made:
                file.close()
                raise InputError(f"{busy}; if it was killed, remove {self._path} (there are no locks here)")
            # The process before us may have removed the file after we had opened it, and a third one made a new one.
            if self._path.exists() and os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                self._file = file
                self._stays = locked and os.name != "posix"  # Windows removes no file that somebody has open
                return
            file.close()

    def release(self) -> None:
        """Let others in."""
        if not self._stays:
            self._path.unlink(missing_ok=True)
        self._file.close()


def _opened(path: Path) -> tuple[BinaryIO, bool]:
    """The file, never through a link, and whether it was made just now."""
    while True:
        for flags, made in ((os.O_CREAT | os.O_EXCL, True), (getattr(os, "O_NOFOLLOW", 0), False)):
            try:
                return os.fdopen(os.open(path, os.O_RDWR | flags, 0o644), "r+b"), made
            except (FileExistsError, FileNotFoundError):
                continue  # there already; or removed between the two attempts


def _lock(descriptor: int) -> bool:
    """Lock an open file. False where there are no locks; raises OSError where another process has locked it."""
    try:
        import fcntl
    except ImportError:
        return _lock_on_windows(descriptor)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock not inherited by decoding processes
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _lock_on_windows(descriptor: int) -> bool:
    try:
        import msvcrt
    except ImportError:
        return False
    msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]  # Windows alone has it
    return True
