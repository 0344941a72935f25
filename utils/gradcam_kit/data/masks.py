"""Places of a forgery: a frame's own mask and landmarks, other masks below a folder, and people's clicks in a CSV."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np

from ..base.errors import InputError
from ..base.spreadsheets import read_sheet
from ..base.text import one_line, shortened
from ..base.typed import Misfit, Share, fit
from .frame import Frame
from .frame_paths import in_lmdb, is_there, landmark_path, mask_path, read_bytes
from .images import MAX_SIDE, UnreadableImage, decode_image, image_size

NUM_LANDMARKS = 81
MAX_LANDMARK_BYTES = 64 * 1024  # 81 points take 2.6 kB at most, a header 10 kB
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")

Points = dict[int, list[tuple[float, float]]]  # frame number → x and y as shares of width and height


def read_mask(frame_path: str, size: int) -> np.ndarray | None:
    """Read a frame's forged region: uint8 (size, size), 1 forged, 0 not, resized to the nearest pixel.

    Returns None if it has no mask file. Raises UnreadableImage if the file is not an image.
    """
    path = mask_path(frame_path)
    return read_mask_file(path, size) if is_there(path) else None


def read_mask_file(path: str, size: int) -> np.ndarray:
    """Read a mask file: uint8 (size, size), 1 forged, 0 not, resized to the nearest pixel. Raises UnreadableImage.

    A pixel is forged if its brightest channel is above 127, or is 1 in a file without larger values.
    """
    grey = decode_image(read_bytes(path), None).max(axis=2)  # some masks of FaceForensics++ are coloured
    forged = (grey > (127 if grey.max() > 1 else 0)).astype(np.uint8)
    return cv2.resize(forged, (size, size), interpolation=cv2.INTER_NEAREST)


def read_landmarks(frame_path: str) -> np.ndarray | None:
    """Read a frame's landmarks: float32 (81, 2), x and y in pixels of the stored (not resized) face crop.

    Returns None if it has no landmark file. Raises UnreadableImage unless the file holds 81 finite points, none farther
    off than ten times the longest side allowed.
    """
    path = landmark_path(frame_path)
    if not is_there(path):
        return None
    # An LMDB stores only the numbers, without the header of a .npy file.
    points = (_points_from_lmdb if in_lmdb(path) else _points_of_npy)(read_bytes(path), path)
    if not (np.abs(points.astype(np.float64)) <= 10 * MAX_SIDE).all():  # NaN is not
        raise UnreadableImage(f"landmarks that no image can have, such as NaN, infinity or 1e30: {path!r}")
    return points.astype(np.float32)


def face_points(frame_path: str) -> np.ndarray | None:
    """Read a frame's landmarks as shares of the image's sides: float32 (81, 2); None if it has no landmark file.

    Raises UnreadableImage if landmarks or image cannot be read, or if the points do not form a face: a single damaged
    number would stretch the outline over the whole image.
    """
    landmarks = read_landmarks(frame_path)
    if landmarks is None:
        return None
    points = landmarks / np.array(image_size(read_bytes(frame_path)), dtype=np.float32)
    # A point may lie up to one image width outside. A smaller extent than 0.01 is one point 81 times.
    if np.abs(points - 0.5).max() > 1.5 or np.ptp(points, axis=0).min() < 0.01:
        raise UnreadableImage(f"landmarks that do not form a face in this image: {landmark_path(frame_path)!r}")
    return points


def _points_of_npy(data: bytes, path: str) -> np.ndarray:
    """Read the array (81, 2) of a `.npy` file. Its header is checked before anything is allocated."""
    if len(data) > MAX_LANDMARK_BYTES:
        raise UnreadableImage(f"{len(data):,} bytes are too many for {NUM_LANDMARKS} landmarks: {path!r}")
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = read_header(file)
    # A damaged header ends in ValueError, EOFError, SyntaxError, TypeError, RecursionError, MemoryError.
    except Exception as error:
        raise UnreadableImage(f"not a NumPy array file: {path!r}") from error
    if shape != (NUM_LANDMARKS, 2) or dtype.kind not in "fiu":
        found = shortened(f"{dtype} {shape}")
        raise UnreadableImage(f"landmarks must be {NUM_LANDMARKS} points (81, 2), found {found}: {path!r}")
    numbers = data[file.tell() :]
    if len(numbers) < NUM_LANDMARKS * 2 * dtype.itemsize:
        raise UnreadableImage(f"the file is cut off: {path!r}")
    points = np.frombuffer(numbers, dtype, NUM_LANDMARKS * 2)
    return points.reshape((NUM_LANDMARKS, 2), order="F" if by_column else "C")


def _points_from_lmdb(data: bytes, path: str) -> np.ndarray:
    """Read landmarks (81, 2) as the host stores them: two unsigned 32-bit numbers per point."""
    if len(data) != NUM_LANDMARKS * 2 * 4:
        raise UnreadableImage(f"landmarks must be {NUM_LANDMARKS * 2} numbers of 4 bytes, found {len(data)}: {path!r}")
    return np.frombuffer(data, np.uint32).reshape(NUM_LANDMARKS, 2)


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
