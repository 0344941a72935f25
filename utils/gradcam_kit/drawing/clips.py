"""Drawing of clips' maps: a mosaic of frames on one colour scale, and a strip of frames under a curve of time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from ..engine.clips.grid import steps_of
from ..engine.clips.maps import ClipMaps
from ..engine.maps import LayerMaps
from .overlays import INK, NONE_DENIED, PAPER, WARNING, Denied, LayerImage, drawn_over, signed_shares, text_line

SIDE = 112  # maximum pixels per side of a frame in a mosaic
HOTTEST = 3  # frames in a strip that get a red border
CURVE, NUMBER = 48, 18  # heights of the curve of time and of the frames' numbers
EVIDENCE_LINE, COST_LINE = "evidence in each frame", "how far the score drops if a frame is replaced"
EVIDENCE, AGAINST = (214, 0, 0), (0, 76, 230)


@dataclass(frozen=True, slots=True)
class ClipImage(LayerImage):
    """A LayerImage of a clip: `overlay`, `raw` and `signed` are mosaics of the frames.

    `cells` (2, t, h, w) float32: the raw and the signed map at the layer's own time steps. `time` (T,) float32: each
    frame's share of the signed map. `frames` (T, H, W, 3) uint8 RGB: the overlays.
    """

    cells: np.ndarray = field(kw_only=True)
    time: np.ndarray = field(kw_only=True)
    frames: np.ndarray = field(kw_only=True)
    grey: str = field(default="", kw_only=True)  # a sentence that tells why the curve of time is grey; else ""
    cost: tuple[float, ...] = field(default=(), kw_only=True)  # what replacing each frame costs the score, if measured


def mosaic_shape(frames: int) -> tuple[int, int]:
    """Return rows and columns for a number of frames: nearly square, if possible without empty cells."""
    least = math.ceil(math.sqrt(frames))
    columns = next((count for count in range(least, 2 * least) if frames % count == 0), least)
    return -(-frames // columns), columns


def mosaic(frames: Tensor) -> Tensor:
    """Arrange frames (B, T, h, w, ...) as (B, rows · h, columns · w, ...); empty cells are 0."""
    rows, columns = mosaic_shape(frames.shape[1])
    spare = rows * columns - frames.shape[1]
    if spare:
        frames = torch.cat([frames, frames.new_zeros(len(frames), spare, *frames.shape[2:])], dim=1)
    split = frames.unflatten(1, (rows, columns)).transpose(2, 3)
    return split.flatten(3, 4).flatten(1, 2)


def shrink(frames: Tensor) -> Tensor:
    """Shrink frames (B, T, H, W, 3) uint8 to at most SIDE pixels a side."""
    height, width = frames.shape[2:4]
    scale = SIDE / max(height, width)
    if scale >= 1:
        return frames
    size = max(1, round(height * scale)), max(1, round(width * scale))
    pixels = frames.flatten(0, 1).permute(0, 3, 1, 2).float()
    fewer = torch.nn.functional.interpolate(pixels, size=size, mode="area").round().to(torch.uint8)
    return fewer.permute(0, 2, 3, 1).unflatten(0, frames.shape[:2])


def mosaic_of(clip: Tensor) -> np.ndarray:
    """Draw uint8 frames (T, 3, H, W) as one picture, (rows · h, columns · w, 3) uint8 RGB."""
    return mosaic(shrink(clip.permute(0, 2, 3, 1).unsqueeze(0)))[0].cpu().numpy()


class DrawnClips(NamedTuple):
    """The drawings of clips, with the interface of `overlays.DrawnLayers`."""

    images: list[list[LayerImage]]

    def read(self) -> list[list[LayerImage]]:
        """Return the drawings, which are already on the CPU."""
        return self.images


def clip_images(
    clips: Tensor, layers: Mapping[str, LayerMaps], colormap: str, signed: bool = False, denied: Denied = NONE_DENIED
) -> list[list[LayerImage]]:
    """Draw the maps of clips (B, T, 3, H, W) uint8 RGB: one list of `ClipImage` per clip, one entry per layer.

    `signed` and `denied` as for `overlays.layer_images`.
    """
    drawn = [
        _drawn(name, clips, maps, (colormap, signed), denied.get(name, [False] * len(clips)))
        for name, maps in layers.items()
        if isinstance(maps, ClipMaps)
    ]
    return [list(of_clip) for of_clip in zip(*drawn, strict=True)]


def _drawn(name: str, clips: Tensor, maps: ClipMaps, how: tuple[str, bool], denied: Sequence[bool]) -> list[LayerImage]:
    colormap, signed = how
    count, frames = clips.shape[:2]
    pixels = clips.to(maps.raw.device).flatten(0, 1)
    steps = steps_of(maps.times, frames)
    shares = signed_shares(maps)[:, steps.to(pixels.device)] if signed else None
    drawn_empty = maps.empty if shares is None else ~shares.flatten(1).any(dim=1)
    of_frames = replace(maps, normalised=maps.normalised.flatten(0, 1), empty=maps.empty.repeat_interleave(frames))
    on_frames = None if shares is None else shares.flatten(0, 1)
    over = drawn_over(pixels, of_frames, on_frames, colormap, [one for one in denied for _ in range(frames)])
    over = over.unflatten(0, (count, frames)).cpu()
    cells = torch.stack([of.float().cpu() for of in (maps.raw, maps.signed)], dim=1).numpy()
    raw, sign = (mosaic(of.float().cpu()[:, steps]).numpy() for of in (maps.raw, maps.signed))
    pictures, time = mosaic(shrink(over)).numpy(), maps.time.float().cpu().numpy()
    return [
        ClipImage(
            name=name,
            overlay=pictures[i],
            raw=raw[i],
            signed=sign[i],
            empty=bool(maps.empty[i]),
            drawn_empty=bool(drawn_empty[i]),
            artefact=bool(maps.artefact[i]),
            denied=denied[i],
            cells=cells[i],
            time=time[i],
            frames=over[i].numpy(),
        )
        for i in range(count)
    ]


# ---------------------------------------------------------------------------------------------------------- the strip


def strip(layer: ClipImage, numbers: Sequence[int]) -> np.ndarray:
    """Draw all frames in a row with their numbers, under the curve of time: (H, T · side, 3) uint8 RGB.

    The curve has a bar per frame, red for evidence for the score, blue against it; above a grey curve stands
    `layer.grey`. A second curve shows `layer.cost`. The hottest frames have a red border.
    """
    frames = shrink(torch.from_numpy(layer.frames).unsqueeze(0))[0].numpy()
    count, height, width = frames.shape[:3]
    hottest = {int(place) for place in np.argsort(-layer.time, kind="stable")[:HOTTEST] if layer.time[place] > 0}
    columns = []
    for place, frame in enumerate(frames):
        picture = frame.copy()
        if place in hottest:
            cv2.rectangle(picture, (1, 1), (width - 2, height - 2), WARNING, 2)
        columns.append(np.vstack([picture, text_line(str(numbers[place]), width, NUMBER, 11, centred=True)]))
    curve = time_curve(layer.time, width * count, grey=bool(layer.grey))
    heading = [text_line(layer.grey, width * count, NUMBER, 11)] if layer.grey else []
    parts = [*heading, curve]
    if layer.cost:
        lines = [text_line(text, width * count, NUMBER, 11) for text in (EVIDENCE_LINE, COST_LINE)]
        parts = [*heading, lines[0], curve, lines[1], time_curve(np.array(layer.cost), width * count)]
    return np.vstack([*parts, np.hstack(columns)])


def time_curve(time: np.ndarray, width: int, grey: bool = False) -> np.ndarray:
    """Draw a bar for each of (T,) signed values, with a line at zero: (CURVE, width, 3) uint8 RGB."""
    canvas = np.full((CURVE, width, 3), PAPER[0], dtype=np.uint8)
    largest = float(np.abs(time).max(initial=0))
    low, high = min(0.0, float(time.min(initial=0))), max(0.0, float(time.max(initial=0)))
    zero = round((CURVE - 3) * (high / (high - low) if high > low else 1.0)) + 1
    for place, value in enumerate(time if largest > 0 else ()):
        left, right = (round((place + share) * width / len(time)) for share in (0.15, 0.85))
        top = zero - round((CURVE - 3) * float(value) / (high - low))
        ink = (150, 150, 150) if grey else EVIDENCE if value > 0 else AGAINST
        cv2.rectangle(canvas, (left, min(top, zero)), (right, max(top, zero)), ink, cv2.FILLED)
    cv2.line(canvas, (0, zero), (width - 1, zero), INK, 1)
    return canvas
