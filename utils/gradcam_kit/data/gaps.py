"""Missing frames of a dataset, per forgery: absent folders and unreadable files."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import islice
from pathlib import Path

from ..base.errors import InputError
from ..base.files import read_table, write_table
from ..base.text import shortened
from ..base.typed import Misfit, fit
from .frame import Frame
from .frame_paths import in_lmdb
from .images import NO_FOLDER

MOST_LISTED = 10_000  # entries of a folder that are compared with a missing name


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgeryGaps:
    """The missing frames of one forgery method (or kind of real video). A frame is absent if its folder is missing."""

    forgery: str
    frames: int  # in the dataset, after sampling
    folders: int  # that hold these frames
    absent_frames: int
    absent_folders: int
    unreadable_frames: int  # cannot be read although their folder exists
    first_absent: str  # the highest missing folder of the first absent frame; "" if no folder is missing
    beside: str  # folders next to it with a similar name

    def line(self) -> str:
        missing = ""
        if self.absent_frames == self.frames:
            missing = f"all {self.frames:,} frames of {shortened(self.forgery)} are missing:"
            missing += f" there is no folder {self.first_absent}"
            missing += f"; a similar name next to it is {self.beside}" if self.beside else ""
        elif self.absent_frames:
            missing = f"{self.absent_frames:,} of {self.frames:,} frames of {shortened(self.forgery)} are missing:"
            missing += f" {self.absent_folders:,} of {self.folders:,} folders do not exist, first {self.first_absent}"
        unreadable = f"{self.unreadable_frames:,} of {self.frames:,} frames of {shortened(self.forgery)} cannot be read"
        return "; ".join([missing] * bool(missing) + [unreadable] * bool(self.unreadable_frames))


def absent_frames(frames: Sequence[Frame]) -> list[int]:
    """Return the positions of the frames whose folder is missing. Checks each folder once and opens no file."""
    there: dict[str, bool] = {}
    absent = []
    for position, frame in enumerate(frames):
        folder = _folder(frame)
        if folder not in there:
            there[folder] = in_lmdb(frame.path) or os.path.isdir(folder)  # noqa: PTH112
        if not there[folder]:
            absent.append(position)
    return absent


def is_absent(reason: str) -> bool:
    """Tell whether a frame's `reason` is that its folder is missing."""
    return reason.startswith(NO_FOLDER)


def forgery_gaps(
    frames: Sequence[Frame], absent: Collection[int], unreadable: Collection[int] = ()
) -> list[ForgeryGaps]:
    """Return the forgeries with missing frames, in the order of the dataset.

    `absent` and `unreadable` are positions in `frames`.
    """
    absent, unreadable = set(absent), set(unreadable)
    concerned = {frames[i].forgery for i in absent | unreadable}
    if not concerned:
        return []
    folders = set(map(_folder, frames))
    places: dict[str, list[int]] = {}
    for i, frame in enumerate(frames):
        places.setdefault(frame.forgery, []).append(i)
    return [_gaps_of(own, frames, absent, unreadable, folders) for name, own in places.items() if name in concerned]


def _gaps_of(
    own: list[int], frames: Sequence[Frame], absent: set[int], unreadable: set[int], folders: set[str]
) -> ForgeryGaps:
    """Return the gaps of one forgery. `own`: positions of its frames; `folders`: all folders of the dataset."""
    missing = [i for i in own if i in absent]
    gone = list(dict.fromkeys(_folder(frames[i]) for i in missing))
    first = Path(gone[0]) if gone else None
    while first is not None and not os.path.isdir(first.parent) and first.parent != first:  # noqa: PTH112
        first = first.parent
    return ForgeryGaps(
        forgery=frames[own[0]].forgery,
        frames=len(own),
        folders=len({_folder(frames[i]) for i in own}),
        absent_frames=len(missing),
        absent_folders=len(gone),
        unreadable_frames=sum(i in unreadable for i in own),
        first_absent=str(first or ""),
        beside=" or ".join(_resembling(first, folders)) if first is not None and len(missing) == len(own) else "",
    )


def _folder(frame: Frame) -> str:
    return os.path.dirname(frame.path) or "."  # noqa: PTH120 (a million Path objects would be slow)


def _resembling(missing: Path, used: Iterable[str]) -> list[str]:
    """Return up to three folders next to `missing` with a similar name that the dataset does not use."""
    above = f"{missing.parent}{os.sep}"
    taken = {folder[len(above) :].split(os.sep, 1)[0] for folder in used if folder.startswith(above)}
    try:
        with os.scandir(missing.parent) as entries:
            listed = list(islice(entries, MOST_LISTED))
        there = sorted(entry.name for entry in listed if entry.name not in taken and entry.is_dir())
    except OSError:  # no folder to propose
        return []
    plain = {name: re.sub("[^a-z0-9]", "", name.lower()) for name in there}
    wanted = re.sub("[^a-z0-9]", "", missing.name.lower())
    alike = difflib.get_close_matches(wanted, plain.values(), n=3, cutoff=0.6)
    return [name for name in there if plain[name] in alike][:3]


def write_gaps(path: Path, gaps: Iterable[ForgeryGaps]) -> None:
    write_table(path, [field.name for field in fields(ForgeryGaps)], map(astuple, gaps))


def read_gaps(path: Path) -> list[ForgeryGaps]:
    """Read a CSV from `write_gaps`. Raises InputError if it is not one."""
    try:
        return [fit(row, ForgeryGaps, text=True) for row in read_table(path)]
    except Misfit as misfit:
        raise InputError(misfit.text(f"{path}: was not written by a run", "run again")) from None
