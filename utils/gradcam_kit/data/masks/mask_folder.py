"""Masks in a folder of any layout, found by how far their paths agree with the frames' paths."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ...base.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


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

        It has the frame's name (the suffix may differ), and of those the one whose folders agree with the frame's the
        furthest, from the file upwards. Where its name is a number, its folder is named like the frame's, or it lies
        in no folder. Raises InputError where two agree equally far, and where one mask would be that of two frames of
        which it shares nothing but the name.
        """
        found: list[str | None] = []
        by_name: dict[str, str] = {}  # mask that agrees by its name alone → the frame it was taken for
        for frame in frames:
            parts = tuple(reversed(PurePosixPath(frame.replace("\\", "/")).with_suffix("").parts))
            masks = self._by_stem.get(parts[0], [])
            agreed = [_common(parts, mask.parts) for mask in masks]
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


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many parts agree, from the file upwards."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
