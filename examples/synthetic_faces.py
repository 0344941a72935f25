"""Draw a procedural head, front view: colour, opacity, relief and the 81 landmarks.

No photograph and no person is in it. A head is a height field with a painted skin on it; light falls on the normals of
the height field, and `examples/synthetic_camera.py` turns it by its relief and photographs it.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from examples.synthetic_shapes import (
    CHIN,
    CROWN,
    EYE_DISTANCE,
    EYE_LINE,
    SIZE,
    UNIT,
    Array,
    Features,
    X,
    Y,
    blob,
    blur,
    brow_line,
    eye_lids,
    face_landmarks,
    face_relief,
    half_width,
    linear,
    lip_lines,
    noise,
    over,
    region,
    rgb,
    step,
    strokes,
)

# sRGB, from very light to very dark
_SKIN = np.array(
    [(238, 205, 186), (226, 182, 154), (201, 152, 124), (168, 120, 92), (126, 88, 68), (88, 62, 50)], np.float32
)
_HAIR = np.array(
    [(28, 23, 22), (52, 36, 28), (88, 58, 38), (134, 96, 58), (186, 150, 100), (122, 58, 34), (150, 148, 146)],
    np.float32,
)
_IRIS = np.array([(70, 42, 24), (104, 68, 36), (92, 104, 66), (84, 116, 146), (110, 124, 132)], np.float32)


class Head(NamedTuple):
    """A drawn head, front view, `SIZE` x `SIZE` pixels."""

    colour: Array  # (SIZE, SIZE, 3) float32, linear light
    opacity: Array  # (SIZE, SIZE) float32, 0 to 1
    relief: Array  # (SIZE, SIZE) float32, height towards the viewer in face units, smooth
    landmarks: Array  # (81, 2) float32, face units
    skin: Array  # (3,) float32, linear light: for the neck


def skin_colour(rng: np.random.Generator) -> Array:
    """A skin colour between the palette's neighbours, (3,) float32, linear light."""
    tone = rng.uniform(0, len(_SKIN) - 1.001)
    low = int(tone)
    srgb = _SKIN[low] + (tone - low) * (_SKIN[low + 1] - _SKIN[low]) + rng.normal(0, 3, 3)
    return linear(np.clip(srgb, 20, 250))


def hair_colour(rng: np.random.Generator, skin: Array) -> Array:
    """Any hair on light skin, dark or grey hair on dark skin, (3,) float32, linear light."""
    choices = _HAIR if skin[0] > 0.45 else _HAIR[[0, 0, 1, 6]]
    return linear(np.clip(choices[rng.integers(len(choices))] * rng.uniform(0.8, 1.1), 8, 220))


def paint_skin(rng: np.random.Generator, features: Features, skin: Array) -> Array:
    """The unlit face: mottled skin, blush, freckles, moles, stubble; (SIZE, SIZE, 3)."""
    colour = np.ones((SIZE, SIZE, 3), np.float32) * skin
    colour *= (1 + 0.035 * noise(rng, 5, 4))[..., None]
    blush = blob(-0.52, 0.30, 0.2, 0.17) + blob(0.52, 0.30, 0.2, 0.17) + 0.8 * blob(0, 0.42, 0.12, 0.10)
    over(colour, skin * rgb(1.02, 0.72, 0.70), rng.uniform(0.15, 0.6) * np.clip(blush, 0, 1))
    for side in (-1, 1):
        over(colour, skin * rgb(0.66, 0.55, 0.56), 0.45 * blob(side * EYE_DISTANCE, EYE_LINE + 0.03, 0.2, 0.11))
    if rng.random() < 0.3:
        freckles = step(noise(rng, 72) - 1.5, 0.8) * (
            blob(-0.45, 0.2, 0.3, 0.2) + blob(0.45, 0.2, 0.3, 0.2) + blob(0, 0.2, 0.2, 0.2)
        )
        over(colour, skin * rgb(0.55, 0.42, 0.36), 0.5 * np.clip(freckles, 0, 1))
    for _ in range(rng.integers(0, 3)):
        size = rng.uniform(0.009, 0.017)
        over(colour, skin * 0.35, 0.7 * blob(rng.uniform(-0.7, 0.7), rng.uniform(-0.6, 1.1), size, size))
    if rng.random() < 0.3:
        beard = step(Y - 0.38 - 0.5 * np.exp(-((X / 0.45) ** 2)) * (np.abs(X) < 2), 0.3) + 0.8 * blob(
            0, 0.63, 0.2, 0.04
        )
        over(
            colour,
            skin * 0.25 + 0.01,
            rng.uniform(0.1, 0.4) * np.clip(beard, 0, 1) * np.clip(0.75 + 0.25 * noise(rng, 144), 0, 1),
        )
    return colour


