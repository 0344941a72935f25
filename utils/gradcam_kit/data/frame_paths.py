"""Where the files of a frame are: its own from the path in a dataset JSON, its mask and landmarks from its own."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from .dataset_names import Video
from .storage import beside_key, in_lmdb

_PROBES = 100  # videos looked at, per label, to find out which folder the paths of a dataset JSON start from


class Prefix(NamedTuple):
    """How paths of a dataset JSON become paths on disk: `drop` leading folders off, `folder` (or nothing) in front."""

    folder: str
    drop: int

    def of(self, path: str) -> str:
        plain = _plain(path)
        if self.drop:
            plain = plain.lstrip("/").split("/", self.drop)[-1]
        return f"{self.folder}/{plain}" if self.folder else plain

    def dropped(self, path: str) -> list[str]:
        """The leading folders of `path` that are taken off."""
        return _plain(path).lstrip("/").split("/")[: self.drop]


def first_prefix(videos: list[Video], root: Path | None) -> Prefix:
    """Where the videos are looked for first."""
    return _candidates(videos[0].frames[0], root)[0]


def find_prefix(videos: list[Video], root: Path | None) -> Prefix | None:
    """Which folder the paths of one label's videos start from, found out on the first frames of some of them.

    DF40 opens the paths as they are (from the working directory), DeepfakeBench puts `rgb_dir` in front, and the JSON
    files that circulate carry the folders of the machine they were made on (`D:\\data\\...`, `./datasets/rgb/...`). So
    these are tried: below the root, as they are, and below the root with one, two, ... leading folders off. The first
    that holds a file decides, once per label (reals and fakes often come from different archives), never per frame.
    None where none of them is there.
    """
    step = max(1, len(videos) // _PROBES)
    for video in videos[::step]:
        for prefix in _candidates(video.frames[0], root):
            if os.path.isfile(prefix.of(video.frames[0])):  # noqa: PTH113 (Path's fails for a name of 300 letters)
                return prefix
    return None


def _candidates(path: str, root: Path | None) -> list[Prefix]:
    plain = _plain(path)
    absolute = re.match("/|[A-Za-z]:/", plain) is not None
    as_it_is = Prefix("" if absolute else str(Path.cwd()), 0)
    if root is None:
        return [as_it_is]
    below = str(root.absolute())
    first = [as_it_is] if absolute else [Prefix(below, 0), as_it_is]
    # At least the video's folder and the file stay, so that no image of the same name elsewhere is taken for it.
    folders = plain.lstrip("/").count("/")
    return first + [Prefix(below, drop) for drop in range(1, folders)]


def _plain(path: str) -> str:
    """With `/` throughout and no `./` in front, for files made on Windows."""
    return re.sub(r"^(\./+)+", "", path.replace("\\", "/"))


def mask_path(frame_path: str) -> str:
    """Where a frame's mask lies: `.../frames/<video>/000.png` → `.../masks/<video>/000.png`."""
    return _beside(frame_path, "masks", ".png")


def landmark_path(frame_path: str) -> str:
    """Where a frame's landmarks lie: `.../frames/<video>/000.png` → `.../landmarks/<video>/000.npy`."""
    return _beside(frame_path, "landmarks", ".npy")


def _beside(frame_path: str, folder: str, suffix: str) -> str:
    """The last folder named `frames` replaced; where there is none, a folder of that name beside the image."""
    if in_lmdb(frame_path):
        return beside_key(frame_path, folder, suffix)
    parts = list(Path(frame_path).with_suffix(suffix).parts)
    places = [i for i, part in enumerate(parts[:-1]) if part == "frames"]
    if places:
        parts[places[-1]] = folder
    else:
        parts.insert(-1, folder)
    return str(Path(*parts))
