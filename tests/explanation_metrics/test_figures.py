"""The figures, read back from what matplotlib was told to draw."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch

from utils.gradcam_kit.engine.recipe import Recipe
from utils.gradcam_kit.judge.bootstrap import Interval
from utils.gradcam_kit.judge.deletion import SHARES, Curves
from utils.gradcam_kit.measure.comparison import ALL, Difference, MetricRow
from utils.gradcam_kit.measure.dataset_evaluation import ENERGY
from utils.gradcam_kit.measure.evaluate import DatasetScores
from utils.gradcam_kit.measure.figures import curves_figure, heat_table_figure, image_file

pytest.importorskip("matplotlib")
LAYERS = ("encoder.layers.1", "encoder.layers.3")
CONTROLS = [Recipe.control("random"), Recipe.control("gaussian"), Recipe.control("face")]
MEANS = {
    Recipe("layercam", LAYERS[0], "layer_norm1"): 0.125,
    Recipe("layercam", LAYERS[1], "layer_norm1"): 0.75,
    Recipe("gradcam", LAYERS[0], "layer_norm1"): 0.25,
    Recipe("gradcam", LAYERS[1], "layer_norm1"): 0.5,
    Recipe("rollout", LAYERS[0], "attention"): 0.0625,
    Recipe("rollout", LAYERS[1], "attention"): 0.375,
}
BEST = Recipe("layercam", LAYERS[1], "layer_norm1")
VIDEOS = [("swap", "a"), ("swap", "a"), ("swap", "b"), ("swap", "c")]


def some_scores() -> DatasetScores:
    rows = [
        MetricRow("toy", ALL, spec, ENERGY, Interval(mean, 0, 1, 4, 3),
            [Difference(c.method, 0.1, 0, 0.2, 0.001 if spec == BEST else 0.5) for c in CONTROLS])
        for spec, mean in MEANS.items()
    ]  # fmt: skip
    rows += [MetricRow("toy", ALL, control, ENERGY, Interval(0.99, 0, 1, 4, 3), []) for control in CONTROLS]
    rng = np.random.default_rng(2)
    curves = {
        fill: {
            spec: Curves(*(torch.from_numpy(rng.random((4, len(SHARES))).astype(np.float32)) for _ in range(2)))
            for spec in [BEST, next(iter(MEANS)), *CONTROLS]
        }
        for fill in ("blur", "paired real")
    }
    return DatasetScores(
        "toy", 4, [BEST], ranking=list(MEANS), rows=rows, curves=curves, curve_videos=dict.fromkeys(curves, VIDEOS)
    )


def test_the_heat_table_shows_every_mean() -> None:
    figure = heat_table_figure(some_scores())
    first, second = figure.axes[:2]
    assert first.get_title(loc="left").startswith("layer_norm1") and second.get_title(loc="left").startswith(
        "attention"
    )
    panels: Any = (
        (first, ["gradcam", "layercam"], [[0.25, 0.5], [0.125, 0.75]]),  # in the order of the list of methods
        (second, ["rollout"], [[0.0625, 0.375]]),
    )
    for axes, methods, expected in panels:
        assert [label.get_text() for label in axes.get_yticklabels()] == methods
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "3"]
        np.testing.assert_allclose(axes.images[0].get_array(), expected)
        assert axes.images[0].get_clim() == (0, 0.75)  # a control's 0.99 is no map's
        texts = {text.get_position(): text.get_text() for text in axes.texts}
        best = {(1, 1)} if axes is first else set()
        for y, means in enumerate(expected):
            for x, mean in enumerate(means):
                assert texts[x, y] == f"{mean:.2f}" + (" ●" if (x, y) in best else "")
    assert figure.get_suptitle() == "toy: energy in mask  (● better than every control)"


def test_curves_are_the_means_and_bands_those_of_videos() -> None:
    scores = some_scores()
    figure = curves_figure(scores, seed=5)
    panels: Any = [figure.axes[:2], figure.axes[2:]]
    # Twenty-seven ways to draw three videos; the resamples of seed 5, drawn here once more.
    drawn = np.random.default_rng(5).multinomial(3, np.full(3, 1 / 3), size=2000).astype(np.float64)
    copies = drawn[:, [0, 0, 1, 2]]
    for column, fill in enumerate(("blur", "paired real")):
        assert panels[0][column].get_title() == f"replaced by {['its blur', 'the real frame'][column]}"
        for row, kind in enumerate(("deletion", "insertion")):
            lines, bands = panels[row][column].lines, panels[row][column].collections
            assert len(lines) == len(bands) == 5
            for line, band, (spec, curves) in zip(lines, bands, scores.curves[fill].items(), strict=True):
                values = getattr(curves, kind).numpy().astype(np.float64)
                np.testing.assert_allclose(line.get_xdata(), SHARES)
                np.testing.assert_allclose(line.get_ydata(), values.mean(axis=0), rtol=1e-6)
                assert (line.get_color() == "#888888") == spec.is_control
                means = copies @ values / copies.sum(axis=1, keepdims=True)
                low, high = np.quantile(means, [0.025, 0.975], axis=0)
                assert edges(band) == pytest.approx([*low, *high], rel=1e-5)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [BEST.title, next(iter(MEANS)).title, "random map", "centred blob", "mean face"]
    for row, kind in enumerate(("deletion (lower", "insertion (higher")):
        assert kind in panels[row][0].get_ylabel()


def edges(band: Any) -> list[float]:
    """Lower edge, then upper edge of a filled band at every share."""
    vertices = band.get_paths()[0].vertices
    at = [sorted(vertices[np.isclose(vertices[:, 0], share), 1]) for share in SHARES]
    return [heights[0] for heights in at] + [heights[-1] for heights in at]


def test_a_figure_becomes_a_png_at_its_own_size() -> None:
    figure = heat_table_figure(some_scores())
    pixels = np.asarray(cv2.imdecode(np.frombuffer(image_file(figure, "png"), np.uint8), cv2.IMREAD_COLOR))
    assert pixels.shape[:2] == tuple(int(160 * inches) for inches in figure.get_size_inches()[::-1])