def paint_lips(rng: np.random.Generator, features: Features, skin: Array, colour: Array) -> None:
    t = np.linspace(-1, 1, 41)
    top, opening_top, opening_bottom, bottom = lip_lines(features, t)
    tint = skin * rgb(0.95, 0.52, 0.55) if rng.random() < 0.75 else skin * rgb(0.85, 0.25, 0.32)
    wrinkles = 1 + 0.08 * cv2.resize(
        rng.standard_normal((12, 96)).astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC
    )
    lips = np.clip(
        region(np.concatenate([top, opening_top[::-1]]), 1.0)
        + region(np.concatenate([opening_bottom, bottom[::-1]]), 1.0),
        0,
        1,
    )
    over(colour, tint * wrinkles[..., None], 0.85 * lips)
    if features.lips[4] > 0.02:
        gap = region(np.concatenate([opening_top, opening_bottom[::-1]]), 0.8)
        over(colour, rgb(0.10, 0.03, 0.03), gap)
        teeth = (
            gap
            * step(0.76 - features.lips[3] * 0.2 + 0.35 * features.lips[4] - Y, 0.03)
            * step(0.7 * features.lips[0] - np.abs(X), 0.1)
        )
        over(colour, rgb(0.70, 0.66, 0.58), 0.9 * teeth)
    over(colour, skin * 0.12, 0.75 * strokes([opening_top * 1.0], 1, 0.9))


def paint_nostrils(features: Features, skin: Array, colour: Array) -> None:
    half = features.nose[0]
    for side in (-1, 1):
        over(colour, skin * 0.10, 0.80 * blob(side * half * 0.50, 0.505, 0.050, 0.020))
        over(colour, skin * 0.45, 0.50 * blob(side * half * 1.05, 0.46, 0.018, 0.06))
    over(colour, skin * 0.5, 0.35 * blob(0, 0.535, half * 0.6, 0.018))


