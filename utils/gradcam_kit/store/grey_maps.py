"""Maps at the size of the patch grid: raw in the database, and as 8-bit grey images for programs that show them.

`<sample folder>/heatmaps/<layer>.png` runs from the raw map's minimum (0) to its maximum (255),
`<layer>_signed.png` from minus its largest magnitude (1) over zero (128) to plus that (255). Both scales are in the
sample's JSON.
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
    """File name of a layer's grey map."""
    return f"{layer}.png"


def write_grey_maps(folder: Path, layers: Sequence[LayerImage]) -> None:
    """Write both grey maps of every layer into `folder`, which is made."""
    folder.mkdir()
    for layer in layers:
        (folder / grey_name(layer.name)).write_bytes(png(grey(layer.raw, layer.empty)))
        (folder / f"{layer.name}_signed.png").write_bytes(png(signed_grey(layer.signed)))


def png(grey: np.ndarray) -> bytes:
    """(h, w) uint8 → the bytes of a PNG."""
    done, data = cv2.imencode(".png", grey)
    if not done:
        raise OSError(f"OpenCV could not encode a grey image of shape {grey.shape}")
    return data.tobytes()


def grey(raw: np.ndarray, empty: bool) -> np.ndarray:
    """Raw map (h, w) → uint8 from its minimum 0 to its maximum 255; an empty map is all 0."""
    low, high = float(raw.min()), float(raw.max())
    if empty:
        return np.zeros(raw.shape, dtype=np.uint8)
    return np.rint((raw.astype(np.float64) - low) / (high - low) * 255).astype(np.uint8)


def signed_grey(signed: np.ndarray) -> np.ndarray:
    """Signed map (h, w) → uint8, 128 where it is zero, 255 and 1 at plus and minus its largest magnitude."""
    extreme = float(np.abs(signed).max())
    if extreme == 0:
        return np.full(signed.shape, 128, dtype=np.uint8)
    return np.rint(signed.astype(np.float64) / extreme * 127 + 128).astype(np.uint8)


def raw_arrays(layers: Sequence[LayerImage]) -> dict[str, np.ndarray]:
    """What `--save_raw` keeps: per layer its raw map under its name and its signed map under `<name>.signed`.

    Of a clip they are (t, h, w), and `<name>.time` (T,) is what each frame adds to the signed map.
    """
    found: dict[str, np.ndarray] = {}
    for layer in layers:
        raw, signed = layer.cells if isinstance(layer, ClipImage) else (layer.raw, layer.signed)
        found |= {layer.name: raw, f"{layer.name}.signed": signed}
        if isinstance(layer, ClipImage):
            found[f"{layer.name}.time"] = layer.time
    return {key: values.astype(np.float32) for key, values in found.items()}
