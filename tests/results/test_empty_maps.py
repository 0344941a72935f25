"""Whether a map is empty is decided where it is made; everything that reads a run believes it.

Two maps that tempt a reader to decide otherwise: rounding noise on a constant, which looks like a map once it is
stretched, and a signed map with evidence against the target alone, which is drawn although its raw map is all zero.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.helpers.fake_run import PIXELS, Row, sample_of, write_drawn, write_tables
from utils.gradcam_kit.drawing.overlays import layer_images
from utils.gradcam_kit.engine.maps import LayerMaps
from utils.gradcam_kit.exports.formats import fiftyone_sample, write_strips, write_tensorboard
from utils.gradcam_kit.report.aggregates import write_patterns
from utils.gradcam_kit.report.page import write_report
from utils.gradcam_kit.store.read_run import RunOnDisk, read_run, sample_maps
from utils.gradcam_kit.store.sample_folder import RenderedSample, metadata_text

GRID = 8
SIZE = (PIXELS, PIXELS)


def noise_on_a_constant(count: int) -> torch.Tensor:
    return 0.5 + 1e-6 * torch.randn(count, GRID, GRID, generator=torch.Generator().manual_seed(1))


def against_the_target_alone(count: int) -> torch.Tensor:
    return -torch.rand(count, GRID, GRID, generator=torch.Generator().manual_seed(1)) - 0.1


def write_maps(folder: Path, signed: torch.Tensor, drawn_signed: bool) -> RunOnDisk:
    """A run of four frames of one video whose layer `a` has these maps and layer `b` an ordinary one."""
    count = len(signed)
    ordinary = torch.rand(count, GRID, GRID, generator=torch.Generator().manual_seed(2))
    maps = {"a": LayerMaps.of(signed, signed.relu(), SIZE), "b": LayerMaps.of(ordinary, ordinary, SIZE)}
    images = torch.full((count, 3, *SIZE), 120, dtype=torch.uint8)
    rows = [Row(i, "toy", "swap", "000", 1, 0.9, f"/nowhere/{i}.png") for i in range(count)]
    write_tables(folder, rows)
    for row, layers in zip(rows, layer_images(images, maps, "jet", drawn_signed), strict=True):
        sample = sample_of(row, layers)
        image = images[0].permute(1, 2, 0).numpy()
        write_drawn(folder, RenderedSample(sample, image, layers), SIZE)
        text = metadata_text(sample)
        assert ("Layer a: empty map" in text) == (not drawn_signed) and "Layer b: raw maximum" in text
    return read_run(folder)


CASES = [(noise_on_a_constant, False), (noise_on_a_constant, True), (against_the_target_alone, False)]
CASES += [(against_the_target_alone, True)]


@pytest.mark.parametrize(("make", "drawn_signed"), CASES)
def test_every_reader_believes_what_the_engine_decided(make: Any, drawn_signed: bool, tmp_path: Path) -> None:
    signed = make(4)
    assert float(signed.max()) != float(signed.min())  # by range alone it would pass for a map
    run = write_maps(tmp_path, signed, drawn_signed)
    folder = tmp_path / "toy" / "sample0"

    written = {layer["name"]: layer for layer in json.loads((folder / "sample0.json").read_text())["layers"]}
    assert (written["a"]["empty"], written["a"]["drawn_empty"]) == (True, not drawn_signed)
    assert (written["b"]["empty"], written["b"]["drawn_empty"]) == (False, False)

    drawn = np.asarray(cv2.imread(str(folder / "gradcam_a_sample0.png")))
    assert np.array_equal(drawn, np.full((*SIZE, 3), 120, np.uint8)) != drawn_signed
    grey = {
        name: np.asarray(cv2.imread(str(folder / "heatmaps" / f"{name}.png"), cv2.IMREAD_UNCHANGED)) for name in "ab"
    }
    assert not grey["a"].any() and grey["b"].max() == 255

    sample = run.datasets[0].samples[0]
    assert [(layer.name, layer.empty, layer.drawn_empty) for layer in sample.layers] == [
        ("a", True, not drawn_signed),
        ("b", False, False),
    ]
    assert list(sample_maps(sample, ["a", "b"])) == ["b"]
    assert [key for key in fiftyone_sample(sample) if key.startswith("map_")] == ["map_b"]

    patterns = write_patterns(run, run.folder)
    assert {group.layer for group in patterns[0].regions} == {"b"} and list(patterns[0].similarity) == ["b"]
    write_strips(run.datasets[0])
    consistency = (tmp_path / "toy" / "strips" / "consistency.csv").read_text().splitlines()
    assert len(consistency) == 2 and ",b," in consistency[1]
    write_tensorboard(run, tmp_path / "events")

    page = write_report(tmp_path).read_text()
    maps = json.loads(re.search(r'"maps": (\[\[.*?\]\])', page)[1])  # type: ignore[index]  # the page has samples
    assert [one[2:] for one in maps] == [[True, not drawn_signed, "", ""], [False, False, "", ""]]


def test_the_engine_decides_by_the_range_as_a_share_of_the_peak() -> None:
    """Constants, rounding, faint but clear maps, zeros: by hand."""
    corner = torch.zeros(GRID, GRID)
    corner[0, 0] = 1.0
    raw = torch.stack([corner * 0, corner * 0 + 3.0, 3.0 + corner * 1e-5, corner * 1e-30, 1.0 + corner * 1e-2])
    maps = LayerMaps.of(raw, raw, SIZE)
    assert maps.empty.tolist() == [True, True, True, False, False]
    assert maps.normalised.flatten(1).amax(dim=1).tolist() == [0, 0, 0, 1, 1]
