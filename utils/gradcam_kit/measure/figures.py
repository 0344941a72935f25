"""Figures of a dataset's results: deletion and insertion curves with bands; a heat table, method × layer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base.allowed import CLIP_METHODS, METHOD_NAMES
from ..engine.recipe import Recipe, where
from ..judge.bootstrap import VideoBootstrap
from ..judge.deletion import SHARES
from .comparison import MetricRow
from .dataset_evaluation import DatasetScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, distinct for colour-blind readers too. Controls are grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
GREYS = {"random": ("#888888", ":"), "gaussian": ("#888888", "--"), "face": ("#888888", "-.")}
LEGEND = {"random": "random map", "gaussian": "centred blob", "face": "mean face"}
FILL_NAMES = {"blur": "its blur", "mean": "its mean colour", "paired real": "the real frame"}
STYLE: Any = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "svg.fonttype": "none"
}  # fmt: skip
DPI = 160


def image_file(figure: Figure, kind: str) -> bytes:
    """Save the figure as "png" or "pdf" (text as text, in fonts that journals accept); always the same bytes."""
    from matplotlib import rc_context

    data = io.BytesIO()
    metadata: dict[str, None] = {"Software": None} if kind == "png" else {"CreationDate": None, "Producer": None}
    with rc_context({"pdf.fonttype": 42}):
        figure.savefig(data, format=kind, dpi=DPI, metadata=metadata)
    return data.getvalue()


def curves_figure(scores: DatasetScores, seed: int) -> Figure:
    """Draw deletion above insertion, one column of panels per fill; bands are 95 % over videos."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # without pyplot, which would select a backend for the whole process

    fills = list(scores.curves)
    with rc_context(STYLE):
        figure = Figure(figsize=(2.9 * len(fills) + 0.4, 5.6))
        axes = figure.subplots(2, len(fills), sharex=True, sharey=True, squeeze=False)
        for column, fill in enumerate(fills):
            for row, kind in enumerate(("deletion", "insertion")):
                _draw_curves(axes[row][column], scores, fill, kind, seed)
            axes[0][column].set_title(f"replaced by {FILL_NAMES[fill]}")
            axes[1][column].set_xlabel("share of pixels, hottest first")
        axes[0][0].set_ylabel("probability of fake\nafter deletion (lower is better)")
        axes[1][0].set_ylabel("probability of fake\nafter insertion (higher is better)")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncol=2, frameon=False, fontsize=8)
        figure.tight_layout(rect=(0, 0.03 + 0.028 * ((len(labels) + 1) // 2), 1, 1))
    return figure


def _draw_curves(axes: Axes, scores: DatasetScores, fill: str, kind: str, seed: int) -> None:
    colours = iter(COLOURS)
    for recipe, curves in scores.curves[fill].items():
        values = getattr(curves, kind).numpy()
        colour, line = GREYS[recipe.method] if recipe.is_control else (next(colours), "-")
        means = VideoBootstrap(scores.curve_videos[fill], seed, 2000).means(values)
        low, high = np.nanquantile(means, [0.025, 0.975], axis=0)
        axes.fill_between(SHARES, low, high, color=colour, alpha=0.18, linewidth=0)
        label = LEGEND[recipe.method] if recipe.is_control else recipe.title
        axes.plot(SHARES, values.mean(axis=0), line, color=colour, linewidth=1.4, label=label)
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xticks([0, 0.01, 0.1, 1], ["0", "1 %", "10 %", "100 %"])
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.25, linewidth=0.5)


def heat_table_figure(scores: DatasetScores) -> Figure:
    """Draw the ranking metric for every method (rows) and layer (columns), one panel per site and backward rule."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = {recipe: row for recipe, row in scores.row_of().items() if not recipe.is_control}
    layers = list(dict.fromkeys(recipe.layer for recipe in rows))
    panels: dict[tuple[str, str], list[list[MetricRow]]] = {}  # site and rule → rows of the table
    for site, backward in dict.fromkeys((recipe.site, recipe.backward) for recipe in rows):
        there = {recipe.method for recipe in rows if (recipe.site, recipe.backward) == (site, backward)}
        panels[site, backward] = [
            [rows[Recipe(method, layer, site, backward)] for layer in layers]
            for method in (*METHOD_NAMES, *CLIP_METHODS)
            if method in there
        ]
    highest = max(0.05, *(row.interval.mean for row in rows.values()))
    ratios = [len(table) for table in panels.values()]
    height = 0.42 * sum(ratios) + 0.75 * len(panels) + 0.9
    with rc_context({**STYLE, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure = Figure(figsize=(0.8 * len(layers) + 2.2, height), layout="constrained")
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=ratios)[:, 0]
        for panel, title, table in zip(axes, panels, panels.values(), strict=True):
            image = _draw_heat(panel, where(*title), table, highest)
        figure.colorbar(image, ax=axes.tolist(), label=scores.ranked_by, shrink=0.6, pad=0.02)
        figure.suptitle(f"{scores.dataset}: {scores.ranked_by}  (● better than every control)", fontsize=10)
    return figure


def _draw_heat(axes: Axes, title: str, rows: Sequence[Sequence[MetricRow]], highest: float) -> Any:
    """Draw one panel with colours from 0 to `highest`. Return its image, for the colour bar."""
    table = np.array([[row.interval.mean for row in line] for line in rows])
    image = axes.imshow(table, cmap="viridis", vmin=0.0, vmax=highest, aspect="auto")
    for (y, x), mean in np.ndenumerate(table):
        mark = " ●" if rows[y][x].better else ""
        colour = "black" if mean > 0.6 * highest else "white"
        axes.text(x, y, f"{mean:.2f}{mark}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_yticks(range(len(rows)), [line[0].recipe.method for line in rows])
    axes.set_xticks(range(len(rows[0])), [row.recipe.layer.replace("encoder.layers.", "") for row in rows[0]])
    axes.tick_params(length=0)
    axes.set_title(f"{title} (columns: encoder.layers.*)" if len(rows[0]) > 1 else title, loc="left")
    return image
