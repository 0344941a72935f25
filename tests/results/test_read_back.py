"""The numbers that a run states, read back from its files by OpenCV and Matplotlib's own tables: all say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers.command_server import CommandServer
from tests.helpers.datasets import DataTree, rows_of
from tests.helpers.fake_run import Row, write_row, write_tables
from utils.gradcam_kit.report.command import main

SCRIPT = "test_with_gradcam.py"


def number(text: str, pattern: str) -> float:
    found = re.search(pattern, text, re.MULTILINE)
    assert found, pattern
    return float(found[1])


def rgb(path: Path) -> np.ndarray:
    return np.asarray(cv2.imread(str(path)))[..., ::-1].astype(float)


@pytest.fixture
def run(commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> Path:
    flags = (
        "--gradcam_enabled",
        "--save_all_predictions",
        "--save_raw",
        "--layers",
        "encoder.layers.2",
        "--method",
        "gradcam",
    )
    arguments = data_tree.arguments(*flags, "--gradcam_output_dir", tmp_path / "out")
    done = commands.run(SCRIPT, *arguments, cwd=tmp_path)
    assert done.code == 0, done.err
    return tmp_path / "out" / "toy"


def test_metadata_table_json_and_maps_agree(run: Path) -> None:
    rows = rows_of(run)
    assert len(rows) == len(list(run.glob("sample*/sample*.json")))
    for row in rows:
        i = row["index"]
        folder = run / f"sample{i}"
        text, told = (
            (folder / f"sample{i}_metadata.txt").read_text(),
            json.loads((folder / f"sample{i}.json").read_text()),
        )
        real, fake = float(row["logit_real"]), float(row["logit_fake"])
        prob = 1 / (1 + np.exp(real - fake))
        assert float(row["prob_fake"]) == pytest.approx(prob, rel=1e-5)
        assert number(text, r"^Probability of fake: (\S+)$") == pytest.approx(prob, rel=1e-5)
        assert number(text, r"^Logits: real (\S+), ") == pytest.approx(real, rel=1e-5)
        assert number(text, r"^Logits: .*fake (\S+)$") == pytest.approx(fake, rel=1e-5)
        assert number(text, r"^Confidence: (\S+)$") == pytest.approx(max(prob, 1 - prob), abs=6e-5)
        assert number(text, r"^True Label: (\d) ") == float(row["label"])
        assert number(text, r"^Predicted Label: (\d) ") == float(row["predicted"]) == float(fake > real)
        assert told["prob_fake"] == pytest.approx(prob, rel=1e-6) and told["path"] == row["path"]
        raw = np.load(folder / f"raw_sample{i}.npz")["encoder.layers.2"]
        if "empty map" not in text:
            assert number(text, r"^Layer encoder.layers.2: raw maximum (\S+)$") == pytest.approx(raw.max(), rel=1e-5)


def test_the_overlays_colours_are_the_raw_maps_numbers(run: Path) -> None:
    """Overlay: the mean of image and colour. Colour → position in OpenCV's own table → what the raw map says there."""
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_JET)[:, 0, ::-1].astype(float)
    checked = 0
    for folder in sorted(run.glob("sample*")):
        i = folder.name.removeprefix("sample")
        text = (folder / f"sample{i}_metadata.txt").read_text()
        if "empty map" in text:
            continue
        box = json.loads((folder / f"sample{i}.json").read_text())["original"]
        overlay = rgb(folder / f"gradcam_encoder.layers.2_sample{i}.png")
        side = len(overlay)
        whole = rgb(folder / "gradcam_comparison.png")
        image = whole[box["top"] : box["top"] + side, box["left"] : box["left"] + side]
        colours = 2 * overlay - image
        if re.search("^Check .*: Artefact:", text, re.MULTILINE):  # which is drawn in grey
            assert np.ptp(colours, axis=-1).max() <= 4
            continue
        heat = np.abs(colours[:, :, None] - table).sum(-1).argmin(-1) / 255
        raw = np.load(folder / f"raw_sample{i}.npz")["encoder.layers.2"].astype(float)
        wanted = cv2.resize((raw - raw.min()) / (raw.max() - raw.min()), (side, side), interpolation=cv2.INTER_LINEAR)
        wanted = (wanted - wanted.min()) / (wanted.max() - wanted.min())
        assert np.abs(heat - wanted).mean() < 0.02 and np.corrcoef(heat.ravel(), wanted.ravel())[0, 1] > 0.995
        checked += 1
    assert checked


@pytest.mark.slow
def test_the_colour_bar_of_a_figure_is_the_scale_of_its_maps(tmp_path: Path) -> None:
    """The bar is Matplotlib's table from 0 to 1, and the map's colours, looked up on it, are hot where the map is."""
    from matplotlib import colormaps

    row = Row(3, "toy", "toy_Fake", "v", 1, 0.9, "3.png", hot=(0, 3))
    write_tables(tmp_path / "run", [row])
    write_row(tmp_path / "run", row)
    path = tmp_path / "figure.png"
    assert main(["figure", str(tmp_path / "run"), "--samples", "3", "-o", str(path), "--column", "double"]) == 0
    drawn = rgb(path)
    table = colormaps["inferno"](np.linspace(0, 1, 256))[:, :3] * 255
    bars, heights = [], []
    for column in range(drawn.shape[1]):
        on_table = np.abs(drawn[:, column, None] - table).sum(-1)
        rows = np.flatnonzero(on_table.min(-1) < 6)
        levels = on_table[rows].argmin(-1)
        inside = np.flatnonzero(levels > 250)[:1]  # above it is the bar's black frame
        rows, levels = (part[inside[0] :] if len(inside) else part[:0] for part in (rows, levels))
        if len(rows) > 200 and levels[0] > 250 and levels[-1] < 5:  # from the top, 1, down to 0
            bars.append(column)
            heights.append((rows[0], len(rows)))
            assert (np.diff(levels) <= 0).all()
            np.testing.assert_allclose(levels / 255, np.linspace(1, 0, len(levels)), atol=0.02)
    assert len(bars) > 5 and max(bars) - min(bars) < 40  # one bar
    top, size = heights[0]
    # The first map lies to the right of the image, both as high as the bar: 0.75 of its colour where it is hottest.
    hot = np.abs(drawn - (0.25 * np.array([90, 120, 60]) + 0.75 * table[-1])).sum(-1)
    y, _ = np.unravel_index(hot.argmin(), hot.shape)
    assert hot.min() < 12 and 0 <= y - top < size / 4
