"""Places of the forgery from the user's own files: masks in a folder of any layout, and people's clicks in a CSV."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ...base.errors import InputError
from ...base.spreadsheets import read_sheet
from ...base.text import one_line
from ...base.typed import Misfit, Share, fit
from ..frame import Frame

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")

Points = dict[int, list[tuple[float, float]]]  # frame number → x and y as shares of width and height


class MaskPath(NamedTuple):
    """A mask's path, and its parts below the folder, from the file (without suffix) upwards."""

    parts: tuple[str, ...]
    path: str


class MaskFolder:
    """The masks below a folder."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError if the folder holds no image."""
        self.folder = folder
        self._by_stem: dict[str, list[MaskPath]] = {}  # by the file's stem
        if not folder.is_dir():
            raise InputError(f"--masks {str(folder)!r}: no such folder")
        for place, folders, names in os.walk(folder):
            folders.sort()  # in place: os.walk then follows this order
            for name in sorted(names):
                path = Path(place, name)
                if path.suffix.lower() in SUFFIXES:
                    parts = (path.stem, *reversed(path.parent.relative_to(folder).parts))
                    self._by_stem.setdefault(path.stem, []).append(MaskPath(parts, str(path)))
        if not self._by_stem:
            raise InputError(f"--masks {str(folder)!r} holds no image ({', '.join(SUFFIXES)})")

    def paths(self, frames: Sequence[str]) -> list[str | None]:
        """Find the mask of each frame by its path; None for a frame without one.

        Candidates have the frame's name, except for the suffix. The one whose parent folders match the most, from the
        file upwards, wins. If the name is a number, the mask's folder must match too, unless it has none. Raises
        InputError if two masks match equally well, or if one mask matches two frames by name only.
        """
        found: list[str | None] = []
        by_name: dict[str, str] = {}  # a mask that matches by name only → its frame
        for frame in frames:
            parts = tuple(reversed(PurePosixPath(frame.replace("\\", "/")).with_suffix("").parts))
            masks = self._by_stem.get(parts[0], [])
            pairs = (zip(parts, mask.parts, strict=False) for mask in masks)  # from the file upwards
            matched = [sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], of_mask)) for of_mask in pairs]
            most = max(matched, default=0)
            best = [mask for mask, length in zip(masks, matched, strict=True) if length == most]
            # The same number in another folder is a frame of another video.
            paths = [mask.path for mask in best if most > 1 or len(mask.parts) == 1 or not parts[0].isdecimal()]
            if not paths:
                found.append(None)
                continue
            if len(paths) > 1:
                raise InputError(
                    f"--masks {str(self.folder)!r}: {frame!r} could have the mask {paths[0]!r} or {paths[-1]!r}:"
                    " name their folders like the frames' folders"
                )
            if most == 1 and by_name.setdefault(paths[0], frame) != frame:
                raise InputError(
                    f"--masks {str(self.folder)!r}: {by_name[paths[0]]!r} and {frame!r} would have the same mask,"
                    f" {paths[0]!r}: put masks into folders that are named like the videos"
                )
            found.append(paths[0])
        return found


class ClickRow(NamedTuple):
    """The clicks in one row of the file."""

    line: int
    kind: tuple[str, ...]  # dataset and manipulation, "" if the file has no such column
    points: Points


class Clicks:
    """The clicks of a CSV file such as ExDDV's (arXiv 2503.14421), by the video's name without folder and suffix.

    A row holds a video's name, and its clicks as JSON: frame number → place, as shares of the frame's sides.
    """

    def __init__(self, path: Path) -> None:
        """Read and check the file. Raises InputError that names the line."""
        self.path = path
        self._rows: dict[str, list[ClickRow]] = {}
        try:
            lines = list(read_sheet(path, ["video", "movie_name"], ["clicks", "click_locations"]))
        except InputError as error:
            raise InputError(f"--clicks {error}") from error
        for number, cells in lines:
            where = f"--clicks {path}, line {number}"
            name = Path(cells["video"].replace("\\", "/")).stem
            if not name:
                raise InputError(f"{where}: column 'video' is empty: give the video's name")
            kind = tuple(cells.get(column, "") for column in ("dataset", "manipulation"))
            self._rows.setdefault(name, []).append(ClickRow(number, kind, _points(cells["clicks"], where)))
        if not any(row.points for rows in self._rows.values() for row in rows):
            raise InputError(f"--clicks {str(path)!r} holds no click: expected rows of video and clicks")

    def of(self, frame: Frame) -> np.ndarray | None:
        """Return a frame's clicks: float64 (n, 2), x and y as shares of width and height; None if it has none.

        Videos are matched by name, frames by the number in the file's name. Clicks of several people are joined.
        Raises InputError if videos of several datasets or manipulations have this name.
        """
        rows = self._rows.get(Path(frame.video).stem, self._rows.get(frame.video, []))
        kinds = sorted({row.kind for row in rows})
        if len(kinds) > 1:
            named = "; ".join(" ".join(filter(None, kind)) or "(nothing)" for kind in kinds[:4])
            raise InputError(
                f"--clicks {str(self.path)!r}: it lists video {frame.video!r} for several datasets or manipulations"
                f" ({named}), and only one can be {frame.forgery!r}: give a file with only the rows of that one"
            )
        digits = "".join(c if c.isdigit() else " " for c in Path(frame.path).stem).split()
        if not rows or not digits:
            return None
        points = [point for row in rows for point in row.points.get(int(digits[-1]), [])]
        return np.array(points, dtype=np.float64) if points else None


def _points(cell: str, where: str) -> Points:
    """Parse `{"12": {"x": 0.4, "y": 0.3}, "15": [{...}, [0.5, 0.1]]}`; an empty cell is valid. Raises InputError."""
    if not cell.strip():
        return {}
    try:
        held = json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: the clicks are not JSON ({one_line(error)})") from error
    if not isinstance(held, Mapping):
        raise InputError(f"{where}: the clicks are {type(held).__name__}: expected frame number → place")
    points: Points = {}
    for frame, places in held.items():
        if not frame.strip().isdecimal():
            raise InputError(f"{where}: {frame!r} is not a frame number")
        several = isinstance(places, list) and not (places and isinstance(places[0], (int, float)))  # not one [x, y]
        for place in places if several else [places]:
            points.setdefault(int(frame), []).append(_point(place, f"{where}, frame {int(frame)}"))
    return points


def _point(place: Any, where: str) -> tuple[float, float]:
    found = [place.get("x"), place.get("y")] if isinstance(place, Mapping) else place
    try:
        return fit(found, tuple[Share, Share])
    except Misfit:
        expected = "expected x and y between 0 and 1, shares of the frame's size"
        raise InputError(f"{where}: a click is {one_line(json.dumps(place))[:60]}: {expected}") from None
