"""--masks and --clicks: where people say that the forgery is, instead of the masks next to the frames."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.explanation_metrics.test_evaluate import LAYER, corner_map, loaded
from tests.helpers.command_server import CommandServer
from tests.helpers.detectors import PATCH, PIXELS
from tests.helpers.paths import SCRIPT
from tests.helpers.references.known_evidence import EVIDENCE, evidence_tree, patch
from utils.gradcam_kit.engine.recipe import Recipe
from utils.gradcam_kit.judge.localisation import click_distance
from utils.gradcam_kit.measure.dataset_evaluation import CLICK_METRICS, ENERGY
from utils.gradcam_kit.measure.evaluate import ExplanationOptions, evaluate_dataset


def test_the_distance_by_hand() -> None:
    """A stored image of 40 by 80 pixels, a map of 4 by 4: one map pixel is 10 by 20 of them."""
    drawn = torch.zeros(4, 4)
    drawn[1, 2] = 1.0  # its centre: x 50, y 15
    clicks = np.array([[0.0, 0.0], [58 / 80, 9 / 40]])
    assert click_distance(drawn, clicks, (40, 80)) == pytest.approx(10.0)
    drawn[1, 3] = 1.0  # tied with x 70, which is 12 and 6 away
    assert click_distance(drawn, clicks, (40, 80)) == pytest.approx((10.0 + np.hypot(12, 6)) / 2)
    assert click_distance(torch.zeros(4, 4), clicks, (40, 80)) == pytest.approx(np.hypot(40, 80))


def test_masks_and_clicks_of_other_places(tmp_path: Path) -> None:
    """Masks that another layout holds count as those beside the frames would; clicks on two of three fakes."""
    tree = evidence_tree(tmp_path / "tree", None, 3)
    mask = np.zeros((PIXELS, PIXELS), np.uint8)
    mask[patch(EVIDENCE)] = 255
    centre = [(EVIDENCE[1] + 0.5) * PATCH / PIXELS, (EVIDENCE[0] + 0.5) * PATCH / PIXELS]
    with (tmp_path / "clicks.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["video", "clicks"], *((f"{v:03d}", json.dumps({"0": centre})) for v in (0, 2))])
    for v in range(3):
        (tmp_path / "elsewhere" / f"{v:03d}").mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "elsewhere" / f"{v:03d}" / "000.bmp"), mask)
    flags = {"gradcam_method": "hirescam", "gradcam_site": "layer_norm1"}
    detector, settings, frames, predictions = loaded(tree, tmp_path / "toy", **flags)
    options = ExplanationOptions(masks=tmp_path / "elsewhere", clicks=tmp_path / "clicks.csv")
    scores = evaluate_dataset(detector, frames, predictions, settings, options)
    assert scores.samples is not None and scores.samples.mask_states["ok"] == 3 and scores.ranked_by == ENERGY
    assert "clicks on 2 of 3 fakes" in scores.notes
    found = {(row.recipe, row.metric): row for row in scores.rows}
    hottest = np.argwhere(corner_map(EVIDENCE) == 1) + 0.5  # tied in the corner, where the map is not interpolated
    pixels = np.hypot(*(hottest - PIXELS * np.array(centre[::-1])).T).mean()
    spec = Recipe("hirescam", LAYER, "layer_norm1")
    expected = (pixels / np.hypot(PIXELS, PIXELS), pixels, 1.0)
    # The frames are stored at the detector's size, so that their pixels are the map's.
    for metric, value in zip(CLICK_METRICS, expected, strict=True):
        row = found[spec, metric]
        assert row.interval.mean == pytest.approx(value, rel=0.05), metric
        assert row.interval.frames == 2 and {one.control for one in row.differences} == {"random", "gaussian", "face"}
    blob = found[spec, CLICK_METRICS[1]].differences[1]
    assert blob.control == "gaussian" and blob.mean > 10  # nearer is better


def test_what_cannot_be_used_is_refused_before_anything_is_written(commands: CommandServer, tmp_path: Path) -> None:
    tree, out = evidence_tree(tmp_path / "tree", None, 2), tmp_path / "run"
    (tmp_path / "bad.csv").write_text('video,clicks\n000,"{1}"\n')
    refusals: list[tuple[list[str | Path], str]] = [
        (["--evaluate_explanations", "--clicks", tmp_path / "bad.csv"], "line 2: the clicks are not JSON"),
        (["--evaluate_explanations", "--masks", tmp_path / "nowhere"], "no such folder"),
        (["--masks", tmp_path], "--masks needs --evaluate_explanations: give both"),
    ]
    for flags, said in refusals:
        done = commands.run(SCRIPT, *tree.arguments(*flags, "--gradcam_output_dir", out), cwd=tmp_path)
        assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 1, done.err
    assert not out.exists()
