"""Tracking of faces from frame to frame, so that no score mixes two people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from .faces import Face, Photographs, View, align, whole

LEAST_OVERLAP = 0.2  # minimum intersection ÷ union of the same face's boxes in two frames
PATIENCE = 8  # a face may be missing for so many frames and keep its number
# A new shot starts if neighbouring thumbnails correlate less than this, and differ by more grey levels.
SAME_SHOT, SAME_GREY = 0.5, 20
THUMBNAIL = 32  # pixels per side
STEADY = 0.5  # weight of the newest step in a box's speed

Box = np.ndarray  # (4,) left, top, right, bottom


class FacePath(NamedTuple):
    """The last box of a face, its frame, and its speed in pixels per frame."""

    box: Box
    frame: int
    speed: Box

    def expected(self, frame: int) -> Box:
        """Extrapolate the box to `frame`."""
        return self.box + self.speed * (frame - self.frame)


class FaceTracks:
    """Numbers faces by the overlap of their boxes, so that a person keeps their number until the next cut."""

    def __init__(self) -> None:
        self.frame = -1
        self._shot: np.ndarray | None = None  # a thumbnail of the previous frame
        self.paths: dict[int, FacePath] = {}
        self._next = 1

    def add(self, photo: np.ndarray, faces: Sequence[Face]) -> list[int]:
        """Add the next frame, (H, W, 3) uint8 RGB, and its faces. Return the number of each face, from 1 on."""
        self.frame += 1
        shot = cv2.resize(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
        if self._shot is not None and is_cut(self._shot, shot):
            self.paths = {}
        self._shot = shot
        self.paths = {number: path for number, path in self.paths.items() if self.frame - path.frame <= PATIENCE}
        boxes = [np.array(face.box, dtype=float) for face in faces]
        known = list(self.paths)
        overlaps = np.array([[overlap(self.paths[n].expected(self.frame), box) for box in boxes] for n in known])
        matched = _best_pairs(overlaps) if known and boxes else {}
        numbers = []
        for i, box in enumerate(boxes):
            number = known[matched[i]] if i in matched else self._next
            speed = np.zeros(4)
            if i in matched:
                before = self.paths[number]
                speed = (1 - STEADY) * before.speed + STEADY * (box - before.box) / (self.frame - before.frame)
            self._next += i not in matched
            self.paths[number] = FacePath(box, self.frame, speed)
            numbers.append(number)
        return numbers


def is_cut(before: np.ndarray, after: np.ndarray) -> bool:
    """Tell whether two thumbnails (h, w) are from different shots; False if one has uniform brightness."""
    first, second = before.astype(float), after.astype(float)
    if min(first.std(), second.std()) < 1 or np.abs(first - second).mean() < SAME_GREY:
        return False
    return bool(np.corrcoef(first.ravel(), second.ravel())[0, 1] < SAME_SHOT)


def overlap(first: Box, second: Box) -> float:
    """Return intersection ÷ union of two boxes, in [0, 1]."""
    width, height = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [float(np.prod(box[2:] - box[:2])) for box in (first, second)]
    return float(width * height / (sum(areas) - width * height))


def _best_pairs(overlaps: np.ndarray) -> dict[int, int]:
    """Match found boxes to known ones by the largest sum of overlaps (known, found); returns found → known."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-overlaps)
    return {int(j): int(i) for i, j in zip(rows, columns, strict=True) if overlaps[i, j] >= LEAST_OVERLAP}


class Tracked(NamedTuple):
    """A face in one frame. `track`: the person's number, 0 for a whole frame."""

    track: int
    view: View


class FrameViews:
    """Crops the frames of one video, in order, and follows the same people.

    Mode "all" follows every face; other modes the largest, and once it is gone for more than PATIENCE frames, the
    largest at that time. In mode "auto" the first frame decides whether the video already is a face crop.
    """

    def __init__(self, photographs: Photographs) -> None:
        self.photographs = photographs
        self.several = False  # whether a frame had more than one face
        self.remark = ""  # remark about whole frames, or ""
        self._tracks = FaceTracks()
        self._followed = 0
        self._numbers: dict[int, int] = {}  # those who are followed one after the other: 1, 2, 3
        self._is_whole = photographs.find is None or photographs.mode == "off"

    @property
    def follows(self) -> bool:
        """Whether faces are followed; otherwise whole frames are used."""
        return not self._is_whole

    def add(self, photo: np.ndarray) -> list[Tracked]:
        """Add the next frame, (H, W, 3) uint8 RGB. Return the followed faces in it, perhaps none."""
        size, find = self.photographs.size, self.photographs.find
        faces = [] if self._is_whole or find is None else find(photo)
        first = self._tracks.frame < 0
        if first and self.photographs.mode == "auto" and self.photographs.is_crop(photo, faces):
            self._is_whole = True
        if self._is_whole:
            self.remark = self.remark or self.photographs.remark_on_whole(photo)
            return [Tracked(0, whole(photo, size))]
        numbers = self._tracks.add(photo, faces)
        self.several = self.several or len(faces) > 1
        found = dict(zip(numbers, faces, strict=True))  # the largest first
        if self.photographs.mode != "all":
            if self._followed not in self._tracks.paths:
                self._followed = next(iter(found), 0)
            found = {number: face for number, face in found.items() if number == self._followed}
            found = {self._numbers.setdefault(of, len(self._numbers) + 1): face for of, face in found.items()}
        return [Tracked(number, align(photo, face, size)) for number, face in sorted(found.items())]
