"""Judged explanations → figures: deletion and insertion curves with bands, and a table of heat, method × layer."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

from utils.cam.methods import METHOD_NAMES
from utils.explanation_metrics.bootstrap import VideoBootstrap
from utils.explanation_metrics.comparison import ALL
from utils.explanation_metrics.deletion import SHARES
from utils.explanation_metrics.evaluate import Judged
from utils.explanation_metrics.sweep import Spec
from utils.explanation_metrics.tables import spec_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito: told apart by the colour-blind too. Controls are grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
GREYS = {"random": ("#888888", ":"), "gaussian": ("#888888", "--"), "face": ("#888888", "-.")}
LEGEND = {"random": "random map", "gaussian": "centred blob", "face": "mean face"}
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "svg.fonttype": "none",
}
DPI = 160


def curves_figure(judged: Judged, seed: int) -> bytes:
    """Deletion and insertion, a row of panels each, a column for each fill; bands are 95 % over videos. PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fills = list(judged.curves)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            2, len(fills), figsize=(2.9 * len(fills) + 0.4, 5.6), sharex=True, sharey=True, squeeze=False
        )
        for column, fill in enumerate(fills):
            for row, kind in enumerate(("deletion", "insertion")):
                _draw_curves(axes[row][column], judged, fill, kind, seed)
            axes[0][column].set_title(f"replaced by {_fill_name(fill)}")
            axes[1][column].set_xlabel("share of pixels, hottest first")
        axes[0][0].set_ylabel("probability of fake\nafter deletion (lower is better)")
        axes[1][0].set_ylabel("probability of fake\nafter insertion (higher is better)")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncol=2, frameon=False, fontsize=8)
        figure.tight_layout(rect=(0, 0.03 + 0.028 * ((len(labels) + 1) // 2), 1, 1))
        return _png(figure, plt)


def _fill_name(fill: str) -> str:
    return {"blur": "its blur", "mean": "its mean colour", "paired real": "the real frame"}[fill]


def _draw_curves(axes: Axes, judged: Judged, fill: str, kind: str, seed: int) -> None:
    colours = iter(COLOURS)
    for key, curves in judged.curves[fill].items():
        values = getattr(curves, kind).numpy()
        colour, line = GREYS[key] if isinstance(key, str) else (next(colours), "-")
        low, high = _band(judged, fill, values, seed)
        axes.fill_between(SHARES, low, high, color=colour, alpha=0.18, linewidth=0)
        label = LEGEND[key] if isinstance(key, str) else str(key)
        axes.plot(SHARES, values.mean(axis=0), line, color=colour, linewidth=1.4, label=label)
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xticks([0, 0.01, 0.1, 1], ["0", "1 %", "10 %", "100 %"])
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.25, linewidth=0.5)


def _band(judged: Judged, fill: str, values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    means = VideoBootstrap(judged.curve_videos[fill], seed, 2000).means(values)
    low, high = np.nanquantile(means, [0.025, 0.975], axis=0)
    return low, high


def heat_table_figure(judged: Judged) -> bytes:
    """What maps are ranked by, for every method (rows) and layer (columns), one panel a site. PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = {
        spec_of(row): row for row in judged.rows if (row.forgery, row.metric) == (ALL, judged.ranked_by) and row.layer
    }
    layers = list(dict.fromkeys(spec.layer for spec in found))
    sites = list(dict.fromkeys(spec.site for spec in found))
    methods = {
        site: [m for m in METHOD_NAMES if any(s.method == m and s.site == site for s in found)] for site in sites
    }
    height = 0.42 * sum(map(len, methods.values())) + 0.75 * len(sites) + 0.9
    ratios = [len(methods[site]) for site in sites]
    low, high = 0.0, max(0.05, *(row.interval.mean for row in found.values()))
    with plt.rc_context({**STYLE, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure, axes = plt.subplots(
            len(sites), 1, figsize=(0.8 * len(layers) + 2.2, height), squeeze=False, height_ratios=ratios,
            layout="constrained",
        )  # fmt: skip
        for panel, site in zip(axes[:, 0], sites):
            image = _draw_heat(panel, found, methods[site], layers, site, (low, high))
        figure.colorbar(image, ax=axes[:, 0].tolist(), label=judged.ranked_by, shrink=0.6, pad=0.02)
        figure.suptitle(f"{judged.dataset}: {judged.ranked_by}  (● better than every control)", fontsize=10)
        return _png(figure, plt)


def _draw_heat(
    axes: Axes, found: dict[Spec, Any], methods: Sequence[str], layers: Sequence[str], site: str,
    limits: tuple[float, float],
) -> Any:  # fmt: skip
    table = np.array([[found[Spec(method, layer, site)].interval.mean for layer in layers] for method in methods])
    image = axes.imshow(table, cmap="viridis", vmin=limits[0], vmax=limits[1], aspect="auto")
    for y, method in enumerate(methods):
        for x, layer in enumerate(layers):
            bright = table[y, x] > limits[0] + 0.6 * (limits[1] - limits[0])
            mark = " ●" if found[Spec(method, layer, site)].better else ""
            axes.text(
                x,
                y,
                f"{table[y, x]:.2f}{mark}",
                ha="center",
                va="center",
                fontsize=8,
                color="black" if bright else "white",
            )
    axes.set_yticks(range(len(methods)), methods)
    axes.set_xticks(range(len(layers)), [layer.replace("encoder.layers.", "") for layer in layers])
    axes.tick_params(length=0)
    axes.set_title(f"{site} (columns: encoder.layers.*)" if len(layers) > 1 else site, loc="left")
    return image


def _png(figure: Any, plt: Any) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    return data.getvalue()
