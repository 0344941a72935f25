"""Where the forgery is by files that the user names: masks in a folder of any layout, and people's clicks in a CSV."""

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

Points = dict[int, list[tuple[float, float]]]  # frame number → x and y in shares of width and height


class Mask(NamedTuple):
    """A mask's path, and the parts of that below the folder, from the file (without its suffix) upwards."""

    parts: tuple[str, ...]
    path: str


class MaskFolder:
    """The masks below a folder."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where it holds no image."""
        self.folder = folder
        self._by_stem: dict[str, list[Mask]] = {}  # masks by their file's stem
        if not folder.is_dir():
            raise InputError(f"--masks {str(folder)!r}: no such folder")
        for place, folders, names in os.walk(folder):
            folders.sort()  # in place: the walk goes on in this order
            for name in sorted(names):
                path = Path(place, name)
                if path.suffix.lower() in SUFFIXES:
                    parts = (path.stem, *reversed(path.parent.relative_to(folder).parts))
                    self._by_stem.setdefault(path.stem, []).append(Mask(parts, str(path)))
        if not self._by_stem:
            raise InputError(f"--masks {str(folder)!r} holds no image ({', '.join(SUFFIXES)})")

    def paths(self, frames: Sequence[str]) -> list[str | None]:
        """The mask of each frame, by the frames' paths; None where there is none.

        Of those with the frame's name (but for the suffix) the one whose folders agree with the frame's the furthest,
        from the file upwards; of a name that is a number, only in a folder named like the frame's, or in none. Raises
        InputError where two agree equally far, or two frames that share but the name with a mask would both have it.
        """
        found: list[str | None] = []
        by_name: dict[str, str] = {}  # mask that agrees by its name alone → the frame it was taken for
        for frame in frames:
            parts = tuple(reversed(PurePosixPath(frame.replace("\\", "/")).with_suffix("").parts))
            masks = self._by_stem.get(parts[0], [])
            pairs = (zip(parts, mask.parts, strict=False) for mask in masks)  # from the file upwards
            agreed = [sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], of_mask)) for of_mask in pairs]
            most = max(agreed, default=0)
            best = [mask for mask, length in zip(masks, agreed, strict=True) if length == most]
            # A number in another folder is the frame of another video.
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


class Row(NamedTuple):
    """The clicks of one row, which is line `line` of the file. `kind` is what else tells videos apart."""

    line: int
    kind: tuple[str, ...]  # dataset and manipulation, where the file has these columns
    points: Points


class Clicks:
    """The clicks of one CSV file, as of ExDDV (arXiv 2503.14421), by the name of the video without folder and suffix.

    A row is one video: its name, and its clicks as JSON, frame number → place, in shares of the whole frame.
    """

    def __init__(self, path: Path) -> None:
        """Read and check the file. Raises InputError with the line at fault."""
        self.path = path
        self._rows: dict[str, list[Row]] = {}
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
            self._rows.setdefault(name, []).append(Row(number, kind, _points(cells["clicks"], where)))
        if not any(row.points for rows in self._rows.values() for row in rows):
            raise InputError(f"--clicks {str(path)!r} holds no click at all: expected rows of video and clicks")

    def of(self, frame: Frame) -> np.ndarray | None:
        """(n, 2) x and y in shares of the frame's width and height; None where nobody clicked on it.

        Videos are matched by name, frames by the number in the file's name. Several people's clicks are put together.
        Raises InputError where the name stands for videos of several datasets or manipulations.
        """
        rows = self._rows.get(Path(frame.video).stem, self._rows.get(frame.video, []))
        kinds = sorted({row.kind for row in rows})
        if len(kinds) > 1:
            named = "; ".join(" ".join(filter(None, kind)) or "(nothing)" for kind in kinds[:4])
            raise InputError(
                f"--clicks {str(self.path)!r}: video {frame.video!r} is in it for several datasets or manipulations"
                f" ({named}), of which only one can be {frame.forgery!r}: give a file with the rows of that one"
            )
        digits = "".join(c if c.isdigit() else " " for c in Path(frame.path).stem).split()
        if not rows or not digits:
            return None
        points = [point for row in rows for point in row.points.get(int(digits[-1]), [])]
        return np.array(points, dtype=np.float64) if points else None


def _points(cell: str, where: str) -> Points:
    """`{"12": {"x": 0.4, "y": 0.3}, "15": [{...}, [0.5, 0.1]]}` → points; an empty cell has none. Raises InputError."""
    if not cell.strip():
        return {}
    try:
        held = json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: the clicks are no JSON ({one_line(error)})") from error
    if not isinstance(held, Mapping):
        raise InputError(f"{where}: the clicks are {type(held).__name__}: expected frame number → place")
    points: Points = {}
    for frame, places in held.items():
        if not frame.strip().isdecimal():
            raise InputError(f"{where}: {frame!r} is no frame number")
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
