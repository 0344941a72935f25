"""The shape of a procedural face: its random proportions, outlines, 81 landmarks and relief, and brushes to paint with.

Coordinates are face units: x to the right, y down, the origin between eyes and nose, about one unit from there to the
side of the face. Images of the face are `SIZE` x `SIZE` pixels, float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SIZE = 288  # pixels of the square drawing
UNIT = 72.0  # pixels a face unit
CHIN, CROWN, EYE_LINE, EYE_DISTANCE = 1.25, -1.45, -0.10, 0.40
Y, X = (np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) - SIZE / 2) / UNIT  # of each pixel, face units


class Features(NamedTuple):
    """The shape of one face. Lengths in face units."""

    width: float
    jaw: tuple[float, float]
    nose: tuple[float, float]  # half width, height of the tip
    eye: tuple[float, float, float]  # half width, upper lid, slant
    brow: tuple[float, float, float]  # height over the eye, arch, thickness
    lips: tuple[float, float, float, float, float]  # half width, upper, lower, smile, opening
    hairline: float


def rgb(red: float, green: float, blue: float) -> Array:
    return np.array([red, green, blue], np.float32)


def linear(srgb: Array) -> Array:
    """sRGB 0..255 to linear light 0..1, by the gamma of 2.2 that the camera undoes."""
    return ((srgb / 255.0) ** 2.2).astype(np.float32)


def noise(rng: np.random.Generator, cells: int, octaves: int = 1) -> Array:
    """Smooth noise of about unit deviation, (SIZE, SIZE); `cells` grains across, twice as many in the next octave."""
    total = np.zeros((SIZE, SIZE), np.float32)
    for octave in range(octaves):
        grains = rng.standard_normal((cells << octave, cells << octave)).astype(np.float32)
        total += cv2.resize(grains, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) * 0.6**octave
    return total


def blob(x: float, y: float, sx: float, sy: float) -> Array:
    """A Gaussian bump of height 1."""
    return np.exp(-0.5 * (((X - x) / sx) ** 2 + ((Y - y) / sy) ** 2))


def step(field: Array, softness: float) -> Array:
    """0 below, 1 above zero of a field, soft over about `softness`."""
    return np.clip(field / softness + 0.5, 0.0, 1.0)


def blur(image: Array, sigma: float) -> Array:
    return cv2.GaussianBlur(image, (0, 0), sigma)


def region(points: Array, softness: float = 0.6) -> Array:
    """The filled polygon of `points` (N, 2) as an opacity, softened by `softness` pixels."""
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    cv2.fillPoly(canvas, [_fixed(points)], 255, cv2.LINE_AA, shift=4)
    return blur(canvas.astype(np.float32) / 255.0, softness)


def strokes(lines: list[Array], thickness: int = 1, softness: float = 0.5) -> Array:
    """Open polylines as an opacity."""
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    cv2.polylines(canvas, [_fixed(line) for line in lines], False, 255, thickness, cv2.LINE_AA, shift=4)
    return blur(canvas.astype(np.float32) / 255.0, softness)


def _fixed(points: Array) -> Array:
    return np.round((points * UNIT + SIZE / 2) * 16).astype(np.int32)


def over(colour: Array, paint: Array, opacity: Array) -> None:
    """Paint on `colour` in place; `paint` is a colour (3,) or an image (SIZE, SIZE, 3).

    Most paint covers little of the image: only the box around it is worked on.
    """
    rows, columns = (np.flatnonzero(opacity.max(axis) > 1e-3) for axis in (1, 0))
    if rows.size == 0:
        return
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    below = colour[box]
    below += ((paint[box] if paint.ndim == 3 else paint) - below) * opacity[box][..., None]


# ---------------------------------------------------------------- shape


def random_features(rng: np.random.Generator) -> Features:
    u = rng.uniform
    return Features(
        width=u(0.86, 0.98),
        jaw=(u(2.1, 3.0), u(0.50, 0.68)),
        nose=(u(0.15, 0.22), u(0.24, 0.38)),
        eye=(u(0.175, 0.215), u(0.075, 0.115), u(-0.02, 0.03)),
        brow=(u(0.22, 0.29), u(0.02, 0.08), u(0.030, 0.055)),
        lips=(u(0.27, 0.37), u(0.05, 0.09), u(0.07, 0.125), u(-0.02, 0.10), max(0.0, u(-0.06, 0.09))),
        hairline=u(-1.08, -0.82),
    )


def half_width(y: Array, features: Features) -> Array:
    """Half the width of the head at height y: an ellipse above the origin, a jaw below it."""
    power, round_off = features.jaw
    upper = np.clip(1 - np.abs(y / CROWN) ** 2.4, 0, 1) ** 0.5
    lower = np.clip(1 - np.abs(y / CHIN) ** power, 0, 1) ** round_off
    return np.where(y < 0, upper, lower) * features.width


def eye_lids(side: int, features: Features, t: Array) -> tuple[Array, Array]:
    """Upper and lower lid, (N, 2) each, at t from -1 (left corner in the image) to 1."""
    half, height, slant = features.eye
    x = side * EYE_DISTANCE + half * t
    corner = EYE_LINE - slant * side * t
    bow = (1 - t**2) * (1 + 0.25 * side * -t)  # higher towards the nose
    return np.stack([x, corner - height * bow**0.8], 1), np.stack([x, corner + 0.55 * height * bow], 1)


def brow_line(side: int, features: Features, t: Array) -> Array:
    height, arch, _ = features.brow
    outward = side * t  # -1 at the nose, 1 at the temple
    return np.stack([side * 0.42 + 0.25 * t, EYE_LINE - height - arch * (1 - (outward - 0.2) ** 2) + 0.03 * outward], 1)


def lip_lines(features: Features, t: Array) -> tuple[Array, Array, Array, Array]:
    """Upper edge, opening above, opening below, lower edge; (N, 2) each, t from -1 to 1."""
    half, upper, lower, smile, opening = features.lips
    bow = np.clip(1 - t**2, 0, 1)
    line = 0.76 - smile * t**2
    heights = (
        line - upper * bow**0.7 * (1 - 0.22 * np.exp(-((t / 0.14) ** 2))) - 0.3 * opening * bow,
        line - 0.3 * opening * bow,
        line + 0.7 * opening * bow,
        line + lower * bow**0.6 + 0.7 * opening * bow,
    )
    first, second, third, fourth = (np.stack([half * t, height], 1) for height in heights)
    return first, second, third, fourth


def face_landmarks(features: Features) -> Array:
    """The 81 points in the order of dlib's 68 plus 13 along the forehead, (81, 2) float32."""
    angle = np.linspace(0, np.pi, 17)
    jaw_y = EYE_LINE + (CHIN - EYE_LINE) * np.sin(angle)
    jaw = np.stack([-np.sign(np.cos(angle).round(6)) * half_width(jaw_y, features), jaw_y], 1)
    brows = [brow_line(side, features, np.linspace(-1, 1, 5)) for side in (-1, 1)]
    bridge = np.stack([np.zeros(4), np.linspace(EYE_LINE, 0.38, 4)], 1)
    wings = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    nostrils = np.stack([wings * features.nose[0], 0.52 - 0.06 * np.abs(wings)], 1)
    eyes = []
    for side in (-1, 1):
        upper, lower = eye_lids(side, features, np.array([-1, -0.33, 0.33, 1.0]))
        eyes.append(np.concatenate([upper, lower[[2, 1]]]))
    outer = np.array([-1, -0.62, -0.28, 0, 0.28, 0.62, 1.0])
    inner = np.array([-0.85, -0.35, 0, 0.35, 0.85])
    mouth = [lip_lines(features, outer)[0], lip_lines(features, outer)[3][5:0:-1]]
    mouth += [lip_lines(features, inner)[1], lip_lines(features, inner)[2][3:0:-1]]
    x = np.linspace(-0.8, 0.8, 13)
    forehead = np.stack([x * features.width, features.hairline + 0.45 * x**2], 1)
    return np.concatenate([jaw, *brows, bridge, nostrils, *eyes, *mouth, forehead]).astype(np.float32)


