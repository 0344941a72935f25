"""A batch explained in Python → image files, or one matplotlib figure for a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from utils.errors import InputError
from utils.files import write_whole
from utils.gradcam import Explanation
from utils.model.gradcam_settings import GradCAMSettings
from utils.packages import require
from utils.results.decision import CLASS_NAMES, confidence, predicted
from utils.results.overlays import comparison, denormalised, encode, layer_images, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCHES = 2.3  # per image


def explanation_figure(image: Tensor, explanation: Explanation, settings: GradCAMSettings) -> Figure:
    """One row per image: the original, titled with the prediction, and the overlay of every layer.

    Args:
        image: (B, 3, H, W), normalised, as the detector got it.
        explanation: of that batch.
        settings: colours, and the mean and std that turn `image` back into pixels.

    Returns:
        A figure that belongs to the caller; pyplot does not keep it.

    Raises:
        InputError: matplotlib is missing.
    """
    require("matplotlib", "show_gradcam")
    from matplotlib import pyplot  # once imported, a notebook knows how to show a figure that a cell returns

    images = denormalised(image, settings)
    probability = explanation.prediction["prob"].tolist()
    rows = layer_images(images, explanation.layers, settings.colormap, settings.signed)
    columns = 1 + len(explanation.layers)
    figure = pyplot.figure(figsize=(INCHES * columns, (INCHES + 0.3) * len(rows)), layout="constrained")
    pyplot.close(figure)  # else a notebook shows it twice
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for i, layers in enumerate(rows):
        drawn = panels(images[i].permute(1, 2, 0).cpu().numpy(), layers)
        drawn[0] = (f"{_verdict(probability[i])}, {confidence(probability[i]):.3f}", drawn[0][1])
        for axes, (caption, panel) in zip(grid[i], drawn):
            axes.imshow(panel)
            axes.set_title(caption, fontsize=8)
            axes.set_axis_off()
    return figure


def save_loose_maps(
    folder: Path, prefix: str, image: Tensor, explanation: Explanation, settings: GradCAMSettings
) -> None:
    """Images of one batch straight into `folder`: `<prefix>_<layer>_sample<i>` and `<prefix>_comparison_sample<i>`.

    `image`: (B, 3, H, W) as the detector got it; `settings.mean` and `settings.std` turn it back into pixels.
    """
    if any(letter in prefix for letter in "/\\\0"):
        raise InputError(f"filename_prefix is {prefix!r}: it names files in gradcam_save_dir, so it has no '/' in it")
    folder.mkdir(parents=True, exist_ok=True)
    images = denormalised(image, settings)
    probability = explanation.prediction["prob"].tolist()
    for i, layers in enumerate(layer_images(images, explanation.layers, settings.colormap, settings.signed)):
        side_by_side = panels(images[i].permute(1, 2, 0).cpu().numpy(), layers)
        verdict = f"prediction: {_verdict(probability[i])}   confidence: {confidence(probability[i]):.3f}"
        title = f"{verdict}   target: {explanation.target[i]}"
        for layer in layers:
            write_whole(folder / f"{prefix}_{layer.name}_sample{i}.png", encode(layer.overlay))
        write_whole(folder / f"{prefix}_comparison_sample{i}.png", encode(comparison(side_by_side, title)))


def _verdict(prob_fake: float) -> str:
    return CLASS_NAMES[predicted(prob_fake)].lower()
