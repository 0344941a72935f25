"""Drawing of maps: colour, blend, compose. Colouring and blending are batched, on the device of their input."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from ..base.typed import Count
from ..engine.checks import FromDevice
from ..engine.maps import LayerMaps, scaled

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

OPACITY, SIGNED_OPACITY = 0.5, 0.85  # of a heatmap; of a signed map at its largest magnitude
ABOVE, BELOW = (214, 0, 0), (0, 76, 230)  # evidence for fake, evidence for real
UNSEEN = 160  # grey level of pixels at the edge that belong to no patch
GREY = "grey"  # an additional colour map, for artefacts
FAINT = 1e-3  # a faint layer's maximum, as a share of the strongest layer's
Panels = Sequence[tuple[str, np.ndarray]]  # caption and image (H, W, 3) uint8 RGB
Denied = Mapping[str, Sequence[bool]]  # layer → for each image, whether the verdict is artefact
NONE_DENIED: Denied = {}
ONE_KIND: Mapping[str, str] = {}

MARGIN = 8  # pixels around and between the panels of a comparison
CAPTION, TITLE = 24, 30  # heights of the caption below each panel, and of a line above all panels
LONGEST = 2048  # maximum pixels per side of a photograph with a pasted crop
Ink = tuple[int, int, int]
INK, PAPER, WARNING = (20, 20, 20), (255, 255, 255), (176, 0, 32)

ENCODER_FLAGS = {
    "jpg": [cv2.IMWRITE_JPEG_QUALITY, 92],
    "webp": [cv2.IMWRITE_WEBP_QUALITY, 90],
    # OpenCV 5 tries every filter on every row by default, which takes twice as long and saves nothing here.
    "png": [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    if hasattr(cv2, "IMWRITE_PNG_FILTER")
    else [cv2.IMWRITE_PNG_COMPRESSION, 3],  # OpenCV before 4.11
}


def colour_table(colormap: str) -> Tensor:
    """Return a colour map as (256, 3) uint8 RGB, low to high."""
    ramp = np.arange(256, dtype=np.uint8).reshape(256, 1)
    if colormap == GREY:
        return torch.from_numpy(np.repeat(ramp, 3, axis=1))
    table = cv2.applyColorMap(ramp, getattr(cv2, f"COLORMAP_{colormap.upper()}"))
    return torch.from_numpy(np.ascontiguousarray(table.reshape(256, 3)[:, ::-1]))


@functools.cache
def _table_on(device: torch.device, colormap: str) -> Tensor:
    return colour_table(colormap).to(device)


@functools.cache
def _inks_on(device: torch.device) -> Tensor:
    return torch.tensor([ABOVE, BELOW], dtype=torch.float32, device=device)


def colour(maps: Tensor, colormap: str = "jet") -> Tensor:
    """Colour maps (..., H, W) in [0, 1] as (..., H, W, 3) uint8 RGB. `colormap`: one of COLORMAPS, or GREY."""
    table = _table_on(maps.device, colormap)
    # Maps may not be known to be finite yet, and an index outside the table would end a CUDA process.
    return table[(maps * 255).nan_to_num(0).round().long().clamp(0, 255)]


def overlay(images: Tensor, maps: Tensor, empty: Tensor, colormap: str = "jet") -> Tensor:
    """Blend maps (B, H, W) in [0, 1] over images (B, 3, H, W) uint8 RGB; returns (B, H, W, 3) uint8 RGB.

    `empty`: (B,) bool. The image under an empty map stays unchanged, because any colour would claim a value.
    """
    plain = images.permute(0, 2, 3, 1)
    blended = torch.lerp(plain.float(), colour(maps, colormap).float(), OPACITY).round().to(torch.uint8)
    return torch.where(empty.to(maps.device)[:, None, None, None], plain, blended)


def unseen_in_grey(images: Tensor, seen: tuple[int, int]) -> Tensor:
    """Grey out images (B, H, W, 3) uint8 RGB outside `seen` (h, w), which the network does not read."""
    if tuple(images.shape[1:3]) == seen:
        return images
    marked = torch.full_like(images, UNSEEN)
    marked[:, : seen[0], : seen[1]] = images[:, : seen[0], : seen[1]]
    return marked


def signed_overlay(images: Tensor, signed: Tensor) -> Tensor:
    """Blend signed maps (B, H, W) in [-1, 1] over images (B, 3, H, W) uint8 RGB; returns (B, H, W, 3) uint8 RGB.

    Positive values are red, negative ones blue; at zero the image stays unchanged.
    """
    plain = images.permute(0, 2, 3, 1).float()
    above, below = _inks_on(images.device)
    ink = torch.where((signed > 0).unsqueeze(-1), above, below)
    return torch.lerp(plain, ink, SIGNED_OPACITY * signed.abs().unsqueeze(-1)).round().to(torch.uint8)


def encode(image: np.ndarray, image_format: str = "png") -> bytes:
    """Encode an image, (H, W, 3) uint8 RGB, as a file's bytes."""
    done, data = cv2.imencode(f".{image_format}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), ENCODER_FLAGS[image_format])
    if not done:
        raise OSError(f"OpenCV could not encode an image of shape {image.shape} as {image_format}")
    return data.tobytes()


@dataclass(frozen=True, slots=True)
class Box:
    """A panel's place in a comparison of `of_width` × `of_height` pixels."""

    left: Count
    top: Count
    width: Count
    height: Count
    of_width: Count
    of_height: Count


def original_box(size: tuple[int, int], panels: int, warned: bool) -> Box:
    """Return the place of the original, of `size` (height, width), in a comparison.

    The original is read back from there, because a second copy would make a sample a fifth larger.
    """
    height, width = size
    top = TITLE * (2 if warned else 1) + MARGIN
    return Box(MARGIN, top, width, height, MARGIN + panels * (width + MARGIN), top + height + CAPTION + MARGIN)


def comparison(panels: Panels, title: str, warning: str = "") -> np.ndarray:
    """Draw panels of one size side by side under `title` and a red `warning`: (H', W', 3) uint8 RGB.

    Text that is too long for the panels is shortened.
    """
    height, width = panels[0][1].shape[:2]
    box = original_box((height, width), len(panels), bool(warning))
    canvas = np.full((box.of_height, box.of_width, 3), PAPER[0], dtype=np.uint8)
    for column, (caption, image) in enumerate(panels):
        left = MARGIN + column * (width + MARGIN)
        below = text_line(caption, width, CAPTION, 14, centred=True)
        canvas[box.top : box.top + height + CAPTION, left : left + width] = np.vstack([image, below])
    for i, (line, ink) in enumerate([(title, INK), *([(warning, WARNING)] if warning else [])]):
        top = MARGIN // 2 + i * TITLE
        canvas[top : top + TITLE, MARGIN:-MARGIN] = text_line(line, box.of_width - 2 * MARGIN, TITLE, 16, ink=ink)
    return canvas


# A run repeats the same few captions and titles for thousands of samples.
@functools.lru_cache(maxsize=512)
def text_line(text: str, width: int, height: int, size: int, centred: bool = False, ink: Ink = INK) -> np.ndarray:
    """Draw `text` on white: (height, width, 3) uint8 RGB, read-only. Long text is set smaller, then cut with "…"."""
    from PIL import Image, ImageDraw

    text = text.encode("utf-8", "replace").decode("utf-8")  # file names may contain lone surrogates
    font = _font(size)
    while font.getlength(text) > width and size > 9:
        size -= 1
        font = _font(size)
    while font.getlength(text) > width and len(text) > 1:
        text = text[:-2] + "…"
    drawn = Image.new("RGB", (width, height), PAPER)
    anchor, left = ("mm", width // 2) if centred else ("lm", 0)
    ImageDraw.Draw(drawn).text((left, height // 2), text, fill=ink, font=font, anchor=anchor)
    line = np.asarray(drawn).copy()
    line.flags.writeable = False
    return line


@functools.cache
def _font(size: int) -> FreeTypeFont:
    import matplotlib  # its DejaVu Sans makes images look the same on every machine
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


@dataclass(frozen=True, slots=True)
class LayerImage:
    """One layer's overlay and maps for one image."""

    name: str
    overlay: np.ndarray  # (H, W, 3) uint8 RGB
    raw: np.ndarray  # (h, w) float32 on the patch grid, not normalised
    signed: np.ndarray  # (h, w) float32, before ReLU
    empty: bool  # no patch stands out in `raw`; the engine decides it
    drawn_empty: bool  # `overlay` shows only the image
    artefact: bool = False  # `empty` because its values are only rounding error and LayerNorm's ε
    denied: bool = False  # the verdict is artefact: `overlay` is grey
    kind: str = ""  # set if several kinds of map are drawn, whose values cannot be compared


ARRAYS, FLAGS = ("overlay", "raw", "signed"), ("empty", "drawn_empty", "artefact")  # the tensors that `_draw` returns


def layer_images(
    images: Tensor,
    layers: Mapping[str, LayerMaps],
    colormap: str,
    signed: bool = False,
    denied: Denied = NONE_DENIED,
    kinds: Mapping[str, str] = ONE_KIND,
) -> list[list[LayerImage]]:
    """Draw the overlays of a batch on the maps' device. Return one list of layers per image.

    `images`: (B, 3, H, W) uint8 RGB on the maps' device. `signed`: draw positive and negative evidence; then only a map
    that is zero everywhere, or an artefact, is drawn empty. A `denied` map is grey, because a colour would claim
    evidence.
    """
    return DrawnLayers(images, layers, colormap, signed, denied, kinds).read()


class DrawnLayers:
    """The pending result of `layer_images`: drawn on the maps' device, and being copied from it."""

    def __init__(
        self,
        images: Tensor,
        layers: Mapping[str, LayerMaps],
        colormap: str,
        signed: bool,
        denied: Denied = NONE_DENIED,
        kinds: Mapping[str, str] = ONE_KIND,
    ) -> None:
        self._kinds = kinds
        self._denied = {name: denied.get(name, [False] * len(images)) for name in layers}
        drawn = [_draw(images, maps, colormap, signed, self._denied[name]) for name, maps in layers.items()]
        self._coming = FromDevice([tensor for layer in drawn for tensor in layer])

    def read(self) -> list[list[LayerImage]]:
        """Wait for the drawings and return them: one list of layers per image."""
        tensors = iter(self._coming.read())
        per_layer = []
        for name, denied in self._denied.items():
            drawn = [*(next(tensors).numpy() for _ in ARRAYS), *(next(tensors).tolist() for _ in FLAGS)]
            columns = [*drawn, denied, [self._kinds.get(name, "")] * len(denied)]
            per_layer.append([LayerImage(name, *row) for row in zip(*columns, strict=True)])
        return [list(of_image) for of_image in zip(*per_layer, strict=True)]


def _draw(images: Tensor, maps: LayerMaps, colormap: str, signed: bool, denied: Sequence[bool]) -> list[Tensor]:
    """Return the tensors ARRAYS and FLAGS of the whole batch."""
    shares = signed_shares(maps) if signed else None
    drawn = drawn_over(images, maps, shares, colormap, denied)
    drawn_empty = maps.empty if shares is None else ~shares.flatten(1).any(dim=1)
    return [drawn, maps.raw.float(), maps.signed.float(), maps.empty, drawn_empty, maps.artefact]


def signed_shares(maps: LayerMaps) -> Tensor:
    """Scale signed maps to the image's size, in [-1, 1]; an artefact is zero."""
    shares = scaled(maps.signed, maps.canvas)
    return shares.masked_fill(maps.artefact.view(-1, *[1] * (shares.ndim - 1)), 0)


def drawn_over(images: Tensor, maps: LayerMaps, shares: Tensor | None, colormap: str, denied: Sequence[bool]) -> Tensor:
    """Draw the normalised maps, or signed `shares` (B, H, W), over images (B, 3, H, W): (B, H, W, 3) uint8 RGB."""
    drawn = overlay(images, maps.normalised, maps.empty, colormap) if shares is None else signed_overlay(images, shares)
    if any(denied):
        which = torch.tensor(denied, device=drawn.device)
        drawn[which] = overlay(images[which], maps.normalised[which], maps.empty[which], GREY)
    return unseen_in_grey(drawn, maps.canvas.seen)


def panels(image: np.ndarray, layers: Sequence[LayerImage]) -> Panels:
    """Return the original and every layer's overlay, each with its caption."""
    faint = faint_layers([(layer.name, layer.kind, float(layer.raw.max())) for layer in layers])
    return [("original", image), *((layer.name + _remark(layer, faint), layer.overlay) for layer in layers)]


def _remark(layer: LayerImage, faint: Sequence[str]) -> str:
    if layer.drawn_empty:
        return " (empty map)"
    if layer.denied:
        return " (artefact)"
    return " (faint map)" if layer.name in faint else ""


def faint_layers(maxima: Sequence[tuple[str, str, float]]) -> list[str]:
    """Name the layers whose raw map is a thousand times weaker than another's of the same kind.

    After normalisation they would look equally strong. `maxima`: name, kind of map, maximum.
    """
    most: dict[str, float] = {}
    for _, kind, value in maxima:
        most[kind] = max(value, most.get(kind, 0.0))
    return [name for name, kind, value in maxima if 0 < value < FAINT * most[kind]]


class PastedCrop(NamedTuple):
    """A photograph, (H, W, 3) uint8 RGB, and the matrix (2, 3) from its pixels to those of the explained crop."""

    photo: np.ndarray
    matrix: np.ndarray

    def over(self, overlay: np.ndarray) -> np.ndarray:
        """Paste the crop's overlay and outline into the photograph, scaled to at most LONGEST pixels a side."""
        photo, matrix = self.photo, self.matrix
        scale = min(1.0, LONGEST / max(photo.shape[:2]))
        if scale < 1:
            photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            matrix = matrix @ np.diag([1 / scale, 1 / scale, 1.0])
        return paste(photo.copy(), overlay, matrix)


def paste(photo: np.ndarray, overlay: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Paste `overlay` (h, w, 3) into `photo` (H, W, 3), both uint8 RGB. `matrix` (2, 3) maps photo to overlay."""
    size = photo.shape[1::-1]
    back = cv2.warpAffine(overlay, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    inside = np.ones(overlay.shape[:2], dtype=np.uint8)
    covered = cv2.warpAffine(inside, matrix, size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP) > 0
    photo[covered] = back[covered]
    height, width = overlay.shape[:2]
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], dtype=float)
    outline = np.rint(corners @ np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2].T).astype(np.int32)
    cv2.polylines(photo, [outline], True, PAPER, max(1, round(max(photo.shape) / 600)), cv2.LINE_AA)
    return photo


def denormalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo the normalisation of images (B, 3, H, W) by mean and std per channel; returns uint8 RGB."""
    centre, spread = (image.new_tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (mean, std))
    return ((image.float() * spread + centre) * 255).round().clamp(0, 255).to(torch.uint8)


def stretch_range(image: Tensor) -> Tensor:
    """Scale images (B, 3, H, W) of unknown normalisation to uint8 RGB by their own range; colours may be off."""
    flat = image.float().flatten(1)
    low, high = flat.amin(dim=1).view(-1, 1, 1, 1), flat.amax(dim=1).view(-1, 1, 1, 1)
    return ((image.float() - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)
