"""Clips for the measurements: a clip is measured as a picture of its frames, one below the other.

A patch of such a picture is a cell of one frame, so the measurements of images also measure clips. An image is a
picture of one frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..engine.clips.families import clip_tower_of
from ..engine.clips.grid import steps_of
from ..engine.heads import Target
from ..engine.maps import Canvas, normalise
from ..engine.recipe import Recipe
from ..engine.towers.tower import Tower
from ..explaining.clips.one_pass import explain_clips
from ..explaining.one_pass import BatchRequest
from ..judge.controls import control_maps
from ..model.detector import LoadedDetector, Scores

FRAME_CELLS = 4  # rows and columns of the cells of a frame that transplant exchanges
CONTROL_CELLS = 32  # rows and columns of the controls' maps of a frame
IN_TIME = 0.25  # standard deviation in time of the centred blob, as a share of the clip


def pictures_of(clips: Tensor) -> Tensor:
    """Stack the frames of clips: (N, T, 3, R, R) → (N, 3, T · R, R), or (N, T, h, w) → (N, T · h, w)."""
    return clips.flatten(1, 2) if clips.ndim == 4 else clips.transpose(1, 2).flatten(2, 3)


def clips_of(pictures: Tensor, frames: int) -> Tensor:
    """Undo `pictures_of` for images: (N, 3, T · R, R) → (N, T, 3, R, R)."""
    return pictures.unflatten(2, (frames, -1)).transpose(1, 2).contiguous()


def frames_of(detector: LoadedDetector) -> int:
    """Return the frames of a picture: those of a clip, 1 for an image detector."""
    return detector.settings.clip_size or 1


def scores(detector: LoadedDetector, pictures: Tensor) -> Scores:
    """Score normalised pictures (N, 3, T · R, R); differentiable."""
    clip_size = detector.settings.clip_size
    return detector.scores(pictures if clip_size is None else clips_of(pictures, clip_size))


def measured_tower(detector: LoadedDetector) -> Tower:
    """Return the network whose layers are measured."""
    model = detector.model
    tower: Tower = model.tower if detector.settings.clip_size is None else clip_tower_of(model)
    return tower


def make_clip_maps(
    detector: LoadedDetector, recipes: Sequence[Recipe], pixels: Tensor, target: Target, batch_size: int, title: str
) -> dict[Recipe, Tensor]:
    """Make the raw maps (N, T · h, w) float32 ≥ 0 on the CPU of pictures (N, 3, T · R, R) uint8, as `make_maps`."""
    subject, frames = detector.as_clip_subject(), frames_of(detector)
    parts: dict[Recipe, list[Tensor]] = {recipe: [] for recipe in recipes}
    with tqdm(total=len(pixels), unit="clip", desc=title, disable=not title) as bar:
        for part in pixels.split(batch_size):
            clips = detector.normalise(clips_of(part, frames))
            made = explain_clips(subject, {"image": clips}, BatchRequest(list(recipes), target), "clips").made
            for recipe, of_recipe in zip(recipes, made, strict=True):
                (maps,) = of_recipe.layers.values()
                raw = torch.where(maps.empty[:, None, None, None], torch.zeros_like(maps.raw), maps.raw)
                parts[recipe].append(pictures_of(raw[:, steps_of(raw.shape[1], frames)]).float().cpu())
            bar.update(len(part))
    return {recipe: torch.cat(found) for recipe, found in parts.items()}


def resized_clips(detector: LoadedDetector, raw: Tensor) -> Tensor:
    """Resize raw maps (N, T · h, w) to (N, T · R, R) in [0, 1] on the detector's device, as they are drawn."""
    frames, side = frames_of(detector), detector.settings.resolution
    canvas = Canvas.of((side, side), measured_tower(detector).grid(side, side))
    each = raw.to(detector.device).unflatten(1, (frames, -1))
    return pictures_of(normalise(each, canvas))


def clip_controls(
    landmarks: Sequence[np.ndarray | None], frames: int, cells: tuple[int, int], seed: int
) -> dict[Recipe, Tensor]:
    """Return the controls for N clips: noise (N, *cells) on the maps' grid, the others (N, T · 32, 32).

    The centred blob is also centred in time; the mean face is the same in every frame.
    """
    side = CONTROL_CELLS
    noise, blob, face = control_maps(landmarks, cells, (side, side), seed).items()
    time = torch.linspace(-1, 1, frames)
    near = torch.exp(-time.square() / (2 * (2 * IN_TIME) ** 2)) if frames > 1 else torch.ones(1)
    found = [
        (blob[0], blob[1][:1, None] * near[None, :, None, None]),
        (face[0], face[1][:1, None].repeat(1, frames, 1, 1)),
    ]
    return dict([noise, *((one, pictures_of(maps).expand(len(landmarks), -1, -1)) for one, maps in found)])
