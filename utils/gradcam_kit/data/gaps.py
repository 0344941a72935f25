"""Which frames of a dataset are missing, per forgery: folders that are not there, and files that cannot be read."""

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

MOST_LISTED = 10_000  # entries of a folder that are compared with the name of the missing one


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgeryGaps:
    """What one forgery method (or kind of real video) lacks. A frame is absent where its folder is not there."""

    forgery: str
    frames: int  # in the dataset, after sampling
    folders: int  # that these lie in
    absent_frames: int
    absent_folders: int
    unreadable_frames: int  # that cannot be read although their folder is there
    first_absent: str  # path of the first missing folder, its missing parents included; empty where none is
    beside: str  # names of folders beside that one that resemble it

    def line(self) -> str:
        """For people."""
        missing = ""
        if self.absent_frames == self.frames:
            missing = f"all {self.frames:,} frames of {shortened(self.forgery)} are missing: the folder"
            missing += f" {self.first_absent} is not there"
            missing += f"; a folder {self.beside} lies beside it" if self.beside else ""
        elif self.absent_frames:
            missing = f"{self.absent_frames:,} of {self.frames:,} frames of {shortened(self.forgery)} are missing:"
            missing += f" {self.absent_folders:,} of {self.folders:,} folders are not there, first {self.first_absent}"
        unreadable = f"{self.unreadable_frames:,} of {self.frames:,} frames of {shortened(self.forgery)} cannot be read"
        return "; ".join([missing] * bool(missing) + [unreadable] * bool(self.unreadable_frames))


def absent_frames(frames: Sequence[Frame]) -> list[int]:
    """Positions of the frames whose folder is not there. Looks at each folder once and opens no file."""
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
    """Whether a frame could not be read for the reason that its folder is not there."""
    return reason.startswith(NO_FOLDER)


def forgery_gaps(
    frames: Sequence[Frame], absent: Collection[int], unreadable: Collection[int] = ()
) -> list[ForgeryGaps]:
    """The forgeries that lack something, in the order of the dataset. `absent`, `unreadable`: positions in `frames`."""
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
    """Of one forgery, whose frames are at the positions `own`; `folders` are those of the whole dataset."""
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
    return os.path.dirname(frame.path) or "."  # noqa: PTH120 (a million Path objects for nothing)


def _resembling(missing: Path, used: Iterable[str]) -> list[str]:
    """Folders beside `missing` whose names resemble its own, up to three, but for those that the dataset uses."""
    above = f"{missing.parent}{os.sep}"
    taken = {folder[len(above) :].split(os.sep, 1)[0] for folder in used if folder.startswith(above)}
    try:
        with os.scandir(missing.parent) as entries:
            listed = list(islice(entries, MOST_LISTED))
        there = sorted(entry.name for entry in listed if entry.name not in taken and entry.is_dir())
    except OSError:  # there is nothing to propose
        return []
    plain = {name: re.sub("[^a-z0-9]", "", name.lower()) for name in there}
    wanted = re.sub("[^a-z0-9]", "", missing.name.lower())
    alike = difflib.get_close_matches(wanted, plain.values(), n=3, cutoff=0.6)
    return [name for name in there if plain[name] in alike][:3]


def write_gaps(path: Path, gaps: Iterable[ForgeryGaps]) -> None:
    """One row per forgery that lacks something."""
    write_table(path, [field.name for field in fields(ForgeryGaps)], map(astuple, gaps))


def read_gaps(path: Path) -> list[ForgeryGaps]:
    """The rows of such a table. Raises InputError where it is none."""
    try:
        return [fit(row, ForgeryGaps, text=True) for row in read_table(path)]
    except Misfit as misfit:
        raise InputError(misfit.text(f"{path}: is not as a run writes it", "run again")) from None
