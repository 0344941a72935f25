"""Maps → pictures: colour, blend, compose. Colouring and blending are batched, on the device of their input."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Mapping, NamedTuple, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.cam.maps import LayerMaps, scaled
from utils.model.gradcam_settings import GradCAMSettings

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

OPACITY = 0.5
SIGNED_OPACITY = 0.85  # where a signed map is at its largest magnitude
ABOVE, BELOW = (214, 0, 0), (0, 76, 230)  # evidence for fake, evidence for real
IMAGE_FORMATS = ("png", "jpg", "webp")

MARGIN = 8  # pixels around and between the panels of a comparison
CAPTION = 24  # height of the line below each panel
TITLE = 30  # height of the line above all panels
TITLE_SIZE, CAPTION_SIZE = 16, 14
INK, PAPER, WARNING = (20, 20, 20), (255, 255, 255), (176, 0, 32)


@functools.lru_cache(maxsize=None)
def colour_table(colormap: str) -> Tensor:
    """(256, 3) uint8 RGB, low to high."""
    ramp = np.arange(256, dtype=np.uint8).reshape(256, 1)
    table = cv2.applyColorMap(ramp, getattr(cv2, f"COLORMAP_{colormap.upper()}"))
    return torch.from_numpy(np.ascontiguousarray(table.reshape(256, 3)[:, ::-1]))


def colour(maps: Tensor, colormap: str = "jet") -> Tensor:
    """Maps (..., H, W) in [0, 1] → (..., H, W, 3) uint8 RGB on their device; `colormap` is one of COLORMAPS."""
    table = colour_table(colormap).to(maps.device)
    return table[(maps * 255).round().long()]


def overlay(pictures: Tensor, maps: Tensor, empty: Tensor, colormap: str = "jet") -> Tensor:
    """The maps laid over the pictures.

    Args:
        pictures: (B, 3, H, W) uint8 RGB.
        maps: (B, H, W) in [0, 1], on the same device.
        empty: (B,) bool; the picture of an empty map stays as it is, since a colour would claim a value.

    Returns:
        (B, H, W, 3) uint8 RGB on the same device.
    """
    plain = pictures.permute(0, 2, 3, 1)
    blended = torch.lerp(plain.float(), colour(maps, colormap).float(), OPACITY).round().to(torch.uint8)
    return torch.where(empty.to(maps.device)[:, None, None, None], plain, blended)


def signed_overlay(pictures: Tensor, signed: Tensor) -> Tensor:
    """Evidence on both sides laid over the pictures: red above zero, blue below, the picture itself at zero.

    Args:
        pictures: (B, 3, H, W) uint8 RGB.
        signed: (B, H, W) in [-1, 1], on the same device.

    Returns:
        (B, H, W, 3) uint8 RGB on the same device.
    """
    plain = pictures.permute(0, 2, 3, 1).float()
    above, below = (torch.tensor(one, dtype=torch.float32, device=pictures.device) for one in (ABOVE, BELOW))
    ink = torch.where((signed > 0).unsqueeze(-1), above, below)
    return torch.lerp(plain, ink, SIGNED_OPACITY * signed.abs().unsqueeze(-1)).round().to(torch.uint8)


def encode(picture: np.ndarray, image_format: str = "png") -> bytes:
    """(H, W, 3) uint8 RGB → the bytes of an image file."""
    done, data = cv2.imencode(
        f".{image_format}", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), _encoder_flags(image_format)
    )
    if not done:
        raise OSError(f"OpenCV could not encode a picture of shape {picture.shape} as {image_format}")
    return data.tobytes()


def encode_grey(grey: np.ndarray) -> bytes:
    """(H, W) uint8 → the bytes of a PNG."""
    done, data = cv2.imencode(".png", grey)
    if not done:
        raise OSError(f"OpenCV could not encode a grey picture of shape {grey.shape}")
    return data.tobytes()


def _encoder_flags(image_format: str) -> list[int]:
    if image_format == "jpg":
        return [cv2.IMWRITE_JPEG_QUALITY, 92]
    if image_format == "webp":
        return [cv2.IMWRITE_WEBP_QUALITY, 90]
    if not hasattr(cv2, "IMWRITE_PNG_FILTER"):  # OpenCV before 4.11
        return [cv2.IMWRITE_PNG_COMPRESSION, 3]
    # Trying every filter on every row, which OpenCV 5 does by itself, takes twice as long and saves nothing here.
    return [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]


class Box(NamedTuple):
    """Where a panel lies in a comparison of `of_width` × `of_height` pixels."""

    left: int
    top: int
    width: int
    height: int
    of_width: int
    of_height: int


def original_box(size: tuple[int, int], panels: int, warned: bool) -> Box:
    """The place of the first panel, which is the original, of `size` (height, width)."""
    height, width = size
    top = TITLE * (2 if warned else 1) + MARGIN
    return Box(MARGIN, top, width, height, MARGIN + panels * (width + MARGIN), top + height + CAPTION + MARGIN)


def comparison(panels: Sequence[tuple[str, np.ndarray]], title: str, warning: str = "") -> np.ndarray:
    """Panels side by side with a caption below each and a title above all.

    Args:
        panels: (caption, picture (H, W, 3) uint8 RGB), all of one size.
        title: one line; shortened where the panels are too narrow for it.
        warning: a second line in red, for example that the weights are random.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    height, width = panels[0][1].shape[:2]
    box = original_box((height, width), len(panels), bool(warning))
    top = box.top
    canvas = np.full((box.of_height, box.of_width, 3), PAPER[0], dtype=np.uint8)
    for column, (caption, picture) in enumerate(panels):
        left = MARGIN + column * (width + MARGIN)
        canvas[top : top + height, left : left + width] = picture
        canvas[top + height : top + height + CAPTION, left : left + width] = text_line(
            caption, width, CAPTION, CAPTION_SIZE, centred=True
        )
    inner = canvas.shape[1] - 2 * MARGIN
    canvas[MARGIN // 2 : MARGIN // 2 + TITLE, MARGIN:-MARGIN] = text_line(title, inner, TITLE, TITLE_SIZE)
    if warning:
        canvas[MARGIN // 2 + TITLE : MARGIN // 2 + 2 * TITLE, MARGIN:-MARGIN] = text_line(
            warning, inner, TITLE, TITLE_SIZE, ink=WARNING
        )
    return canvas


# A run repeats the same few captions and titles for thousands of samples.
@functools.lru_cache(maxsize=512)
def text_line(
    text: str, width: int, height: int, size: int, centred: bool = False, ink: tuple[int, int, int] = INK
) -> np.ndarray:
    """`text` on white, (height, width, 3) uint8 RGB, read-only; set smaller, then cut with an ellipsis, to fit."""
    from PIL import Image, ImageDraw

    text = text.encode("utf-8", "replace").decode("utf-8")  # file names may hold what no font and no encoder has
    font = _font(size)
    while font.getlength(text) > width and size > 9:
        size -= 1
        font = _font(size)
    while font.getlength(text) > width and len(text) > 1:
        text = text[:-2] + "…"
    picture = Image.new("RGB", (width, height), PAPER)
    anchor, left = ("mm", width // 2) if centred else ("lm", 0)
    ImageDraw.Draw(picture).text((left, height // 2), text, fill=ink, font=font, anchor=anchor)
    line = np.asarray(picture).copy()
    line.flags.writeable = False
    return line


@functools.lru_cache(maxsize=None)
def _font(size: int) -> FreeTypeFont:
    import matplotlib  # brings DejaVu Sans, so that pictures look the same on every machine
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


class LayerPicture(NamedTuple):
    """The finished overlay of one layer for one picture."""

    name: str
    overlay: np.ndarray  # (H, W, 3) uint8 RGB
    raw: np.ndarray  # (h, w) float32, the patch grid, not normalised
    signed: np.ndarray  # (h, w) float32, before ReLU
    empty: bool  # no patch stands out in `raw`, as the engine decided
    drawn_empty: bool  # `overlay` is the plain picture

    @property
    def raw_maximum(self) -> float:
        return float(self.raw.max())


def layer_pictures(
    pictures: Tensor, layers: Mapping[str, LayerMaps], colormap: str, signed: bool = False
) -> list[list[LayerPicture]]:
    """Overlays of a batch, drawn where the maps are: one list of layers a picture.

    `pictures`: (B, 3, H, W) uint8 RGB on the maps' device. `signed` draws the evidence on both sides of zero; then only
    a map that is zero everywhere is drawn empty.
    """
    if signed:
        shares = {name: scaled(maps.signed, (pictures.shape[2], pictures.shape[3])) for name, maps in layers.items()}
        drawn = {name: signed_overlay(pictures, share).cpu().numpy() for name, share in shares.items()}
        drawn_empty = {name: ~share.flatten(1).any(dim=1).cpu() for name, share in shares.items()}
    else:
        drawn = {
            name: overlay(pictures, maps.normalised, maps.empty, colormap).cpu().numpy()
            for name, maps in layers.items()
        }
        drawn_empty = {name: maps.empty.cpu() for name, maps in layers.items()}
    empty = {name: maps.empty.cpu() for name, maps in layers.items()}
    grids = {name: (maps.raw.float().cpu().numpy(), maps.signed.float().cpu().numpy()) for name, maps in layers.items()}
    return [
        [
            LayerPicture(
                name,
                drawn[name][i],
                grids[name][0][i],
                grids[name][1][i],
                bool(empty[name][i]),
                bool(drawn_empty[name][i]),
            )
            for name in layers
        ]
        for i in range(len(pictures))
    ]


def panels(picture: np.ndarray, layers: Sequence[LayerPicture]) -> list[tuple[str, np.ndarray]]:
    """The original and every layer's overlay, each with its caption."""
    drawn = [(layer.name + (" (empty map)" if layer.drawn_empty else ""), layer.overlay) for layer in layers]
    return [("original", picture), *drawn]


def denormalised(image: Tensor, settings: GradCAMSettings) -> Tensor:
    """Normalised pictures (B, 3, H, W) → uint8 RGB, same device."""
    mean = image.new_tensor(settings.mean, dtype=torch.float32).view(3, 1, 1)
    std = image.new_tensor(settings.std, dtype=torch.float32).view(3, 1, 1)
    return ((image.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