def paint_eyes(rng: np.random.Generator, features: Features, skin: Array, light: Array, colour: Array) -> None:
    """Eyeball, iris, pupil, catch light, lashes and the crease over the lid."""
    irises = _IRIS if skin[0] > 0.3 else _IRIS[:2]
    iris = linear(np.clip(irises[rng.integers(len(irises))] + rng.normal(0, 8, 3), 10, 200))
    gaze = rng.uniform(-0.035, 0.035, 2) * [1.0, 0.4]
    rays = rng.standard_normal(64).astype(np.float32)
    t = np.linspace(-1, 1, 33)
    for side in (-1, 1):
        upper, lower = eye_lids(side, features, t)
        opening = region(np.concatenate([upper, lower[::-1]]), 0.7)
        x, y = side * EYE_DISTANCE + gaze[0], EYE_LINE - 0.015 + gaze[1]
        distance = np.hypot(X - x, Y - y)
        angle = ((np.arctan2(Y - y, X - x) / (2 * np.pi) + 0.5) * 63).astype(int)
        eye = np.ones((SIZE, SIZE, 3), np.float32) * rgb(0.62, 0.57, 0.54)
        eye *= (1 - 0.45 * np.clip(np.abs(X - side * EYE_DISTANCE) / features.eye[0], 0, 1) ** 2)[..., None]
        over(eye, iris * (1 + 0.25 * rays[angle] * (distance > 0.04))[..., None], step(0.088 - distance, 0.02))
        over(eye, iris * 0.18, 0.8 * np.exp(-0.5 * ((distance - 0.088) / 0.010) ** 2))
        over(eye, rgb(0.006, 0.006, 0.007), step(0.040 - distance, 0.016))
        lid_shadow = np.interp(X[0], upper[:, 0], upper[:, 1]).astype(np.float32)[None]
        eye *= (0.45 + 0.55 * np.clip((Y - lid_shadow) / 0.07, 0, 1))[..., None]
        over(eye, rgb(1.0, 1.0, 1.0), 0.9 * blob(x + 0.03 * np.sign(light[0]), y - 0.03, 0.014, 0.014))
        over(colour, eye, opening)
        over(colour, skin * 0.07, 0.85 * strokes([upper], 2, 0.8))
        over(colour, skin * 0.35, 0.45 * strokes([lower], 1, 0.8))
        over(colour, skin * 0.35, 0.55 * strokes([upper * [1, 1] - [0, 0.05]], 1, 1.2))


def paint_brows(rng: np.random.Generator, features: Features, hair: Array, colour: Array) -> None:
    thickness = features.brow[2]
    for side in (-1, 1):
        hairs = []
        for t in np.linspace(-1, 1, 46):
            start = brow_line(side, features, np.array([t]))[0] + rng.normal(0, thickness * 0.35, 2)
            outward = side * t
            length = thickness * (1.6 - 0.7 * outward)
            stroke = np.array([side * length * (0.6 + 0.3 * outward), -length * (0.5 - 0.6 * outward)])
            hairs.append(np.stack([start, start + stroke]))
        over(colour, hair * 0.5, 0.35 * blur(strokes(hairs), 2.5) + 0.55 * strokes(hairs))


# ---------------------------------------------------------------- hair, ears, light


def shade(z: Array, light: Array, ambient: float, gloss: float) -> tuple[Array, Array]:
    """Lambert shading by colour channel (SIZE, SIZE, 3), and the gloss (SIZE, SIZE). Red scatters further in skin."""

    def lambert(height: Array, wrap: float) -> tuple[Array, Array]:
        dx, dy = (cv2.Sobel(height, cv2.CV_32F, *order, scale=UNIT / 8) for order in ((1, 0), (0, 1)))
        normal = np.stack([-dx, -dy, np.ones_like(dx)], -1)
        normal = normal / np.linalg.norm(normal, axis=-1, keepdims=True)
        return np.clip((normal @ light + wrap) / (1 + wrap), 0, None), normal

    sharp, normal = lambert(blur(z, 1.0), 0.15)
    soft, _ = lambert(blur(z, 3.0), 0.40)
    half = light + np.array([0, 0, 1], np.float32)
    shine = gloss * np.clip(normal @ (half / np.linalg.norm(half)), 0, 1) ** 22
    hollow = np.clip(1 + 2.2 * (z - blur(z, 9.0)), 0.45, 1.12)  # less sky reaches a hollow
    diffuse = np.stack([0.35 * sharp + 0.65 * soft, 0.75 * sharp + 0.25 * soft, 0.85 * sharp + 0.15 * soft], -1)
    return (ambient + (1 - ambient) * 1.15 * diffuse) * hollow[..., None], shine * hollow


