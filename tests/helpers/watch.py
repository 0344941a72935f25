"""Looking into a run under way, and mischief that it meets."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

PRIVATE_MOUNTS = """
import ctypes, os, pathlib
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result: os._exit(77)
check(libc.unshare(0x00020000))  # CLONE_NEWNS: what is mounted here is seen by this process alone
check(libc.mount(b"none", b"/", None, 0x44000, None))  # MS_REC | MS_PRIVATE
"""


# Writes the first frame of every batch that the detector sees, and slows it down enough for a signal to meet it at work.
WATCHED = """
import pathlib, time
from utils.gradcam_kit.model.detector import LoadedDetector
predict = LoadedDetector.predict
def watched(self, pixels, frames=None):
    with open({path!r}, "a") as file:
        file.write(f"{{int(pixels.sum())}}\\n")
    time.sleep({seconds})
    return predict(self, pixels, frames)
LoadedDetector.predict = watched
"""


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def recorded(out: Path) -> int:
    """Predictions in the databases of a run under way, also in those of its ranks, as another program reads them."""
    counts = 0
    for path in out.glob("run*.sqlite"):
        # Begun just now, in the middle of a batch, or gone: a rank's database is deleted once it is merged.
        with (
            contextlib.suppress(sqlite3.OperationalError),
            contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database,
        ):
            counts += database.execute("SELECT count(*) FROM frame").fetchone()[0]
    return counts
