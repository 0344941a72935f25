"""A batch explained as one matplotlib figure, for a notebook: `model.show_gradcam(data_dict)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from utils.gradcam import Explanation
from utils.model.gradcam_settings import GradCAMSettings
from utils.packages import require
from utils.results.sample_folder import denormalised, layer_pictures, panels

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
