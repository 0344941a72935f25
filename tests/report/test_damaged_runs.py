"""A run's folder is somebody else's input: what no run writes is refused in one line, or left out of the page."""

from __future__ import annotations

import csv
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fake_run import LAYERS, some_rows, write_run
from tests.helpers.png import beginning, chunk
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.data.images import UnreadableImage
from utils.gradcam_kit.report.page import write_report
from utils.gradcam_kit.store.grey_maps import read_grey_map
from utils.gradcam_kit.store.read_run import read_metrics, read_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    return write_run(folder / "run", some_rows(folder)[:4])


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def changed(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("weights", {}, "weights: the field path is missing"),
        ("datasets", {"faces": {}}, "datasets.faces: the field frames is missing"),
        ("datasets", {"..": {"frames": 1, "json_sha256": "", "frames_sha256": ""}}, "datasets is"),
        ("heatmaps", "x", "heatmaps is 'x'"),
        ("heatmaps", {"faces": {"heatmaps": 1, "empty_maps": {}, "non_finite": ["a"], "vanished": []}}, "heatmaps.faces.non_finite: 0 is 'a'"),
        ("config", {"gradcam_colormap": "puce"}, "config.gradcam_colormap is 'puce'"),
        ("config", {"gradcam_colormap": ["jet"]}, "config.gradcam_colormap is ['jet']"),
        ("config", nested(300), "nested more than 40 levels deep"),
    ],
)  # fmt: skip
def test_a_manifest_that_no_run_writes(field: str, value: Any, says: str, run: Path) -> None:
    changed(run / "manifest.json", lambda values: {**values, field: value})
    with pytest.raises(InputError) as refused:
        write_report(run)
    assert says in str(refused.value) and str(run / "manifest.json") in str(refused.value)
    assert not (run / "index.html").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: [m], "it is ["),
        (lambda m: {"faces": 7}, "faces is 7"),
        (lambda m: {"faces": {"auc": 0.5}}, "faces: the field acc is missing"),
        (lambda m: {"faces": {**m["faces"], "auc": "0.5"}}, "faces: auc is '0.5'"),
        (lambda m: {"faces": {**m["faces"], "auc": 1.5}}, "faces: auc is 1.5"),
        (lambda m: {"faces": {**m["faces"], "auc": float("nan")}}, "faces: auc is nan"),
        (lambda m: {"faces": {**m["faces"], "frames": True}}, "faces: frames is True"),
        (lambda m: {"faces": {**m["faces"], "auc": None}}, "faces: the field note is missing"),
    ],
)
def test_metrics_that_no_run_writes(change: Callable[[Any], Any], says: str, run: Path) -> None:
    changed(run / "metrics.json", change)
    with pytest.raises(InputError) as refused:
        read_metrics(run / "metrics.json")
    assert says in str(refused.value) and str(run / "metrics.json") in str(refused.value)


def cell(column: str, value: str) -> Callable[[str], str]:
    """Of the second row."""

    def change(text: str) -> str:
        table = [line.split(",") for line in text.splitlines()]
        table[2][table[0].index(column)] = value
        return "\n".join(map(",".join, table)) + "\n"

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.partition("\n")[2], "the column index is missing"),
        (lambda text: "", "the column index is missing"),
        (lambda text: text[: len(text) * 2 // 3], "has more or fewer fields"),
        (lambda text: text + "1,2,3\n", "has more or fewer fields"),
        (cell("prob_fake", "0q49"), "row 3 is"),
        (cell("prob_fake", "nan"), "row 3 is"),
        (cell("prob_fake", "2"), "row 3 is"),
        (cell("label", "7"), "row 3 is"),
        (cell("index", "-1"), "row 3 is"),
        (cell("index", "9" * 5000), "row 3 is"),
        (cell("logit_fake", "inf"), "row 3 is"),
    ],
)
def test_predictions_that_no_run_writes(change: Callable[[str], str], says: str, run: Path) -> None:
    path = run / "faces" / "predictions.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError) as refused:
        read_run(run)
    assert says in str(refused.value) and str(path) in str(refused.value) and len(str(refused.value)) < 400


def test_a_field_of_any_length_is_read(run: Path) -> None:
    """csv's own limit is 131,072 letters."""
    before = csv.field_size_limit(131_072)
    path = run / "faces" / "predictions.csv"
    path.write_text(cell("path", "x" * 140_000)(path.read_text()))
    assert read_run(run).datasets[0].label.size == 4
    csv.field_size_limit(before)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("index", "0"), ("label", 0.5), ("label", 2), ("prob_fake", 1.5), ("prob_fake", True), ("logit_real", None),
        ("path", 7), ("layers", 7), ("layers", ["a"]), ("original", {"left": "8"}), ("original", [1, 2]),
        ("layers", [{"name": "../../../secret", "raw_minimum": 0, "raw_maximum": 1, "signed_extreme": 1, "empty": False,
                     "drawn_empty": False}]),
        ("layers", [{"name": "a", "raw_minimum": 2, "raw_maximum": 1, "signed_extreme": 1, "empty": False,
                     "drawn_empty": False}]),
        ("layers", [{"name": "a", "raw_minimum": 0, "raw_maximum": 1e999, "signed_extreme": 1, "empty": False,
                     "drawn_empty": False}]),
    ],
)  # fmt: skip
def test_a_samples_json_that_no_run_writes_is_lost(key: str, value: Any, run: Path) -> None:
    changed(run / "faces" / "sample0" / "sample0.json", lambda values: {**values, key: value})
    samples = read_run(run).datasets[0].samples
    assert samples[0].lost.startswith("sample0.json is damaged") and [one.lost for one in samples[1:]] == [""] * 3
    assert write_report(run).is_file()


def test_a_dataset_folder_that_leads_elsewhere(run: Path, tmp_path: Path) -> None:
    (run / "faces").rename(tmp_path / "mine")
    (tmp_path / "mine" / "regions.csv").write_text("my own table")
    (run / "faces").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="is a symbolic link, which is not followed"):
        write_report(run)
    assert (tmp_path / "mine" / "regions.csv").read_text() == "my own table"


def png(side: int, depth: int, colour: int, *after: bytes) -> bytes:
    return beginning(side, side, depth, colour) + b"".join(after)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (png(8, 8, 0, struct.pack(">I", 0xF0000000) + b"tEXt" + b"x" * 20), "is damaged"),
        (png(20_000, 8, 0, chunk(b"IDAT", zlib.compress(b"\0" * 4_000_000))), "larger than any patch grid"),
        (png(8, 8, 2, chunk(b"IDAT", zlib.compress(b"\0" * 200))), "not an 8-bit grey image"),
        (png(8, 16, 0, chunk(b"IDAT", zlib.compress(b"\0" * 200))), "not an 8-bit grey image"),
        (b"", "not an 8-bit grey image"),
    ],
)
def test_a_grey_map_that_swells(data: bytes, says: str, run: Path) -> None:
    """Refused before anything of that size is allocated (OpenCV alone took 4 GB for the first), and left out."""
    path = run / "faces" / "sample0" / "heatmaps" / f"{LAYERS[0]}.png"
    path.write_bytes(data)
    with pytest.raises(UnreadableImage, match=says):
        read_grey_map(path)
    assert write_report(run).is_file()
