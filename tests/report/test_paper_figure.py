"""The figure of a run whose maps are known, read back from the file: what text it holds, where its colour lies."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers.fake_run import LAYERS, Row, write_row, write_tables
from utils.errors import InputError
from utils.report.__main__ import main
from utils.report.paper_figure import cells
from utils.results.read_run import read_run

ROWS = [Row(3, "toy", "toy_Fake", "v", 1, 0.9, "3.png", hot=(0, 3)), Row(7, "toy", "toy_Real", "w", 0, 0.2, "7.png")]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for row in ROWS:
        write_row(tmp_path / "run", row, empty=row.number == 7)
    write_tables(tmp_path / "run", ROWS)
    return tmp_path / "run"


def test_the_heat_lies_where_the_map_is_hot(run: Path) -> None:
    (sample, _) = read_run(run).datasets[0].samples
    image, _, first, _ = cells(sample, LAYERS)
    assert np.abs(image.image.astype(int) - (90, 120, 60)).max() <= 2  # the image of the fixture
    assert first.heat is not None and first.heat.max() == 1
    row, column = np.unravel_index(first.heat.argmax(), first.heat.shape)
    assert (int(row) * 4 // 64, int(column) * 4 // 64) == (0, 3)


@pytest.mark.parametrize("suffix", ["pdf", "svg", "png"])
def test_text_is_text_and_the_width_is_the_columns(run: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"figure.{suffix}"
    assert main(["figure", str(run), "--samples", "7", "3", "-o", str(path), "--column", "single"]) == 0
    if suffix == "svg":
        text = path.read_text()
        for words in ("block 5", "block 3", "fake, fake 0.90", "real, fake 0.20", "empty map", "share of the map"):
            assert words in text
        assert "forged region" not in text  # no sample has a mask
    if suffix == "png":
        read = cv2.imread(str(path))
        assert read is not None and abs(read.shape[1] / 300 - 3.3) < 0.01
    if suffix == "pdf":
        assert b"/Type3" not in path.read_bytes()  # publishers refuse such fonts


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--samples", "4"], "sample 4 was not explained in 'toy'; there are 3, 7"),
        (["--samples", "3", "--layers", "encoder.layers.9"], "'encoder.layers.9' is not in the run"),
        (["--samples", "3", "--dataset", "to"], "did you mean 'toy'"),
        (["--samples", "3", "--width", "nan"], "--width is nan"),
        (["--samples", "3", "-o", "x.gif"], "give a file"),
    ],
)
def test_what_is_not_there(run: Path, tmp_path: Path, flags: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        main(["figure", str(run), "-o", str(tmp_path / "f.pdf"), *flags])
    assert not (tmp_path / "f.pdf").exists()


def test_a_sample_whose_images_are_gone(run: Path, tmp_path: Path) -> None:
    (run / "toy" / "sample3" / "gradcam_comparison.png").unlink()
    with pytest.raises(InputError, match="images were deleted"):
        main(["figure", str(run), "--samples", "3", "-o", str(tmp_path / "f.pdf")])
