"""Photograph a drawn head: pose, background, lens, sensor noise and JPEG.

A video is one head before one background with one camera, and a pose that moves a little from frame to frame.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from examples.synthetic_faces import Head
from examples.synthetic_shapes import SIZE, UNIT, Array, linear

RESOLUTION = 224


class Pose(NamedTuple):
    yaw: float  # radians, all three
    pitch: float
    roll: float
    scale: float  # pixels a face unit
    x: float  # where the origin of the face lies in the image, pixels
    y: float


class Camera(NamedTuple):
    exposure: float
    balance: Array  # (3,) gain of red, green, blue
    blur: float  # sigma of the lens, pixels
    noise: float  # deviation of the sensor's noise in mid grey, of 255
    grain: float  # sigma of the noise's grain, pixels: 0 is white noise
    quality: int  # of the JPEG


def random_pose(rng: np.random.Generator) -> Pose:
    u = rng.uniform
    return Pose(u(-0.36, 0.36), u(-0.18, 0.18), u(-0.14, 0.14), u(59, 68), 112 + u(-6, 6), 117 + u(-5, 5))


def moved(pose: Pose, rng: np.random.Generator) -> Pose:
    """The pose a few frames later."""
    return Pose(*(np.array(pose) + rng.normal(0, [0.035, 0.025, 0.015, 0.4, 1.0, 0.8])).tolist())


def random_camera(rng: np.random.Generator) -> Camera:
    u = rng.uniform
    balance = np.array([1.0, 1.0, 1.0]) + rng.normal(0, [0.07, 0.02, 0.08])
    return Camera(
        u(0.85, 1.25), balance.astype(np.float32), u(0.3, 0.8), u(2.5, 7.0), u(0.0, 0.5), int(rng.integers(80, 97))
    )


def random_light(rng: np.random.Generator) -> tuple[Array, float]:
    """Direction of the light, a unit vector (3,), and the share of ambient light."""
    light = np.array([rng.uniform(-0.9, 0.9), rng.uniform(-0.8, 0.1), 1.0], np.float32)
    return light / np.linalg.norm(light), float(rng.uniform(0.18, 0.45))


def draw_background(rng: np.random.Generator) -> Array:
    """An out-of-focus room, (RESOLUTION, RESOLUTION, 3) float32, linear light."""
    size = RESOLUTION
    corners = linear(rng.uniform(40, 200) + rng.normal(0, 14, (2, 2, 3)).clip(-30, 30)).astype(np.float32)
    image = cv2.resize(corners, (size, size), interpolation=cv2.INTER_LINEAR)
    for _ in range(rng.integers(3, 10)):  # furniture, lamps, windows
        colour = linear(np.clip(rng.uniform(20, 230) + rng.normal(0, 16, 3), 5, 250))
        centre, half = rng.uniform(0, size, 2), rng.uniform(8, 60, 2)
        box = np.stack([centre - half, centre + half]).astype(int)
        cv2.rectangle(image, box[0].tolist(), box[1].tolist(), colour.tolist(), -1)
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(2.5, 11))


def draw_shoulders(image: Array, rng: np.random.Generator, skin: Array, pose: Pose, light: Array) -> None:
    """Neck and clothes below the head, painted on `image` in place."""
    y, x = np.mgrid[0:RESOLUTION, 0:RESOLUTION].astype(np.float32)
    x, y = (x - pose.x) / pose.scale, (y - pose.y) / pose.scale
    neck = np.clip((0.50 + 0.25 * np.clip(y - 1.35, 0, 1) ** 2 - np.abs(x)) / 0.04 + 0.5, 0, 1) * (y > 0.6)
    roundness = 0.55 + 0.45 * np.clip(1 - (x / 0.6) ** 2, 0, 1) + 0.3 * light[0] * x
    shadow = 0.35 + 0.65 * np.clip((y - 1.15 - 0.25 * (1 - x**2)) / 0.35, 0, 1)
    image += ((skin * 0.75) * (roundness * shadow)[..., None] - image) * neck[..., None]
    cloth = linear(np.clip(rng.uniform(20, 190) + rng.normal(0, 26, 3), 8, 240))
    collar = 1.38 + 0.20 * np.clip(1 - (x / 0.52) ** 2, 0, 1) ** 0.5 + 0.30 * np.clip(np.abs(x) - 0.50, 0, None) ** 1.2
    weave = 1 + 0.06 * cv2.GaussianBlur(rng.standard_normal(x.shape).astype(np.float32), (0, 0), 0.8)
    worn = np.clip((y - collar) / 0.04 + 0.5, 0, 1)
    folds = (0.75 + 0.3 * light[0] * x + 0.1 * np.sin(7 * x + 2 * y)) * weave
    image += (cloth * folds[..., None] - image) * worn[..., None]


def photograph(head: Head, background: Array, pose: Pose, camera: Camera) -> tuple[Array, Array]:
    """The head in its pose before the background.

    Returns the image before the sensor, (RESOLUTION, RESOLUTION, 3) float32 in 0..255 (sRGB), and the landmarks in
    its pixels, (81, 2) float32.
    """
    v, u = np.mgrid[0:RESOLUTION, 0:RESOLUTION].astype(np.float32)
    cos, sin = math.cos(pose.roll), math.sin(pose.roll)
    dx, dy = (u - pose.x) / pose.scale, (v - pose.y) / pose.scale
    seen_x, seen_y = cos * dx + sin * dy, cos * dy - sin * dx
    x, y = seen_x, seen_y
    for _ in range(5):  # which point of the head is seen here? It depends on the relief there: a fixed point
        z = _sample(head.relief, x, y) - 0.4
        x = (seen_x - z * math.sin(pose.yaw)) / math.cos(pose.yaw)
        y = (seen_y - z * math.sin(pose.pitch)) / math.cos(pose.pitch)
    opacity = _sample(head.opacity, x, y)[..., None]
    image = background + (_sample(head.colour, x, y) - background) * opacity
    image = np.clip(image * camera.exposure * camera.balance, 0, 1) ** np.float32(1 / 2.2)
    return cv2.GaussianBlur(image * 255.0, (0, 0), camera.blur), _seen(head, pose)


def _sample(image: Array, x: Array, y: Array) -> Array:
    return cv2.remap(image, x * UNIT + SIZE / 2, y * UNIT + SIZE / 2, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _seen(head: Head, pose: Pose) -> Array:
    """The landmarks in the image's pixels: the same turn as `photograph`, forward."""
    x, y = head.landmarks[:, 0], head.landmarks[:, 1]
    z = _sample(head.relief, x[None], y[None])[0] - 0.4
    seen_x = x * math.cos(pose.yaw) + z * math.sin(pose.yaw)
    seen_y = y * math.cos(pose.pitch) + z * math.sin(pose.pitch)
    cos, sin = math.cos(pose.roll), math.sin(pose.roll)
    image_x = (cos * seen_x - sin * seen_y) * pose.scale + pose.x
    image_y = (sin * seen_x + cos * seen_y) * pose.scale + pose.y
    return np.stack([image_x, image_y], 1).astype(np.float32)


def sensor_noise(camera: Camera, rng: np.random.Generator) -> Array:
    """Noise for an image in 0..255, (RESOLUTION, RESOLUTION, 3); channels partly agree, as after demosaicing."""
    shape = (RESOLUTION, RESOLUTION)
    grey, colour = rng.standard_normal((*shape, 1), np.float32), rng.standard_normal((*shape, 3), np.float32)
    noise = 0.8 * grey + 0.6 * colour
    if camera.grain > 0.2:
        noise = cv2.GaussianBlur(noise, (0, 0), camera.grain)
        noise = noise / noise.std()
    return noise * camera.noise


def develop(image: Array, camera: Camera) -> Array:
    """The image after JPEG, (RESOLUTION, RESOLUTION, 3) uint8 RGB."""
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    written, data = cv2.imencode(
        ".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, camera.quality]
    )
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR) if written else None
    if decoded is None:
        raise RuntimeError("this OpenCV cannot encode and decode JPEG images")
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
