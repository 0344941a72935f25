"""A run's folder is somebody else's input: what no run writes is refused in one line, or left out of the page."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.fake_run import changed_row, some_rows, write_run
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.report.page import write_report
from utils.gradcam_kit.store.read_run import frame_rows, read_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    return write_run(folder / "run", some_rows(folder)[:4])


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def constant(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


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
    changed_row(run, "run", "manifest", lambda text: json.dumps({**json.loads(text), field: value}))
    with pytest.raises(InputError) as refused:
        write_report(run)
    assert says in str(refused.value) and str(run / "run.sqlite") in str(refused.value)
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
    changed_row(run, "run", "metrics", lambda text: json.dumps(change(json.loads(text))))
    with pytest.raises(InputError) as refused:
        read_run(run)
    assert says in str(refused.value) and str(run / "run.sqlite") in str(refused.value)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("prob_fake", "0q49"), ("prob_fake", None), ("prob_fake", 2.0), ("label", 7), ("label", "1"), ("logit_fake", 1e308 * 10),
        ("path", 7), ("forgery", None),
    ],
)  # fmt: skip
def test_predictions_that_no_run_writes(column: str, value: Any, run: Path) -> None:
    changed_row(run, "frame", column, constant(value), "idx = 1")
    with pytest.raises(InputError) as refused:
        read_run(run)
    assert str(run / "run.sqlite") in str(refused.value) and len(str(refused.value)) < 400


def test_a_path_of_any_length_and_any_bytes_is_read(run: Path) -> None:
    """Also what UTF-8 does not have, as a file system may."""
    for value in ("x" * 140_000, "gr\udcfc\udcdfe.png".encode("utf-8", "surrogatepass")):
        changed_row(run, "frame", "path", constant(value), "idx = 1")
        assert read_run(run).datasets[0].label.size == 4
    rows = list(frame_rows(run / "faces"))
    assert rows[1]["path"] == "gr\udcfc\udcdfe.png"


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
def test_a_sample_that_no_run_writes(key: str, value: Any, run: Path) -> None:
    changed_row(run, "sample", "facts", lambda text: json.dumps({**json.loads(text), key: value}), "idx = 0")
    with pytest.raises(InputError, match=r"run\.sqlite: sample 0 of faces is damaged"):
        read_run(run)


@pytest.mark.parametrize(
    ("column", "value"),
    [("raw", b""), ("raw", b"\0" * 17), ("signed", None), ("rows", 10**9), ("span_rows", -1), ("span_columns", 10**9),
     ("raw", np.full(16, np.nan, np.float32).tobytes())],
)  # fmt: skip
def test_a_map_that_no_run_writes(column: str, value: Any, run: Path) -> None:
    """Refused before anything of that size is allocated."""
    changed_row(run, "map", column, constant(value), "idx = 0")
    with pytest.raises(InputError, match="is damaged"):
        write_report(run)


def test_an_edited_row_is_found(run: Path) -> None:
    """Edited by somebody who does not know of the hash."""
    with contextlib.closing(sqlite3.connect(run / "run.sqlite")) as database:
        database.execute("UPDATE frame SET prob_fake = 0.01 WHERE idx = 2")
        database.commit()
    with pytest.raises(InputError, match="1 rows were changed since the run wrote them; run its command with --resume"):
        read_run(run)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: b"", "is not a run's database"),
        (lambda data: b"a text" * 1000, "not a database"),
        (lambda data: data[: len(data) // 2], "is damaged|cannot be read"),
        (lambda data: data[:8192] + b"\xff" * 4096 + data[12288:], "is damaged|cannot be read|were changed"),
        (lambda data: data[:68] + b"abcd" + data[72:], "is not a run's database"),
        (lambda data: data[:60] + b"\0\0\0\x09" + data[64:], "was written by a newer version"),
    ],
)
def test_a_damaged_or_foreign_database(change: Callable[[bytes], bytes], says: str, run: Path) -> None:
    path = run / "run.sqlite"
    path.write_bytes(change(path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(InputError, match=says) as refused:
        write_report(run)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value) and path.read_bytes() == before


def test_a_dataset_folder_that_leads_elsewhere(run: Path, tmp_path: Path) -> None:
    (run / "faces").rename(tmp_path / "mine")
    (tmp_path / "mine" / "regions.csv").write_text("my own table")
    (run / "faces").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="is a symbolic link, which is not followed"):
        write_report(run)
    assert (tmp_path / "mine" / "regions.csv").read_text() == "my own table"
