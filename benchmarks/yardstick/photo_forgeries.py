"""A third forger, for crops of real photographs: seven local kinds, blended with a soft edge, and two of whole images.

| kind | what is in the forged place |
|---|---|
| swap | another photograph, its colours adapted and then off by a tint |
| warp | the photograph itself, bent |
| smooth | what inpainting makes of its surroundings |
| checker | itself, resampled, with the grid of a decoder's upsampling |
| jpeg | itself, compressed once more on another grid |
| copy | another part of the same photograph, turned |
| feature | the eyes or the mouth of another face, colours adapted; on crops of faces only |
| upsampled, denoised | the whole image, resampled or without its noise: evidence that has no place, an empty mask |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import NamedTuple

import cv2
import numpy as np

from benchmarks.yardstick.forgeries import Forgery, Pair
from benchmarks.yardstick.photographs import Face, Photograph
from examples.synthetic_shapes import Array

LOCAL = ("swap", "warp", "smooth", "checker", "jpeg", "copy", "feature")
SPREAD = ("upsampled", "denoised")
LARGEST = 480  # pixels a side of the part of a photograph that a crop shows
LEAST_DEVIATION = 12.0  # grey levels: a crop of sky alone shows no forgery
LEAST_CHANGE = 3.0  # grey levels, mean of the forged place
TRIES = 20


class Crop(NamedTuple):
    """Part of a photograph, (side, side, 3) float32 in 0..255, and a face in its pixels where it shows one."""

    image: Array
    face: Face | None


class Scene(NamedTuple):
    """What a forgery is made of: the crop, another of the same photograph, one of another, and a crop of a face."""

    crop: Crop
    same: Array
    other: Array
    face: Crop | None


def forgeries(
    photographs: Sequence[Photograph], count: int, seed: int, side: int, kinds: Sequence[str] = LOCAL
) -> Iterator[Forgery]:
    """`count` pairs of side × side pixels; kinds and photographs take turns."""
    rng = np.random.default_rng(seed)
    with_faces = [photograph for photograph in photographs if photograph.faces]
    turns, turns_of_faces = cycle(rng.permutation(len(photographs))), cycle(range(len(with_faces)))
    for kind, _ in zip(cycle(kinds), range(count), strict=False):
        for _ in range(TRIES):
            photograph = with_faces[next(turns_of_faces)] if kind == "feature" else photographs[next(turns)]
            pair = forge(kind, scene(photograph, photographs, kind == "feature", rng, side), rng)
            if pair is not None:
                yield Forgery(photograph.name, kind, pair)
                break


def scene(
    photograph: Photograph, photographs: Sequence[Photograph], face: bool, rng: np.random.Generator, side: int
) -> Scene:
    others = [one for one in photographs if one.name != photograph.name]
    other = others[rng.integers(len(others))]
    crop = face_crop(photograph, rng, side) if face else Crop(random_crop(photograph.image, rng, side), None)
    faces = [one for one in others if one.faces]
    second = face_crop(faces[rng.integers(len(faces))], rng, side) if face and faces else None
    return Scene(crop, random_crop(photograph.image, rng, side), random_crop(other.image, rng, side), second)


def random_crop(image: Array, rng: np.random.Generator, side: int) -> Array:
    """A square part, larger than `side` and reduced to it; mirrored every second time."""
    large = int(rng.integers(side, min(LARGEST, *image.shape[:2]) + 1))
    y, x = (int(rng.integers(0, length - large + 1)) for length in image.shape[:2])
    part = image[y : y + large, x : x + large]
    return reduced(part[:, ::-1] if rng.random() < 0.5 else part, side)


def face_crop(photograph: Photograph, rng: np.random.Generator, side: int) -> Crop:
    """A square about one of its faces, four to five times as wide as the eyes are apart, at least `side`."""
    face = photograph.faces[rng.integers(len(photograph.faces))]
    left, right, mouth = (np.array(point, float) for point in (*face.eyes, face.mouth))
    large = max(side, round(float(np.linalg.norm(right - left)) * rng.uniform(4.0, 5.0)))
    middle = (left + right) / 4 + mouth / 2 + rng.normal(0, 0.05 * large, 2)
    corner = [int(np.clip(c - large / 2, 0, n - large)) for c, n in zip(middle, photograph.image.shape[1::-1])]  # noqa: B905  # both are x, y
    part = photograph.image[corner[1] : corner[1] + large, corner[0] : corner[0] + large]
    scale = side / large
    points = [tuple(round(float(v)) for v in (point - corner) * scale) for point in (left, right, mouth)]
    return Crop(reduced(part, side), Face((points[0], points[1]), points[2]))  # type: ignore[arg-type]  # each of two


def reduced(part: Array, side: int) -> Array:
    return cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)


def forge(kind: str, scene: Scene, rng: np.random.Generator) -> Pair | None:
    """The pair, or None where the crop is too plain, or the forgery changes next to nothing."""
    real = scene.crop.image
    if real.mean(axis=2).std() < LEAST_DEVIATION:
        return None
    if kind in SPREAD:
        return Pair(rounded(real), rounded(WHOLE[kind](real, rng)), np.zeros(real.shape[:2], np.uint8))
    if kind == "feature":
        placed = feature(scene, rng)
        if placed is None:
            return None
        patch, area = placed
    else:
        area = ellipse(len(real), rng)
        patch = PATCHES[kind](scene, area, rng)
    fake = real + (patch - real) * area[..., None]
    mask = area > 0.5
    if np.abs(rounded(fake).astype(float) - rounded(real))[mask].mean() < LEAST_CHANGE:
        return None
    return Pair(rounded(real), rounded(fake), mask.astype(np.uint8) * 255)


def rounded(image: Array) -> Array:
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def ellipse(side: int, rng: np.random.Generator) -> Array:
    """Opacity of the blend, (side, side) float32 in 0..1: an ellipse within the image, its edge soft."""
    axes = rng.uniform(0.15, 0.27, 2) * side
    centre = rng.uniform(0.18, 0.82, 2) * side
    return soft_ellipse(side, (float(centre[0]), float(centre[1])), axes, float(rng.uniform(0, 180)), rng)


def soft_ellipse(
    side: int, centre: tuple[float, float], axes: Array, degrees: float, rng: np.random.Generator
) -> Array:
    canvas = np.zeros((side, side), np.uint8)
    x, y = (round(v * 16) for v in centre)
    long, short = (round(float(v) * 16) for v in axes)
    cv2.ellipse(canvas, (x, y), (long, short), degrees, 0, 360, 255, -1, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(canvas.astype(np.float32) / 255.0, (0, 0), float(rng.uniform(1.5, 3.0)))


def adapted(patch: Array, real: Array, area: Array) -> Array:
    """`patch` with the mean and the deviation of each channel that the real image has in the area."""
    weight = area[..., None] / area.sum()
    means = [(image * weight).sum(axis=(0, 1)) for image in (patch, real)]
    deviations = [
        np.sqrt(((image - mean) ** 2 * weight).sum(axis=(0, 1)) + 1.0)
        for image, mean in zip((patch, real), means, strict=True)
    ]
    return (patch - means[0]) * np.clip(deviations[1] / deviations[0], 0.5, 2.0) + means[1]


def swap(scene: Scene, area: Array, rng: np.random.Generator) -> Array:
    tint = rng.normal(0, 1, 3)
    return adapted(scene.other, scene.crop.image, area) + tint * rng.uniform(15, 30) / np.linalg.norm(tint)


def warp(scene: Scene, area: Array, rng: np.random.Generator) -> Array:
    side = len(area)
    x, y = np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32))
    return cv2.remap(scene.crop.image, bent(x, rng), bent(y, rng), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def bent(plain: Array, rng: np.random.Generator) -> Array:
    """Coordinates moved by up to 5 to 10 % of the side, neighbours alike."""
    side = len(plain)
    field = cv2.GaussianBlur(rng.normal(0, 1, (side, side)).astype(np.float32), (0, 0), 0.05 * side)
    return plain + field * float(rng.uniform(0.05, 0.1) * side / np.abs(field).max())


def smooth(scene: Scene, area: Array, rng: np.random.Generator) -> Array:
    hole = (area > 0.05).astype(np.uint8)
    return cv2.inpaint(rounded(scene.crop.image), hole, 5, cv2.INPAINT_TELEA).astype(np.float32)


def checker(scene: Scene, area: Array, rng: np.random.Generator) -> Array:
    wave = np.cos(np.pi * np.arange(len(area)))
    grid = 0.5 * (wave[:, None] + wave) * rng.uniform(12, 24)
    return resampled(scene.crop.image, 0.5, cv2.INTER_LINEAR) + grid[..., None].astype(np.float32)


def jpeg(scene: Scene, area: Array, rng: np.random.Generator) -> Array:
    """Compressed with its blocks moved by some pixels, at a quality of 4 to 12."""
    down, right = (int(v) for v in rng.integers(1, 8, 2))
    moved = cv2.copyMakeBorder(rounded(scene.crop.image), down, 0, right, 0, cv2.BORDER_REFLECT)
    stored = cv2.imencode(".jpg", moved, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(4, 13))])[1]
    read: Array = cv2.imdecode(stored, cv2.IMREAD_COLOR)  # type: ignore[assignment]  # it was just encoded
    return read[down:, right:].astype(np.float32)


def copy(scene: Scene, area: Array, rng: np.random.Generator) -> Array:
    side = len(area)
    turned = cv2.getRotationMatrix2D((side / 2, side / 2), float(rng.uniform(0, 360)), float(rng.uniform(0.8, 1.5)))
    return cv2.warpAffine(scene.same, turned, (side, side), borderMode=cv2.BORDER_REFLECT)


def feature(scene: Scene, rng: np.random.Generator) -> tuple[Array, Array] | None:
    """Another face, laid over this one by its eyes, and the area of both eyes or of the mouth; None without a face."""
    if scene.crop.face is None or scene.face is None or scene.face.face is None:
        return None
    side, (ours, theirs) = len(scene.crop.image), (scene.crop.face, scene.face.face)
    points = [np.array([*face.eyes, face.mouth], np.float32) for face in (theirs, ours)]
    move = cv2.estimateAffinePartial2D(points[0], points[1])[0]
    if move is None:
        return None
    patch = cv2.warpAffine(scene.face.image, move, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    (x0, y0), (x1, y1) = ours.eyes
    apart, degrees = float(np.hypot(x1 - x0, y1 - y0)), float(np.degrees(np.arctan2(y1 - y0, x1 - x0)))
    eyes = rng.random() < 0.5
    centre = ((x0 + x1) / 2, (y0 + y1) / 2) if eyes else (float(ours.mouth[0]), float(ours.mouth[1]))
    axes = apart * (np.array([0.95, 0.45]) if eyes else np.array([0.65, 0.45]))
    area = soft_ellipse(side, centre, axes, degrees, rng)
    return adapted(patch, scene.crop.image, area), area


def resampled(image: Array, scale: float, interpolation: int) -> Array:
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[1::-1], interpolation=interpolation)


def upsampled(image: Array, rng: np.random.Generator) -> Array:
    return resampled(image, float(rng.uniform(0.35, 0.6)), cv2.INTER_CUBIC)


def denoised(image: Array, rng: np.random.Generator) -> Array:
    strength = float(rng.uniform(8, 16))
    return cv2.fastNlMeansDenoisingColored(rounded(image), None, strength, strength, 5, 15).astype(np.float32)


PATCHES: dict[str, Callable[[Scene, Array, np.random.Generator], Array]] = {
    "swap": swap,
    "warp": warp,
    "smooth": smooth,
    "checker": checker,
    "jpeg": jpeg,
    "copy": copy,
}
WHOLE: dict[str, Callable[[Array, np.random.Generator], Array]] = {"upsampled": upsampled, "denoised": denoised}
