"""The live app's detector: faces, scores, maps, and the score without a region."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from ..base.allowed import METHOD_NAMES
from ..base.decision import CLASS_NAMES, predicted_class
from ..base.errors import InputError
from ..data.images import UnreadableImage, decode_image, read_file
from ..drawing.overlays import colour_table
from ..engine.layers import SUM, block_names
from ..explaining.checking import MapChecker
from ..explaining.explanation import Explanation
from ..judge.transplant import blurred
from ..media.faces import Photographs, View, face_finder, is_installed
from ..media.single_images import is_video, to_pixels
from ..media.video_files import VideoReader
from ..model.detector import LoadedDetector

LIVE_FILLS = ("paired real", "blur", "grey")  # blur and grey may be evidence themselves
AS_CONFIGURED = "as configured"
MOST_SIDE = 2_048  # maximum pixels per side of a stored photograph
FIRST_FRAMES = 3_000  # frames of a video that one can choose from


class OpenedFile(NamedTuple):
    """An image or a video's frame, and its faces."""

    photo: np.ndarray  # (H, W, 3) uint8 RGB, at most MOST_SIDE a side
    views: list[View]  # their matrices refer to the original photograph
    remark: str  # for the user
    frames: int  # number of frames; 1 for an image
    scale: float  # side of `photo` ÷ side of the original photograph

    def matrix_in_photo(self, view: int) -> np.ndarray | None:
        """Return the matrix (2, 3) from `photo` to the crop; None if the view is the whole image."""
        matrix = self.views[view].matrix
        return None if matrix is None else np.hstack([matrix[:, :2] / self.scale, matrix[:, 2:]])


class LiveMap(NamedTuple):
    """One explained view: `image` (R, R, 3) uint8 RGB, `heat` (R, R) in [0, 1], the verdict, the report to download."""

    image: np.ndarray
    heat: np.ndarray
    prob_fake: float
    word: str
    report: dict[str, Any]

    def overlay(self, opacity: float, colormap: str = "inferno") -> np.ndarray:
        """Draw the map over the image, more opaque where it is hotter: (R, R, 3) uint8 RGB. An artefact is grey."""
        table = colour_table("grey" if self.word == "artefact" else colormap).numpy()
        colours = table[np.rint(self.heat * 255).astype(int)]
        alpha = (opacity * self.heat)[..., None]
        return np.rint(self.image * (1 - alpha) + colours * alpha).astype(np.uint8)

    def verdict(self) -> str:
        """Return the prediction and the map's verdict in words."""
        predicted = CLASS_NAMES[predicted_class(self.prob_fake)].lower()
        return f"{predicted}: fake probability {self.prob_fake:.3f}; the map is {self.word}"


