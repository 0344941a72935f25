"""What is meant for others: every file of it is searched for the home folder, names, absolute paths and hashes."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers.fake_run import changed_row, some_rows, with_values, write_run
from tests.helpers.paths import ROOT
from utils.gradcam_kit.report.page import write_report

pytestmark = pytest.mark.slow  # whole runs and their pages

USER, HOST = "melusine", "undine-workstation"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of somebody's data, with all that a run knows of them; the frames' files are there."""
    home = tmp_path / "home" / USER
    rows = some_rows(home / "data")
    folder = write_run(home / "runs" / "mine", rows)
    for row in rows:
        frame = Path(row.path)
        frame.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(frame), np.full((64, 64, 3), row.number % 250, np.uint8))
        digest = hashlib.sha256(frame.read_bytes()).hexdigest()[:16]
        changed_row(
            folder, "sample", "facts", with_values(image_hash=digest, weights=f"{home}/best.pth"), f"idx = {row.number}"
        )
    weights = {"path": f"{home}/best.pth", "sha256": "ab" * 32}
    config = {
        "model_name": "clip_gradcam",
        "weights_path": f"{home}/best.pth",
        "rgb_dir": f"/mnt/{USER}/faces",
        "node": HOST,
    }
    command = ["test_with_gradcam.py", "--gradcam_output_dir", str(folder)]
    changed_row(folder, "run", "manifest", with_values(weights=weights, config=config, command=command))
    said = {"acc": 0.5, "auc": 0.7, "eer": 0.3, "ap": 0.6, "video_auc": 0.7, "frames": 4, "videos": 2, "unreadable": 0}
    metrics = {name: {**said, "warning": f"an image is in it twice, {home}/data/a.png"} for name in ("faces", "others")}
    changed_row(folder, "run", "metrics", lambda _: json.dumps(metrics))
    gaps = "forgery,frames,folders,absent_frames,absent_folders,unreadable_frames,first_absent,beside\n"
    (folder / "faces" / "gaps.csv").write_text(f"{gaps}gone_Fake,4,2,4,2,0,{home}/data/gone_Fake,\n")
    return folder


def report(*words: object) -> str:
    command = [sys.executable, "-m", "utils.report", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def telling(folder: Path, tmp_path: Path) -> list[tuple[str, bytes]]:
    """What a file of a folder tells of the person: file and word."""
    paths = {str(tmp_path), str(ROOT), str(Path.home()), "/home/", "/mnt/", "file:///"} - {"/"}
    hashes = {"ab" * 32, "ab" * 6, "cd" * 32, "ef" * 32}
    for frame in (tmp_path / "home").rglob("frames/*/*.png"):
        hashes |= {hashlib.sha256(frame.read_bytes()).hexdigest()[:12]}
    words = [word.encode() for word in (*paths, *hashes, USER, HOST)]
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else [folder]
    assert files
    return [(file.name, word) for file in files for word in words if word in file.read_bytes()]


def test_the_page_of_a_run_tells_of_somebody(run: Path, tmp_path: Path) -> None:
    """Else this file would search for nothing."""
    write_report(run)
    assert {word.decode() for _, word in telling(run / "index.html", tmp_path)} >= {USER, "file:///", "ab" * 6} - {
        "file:///"
    }


def test_a_page_for_others(run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    shared = tmp_path / "shared"
    assert report(run, "--anonymous", shared).strip() == str(shared / "index.html")
    assert telling(shared, tmp_path) == []
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    page = (shared / "index.html").read_text()
    assert "best.pth" in page and "swap_Fake/000/000.png" in page and "Configuration" not in page
    rows = list(csv.DictReader((shared / "faces" / "predictions.csv").open()))
    own = list(csv.DictReader((run / "faces" / "predictions.csv").open()))
    assert [{**row, "path": ""} for row in rows] == [{**row, "path": ""} for row in own]
    assert rows[0]["path"] == "real_Real/000/000.png"
    pictures = {path.relative_to(run) for path in run.rglob("sample*/**/*.png")}
    assert pictures and pictures == {path.relative_to(shared) for path in shared.rglob("sample*/**/*.png")}
    assert not list(shared.rglob("*.sqlite")) and not list(shared.rglob("manifest.json"))
    again = subprocess.run([sys.executable, "-m", "utils.report", str(run), "--anonymous", str(shared)], cwd=ROOT,
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert again.returncode == 2 and "exists already" in again.stderr


def test_figure_tables_and_comparison(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    out.mkdir()
    for kind in ("pdf", "svg", "png"):
        report("figure", run, "--samples", "0", "--dataset", "faces", "-o", out / f"figure.{kind}")
    other = run.parent.parent / "others" / "mine"
    write_run(other, some_rows(run.parents[1] / "data"))
    for kind in ("tex", "csv"):
        report("table", run, other, "-o", out / f"table.{kind}")
    assert "runs/mine" in (out / "table.tex").read_text() and "others/mine" in (out / "table.tex").read_text()
    report("compare", run, other, "-o", out / "comparison", "--anonymous")
    assert telling(out, tmp_path) == []
    assert "swap_Fake/000/000.png" in (out / "comparison" / "frames.csv").read_text()