def paint_hair(
    rng: np.random.Generator, features: Features, hair: Array, light: Array, colour: Array, opacity: Array
) -> None:
    """Short, long or hardly any hair around the face; strands run along lines of equal share of the hair's width."""
    style = rng.choice(["short", "long", "cropped"], p=[0.45, 0.4, 0.15])
    volume = {"short": rng.uniform(0.08, 0.2), "long": rng.uniform(0.15, 0.3), "cropped": 0.03}[style]
    crown = np.clip(1 - np.abs(np.minimum(Y, 0) / (CROWN - volume)) ** 2.2, 0, 1) ** 0.5
    reach = np.maximum((features.width + volume) * crown, 1e-3) + (0.12 * np.clip(Y, 0, 2) if style == "long" else 0.0)
    waves = rng.uniform(0, 0.05) * np.sin(rng.uniform(3, 8) * Y + rng.uniform(0, 6))
    flow = ((X / reach + waves) * 0.48 + 0.5) * 320
    grain = blur(rng.standard_normal((24, 320)).astype(np.float32), 0.8) * 1.8
    strands = cv2.remap(
        grain, flow, ((Y + 2) * 5.5).astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    parting, curve = rng.uniform(-0.3, 0.3), rng.uniform(0.3, 0.6)
    line = features.hairline + curve * (X - parting) ** 2 + 0.035 * strands
    above = step(line - Y, 0.10)
    face = np.where(
        Y < 0.8, half_width(Y, features), half_width(np.full_like(Y, 0.8), features)
    )  # and the neck below it
    beside = step(np.abs(X) - 0.97 * face - 0.02 * strands, 0.06)
    end = {"short": rng.uniform(-0.1, 0.2), "long": rng.uniform(0.9, 2.2), "cropped": -0.2}[style]
    inside = (Y < 2) & (CROWN - volume < Y)
    cover = (
        np.clip(above + beside * step(end - Y + 0.05 * strands, 0.2), 0, 1)
        * step(reach - np.abs(X) + 0.02 * strands, 0.06)
        * inside
    )
    if style == "cropped":
        cover *= rng.uniform(0.3, 0.9)
    sheen = np.exp(-0.5 * ((Y + 1.05 - 0.25 * light[1] + 0.3 * X**2) / 0.16) ** 2)
    side_light = 0.75 + 0.35 * np.clip(X / reach * light[0] * 1.5 - Y * 0.15, -0.7, 0.8)
    tone = np.clip(1 + 0.30 * strands + 0.9 * sheen * (1 + 0.5 * strands), 0.25, None) * side_light
    behind = opacity * (1 - cover)  # what still shows of the head; where there is none, hair alone gives the colour
    over(colour, hair * tone[..., None], cover / np.maximum(cover + behind, 1e-6))
    opacity += cover * (1 - opacity)


def draw_head(features: Features, rng: np.random.Generator, skin: Array, light: Array, ambient: float) -> Head:
    """Draw one head. `light` is a unit vector (x right, y down, z to the viewer), `ambient` 0 to 1."""
    hair = hair_colour(rng, skin)
    z = face_relief(features)
    colour = paint_skin(rng, features, skin)
    paint_lips(rng, features, skin, colour)
    paint_nostrils(features, skin, colour)
    pores = 0.0028 * noise(rng, 144)
    diffuse, shine = shade(z + pores, light, ambient, gloss=rng.uniform(0.02, 0.09) * (0.4 + 0.6 * float(skin[0])))
    paint_eyes(rng, features, skin, light, colour)
    paint_brows(rng, features, hair, colour)
    colour = colour * diffuse + shine[..., None]
    inside = (Y > CROWN) & (Y < CHIN)
    opacity = blur(step(half_width(Y, features) - np.abs(X), 0.03) * inside, 0.7)
    ears = np.clip(sum(blob(side * (features.width + 0.03), 0.10, 0.075, 0.19) for side in (-1, 1)) * 3 - 1, 0, 1)
    lobe = skin * (0.55 + 0.12 * noise(rng, 24))[..., None]
    colour += (lobe - colour) * (ears * (1 - opacity))[..., None]
    opacity = np.maximum(opacity, ears)
    paint_hair(rng, features, hair, light, colour, opacity)
    return Head(colour.astype(np.float32), opacity.astype(np.float32), blur(z, 3.0), face_landmarks(features), skin)