@dataclass(frozen=True)
class LiveDetector:
    """A detector for one file at a time. It keeps no state between calls."""

    detector: LoadedDetector
    photographs: Photographs

    @classmethod
    def of(cls, detector: LoadedDetector) -> LiveDetector:
        """Test the detector, and find faces if dlib is installed. Raises InputError for an unusable detector."""
        detector.check_predictions()
        find = face_finder() if is_installed() else None
        return cls(detector, Photographs(detector.settings.resolution, "all" if find else "auto", find))

    def layers(self) -> list[str]:
        blocks = block_names(self.detector.model.explained_tower)
        return [AS_CONFIGURED, *([*reversed(blocks), SUM] if blocks else self.detector.model.default_layers())]

    def methods(self) -> list[str]:
        return [AS_CONFIGURED, *METHOD_NAMES]

    def open(self, file: str | Path, frame: int = 0) -> OpenedFile:
        """Open an image, or a frame of a video (at most the last). Raises UnreadableImage, UnreadableVideo."""
        path, frames = Path(file), 1
        if is_video(path):
            reader = VideoReader(path)
            frames = max(1, min(reader.length, FIRST_FRAMES))
            shown = deque(islice(reader, min(frame, frames - 1) + 1), maxlen=1)
            if not shown:
                raise UnreadableImage("no frame of the video can be decoded")
            photo = shown[0].image
        else:
            photo = decode_image(read_file(str(path)), None)
        faces = self.photographs.faces(photo)
        whole = not faces or self.photographs.is_crop(photo, faces)
        cropped = replace(self.photographs, mode="auto") if whole else self.photographs
        views, remark = cropped.views_of(photo, faces)
        scale = min(1.0, MOST_SIDE / max(photo.shape[:2]))
        if scale < 1:  # a large photograph would fill memory while the page is open
            photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        return OpenedFile(photo, views, remark, frames, scale)

    def explain(self, view: View, layer: str, method: str, target: str) -> LiveMap:
        """Explain and check one view. Raises InputError for a layer that the method cannot read."""
        images = self.detector.normalise(to_pixels(view.image))
        named: dict[str, Any] = {} if method == AS_CONFIGURED else {"method": method}
        layers = None if layer == AS_CONFIGURED else [layer]
        explanation: Explanation = self.detector.model.explain(images, layers=layers, target=target, **named)
        name, maps = next(iter(explanation.layers.items()))
        check = MapChecker(self.detector, 1).checks(images, explanation, [0])[name][0]
        word = "empty" if bool(maps.empty[0]) else check.word
        prob_fake = float(explanation.prob_fake[0])
        report = {
            "layer": name, "method": explanation.method, "site": explanation.site, "backward": explanation.backward,
            "target": explanation.target[0], "prob_fake": prob_fake, "logits": explanation.logits[0].tolist(),
            "map": word, "raw_maximum": float(maps.raw[0].max()), "check": asdict(check),
            "weights": self.detector.settings.weights_name, "weights_sha256": self.detector.weights_sha256,
        }  # fmt: skip
        heat = maps.normalised[0].float().cpu().numpy()
        return LiveMap(view.image, heat, prob_fake, word, report)

    def without(self, view: View, region: np.ndarray, fill: str, paired: np.ndarray | None = None) -> list[float]:
        """Return P(fake) of a view without and with its `region` replaced. `fill`: one of LIVE_FILLS.

        `region`: (h, w) bool of any size. "paired real" takes the pixels of `paired` (H, W, 3) uint8 RGB, an image of
        the same scene. Raises InputError if `paired` is missing, or `region` is empty.
        """
        size = view.image.shape[0]
        inside = cv2.resize(region.astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST) > 0
        if not inside.any():
            raise InputError("nothing is painted: paint over a region first")
        image = to_pixels(view.image)
        changed = torch.where(torch.from_numpy(inside), _filler(image, view, fill, paired), image)
        _, prob = self.detector.predict(torch.cat([image, changed]))
        return list(prob.tolist())


def _filler(image: Tensor, view: View, fill: str, paired: np.ndarray | None) -> Tensor:
    if fill == "blur":
        return blurred(image.float()).round().clamp(0, 255).to(torch.uint8)
    if fill == "grey":
        return torch.full_like(image, 128)
    if paired is None:
        raise InputError(
            "no paired real image: drop the real image that the fake was made from, or fill by blur or grey, which some"
            " detectors call fake themselves"
        )
    size = view.image.shape[:2]
    if view.matrix is not None:
        return to_pixels(cv2.warpAffine(paired, view.matrix, size))
    return to_pixels(cv2.resize(paired, size, interpolation=cv2.INTER_CUBIC))


def region_of(layers: Sequence[np.ndarray]) -> np.ndarray:
    """Return the painted region, (h, w) bool, of an editor's layers (h, w, 4) RGBA; (1, 1) False without layers."""
    if len({layer.shape for layer in layers}) > 1:
        raise InputError("the painted layers have different sizes: clear them and paint again")
    return np.any([layer[..., 3] > 0 for layer in layers], axis=0) if layers else np.zeros((1, 1), dtype=bool)
