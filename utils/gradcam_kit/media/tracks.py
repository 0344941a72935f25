"""Faces followed from frame to frame, so that no score and no crop mixes two people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from .faces import Face, Photographs, View, aligned, whole

LEAST_OVERLAP = 0.2  # of two boxes, as intersection ÷ union, for one and the same face in two frames
PATIENCE = 8  # frames for which a face may be missed and is still the same when it comes back
# Another shot begins where neighbouring frames' thumbnails correlate less, and differ more, in grey levels.
SAME_SHOT, SAME_GREY = 0.5, 20
THUMBNAIL = 32  # pixels a side
STEADY = 0.5  # share of the newest step in the speed with which a box is expected to go on

Box = np.ndarray  # (4,) left, top, right, bottom


class FacePath(NamedTuple):
    """Where a face was last seen, in which frame, and how fast it moves (pixels a frame)."""

    box: Box
    frame: int
    speed: Box

    def expected(self, frame: int) -> Box:
        """Where its box should be in that frame."""
        return self.box + self.speed * (frame - self.frame)


class FaceTracks:
    """Numbers faces so that a person keeps theirs, by the boxes' overlap; nobody is followed over a cut."""

    def __init__(self) -> None:
        self.frame = -1
        self._shot: np.ndarray | None = None  # a thumbnail of the frame before
        self.paths: dict[int, FacePath] = {}
        self._next = 1

    def add(self, photo: np.ndarray, faces: Sequence[Face]) -> list[int]:
        """The next frame and its faces → the number of each, from 1 in the order of their first appearance."""
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
    """Whether two thumbnails (h, w) are of different shots; those of one brightness all over tell nothing."""
    first, second = before.astype(float), after.astype(float)
    if min(first.std(), second.std()) < 1 or np.abs(first - second).mean() < SAME_GREY:
        return False
    return bool(np.corrcoef(first.ravel(), second.ravel())[0, 1] < SAME_SHOT)


def overlap(first: Box, second: Box) -> float:
    """Intersection ÷ union of two boxes."""
    width, height = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [float(np.prod(box[2:] - box[:2])) for box in (first, second)]
    return float(width * height / (sum(areas) - width * height))


def _best_pairs(overlaps: np.ndarray) -> dict[int, int]:
    """(known, found) overlaps → found: known of the largest sum, but for those that hardly overlap."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-overlaps)
    return {int(j): int(i) for i, j in zip(rows, columns, strict=True) if overlaps[i, j] >= LEAST_OVERLAP}


class Tracked(NamedTuple):
    """A face of one frame. `track`: the person's number, 0 for a whole frame."""

    track: int
    view: View


class FrameViews:
    """The frames of one video, in order → what the detector sees of each: always of the same people.

    That is every face (mode "all") or the largest, and the largest then where it is gone for more than PATIENCE frames.
    In mode "auto" the first frame decides whether the video shows a face crop already.
    """

    def __init__(self, photographs: Photographs) -> None:
        self.photographs = photographs
        self.several = False  # whether a frame had more than one face
        self.remark = ""  # what the user has to know of whole frames
        self._tracks = FaceTracks()
        self._followed = 0
        self._numbers: dict[int, int] = {}  # those who are followed one after the other: 1, 2, 3
        self._is_whole = photographs.find is None or photographs.mode == "off"

    @property
    def follows(self) -> bool:
        """Whether faces are followed; else all of each frame is shown."""
        return not self._is_whole

    def add(self, photo: np.ndarray) -> list[Tracked]:
        """The next frame (H, W, 3) uint8 RGB; an empty list where nobody is there who is followed."""
        size, find = self.photographs.size, self.photographs.find
        faces = [] if self._is_whole or find is None else find(photo)
        first = self._tracks.frame < 0
        if first and self.photographs.mode == "auto" and self.photographs.is_crop(photo, faces):
            self._is_whole = True
        if self._is_whole:
            self.remark = self.remark or self.photographs.said_of_whole(photo)
            return [Tracked(0, whole(photo, size))]
        numbers = self._tracks.add(photo, faces)
        self.several = self.several or len(faces) > 1
        found = dict(zip(numbers, faces, strict=True))  # the largest first
        if self.photographs.mode != "all":
            if self._followed not in self._tracks.paths:
                self._followed = next(iter(found), 0)
            found = {number: face for number, face in found.items() if number == self._followed}
            found = {self._numbers.setdefault(of, len(self._numbers) + 1): face for of, face in found.items()}
        return [Tracked(number, aligned(photo, face, size)) for number, face in sorted(found.items())]
