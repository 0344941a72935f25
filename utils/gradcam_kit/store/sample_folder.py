"""The folder of one explained image: `sample<i>/` with overlays, maps and metadata, written and read.

What stands under its final name is whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..base.decision import CLASS_NAMES, UNKNOWN
from ..base.errors import InputError
from ..base.files import (
    hashes_below,
    holds_only_own,
    names_in,
    new_folder,
    own_files,
    read_text,
    replace_folder,
    write_listing,
)
from ..base.text import printable
from ..base.typed import VALUE, Misfit
from ..drawing.overlays import LayerImage, PastedCrop, comparison, encode, panels
from ..explaining.explanation import UNTRAINED
from ..judge.check import MapCheck
from .grey_maps import GREY_MAPS, raw_arrays, write_grey_maps
from .sample import RANDOM_WEIGHTS, LayerFacts, Sample


def metadata_text(sample: Sample) -> str:
    """`sample<i>_metadata.txt`: five lines in fixed form, then more."""
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
        f"Target: {sample.target}",
        f"Method: {sample.method}",
        f"Site: {sample.site}",
        f"Backward: {sample.backward}",
        f"Weights: {printable(sample.weights)}",
        *(f"Layer {layer.name}: {_map_text(layer)}" for layer in sample.layers),
        *(
            f"Completeness {name}: error {tested.error:.3g}, share of the biases {tested.bias_share:.3g}"
            for name, tested in sample.completeness.items()
        ),
        *(f"Faint: {name}, a thousand times weaker than another layer" for name in sample.faint_layers),
        *(f"Check {layer.name}: {_check_text(layer.check)}" for layer in sample.layers if layer.check),
        *(f"Choice: {line}" for line in sample.chosen),
    ]
    return "\n".join(lines) + "\n"


def _label_text(label: int) -> str:
    return "unknown" if label == UNKNOWN else f"{label} ({CLASS_NAMES[label]})"


def _map_text(layer: LayerFacts) -> str:
    if layer.artefact:
        return (
            f"empty map: an artefact, raw maximum {layer.raw_maximum:.6g} is what rounding and LayerNorm's epsilon"
            " leave of a sum that is 0; the balanced backward pass shows what the block contributes"
        )
    if layer.drawn_empty:
        return "empty map: no patch speaks for the target"
    if layer.empty:
        return "no patch speaks for the target, what is drawn speaks against it"
    return f"raw maximum {layer.raw_maximum:.6g}"


def _check_text(check: MapCheck) -> str:
    """The verdict and the figures behind it."""
    facts = []
    if check.contrast is not None:
        facts.append(f"contrast with real images {check.contrast:.0%} of the largest at the hottest patch")
    if check.fall is not None and check.random is not None:
        facts.append(
            f"margin {check.margin:.4g} falls by {check.fall:.4g} with its hottest patches replaced, by"
            f" {check.random:.4g} with random ones"
        )
    if check.votes is not None:
        facts.append(f"{check.votes:.0%} of the blocks hottest there")
    if check.others is not None:
        facts.append(f"{check.others:.0%} of other maps")
    if check.is_spread:
        facts.append("the evidence is spread: no one place")
    mass = "" if check.mass is None else f"; raw map {check.mass:.3g} of the margin"
    return f"{check.word}: {', '.join(facts)}{mass}"


def comparison_title(sample: Sample) -> str:
    """One line: true label, prediction, confidence, target."""
    verdict = CLASS_NAMES[sample.predicted].lower()
    rest = f"   confidence: {sample.confidence:.3f}   target: {sample.target}"
    if sample.correct is None:
        return f"prediction: {verdict}{rest}"
    truth = CLASS_NAMES[sample.label].lower()
    return f"true label: {truth}   prediction: {verdict} {'✓' if sample.correct else '✗'}{rest}"


def comparison_image(sample: Sample, image: np.ndarray, layers: Sequence[LayerImage]) -> np.ndarray:
    """Original and every layer side by side, (H', W', 3) uint8 RGB."""
    warning = UNTRAINED if sample.weights == RANDOM_WEIGHTS else ""
    return comparison(panels(image, layers), comparison_title(sample), warning)


class Drawn(NamedTuple):
    """A sample with its pixels, ready to be written."""

    sample: Sample
    image: np.ndarray  # (H, W, 3) uint8 RGB, as the detector saw it
    layers: Sequence[LayerImage]
    pasted: PastedCrop | None = None  # the photograph that it is a crop of


def write_sample(
    folder: Path, drawn: Drawn, image_format: str = "png", save_raw: bool = False, damaged: bool = False
) -> Path:
    """Write one sample's images and metadata as `folder`, which appears complete or not at all; returns it.

    An earlier sample there is replaced if every file is as it was written; InputError where `folder` is anything else.
    With `damaged` the folder is known to be a sample's: its own files are replaced whatever became of them, and others
    stay. `save_raw` adds the maps as the method gave them, before any normalising: `raw_sample<i>.npz`. A crop's
    overlays are also drawn into its photograph.
    """
    if folder.is_symlink() or (folder.exists() and not damaged and not is_sample(folder)):
        raise InputError(
            f"{folder}: is there and is no folder of a sample, or one that was changed: move it, or give another output"
            " folder"
        )
    partial = folder.with_name(f".{folder.name}.partial")
    new_folder(partial)
    sample, image, layers, pasted = drawn
    i = sample.index
    for layer in layers:
        (partial / f"gradcam_{layer.name}_sample{i}.{image_format}").write_bytes(encode(layer.overlay, image_format))
        if pasted is not None:
            photo = encode(pasted.over(layer.overlay), image_format)
            (partial / f"gradcam_photo_{layer.name}_sample{i}.{image_format}").write_bytes(photo)
    write_grey_maps(partial / GREY_MAPS, layers)
    if save_raw:
        np.savez_compressed(partial / f"raw_sample{i}.npz", **raw_arrays(layers))  # type: ignore[arg-type]  # numpy's stub takes them for its own flag
    whole = comparison_image(sample, image, layers)
    (partial / f"gradcam_comparison.{image_format}").write_bytes(encode(whole, image_format))
    (partial / f"sample{i}_metadata.txt").write_text(metadata_text(sample), encoding="utf-8", errors="backslashreplace")
    write_listing(partial / f"sample{i}.json", sample.to_json())
    if folder.exists():
        for name in set(hashes_below(folder)) - set(hashes_below(partial)) if damaged else ():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).replace(partial / name)
    replace_folder(partial, folder)
    return folder


def is_sample(folder: Path) -> bool:
    """Whether a folder holds one sample as it was written, and nothing else."""
    return holds_only_own(folder, [path.name for path in folder.glob("sample*.json")])


def sample_folders(dataset_folder: Path) -> list[tuple[int, Path]]:
    """The sample folders of a dataset by index, ascending."""
    if not dataset_folder.is_dir():
        return []
    names = ((re.fullmatch(r"sample([0-9]+)", path.name), path) for path in dataset_folder.iterdir())
    return sorted((int(name[1]), path) for name, path in names if name and path.is_dir())


def read_sample(folder: Path, index: int, row: Mapping[str, str] | None) -> Sample | None:
    """A run's sample; where its JSON is gone, what predictions.csv (`row`) has of it; None where that has nothing."""
    path = folder / f"sample{index}.json"
    try:
        sample = Sample.from_json(json.loads(read_text(path)))
        if sample.label == UNKNOWN:
            raise Misfit(VALUE, ("label",), None, "0, 1")
        files = names_in(folder)
    except FileNotFoundError:
        lost = f"{path.name} is gone"
    except Misfit as misfit:
        lost = f"{path.name} is damaged ({misfit})"
    except (OSError, ValueError, RecursionError) as error:
        lost = f"{path.name} is damaged ({type(error).__name__})"
    else:
        comparison = next((name for name in files if name.startswith("gradcam_comparison.")), "")
        sample = replace(sample, index=index, folder=folder, comparison=comparison, lost="")
        if comparison and GREY_MAPS in files:
            return sample
        return replace(sample, layers=[], lost="its images were deleted")
    return None if row is None else replace(Sample.from_row(row), folder=folder, lost=lost)


def whole_samples(dataset_folder: Path) -> dict[int, Sample]:
    """By index, the samples whose files are all as they were written; a crash of the machine may cut off their ends."""
    samples = {}
    for index, folder in sample_folders(dataset_folder):
        path = folder / f"sample{index}.json"
        own = own_files(path)
        try:
            details = json.loads(read_text(path)) if own else {"files": [""]}
            if all(folder / name in own for name in details["files"]):
                samples[index] = Sample.from_json(details)
        except (OSError, ValueError):
            continue  # another version's
    return samples
