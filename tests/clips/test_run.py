"""A clip detector evaluated and explained by the command, as a user runs it."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.helpers.paths import ROOT

BUILD = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from tests.clips.towers import Folded, Volume

def volume():
    torch.manual_seed(0)
    return Volume()

def folded():
    torch.manual_seed(0)
    return Folded()
"""
Finished = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three real and three fake videos of ten frames, and one of two; one frame is no image."""
    folder = tmp_path_factory.mktemp("clips")
    random = np.random.default_rng(0)
    for label in ("real", "fake"):
        for video in range(3):
            (folder / "set" / label / f"v{video}").mkdir(parents=True)
            coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            for i in range(10):
                image = np.roll(cv2.resize(coarse, (40, 40), interpolation=cv2.INTER_CUBIC), i, axis=1)
                cv2.imwrite(str(folder / "set" / label / f"v{video}" / f"{5 * i:03d}.png"), image)
    (folder / "set" / "real" / "short").mkdir()
    for i in range(2):
        cv2.imwrite(str(folder / "set" / "real" / "short" / f"{i}.png"), image)
    (folder / "set" / "fake" / "v2" / "045.png").write_bytes(b"no image")
    (folder / "build.py").write_text(BUILD)
    (folder / "test.yaml").write_text(f"dataset_json_folder: {folder}\nlabel_dict: {{}}\n")
    return folder


def command(data: Path, *flags: str, model: str = "volume") -> Finished:
    return subprocess.run(
        [sys.executable, str(ROOT / "test_with_gradcam.py"), "--detector", f"{data / 'build.py'}:{model}",
         "--test_config", str(data / "test.yaml"), "--test_dataset", str(data / "set"), "--resolution", "32",
         "--device", "cpu", "--workers", "0", "--max_unreadable", "50%", *flags],
        capture_output=True, text=True, check=False, cwd=data,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(data: Path) -> tuple[Path, str]:
    out = data / "out"
    flags = ["--clip_size", "4", "--gradcam_enabled", "--save_all_predictions", "--save_raw", "--batch_size", "5"]
    done = command(data, *flags, "--gradcam_output_dir", str(out))
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_for_each_clip_and_the_host_s_numbers(run: tuple[Path, str]) -> None:
    out, printed = run
    rows = rows_of(out / "set" / "predictions.csv")
    assert len(rows) == 11  # two clips of six videos, less one that could not be read
    (unreadable,) = rows_of(out / "set" / "unreadable.csv")
    assert "045.png" in unreadable["reason"] and unreadable["index"] not in [row["index"] for row in rows]
    label, fake = [int(row["label"]) for row in rows], [float(row["prob_fake"]) for row in rows]
    metrics = json.loads((out / "metrics.json").read_text())["set"]
    assert metrics["auc"] == pytest.approx(roc_auc_score(label, fake))
    assert metrics["acc"] == pytest.approx(np.mean((np.array(fake) > 0.5) == np.array(label)))
    videos = {(row["forgery"], row["video"]) for row in rows}
    of_video = {
        one: [p for p, row in zip(fake, rows, strict=True) if (row["forgery"], row["video"]) == one] for one in videos
    }
    means = [float(np.mean(of_video[one])) for one in sorted(videos)]
    assert metrics["video_auc"] == pytest.approx(roc_auc_score([one[0] == "fake" for one in sorted(videos)], means))
    facts = {
        name: metrics[name] for name in ("clip_size", "clips", "short_videos", "frames_in_no_clip", "frames_there")
    }
    assert facts == {"clip_size": 4, "clips": 12, "short_videos": 1, "frames_in_no_clip": 14, "frames_there": 62}
    assert (
        "14 of 62 frames are in no clip and are not evaluated" in printed
        and "video AUC here uses each video's" in printed
    )
    clips = rows_of(out / "set" / "clips.csv")
    assert [clip["frames"] for clip in clips[:2]] == ["0 5 10 15", "30 35 40 45"] and clips[0]["spacing"] == "5"


def test_the_files_of_a_clip(run: tuple[Path, str]) -> None:
    out, _ = run
    folder = out / "set" / "sample0"
    sample = json.loads((folder / "sample0.json").read_text())
    assert sample["frames"] == [0, 5, 10, 15] and len(sample["layers"][0]["time"]) == 4
    (layer,) = [one["name"] for one in sample["layers"]]
    raw = np.load(folder / "raw_sample0.npz")
    assert raw[f"{layer}.signed"].shape == (2, 8, 8) and raw[f"{layer}.time"].shape == (4,)
    np.testing.assert_allclose(raw[f"{layer}.time"].sum(), raw[f"{layer}.signed"].sum(), rtol=1e-4)
    np.testing.assert_allclose(sample["layers"][0]["time"], raw[f"{layer}.time"], rtol=1e-6)
    strip = cv2.imread(str(folder / f"gradcam_strip_{layer}_sample0.png"))
    assert strip is not None and strip.shape == (48 + 32 + 18, 4 * 32, 3)
    mosaic = cv2.imread(str(folder / f"gradcam_{layer}_sample0.png"))
    assert mosaic is not None and mosaic.shape == (2 * 32, 2 * 32, 3)
    grey = cv2.imread(str(folder / "heatmaps" / f"{layer}.png"), cv2.IMREAD_UNCHANGED)
    signed = raw[layer]
    atlas = np.vstack([np.hstack([signed[0], signed[0]]), np.hstack([signed[1], signed[1]])])  # a step is two frames
    expected = np.rint((atlas.astype(float) - atlas.min()) / (atlas.max() - atlas.min()) * 255)
    assert np.abs(grey - expected).max() <= 1
    text = (folder / "sample0_metadata.txt").read_text()
    assert "Frames: 0 5 10 15\n" in text and f"Time {layer}: " in text
    assert (out / "index.html").is_file() and not (out / "set" / "regions.csv").exists()


def test_a_finished_run_is_told_from_another_length_of_clips(data: Path, run: tuple[Path, str]) -> None:
    out, _ = run
    same = [
        "--gradcam_enabled",
        "--save_all_predictions",
        "--save_raw",
        "--batch_size",
        "5",
        "--resume",
        "--gradcam_output_dir",
    ]
    again = command(data, "--clip_size", "4", *same, str(out))
    assert again.returncode == 0 and "this run is already complete" in again.stdout
    other = command(data, "--clip_size", "5", *same, str(out))
    assert other.returncode == 2 and "clip_size" in other.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--clip_size", "40"], "no video has the 40 frames of a clip, the longest has 10"),
        (["--clip_size", "0"], "--clip_size"),
        (["--clip_size", "4", "--shard", "1/2"], "--shard splits images: leave it out for a clip detector"),
        (["--clip_size", "4", "--gradcam_enabled", "--gradcam_method", "legrad"], "not verified for clips"),
    ],
)
def test_what_cannot_be_is_one_line(data: Path, tmp_path: Path, flags: list[str], says: str) -> None:
    done = command(data, *flags, "--gradcam_output_dir", str(tmp_path / "out"))
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "method", "layer"),
    [
        (["--method", "layercam", "--layers", "auto"], "layercam", None),
        (["--method", "auto", "--layers", "model.first"], None, "first"),
        (["--method", "gradcam3d"], "gradcam3d", "last"),
    ],
)
def test_what_is_named_is_kept_where_the_rest_is_chosen(
    data: Path, tmp_path: Path, flags: list[str], method: str | None, layer: str | None
) -> None:
    out = tmp_path / "out"
    common = ["--clip_size", "4", "--gradcam_enabled", "--gradcam_samples", "1", "--gradcam_output_dir", str(out)]
    done = command(data, *common, *flags)
    assert done.returncode == 0, done.stderr
    (sample,) = out.rglob("sample*.json")
    recipe = json.loads(sample.read_text())["layers"][0]["recipe"]
    assert method in (None, recipe["method"]) and layer in (None, recipe["layer"].rpartition(".")[2])


def test_a_detector_of_other_clips_is_told_which(data: Path, tmp_path: Path) -> None:
    """As I3D at 256 pixels, which gives four numbers for one clip."""
    (data / "four.py").write_text(
        BUILD + "\ndef build():\n    model = Volume()\n    model.head = torch.nn.Linear(16, 4)\n    return model\n"
    )
    done = command(
        data, "--clip_size", "4", "--detector", f"{data / 'four.py'}:build", "--gradcam_output_dir", str(tmp_path / "o")
    )
    assert done.returncode == 2, done.stdout
    assert "gives predictions of shape (2, 4) for 2 clips, not one or two numbers per clip" in done.stderr
    assert "of 4 frames of 32 pixels; give its own --clip_size and --resolution" in done.stderr


def test_the_page_shows_time(run: tuple[Path, str]) -> None:
    """A curve on the card; in the large view one frame at a time, by a slider and by play."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    out, _ = run
    errors: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((out / "index.html").as_uri())
        time = np.load(out / "set" / "sample0" / "raw_sample0.npz")
        (layer,) = [name for name in time.files if not name.endswith((".signed", ".time"))]
        hottest = [0, 5, 10, 15][int(time[f"{layer}.time"].argmax())]
        card = page.locator("[data-key='set/0']")  # of sample0, wherever it stands
        curve = card.locator("svg.curve")
        label = f"Evidence in each frame: 4 frames, the most at frame {hottest}"
        assert curve.get_attribute("aria-label") == label and curve.locator("rect").count() == 4
        card.click()
        assert page.inner_text("#frame-number") == "all frames"
        page.locator("#time [name=frame]").fill("2")
        assert page.inner_text("#frame-number") == "frame 10"
        whole = page.locator("#stage .picture .picture")  # two rows and two columns, moved to the third frame
        style = {name: whole.evaluate(f"one => one.style.{name}") for name in ("width", "left", "top")}
        assert style == {"width": "200%", "left": "0%", "top": "-100%"}
        page.click("#play")
        playwright.expect(page.locator("#frame-number")).to_have_text("frame 15")
        page.click("#play")
        page.click("#all-frames")
        assert page.inner_text("#frame-number") == "all frames" and page.inner_text("#play") == "Play"
        browser.close()
    assert errors == []
