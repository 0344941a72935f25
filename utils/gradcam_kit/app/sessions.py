"""What the live app keeps for each page that is open: bounded, and given back when the page is closed."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from .live_detector import LiveMap, OpenedFile

MOST_SESSIONS = 32  # beyond them the one that was unused for longest is forgotten
IDLE = 3600  # seconds after which a page that never said goodbye is forgotten
LEFTOVER = 600  # seconds that a file of no session stays


@dataclass
class Session:
    """`folder` holds the files that the page offers; `uploads` are those that it sent."""

    folder: Path
    opened: OpenedFile | None = None  # None before anything was dropped
    shown: LiveMap | None = None
    uploads: set[Path] = field(default_factory=set)
    used: float = 0.0

    def file(self, name: str, data: bytes) -> str:
        """A file for the page to download, in place of the last one of that name."""
        path = self.folder / name
        path.write_bytes(data)
        return str(path)


class Sessions:
    """The sessions by Gradio's hash. Calls come from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._of: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.RLock()

    def of(self, name: str) -> Session:
        """The session of that hash, new where there is none."""
        with self._lock:
            if name not in self._of:
                self._of[name] = Session(Path(tempfile.mkdtemp(dir=self.folder, prefix="session_")))
            self._of.move_to_end(name)
            self._of[name].used = time.monotonic()
            idle = [key for key, one in self._of.items() if time.monotonic() - one.used > IDLE]
            for key in [*idle, *list(self._of)[:-MOST_SESSIONS]]:
                self.leave(key)
            return self._of[name]

    def leave(self, name: str) -> None:
        """Forget a session and remove its files."""
        with self._lock:
            session = self._of.pop(name, None)
            if session is not None:
                shutil.rmtree(session.folder, ignore_errors=True)
                for path in session.uploads - {path for one in self._of.values() for path in one.uploads}:
                    path.unlink(missing_ok=True)
            self._sweep()

    def _sweep(self) -> None:
        """Remove what belongs to no session: Gradio's own copies, and uploads that no handler has seen."""
        kept = {path for one in self._of.values() for path in one.uploads}
        folders = {one.folder for one in self._of.values()}
        least = time.time() - LEFTOVER if self._of else float("inf")
        for path in self.folder.rglob("*"):
            if path.is_file() and path not in kept and not folders & set(path.parents) and path.stat().st_mtime < least:
                path.unlink(missing_ok=True)