def face_relief(features: Features) -> Array:
    """The height field of the face, (SIZE, SIZE), face units."""
    across = X / np.maximum(half_width(Y, features), 1e-3)
    z = 0.78 * np.clip(1 - np.abs(across) ** 2.6, 0, 1) ** 0.55 * (1 - 0.22 * np.clip(Y / CHIN, 0, 1.2) ** 3)
    half, tip = features.nose
    ridge = np.clip((Y - EYE_LINE + 0.16) / 0.54, 0, 1)
    ridge = ridge**2 * (3 - 2 * ridge) * step(0.50 - Y, 0.16)
    z += (0.14 + (tip - 0.14) * ridge) * ridge * np.exp(-0.5 * (X / (0.075 + 0.05 * ridge)) ** 2)
    for side in (-1, 1):
        z += 0.10 * blob(side * half * 0.72, 0.44, 0.055, 0.06)  # wing of the nose
        z -= 0.10 * blob(side * EYE_DISTANCE, EYE_LINE - 0.02, 0.20, 0.13)  # socket
        z += 0.06 * blob(side * EYE_DISTANCE, EYE_LINE, 0.13, 0.085)  # eyeball
        z += 0.05 * blob(side * 0.40, EYE_LINE - 0.27, 0.26, 0.07)  # brow ridge
        z += 0.07 * blob(side * 0.55, 0.22, 0.20, 0.15)  # cheekbone
        z -= 0.020 * blob(side * 0.43, 0.62, 0.04, 0.16)  # fold from nose to mouth
    width, upper, lower, _, opening = features.lips
    z += 0.06 * blob(0, 0.76 - 0.6 * upper, 0.6 * width, 0.05) + 0.07 * blob(
        0, 0.76 + 0.6 * lower + 0.7 * opening, 0.5 * width, 0.05
    )
    z -= 0.04 * blob(0, 0.76, 0.7 * width, 0.02) + 0.02 * blob(0, 0.62, 0.035, 0.06) + 0.04 * blob(0, 0.96, 0.2, 0.05)
    z += 0.07 * blob(0, 1.10, 0.17, 0.11)  # chin
    return z.astype(np.float32)
