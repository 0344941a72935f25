"""The live app's sessions: bounded data per open page, removed when the page is closed."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from .live_detector import LiveMap, OpenedFile

MOST_SESSIONS = 32  # beyond that, the one that was idle the longest is removed
IDLE = 3600  # seconds after which an unused session is removed
LEFTOVER = 600  # seconds after which a file without a session is removed


@dataclass
class Session:
    """One page's data. `folder` holds the files to download; `uploads` are the files that the page sent."""

    folder: Path
    opened: OpenedFile | None = None  # None before a file is dropped
    shown: LiveMap | None = None
    uploads: set[Path] = field(default_factory=set)
    used: float = 0.0

    def file(self, name: str, data: bytes) -> str:
        """Write a file to download, replacing the last one of that name. Return its path."""
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
        """Return the session `name`, and create it if needed."""
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
        """Remove files without a session: Gradio's own copies, and uploads that no handler has seen."""
        kept = {path for one in self._of.values() for path in one.uploads}
        folders = {one.folder for one in self._of.values()}
        least = time.time() - LEFTOVER if self._of else float("inf")
        for path in self.folder.rglob("*"):
            if path.is_file() and path not in kept and not folders & set(path.parents) and path.stat().st_mtime < least:
                path.unlink(missing_ok=True)
