"""The folder of one explained image, `sample<i>/`: overlays, maps and metadata. It appears complete or not at all.

In `heatmaps/<layer>.png`, at the size of the patch grid, 0 is the raw map's minimum and 255 its maximum. In
`<layer>_signed.png`, 128 is zero, and 1 and 255 are minus and plus the largest magnitude. The JSON holds both scales.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ..base.decision import CLASS_NAMES, UNKNOWN
from ..base.errors import InputError
from ..base.files import hashes_below, new_folder, replace_folder
from ..base.text import printable
from ..drawing.clips import ClipImage, strip
from ..drawing.overlays import LayerImage, PastedCrop, comparison, encode, panels, text_line
from ..engine.recipe import Recipe
from ..explaining.explanation import UNTRAINED
from .sample import RANDOM_WEIGHTS, LayerFacts, Sample

GREY_MAPS = "heatmaps"


def metadata_text(sample: Sample) -> str:
    """Return the text of `sample<i>_metadata.txt`: five lines in a fixed format, then further facts."""
    pair = [f"Compared with: {printable(sample.paired_real)}, the real frame it was made from"]
    lines = [
        f"True Label: {_label_text(sample.label)}",
        f"Predicted Label: {_label_text(sample.predicted)}",
        f"Confidence: {sample.confidence:.4f}",
        f"Correct: {'unknown' if sample.correct is None else sample.correct}",
        f"Dataset: {printable(sample.dataset)}",
        f"Image: {printable(sample.path)}",
        f"Forgery: {printable(sample.forgery)}",
        f"Video: {printable(sample.video)}",
        f"Logits: real {sample.logits[0]:.6g}, fake {sample.logits[1]:.6g}",
        f"Probability of fake: {sample.prob_fake:.6g}",
        *([f"Frames: {' '.join(map(str, sample.frames))}"] if sample.frames else []),
        f"Target: {sample.target}",
        f"Method: {sample.method}",
        f"Site: {sample.site}",
        f"Backward: {sample.backward}",
        f"Weights: {printable(sample.weights)}",
        *(pair if sample.paired_real else []),
        *(f"Layer {layer.name}: {_map_text(layer)}" for layer in sample.layers),
        *(f"Time {layer.name}: {' '.join(f'{of:.4g}' for of in layer.time)}" for layer in sample.layers if layer.time),
        *(f"Recipe {layer.name}: {Recipe.of(layer.recipe)}" for layer in sample.layers if len(sample.kinds) > 1),
        *(
            f"Completeness {name}: error {tested.error:.3g}, bias share {tested.bias_share:.3g}"
            for name, tested in sample.completeness.items()
        ),
        *(f"Faint: {name} is a thousand times weaker than another layer" for name in sample.faint_layers),
        *(f"Check {layer.name}: {layer.check.sentence}" for layer in sample.layers if layer.check),
        *(f"Choice: {line}" for line in sample.chosen),
    ]
    return "\n".join(lines) + "\n"


def _label_text(label: int) -> str:
    return "unknown" if label == UNKNOWN else f"{label} ({CLASS_NAMES[label]})"


def _map_text(layer: LayerFacts) -> str:
    if layer.artefact:
        return (
            f"empty map, an artefact: the raw maximum {layer.raw_maximum:.6g} is only rounding error and LayerNorm's"
            " epsilon; use the balanced backward pass to see this block's contribution"
        )
    if layer.drawn_empty:
        return "empty map: no patch is evidence for the target"
    if layer.empty:
        return "no patch is evidence for the target; the overlay shows evidence against it"
    return f"raw maximum {layer.raw_maximum:.6g}"


def comparison_title(sample: Sample) -> str:
    """Return one line: true label, prediction, confidence, and the class for which the maps show evidence."""
    predicted = CLASS_NAMES[sample.predicted].lower()
    rest = f"   confidence: {sample.confidence:.3f}   {sample.evidence}"
    if sample.correct is None:
        return f"prediction: {predicted}{rest}"
    truth = CLASS_NAMES[sample.label].lower()
    return f"true label: {truth}   prediction: {predicted} {'✓' if sample.correct else '✗'}{rest}"


def comparison_image(sample: Sample, image: np.ndarray, layers: Sequence[LayerImage]) -> np.ndarray:
    """Draw the original and every layer side by side: (H', W', 3) uint8 RGB."""
    warning = UNTRAINED if sample.weights == RANDOM_WEIGHTS else ""
    words = {layer.name: f" ({layer.check.word})" for layer in sample.layers if layer.check}
    titled = [(f"{name}{words.get(name, '')}", panel) for name, panel in panels(image, layers)]
    return comparison(titled, comparison_title(sample), warning)


def photo_image(sample: Sample, layer: LayerImage, pasted: PastedCrop) -> np.ndarray:
    """Paste a crop's overlay into its photograph, above a line with the score, the explained class and the verdict."""
    return above_lines(pasted.over(layer.overlay), [summary_line(sample, layer.name)])


