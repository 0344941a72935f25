"""The fakes on which explanations are judged: which, their masks, their faces, and their real counterparts."""

from __future__ import annotations

import posixpath
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from utils.data.annotations import read_landmarks, read_mask
from utils.data.frames import DataSettings, Frame, frame_loader, read_dataset
from utils.data.pictures import UnreadablePicture, decode_picture
from utils.data.storage import read_bytes
from utils.errors import RunError
from utils.explanation_metrics.controls import hull
from utils.files import read_table

WHOLE_FACE = 0.9  # share of the face in the mask from which the mask is the whole face
WHOLE_PICTURE = 0.5  # the same of the picture, where no landmarks say where the face is


@dataclass(frozen=True)
class Samples:
    """N detected fakes of one data set with all that the metrics need. `mask_states` counts, over `frames`: ok, none
    (no file), empty, full, unreadable.
    """

    frames: list[Frame]
    pixels: Tensor  # (N, 3, R, R) uint8, on the CPU
    masks: Tensor  # (N, R, R) bool; all False where `masked` is False
    masked: Tensor  # (N,) bool: the mask can be judged against
    landmarks: list[np.ndarray | None]  # (81, 2) each, in shares of the picture's width and height
    mask_states: Mapping[str, int]
    whole_face: list[str] = field(default_factory=list)  # forgery methods whose mask is the whole face

    @property
    def videos(self) -> list[tuple[str, str]]:
        return [(frame.forgery, frame.video) for frame in self.frames]


def detected_fakes(frames: Sequence[Frame], predictions: Path) -> list[Frame]:
    """The fakes that the detector called fake, by a run's `predictions.csv`, in order."""
    said_fake = {int(row["index"]) for row in read_table(predictions) if row["predicted"] == "1"}
    return [frame for frame in frames if frame.label == 1 and frame.index in said_fake]


def spread(frames: Sequence[Frame], count: int) -> list[Frame]:
    """`count` of the frames, evenly over them, so that every video and forgery method keeps its share."""
    if count >= len(frames):
        return list(frames)
    return [frames[(2 * k + 1) * len(frames) // (2 * count)] for k in range(count)]


def read_samples(frames: Sequence[Frame], resolution: int, batch_size: int, workers: int) -> Samples:
    """Pictures, masks and landmarks of `frames`. Raises RunError where one can no longer be read."""
    pixels = []
    for batch in frame_loader(frames, resolution, batch_size, workers):
        if batch.unreadable:
            frame, reason = batch.unreadable[0]
            raise RunError(f"{frame.path} was readable a moment ago and no longer is ({reason}): run again")
        pixels.append(batch.pixels)
    landmarks = [_face_points(frame) for frame in frames]
    found = [_mask(frame, resolution) for frame in frames]
    states = Counter({"ok": 0, "none": 0, "empty": 0, "full": 0, "unreadable": 0})
    states.update(state for state, _ in found)
    masks = torch.from_numpy(np.stack([mask for _, mask in found])).bool()
    usable = np.array([state == "ok" for state, _ in found])
    whole = _whole_face_forgeries(frames, masks.numpy(), usable, landmarks)
    judged = usable & np.array([frame.forgery not in whole for frame in frames])
    return Samples(list(frames), torch.cat(pixels), masks, torch.from_numpy(judged), landmarks, dict(states), whole)


def _mask(frame: Frame, resolution: int) -> tuple[str, np.ndarray]:
    """What became of the frame's mask, and the mask."""
    nothing = np.zeros((resolution, resolution), dtype=np.uint8)
    try:
        mask = read_mask(frame.path, resolution)
    except UnreadablePicture:
        return "unreadable", nothing
    if mask is None:
        return "none", nothing
    if not mask.any() or mask.all():
        return ("full" if mask.any() else "empty"), nothing
    return "ok", mask


def _face_points(frame: Frame) -> np.ndarray | None:
    """Landmarks in shares of the stored picture's size; None where there are none that can be read."""
    try:
        points = read_landmarks(frame.path)
        if points is None:
            return None
        height, width = decode_picture(read_bytes(frame.path), None).shape[:2]
    except UnreadablePicture:
        return None
    return points / np.array([width, height], dtype=np.float32)


def _whole_face_forgeries(
    frames: Sequence[Frame], masks: np.ndarray, usable: np.ndarray, landmarks: Sequence[np.ndarray | None]
) -> list[str]:
    """The forgery methods of which most masks cover the whole face: there is no place in it to find."""
    covered: dict[str, list[bool]] = {}
    for frame, mask, good, points in zip(frames, masks, usable, landmarks):
        if good:
            whole = (
                mask.mean() >= WHOLE_PICTURE
                if points is None
                else mask[hull(points, mask.shape) > 0].mean() >= WHOLE_FACE
            )
            covered.setdefault(frame.forgery, []).append(bool(whole))
    return [forgery for forgery, found in covered.items() if np.mean(found) > 0.5]


class RealCounterparts:
    """Finds the same frame of the real video that a fake was made from, in the same data set.

    A fake's video has the name of its real one, or begins with it, as FaceForensics++ names them: 000_003 is made from
    000. The frame has the same file name.
    """

    def __init__(self, dataset: str, settings: DataSettings) -> None:
        every_frame = settings._replace(frame_num=None)
        self._paths = {
            (frame.video, posixpath.basename(frame.path)): frame.path
            for frame in read_dataset(dataset, every_frame)
            if frame.label == 0
        }

    def path(self, fake: Frame) -> str | None:
        """Where it lies, or None."""
        file = posixpath.basename(fake.path)
        for video in (fake.video, fake.video.partition("_")[0]):
            if (video, file) in self._paths:
                return self._paths[video, file]
        return None

    def read(self, fakes: Sequence[Frame], resolution: int) -> tuple[Tensor, Tensor]:
        """(N, 3, R, R) uint8, zero where there is none, and (N,) bool which there are."""
        pixels = torch.zeros(len(fakes), 3, resolution, resolution, dtype=torch.uint8)
        there = torch.zeros(len(fakes), dtype=torch.bool)
        for i, fake in enumerate(fakes):
            path = self.path(fake)
            if path is None:
                continue
            try:
                picture = decode_picture(read_bytes(path), resolution)
            except UnreadablePicture:  # users often have the fakes only
                continue
            pixels[i] = torch.from_numpy(picture).permute(2, 0, 1)
            there[i] = True
        return pixels, there
