"""Forge a part of a photographed face: taken from another face, resampled, matched in colour, and blended in.

The traces left are those of real local forgeries: a softer (resampled) texture, a decoder's grid, a remaining
difference of colour, noise that is not the camera's, a blending border, and features of another person. A `strength`
near 0 leaves hardly any.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from examples.synthetic_shapes import Array

HALF_AXES = {  # of the ellipse that is replaced, in distances between the eyes
    "eyeswap": (0.37, 0.28),
    "noseswap": (0.31, 0.36),
    "mouthswap": (0.45, 0.25),
    "cheekblend": (0.31, 0.31),
    "innerface": (0.68, 0.66),
}
KINDS = tuple(HALF_AXES)


class Forgery(NamedTuple):
    """How one video is forged: the same in all of its frames."""

    kind: str  # one of KINDS
    side: int  # 0 or 1: which eye or cheek
    strength: float  # 0 to 1: how much of each trace is left
    size: float  # of the patch, about 1
    softness: float  # sigma of the blending border, pixels
    resampling: float  # the patch went through this scale, < 1
    tint: Array  # (3,) colour left over after matching, of 255
    noise: float  # share of the camera's noise that the patch shows
    grid: float  # amplitude of the grid that a decoder's upsampling leaves, of 255


def random_forgery(kind: str, rng: np.random.Generator) -> Forgery:
    strength = float(rng.uniform(0.3, 1.0))
    tint = rng.normal(0, 1, 3) + rng.normal(0, 1)  # mostly lighter or darker, a little of another hue
    tint *= (5.0 + 15.0 * strength) / np.linalg.norm(tint)
    return Forgery(
        kind=kind,
        side=int(rng.integers(2)),
        strength=strength,
        size=float(rng.uniform(0.95, 1.12)),
        softness=float(rng.uniform(1.2, 2.2)),
        resampling=float(1.0 - 0.68 * strength - rng.uniform(0.05, 0.15)),
        tint=tint.astype(np.float32),
        noise=float(1.0 - strength * rng.uniform(0.7, 1.0)),
        grid=float(max(0.0, 9.0 * strength - 1.5)),
    )


def forged_area(forgery: Forgery, landmarks: Array) -> Array:
    """The blend's opacity, (224, 224) float32, 0 to 1, from the landmarks of the face that is forged."""
    anchors = _anchors(forgery.kind, forgery.side, landmarks)
    across = anchors[1] - anchors[0]
    angle = float(np.degrees(np.arctan2(across[1], across[0])))
    face = float(
        np.linalg.norm(landmarks[36:42].mean(0) - landmarks[42:48].mean(0))
    )  # between the eyes: 0.8 face units
    axes = forgery.size * face * np.array(HALF_AXES[forgery.kind])
    canvas = np.zeros((224, 224), np.uint8)
    centre = anchors.mean(0) if forgery.kind != "noseswap" else landmarks[[28, 29, 30, 33]].mean(0)
    fixed = np.round(centre * 16).astype(int).tolist(), np.round(axes * 16).astype(int).tolist()
    cv2.ellipse(canvas, fixed[0], fixed[1], angle, 0, 360, 255, -1, cv2.LINE_AA, shift=4)
    return cv2.GaussianBlur(canvas.astype(np.float32) / 255.0, (0, 0), forgery.softness)


def forged_mask(area: Array) -> Array:
    """(H, W) uint8: 255 where the blend changes the image visibly, else 0."""
    return np.where(area > 0.1, 255, 0).astype(np.uint8)


def forge(
    forgery: Forgery, target: Array, target_landmarks: Array, donor: Array, donor_landmarks: Array, noise: Array
) -> tuple[Array, Array]:
    """Blend the donor's part into the target.

    Args:
        target, donor: photographs before the sensor, (H, W, 3) float32 in 0..255.
        target_landmarks, donor_landmarks: (81, 2) float32, pixels.
        noise: the sensor's noise of the target frame, (H, W, 3) float32.

    Returns:
        The forged image with its noise, before JPEG, (H, W, 3) float32, and the opacity of the blend, (H, W) float32.
    """
    area = forged_area(forgery, target_landmarks)
    patch = _resampled(_aligned(forgery, target_landmarks, donor, donor_landmarks), forgery.resampling)
    inside = area > 0.5
    offset = target[inside].mean(0) - patch[inside].mean(0)
    patch = patch + offset + forgery.tint + forgery.grid * _grid(area.shape)[..., None]
    genuine, pasted = target + noise, patch + noise * forgery.noise
    return genuine + (pasted - genuine) * area[..., None], area


def _grid(shape: tuple[int, ...]) -> Array:
    """A grid of four pixels a mesh, as transposed convolutions leave it, (H, W) in -1..1."""
    wave = [np.cos(np.pi / 2 * np.arange(length) + 0.5) for length in shape]
    return (0.5 * (wave[0][:, None] + wave[1])).astype(np.float32)


def _anchors(kind: str, side: int, landmarks: Array) -> Array:
    """Two points that fix place, size and turn of a part, (2, 2), from left to right."""
    left, right = landmarks[36:42].mean(0), landmarks[42:48].mean(0)
    if kind == "eyeswap":
        return landmarks[[36, 39]] if side == 0 else landmarks[[42, 45]]
    if kind == "mouthswap":
        return landmarks[[48, 54]]
    if kind == "cheekblend":
        eye, corner = (left, landmarks[48]) if side == 0 else (right, landmarks[54])
        centre = 0.5 * (eye + corner) + 0.12 * (landmarks[3 if side == 0 else 13] - 0.5 * (eye + corner))
        return np.stack([centre - 0.25 * (right - left), centre + 0.25 * (right - left)])
    if kind == "innerface":
        down = landmarks[48:60].mean(0) - 0.5 * (left + right)
        return np.stack([left, right]) + 0.46 * down
    return np.stack([left, right])


def _aligned(forgery: Forgery, target_landmarks: Array, donor: Array, donor_landmarks: Array) -> Array:
    """The donor's image moved, turned and scaled so that its part lies on the target's."""
    source, goal = (_anchors(forgery.kind, forgery.side, points) for points in (donor_landmarks, target_landmarks))
    a, b = complex(*(source[1] - source[0])), complex(*(goal[1] - goal[0]))
    turn = b / a
    linear = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    if forgery.kind == "noseswap":  # turned and scaled as the eyes are, placed by the nose
        source, goal = donor_landmarks[[28, 29, 30, 33]], target_landmarks[[28, 29, 30, 33]]
    shift = goal.mean(0) - linear @ source.mean(0)
    matrix = np.concatenate([linear, shift[:, None]], 1)
    return cv2.warpAffine(donor, matrix, donor.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _resampled(image: Array, scale: float) -> Array:
    height, width = image.shape[:2]
    small = cv2.resize(
        image, (max(8, round(width * scale)), max(8, round(height * scale))), interpolation=cv2.INTER_AREA
    )
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