def summary_line(sample: Sample, layer: str) -> str:
    """Return the score, the class that the maps show evidence for, and the layer's verdict, if it has one."""
    checks = [facts.check.word for facts in sample.layers if facts.name == layer and facts.check]
    return ", ".join([f"P(fake) = {sample.prob_fake:.2f}", sample.evidence, *checks])


def above_lines(image: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Put lines of text below an image (H, W, 3) uint8 RGB."""
    width = image.shape[1]
    return np.vstack(
        [image, *(text_line(f" {text}", width, max(22, width // 32), max(12, width // 50)) for text in lines)]
    )


class RenderedSample(NamedTuple):
    """A sample with its pixels, ready to write."""

    sample: Sample
    image: np.ndarray  # (H, W, 3) uint8 RGB, the detector's input
    layers: Sequence[LayerImage]
    pasted: PastedCrop | None = None  # if the image is a crop: its photograph


def write_sample(
    folder: Path, drawn: RenderedSample, image_format: str = "png", save_raw: bool = False
) -> dict[str, str]:
    """Write a sample's images and metadata to `folder`, which appears complete or not at all.

    Files of the same name are replaced, other files stay. `save_raw` adds `raw_sample<i>.npz`, the maps before
    normalisation. A crop's overlays are also pasted into its photograph. Returns file → SHA-256. Raises InputError if
    `folder` is a link or a file.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder}: exists and is not a folder: move it, or give another output folder")
    partial = folder.with_name(f".{folder.name}.partial")
    new_folder(partial)
    sample, image, layers, pasted = drawn
    i, maps = sample.index, partial / GREY_MAPS

    def draw(name: str, drawing: np.ndarray) -> None:
        (partial / f"gradcam_{name}.{image_format}").write_bytes(encode(drawing, image_format))

    for layer in layers:
        name = f"{layer.name}_sample{i}"
        draw(name, layer.overlay)
        if isinstance(layer, ClipImage):
            draw(f"strip_{name}", strip(layer, sample.frames))
        if pasted is not None:
            draw(f"photo_{name}", photo_image(sample, layer, pasted))
    draw("comparison", comparison_image(sample, image, layers))
    maps.mkdir()
    for layer in layers:
        (maps / f"{layer.name}.png").write_bytes(png(grey(layer.raw, layer.empty)))
        (maps / f"{layer.name}_signed.png").write_bytes(png(signed_grey(layer.signed)))
    if save_raw:
        np.savez_compressed(partial / f"raw_sample{i}.npz", **raw_arrays(layers))  # type: ignore[arg-type]  # numpy's stub mistakes them for its own flag
    (partial / f"sample{i}_metadata.txt").write_text(metadata_text(sample), encoding="utf-8", errors="backslashreplace")
    text = json.dumps(sample.to_json(), indent=1) + "\n"
    (partial / f"sample{i}.json").write_text(text, encoding="utf-8")
    written = hashes_below(partial)
    for name in hashes_below(folder).keys() - written:  # the user's own
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).replace(partial / name)
    replace_folder(partial, folder)
    return written


def is_as_written(folder: Path, files: Mapping[str, str]) -> bool:
    """Tell whether a sample's files are complete and unchanged: a crash of the machine may cut them off."""
    there = hashes_below(folder) if folder.is_dir() and not folder.is_symlink() else {}
    return all(there.get(name) == sha256 for name, sha256 in files.items())


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
