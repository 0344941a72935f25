"""Maps at the size of the patch grid, as 8-bit grey images for other programs.

In `<sample folder>/heatmaps/<layer>.png`, 0 is the raw map's minimum and 255 its maximum. In `<layer>_signed.png`, 128
is zero, and 1 and 255 are minus and plus the largest magnitude. The sample's JSON holds both scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ..drawing.clips import ClipImage
from ..drawing.overlays import LayerImage

GREY_MAPS = "heatmaps"


def grey_name(layer: str) -> str:
    """Return the file name of a layer's grey map."""
    return f"{layer}.png"


def write_grey_maps(folder: Path, layers: Sequence[LayerImage]) -> None:
    """Create `folder` and write both grey maps of every layer into it."""
    folder.mkdir()
    for layer in layers:
        (folder / grey_name(layer.name)).write_bytes(png(grey(layer.raw, layer.empty)))
        (folder / f"{layer.name}_signed.png").write_bytes(png(signed_grey(layer.signed)))


def png(grey: np.ndarray) -> bytes:
    """Encode a grey image, (h, w) uint8, as PNG."""
    done, data = cv2.imencode(".png", grey)
    if not done:
        raise OSError(f"OpenCV could not encode a grey image of shape {grey.shape}")
    return data.tobytes()


def grey(raw: np.ndarray, empty: bool) -> np.ndarray:
    """Scale a raw map, float (h, w), to uint8 from its minimum (0) to its maximum (255); an empty map is all 0."""
    low, high = float(raw.min()), float(raw.max())
    if empty:
        return np.zeros(raw.shape, dtype=np.uint8)
    return np.rint((raw.astype(np.float64) - low) / (high - low) * 255).astype(np.uint8)


def signed_grey(signed: np.ndarray) -> np.ndarray:
    """Scale a signed map, float (h, w), to uint8: 128 is zero, 1 and 255 are minus and plus its largest magnitude."""
    extreme = float(np.abs(signed).max())
    if extreme == 0:
        return np.full(signed.shape, 128, dtype=np.uint8)
    return np.rint(signed.astype(np.float64) / extreme * 127 + 128).astype(np.uint8)


def raw_arrays(layers: Sequence[LayerImage]) -> dict[str, np.ndarray]:
    """Return the float32 arrays for `--save_raw`: each layer's raw map as `<name>`, its signed map as `<name>.signed`.

    Maps are (h, w); those of a clip (t, h, w). For a clip, `<name>.time` (T,) holds each frame's share of the sum.
    """
    arrays: dict[str, np.ndarray] = {}
    for layer in layers:
        raw, signed = layer.cells if isinstance(layer, ClipImage) else (layer.raw, layer.signed)
        arrays |= {layer.name: raw, f"{layer.name}.signed": signed}
        if isinstance(layer, ClipImage):
            arrays[f"{layer.name}.time"] = layer.time
    return {key: values.astype(np.float32) for key, values in arrays.items()}
