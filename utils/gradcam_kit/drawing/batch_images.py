"""Drawing of an explained batch: as image files, or as a matplotlib figure for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..base.decision import CLASS_NAMES, confidence, predicted_class
from ..base.errors import InputError
from ..base.files import made_folder, write_whole
from ..base.packages import require
from .overlays import LayerImage, comparison, encode, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCHES = 2.3  # per image


class DrawnImage(NamedTuple):
    """One image of a batch, (H, W, 3) uint8 RGB, with its overlays, P(fake) and target."""

    image: np.ndarray
    layers: Sequence[LayerImage]
    prob_fake: float
    target: str

    def decision(self) -> tuple[str, str]:
        """Return the predicted class and its probability as text: `fake`, `0.973`."""
        return CLASS_NAMES[predicted_class(self.prob_fake)].lower(), f"{confidence(self.prob_fake):.3f}"


def batch_figure(drawn: Sequence[DrawnImage], warning: str = "") -> Figure:
    """Draw one row per image: the original with its prediction, then each layer's overlay. `warning` is the heading.

    pyplot does not keep the figure. Raises InputError if matplotlib is missing.
    """
    require("matplotlib", "a figure")
    from matplotlib import pyplot  # its import lets a notebook show a figure that a cell returns

    columns = 1 + len(drawn[0].layers)
    figure = pyplot.figure(figsize=(INCHES * columns, (INCHES + 0.3) * len(drawn)), layout="constrained")
    pyplot.close(figure)  # otherwise a notebook shows it twice
    grid = figure.subplots(len(drawn), columns, squeeze=False)
    for row, one in zip(grid, drawn, strict=True):
        (_, original), *overlays = panels(one.image, one.layers)
        for axes, (caption, panel) in zip(row, [(", ".join(one.decision()), original), *overlays], strict=True):
            axes.imshow(panel)
            axes.set_title(caption, fontsize=8)
            axes.set_axis_off()
    if warning:
        figure.suptitle(warning, color="#b00020", fontsize=8, wrap=True)
    return figure


def save_batch(folder: Path, prefix: str, drawn: Sequence[DrawnImage], warning: str = "") -> list[Path]:
    """Write `<prefix>_<layer>_sample<i>.png` and `<prefix>_comparison_sample<i>.png` to `folder`. Return the paths."""
    if any(letter in prefix for letter in "/\\\0"):
        raise InputError(f"filename_prefix is {prefix!r}: it is part of file names, so it must not contain '/'")
    folder = made_folder(folder)
    files: dict[Path, np.ndarray] = {}
    for i, one in enumerate(drawn):
        files |= {folder / f"{prefix}_{layer.name}_sample{i}.png": layer.overlay for layer in one.layers}
        name, sure = one.decision()
        title = f"prediction: {name}   confidence: {sure}   target: {one.target}"
        whole = comparison(panels(one.image, one.layers), title, warning)
        files[folder / f"{prefix}_comparison_sample{i}.png"] = whole
    for path, image in files.items():
        write_whole(path, encode(image))
    return list(files)
