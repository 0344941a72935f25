"""A batch explained as one matplotlib figure, for a notebook: `model.show_gradcam(data_dict)`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from utils.errors import InputError
from utils.files import write_whole
from utils.gradcam import Explanation
from utils.model.gradcam_settings import GradCAMSettings
from utils.packages import require
from utils.results.overlays import (
    comparison,
    denormalised,
    encode,
    layer_pictures,
    panels,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCHES = 2.3  # of one picture


def explanation_figure(image: Tensor, explanation: Explanation, settings: GradCAMSettings) -> Figure:
    """One row a picture: the original, titled with the prediction, and the overlay of every layer.

    `image`: (B, 3, H, W) as the detector got it. The figure belongs to the caller; pyplot does not keep it. Raises
    InputError where matplotlib is missing.
    """
    require("matplotlib", "show_gradcam")
    from matplotlib import pyplot  # once imported, a notebook knows how to show a figure that a cell returns

    pictures = denormalised(image, settings)
    probability = explanation.prediction["prob"].tolist()
    rows = layer_pictures(pictures, explanation.layers, settings.colormap, settings.signed)
    columns = 1 + len(explanation.layers)
    figure = pyplot.figure(figsize=(INCHES * columns, (INCHES + 0.3) * len(rows)), layout="constrained")
    pyplot.close(figure)  # else a notebook shows it twice
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for i, layers in enumerate(rows):
        drawn = panels(pictures[i].permute(1, 2, 0).cpu().numpy(), layers)
        verdict = "fake" if probability[i] > 0.5 else "real"
        drawn[0] = (f"{verdict}, {max(probability[i], 1 - probability[i]):.3f}", drawn[0][1])
        for axes, (caption, picture) in zip(grid[i], drawn):
            axes.imshow(picture)
            axes.set_title(caption, fontsize=8)
            axes.set_axis_off()
    return figure


def save_loose_maps(
    folder: Path,
    prefix: str,
    image: Tensor,
    explanation: Explanation,
    settings: GradCAMSettings,
    image_format: str = "png",
) -> None:
    """Pictures of one batch straight into `folder`: `<prefix>_<layer>_sample<i>` and `<prefix>_comparison_sample<i>`.

    `image`: (B, 3, H, W) as the detector got it; `settings.mean` and `settings.std` turn it back into a picture.
    """
    if any(letter in prefix for letter in "/\\\0"):
        raise InputError(f"filename_prefix is {prefix!r}: it names files in gradcam_save_dir, so it has no '/' in it")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = denormalised(image, settings)
    probability = explanation.prediction["prob"].tolist()
    for i, layers in enumerate(layer_pictures(pictures, explanation.layers, settings.colormap, settings.signed)):
        verdict = "fake" if probability[i] > 0.5 else "real"
        confidence = max(probability[i], 1 - probability[i])
        side_by_side = panels(pictures[i].permute(1, 2, 0).cpu().numpy(), layers)
        title = f"prediction: {verdict}   confidence: {confidence:.3f}   target: {explanation.target[i]}"
        for layer in layers:
            name = f"{prefix}_{layer.name}_sample{i}.{image_format}"
            write_whole(folder / name, encode(layer.overlay, image_format))
        write_whole(
            folder / f"{prefix}_comparison_sample{i}.{image_format}",
            encode(comparison(side_by_side, title), image_format),
        )
