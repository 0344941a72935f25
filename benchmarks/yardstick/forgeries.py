"""A second forger, so that the towers don't all read one trace.

A part of the face is replaced by itself: softened by resampling, tinted, without the camera's noise, and with the
grid that a decoder's upsampling leaves. Nothing else tells real from fake, and the place is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from examples.synthetic_camera import (
    RESOLUTION,
    Camera,
    develop,
    draw_background,
    draw_shoulders,
    moved,
    photograph,
    random_camera,
    random_light,
    random_pose,
    sensor_noise,
)
from examples.synthetic_faces import draw_head, skin_colour
from examples.synthetic_forgeries import forged_mask
from examples.synthetic_shapes import Array, random_features

FRAMES = 2  # of each video


class Photo(NamedTuple):
    """What the camera saw, before its sensor: (224, 224, 3) float32 in 0..255, and the landmarks (81, 2) in pixels."""

    video: str
    number: int
    image: Array
    landmarks: Array
    camera: Camera


class Pair(NamedTuple):
    """A real frame and the fake made from it, (R, R, 3) uint8 RGB, and where it was forged, (R, R) uint8."""

    real: Array
    fake: Array
    mask: Array


class Forgery(NamedTuple):
    """A pair of a video, or of a photograph, and the kind of its forgery."""

    video: str
    kind: str
    pair: Pair


def photos(split: str, videos: int, seed: int) -> Iterator[Photo]:
    """The frames of some videos, each with a face of its own."""
    for number in range(videos):
        rng = np.random.default_rng([seed, ("train", "val", "test").index(split), number])
        light, ambient = random_light(rng)
        skin = skin_colour(rng)
        head = draw_head(random_features(rng), rng, skin, light, ambient)
        camera, pose, background = random_camera(rng), random_pose(rng), draw_background(rng)
        draw_shoulders(background, rng, skin, pose, light)
        for index in range(FRAMES):
            image, landmarks = photograph(head, background, pose, camera)
            yield Photo(f"{split}_{number:04d}", index, image, landmarks, camera)
            pose = moved(pose, rng)


def forge(photo: Photo, rng: np.random.Generator, size: float = 1.0) -> Pair:
    """Forge an ellipse somewhere between brows and chin, its axes `size` times as long as usual."""
    area = _ellipse(photo.landmarks, rng, size)
    scale = rng.uniform(0.25, 0.45)
    small = cv2.resize(photo.image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    patch = cv2.resize(small, (RESOLUTION, RESOLUTION), interpolation=cv2.INTER_CUBIC)
    tint = rng.normal(0, 1, 3) + rng.normal(0, 1)
    patch = patch + tint * rng.uniform(5, 12) / np.linalg.norm(tint) + rng.uniform(4, 8) * _grid()[..., None]
    noise = sensor_noise(photo.camera, rng)
    genuine = photo.image + noise
    fake = genuine + (patch - genuine) * area[..., None]
    return Pair(develop(genuine, photo.camera), develop(fake, photo.camera), forged_mask(area))


def _ellipse(landmarks: Array, rng: np.random.Generator, size: float) -> Array:
    """Opacity of the blend, (224, 224) float32 in 0..1."""
    centre = rng.dirichlet(np.ones(3)) @ landmarks[rng.choice(68, 3, replace=False)]
    axes = size * rng.uniform(15, 30, 2)
    canvas = np.zeros((RESOLUTION, RESOLUTION), np.uint8)
    fixed = np.round(centre * 16).astype(int).tolist(), np.round(axes * 16).astype(int).tolist()
    cv2.ellipse(canvas, fixed[0], fixed[1], rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA, shift=4)
    return cv2.GaussianBlur(canvas.astype(np.float32) / 255.0, (0, 0), float(rng.uniform(1.2, 2.2)))


def _grid() -> Array:
    """A grid of two pixels a mesh, (224, 224) in -1..1."""
    wave = np.cos(np.pi * np.arange(RESOLUTION))
    return (0.5 * (wave[:, None] + wave)).astype(np.float32)
