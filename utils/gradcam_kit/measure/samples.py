"""The detected fakes to evaluate, with their masks and landmarks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..base.errors import RunError
from ..data.clips import Clip, clip_loader, parts_of
from ..data.folder_dataset import named_masks
from ..data.frame import Frame
from ..data.frame_paths import read_bytes
from ..data.frames import frame_loader
from ..data.images import UnreadableImage, decode_image
from ..data.masks import Clicks, MaskFolder, face_points, read_mask, read_mask_file
from ..judge.controls import hull
from .clips import pictures_of

WHOLE_FACE = 0.9  # a mask that covers this share of the face counts as the whole face
WHOLE_IMAGE = 0.5  # the same share of the image, without landmarks


class Evidence(NamedTuple):
    """The user's own masks and clicks for the fakes among some frames, by the frames' paths.

    `masks`: the mask's path, None for a frame without one; None instead of a mapping if masks are next to the frames.
    `clicks`: (n, 2) x and y as shares of the frame's width and height.
    """

    masks: Mapping[str, str | None] | None = None
    clicks: Mapping[str, np.ndarray] = {}


NO_EVIDENCE = Evidence()


def find_evidence(
    masks: Path | None, clicks: Path | None, frames: Sequence[Frame], tables: Iterable[Path] = ()
) -> Evidence:
    """Read --masks and --clicks. Raises InputError for unreadable or ambiguous files.

    `tables`: datasets that are a CSV or a folder; a CSV's own masks are used without --masks.
    """
    fakes = [frame for frame in frames if frame.label == 1]
    paths = [frame.path for frame in fakes]
    named = {} if masks else {frame: mask for table in tables for frame, mask in named_masks(table).items()}
    of_frames = MaskFolder(masks).paths(paths) if masks else map(named.get, paths)
    found = dict(zip(paths, of_frames, strict=True)) if masks or named else None
    if clicks is None:
        return Evidence(found)
    file = Clicks(clicks)
    places = {frame.path: file.of(frame) for frame in fakes}
    return Evidence(found, {path: points for path, points in places.items() if points is not None})


@dataclass(frozen=True)
class DetectedFakes:
    """N detected fakes of one dataset with everything that the metrics need.

    A fake is an image, or a clip of T frames as a picture of them (`measure.clips`), of height H = T · R.
    `mask_states` counts the frames whose mask is ok, none (no file), empty, full, or unreadable.
    """

    frames: list[Frame]  # an image's, or the row of a clip
    parts: list[list[Frame]]  # an image, or the frames of a clip
    pixels: Tensor  # (N, 3, H, R) uint8, on the CPU
    masks: Tensor  # (N, H, R) bool; all False where `masked` is False
    masked: Tensor  # (N,) bool: the localisation metrics use the mask
    landmarks: list[np.ndarray | None]  # (81, 2) each, as shares of the image's width and height
    mask_states: Mapping[str, int]
    whole_face: list[str] = field(default_factory=list)  # forgery methods whose mask is the whole face

    @property
    def videos(self) -> list[tuple[str, str]]:
        return [(frame.forgery, frame.video) for frame in self.frames]


def detected_fakes(frames: Sequence[Frame], predictions: Iterable[Mapping[str, Any]]) -> list[Frame]:
    """Return the fakes that a run predicted as fake, in order."""
    predicted_fake = {row["index"] for row in predictions if row["predicted"]}
    return [frame for frame in frames if frame.label == 1 and frame.index in predicted_fake]


def read_samples(
    frames: Sequence[Frame],
    resolution: int,
    batch_size: int,
    workers: int,
    evidence: Evidence = NO_EVIDENCE,
    clips: Sequence[Clip] = (),
) -> DetectedFakes:
    """Read images, masks and landmarks of `frames`. Raises RunError if an image can no longer be read.

    `clips`: all clips of the dataset, if `frames` are rows of clips. The landmarks are those of a clip's first frame.
    """
    pixels, how = [], (resolution, batch_size, workers)
    loader = clip_loader([clips[frame.index] for frame in frames], *how) if clips else frame_loader(frames, *how)
    for batch in loader:
        if batch.unreadable:
            frame, reason = batch.unreadable[0]
            problem = f"was readable for prediction but no longer is ({reason}); check the file and run again"
            raise RunError(f"{frame.path}: {problem}")
        pixels.append(pictures_of(batch.pixels) if clips else batch.pixels)
    landmarks, parts = [_face_points(frame) for frame in frames], parts_of(frames, clips)
    states, drawn = zip(*(_mask(part, resolution, evidence) for part in parts), strict=True)
    masks, usable = np.stack(drawn).astype(bool), np.array(states) == "ok"
    whole = _whole_face_forgeries(frames, masks, usable, landmarks)
    masked = usable & np.array([frame.forgery not in whole for frame in frames])
    return DetectedFakes(
        frames=list(frames),
        parts=parts,
        pixels=torch.cat(pixels),
        masks=torch.from_numpy(masks),
        masked=torch.from_numpy(masked),
        landmarks=landmarks,
        mask_states={state: states.count(state) for state in ("ok", "none", "empty", "full", "unreadable")},
        whole_face=whole,
    )


def _mask(part: Sequence[Frame], resolution: int, evidence: Evidence) -> tuple[str, np.ndarray]:
    """Return the state of a sample's mask, as in `DetectedFakes.mask_states`, and the mask (H, R), zero unless ok.

    A clip has a mask if each of its frames has one.
    """
    nothing = np.zeros((len(part) * resolution, resolution), dtype=np.uint8)
    try:
        masks = [_frame_mask(frame.path, resolution, evidence) for frame in part]
    except UnreadableImage:
        return "unreadable", nothing
    there = [mask for mask in masks if mask is not None]
    if len(there) < len(part):
        return "none", nothing
    mask = np.concatenate(there)
    state = "empty" if not mask.any() else "full" if mask.all() else "ok"
    return state, mask if state == "ok" else nothing


def _frame_mask(frame: str, resolution: int, evidence: Evidence) -> np.ndarray | None:
    """Return the mask (R, R) of the frame with this path, if it has one."""
    if evidence.masks is None:
        return read_mask(frame, resolution)
    path = evidence.masks[frame]
    return None if path is None else read_mask_file(path, resolution)


def stored_size(frame: Frame) -> tuple[int, int]:
    """Return height and width of the image on disk. Raises UnreadableImage."""
    height, width = decode_image(read_bytes(frame.path), None).shape[:2]
    return height, width


def _face_points(frame: Frame) -> np.ndarray | None:
    """Return landmarks (81, 2) as shares of the stored image's sides; None if unreadable."""
    try:
        return face_points(frame.path)
    except UnreadableImage:
        return None


def _whole_face_forgeries(
    frames: Sequence[Frame], masks: np.ndarray, usable: np.ndarray, landmarks: Sequence[np.ndarray | None]
) -> list[str]:
    """Return the forgeries whose masks mostly cover the whole face, so that there is nothing to localise."""
    covered: dict[str, list[bool]] = {}
    for frame, mask, good, points in zip(frames, masks, usable, landmarks, strict=True):
        if good:
            face, least = (mask, WHOLE_IMAGE) if points is None else (mask[_faces(points, mask.shape)], WHOLE_FACE)
            covered.setdefault(frame.forgery, []).append(bool(face.mean() >= least))
    return [forgery for forgery, whole_masks in covered.items() if np.mean(whole_masks) > 0.5]


def _faces(points: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return which pixels of a picture (H, R) are in the face, bool: the same ones in every frame."""
    height, side = size
    return np.tile(hull(points, (side, side)) > 0, (height // side, 1))
