"""Maps of clips measured by the command, for a detector that is known to read one cell of one frame."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.clips.test_choosing import PLACE, OneCell
from tests.helpers.paths import ROOT
from utils.gradcam import explain
from utils.gradcam_kit.judge.deletion import SHARES
from utils.gradcam_kit.measure.clips import clips_of, pictures_of

VIDEOS, FRAMES, SIDE = 6, 4, 32
BUILD = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.clips.test_measure import sharp
"""
T, ROW, COLUMN = PLACE
CELL = (slice(8 * ROW, 8 * ROW + 8), slice(8 * COLUMN, 8 * COLUMN + 8))


def sharp() -> OneCell:
    """Called fake where the cell is white; real where it is as dark as the rest."""
    model = OneCell()
    model.head.bias.data[1] = -85
    return model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real videos, and fakes that differ from them in one cell of one frame, with a mask for each frame."""
    folder, random = tmp_path_factory.mktemp("measured"), np.random.default_rng(0)
    for video in range(VIDEOS):
        coarse = random.integers(0, 120, (FRAMES, 4, 4, 3), dtype=np.uint8)
        for t in range(FRAMES):
            image = cv2.resize(coarse[t], (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
            mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
            for label in ("real", "fake"):
                if label == "fake" and t == T:
                    image, mask[CELL] = image.copy(), 255
                    image[CELL] = 255
                for kind, picture in ((f"set/{label}/v{video}", image), (f"masks/{label}/v{video}", mask)):
                    (folder / kind).mkdir(parents=True, exist_ok=True)
                    cv2.imwrite(str(folder / kind / f"{t:03d}.png"), picture)
    (folder / "build.py").write_text(BUILD)
    (folder / "test.yaml").write_text(f"dataset_json_folder: {folder}\nlabel_dict: {{}}\n")
    return folder


def command(data: Path, out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "test_with_gradcam.py"), "--detector", f"{data / 'build.py'}:sharp",
         "--test_config", str(data / "test.yaml"), "--test_dataset", str(data / "set"), "--resolution", str(SIDE),
         "--clip_size", str(FRAMES), "--device", "cpu", "--workers", "0", "--mean", "0", "0", "0", "--std", "0.25",
         "0.25", "0.25", "--gradcam_enabled", "--gradcam_samples", "1", "--gradcam_output_dir", str(out), *flags],
        capture_output=True, text=True, check=False, cwd=data,
    )  # fmt: skip


def fakes(data: Path) -> torch.Tensor:
    """(VIDEOS, T, 3, R, R) as the detector gets them."""
    read = [
        [
            np.asarray(cv2.imread(str(data / "set" / "fake" / f"v{video}" / f"{t:03d}.png")))[..., ::-1]
            for t in range(FRAMES)
        ]
        for video in range(VIDEOS)
    ]
    return torch.from_numpy(np.array(read)).permute(0, 1, 4, 2, 3).float() / 255 / 0.25


def test_clips_are_measured_like_images(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command(data, out, "--gradcam_method", "hirescam", "--gradcam_layers", "model.cells.1", "--evaluate_explanations",
                   "--masks", str(data / "masks"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((out / "explanations.json").read_text()).values()
    assert found["detected_fakes"] == found["judged"] == found["masks"]["ok"] == found["paired_real"] == VIDEOS
    assert "segment attack skipped: it is for images" in found["notes"] and found["ranked_by"] == "energy in mask"
    with (out / "explanations.csv").open(newline="") as file:
        rows = {(row["method"], row["metric"]): float(row["mean"]) for row in csv.DictReader(file)}
    clips, model = fakes(data), sharp()
    heat = explain(model, clips, method="hirescam", layers="cells.1", target="fake", clip_layout="btchw").heatmap
    energy = heat[:, T, CELL[0], CELL[1]].flatten(1).sum(1) / heat.flatten(1).sum(1)
    assert rows["hirescam", "energy in mask"] == pytest.approx(energy.mean().item(), abs=1e-5)
    assert rows["hirescam", "pointing game"] == 1 and rows["random", "pointing game"] < 0.5
    # The curve of deletion by the clip's mean colour, from the heat and the model alone.
    order, colour = heat.flatten(1).argsort(dim=1, descending=True), clips.mean(dim=(1, 3, 4), keepdim=True)
    scores = []
    for share in SHARES:
        gone = torch.zeros_like(heat).flatten(1)
        gone.scatter_(1, order[:, : round(share * order.shape[1])], 1)
        changed = torch.where(gone.view_as(heat).unsqueeze(2) > 0, colour, clips)
        scores.append(model(changed).softmax(dim=1)[:, 1])
    area = torch.trapezoid(torch.stack(scores, dim=1), torch.tensor(SHARES), dim=1).mean().item()
    assert rows["hirescam", "deletion (mean)"] == pytest.approx(area, abs=2e-3)
    assert rows["hirescam", "deletion (paired real)"] < 0.5 * rows["random", "deletion (paired real)"]
    assert found["randomised"]["steps"][-1] == "embeddings and norms"
    assert (out / found_name(out) / "explanation_curves.png").is_file()


def found_name(out: Path) -> str:
    return next(iter(json.loads((out / "metrics.json").read_text())))


def test_a_run_replaces_cells_and_frames_by_those_of_the_real_video(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command(data, out, "--gradcam_method", "auto", "--check_maps", "on", "--save_all_predictions", "--gradcam_samples", "12")  # fmt: skip
    assert done.returncode == 0, done.stderr
    choice = json.loads((out / "calibration.json").read_text())["choice"]
    assert choice["fills"] == ["paired real"] and choice["images"] == VIDEOS
    samples = [json.loads(one.read_text()) for one in (out / found_name(out)).glob("sample*/sample*.json")]
    sample = next(one for one in samples if one["label"] == 1)
    (layer,) = sample["layers"]
    model, clips = sharp(), fakes(data)
    video = int(sample["video"][1:])
    real = np.asarray(cv2.imread(str(data / "set" / "real" / f"v{video}" / f"{T:03d}.png")))[..., ::-1].copy()
    replaced = clips[video : video + 1].clone()
    replaced[0, T] = torch.from_numpy(real).permute(2, 0, 1).float() / 255 / 0.25
    with torch.no_grad():
        before, after = (
            float(logits[0, 1] - logits[0, 0]) for logits in (model(clips[video : video + 1]), model(replaced))
        )
    assert sample["cost"][T] == pytest.approx(before - after, rel=1e-3) and len(sample["cost"]) == FRAMES
    assert layer["check"]["word"] == "supported" and layer["check"]["fall"] == pytest.approx(before - after, rel=1e-3)
    shown = json.dumps([float(f"{value:.4g}") for value in sample["cost"]])
    assert f'"cost": {shown}' in (out / "index.html").read_text()


def test_without_masks_maps_are_ranked_by_deletion_and_swept(data: Path, tmp_path: Path) -> None:
    out, left_out = tmp_path / "out", ["deletion", "saco", "transplant", "randomisation"]
    done = command(data, out, "--evaluate_explanations", "--sweep", "--gradcam_layers", "model.cells.0", "model.cells.1",
                   "--leave_out", *left_out)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((out / "explanations.json").read_text()).values()
    assert found["ranked_by"] == "drop at 10 % deleted"
    drop = {row["method"]: row["mean"] for row in found["rows"] if row["metric"] == found["ranked_by"]}
    assert drop[found["ranking"][0]["method"]] > 0.9 and drop["random"] < 0.5
    assert {one["method"] for one in found["ranking"]} >= {"gradcam3d", "gradcam"}, "no attention, no fused maps"


def test_clicks_are_for_images(data: Path, tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_text("video,frame,x,y\nv0,2,1,1\n")
    done = command(data, tmp_path / "out", "--evaluate_explanations", "--clicks", str(tmp_path / "clicks.csv"))
    assert done.returncode == 2 and "--clicks are places in images" in done.stderr


def test_a_picture_of_frames_is_their_clip() -> None:
    clips = torch.arange(2 * 3 * 3 * 4 * 4).view(2, 3, 3, 4, 4)
    picture = pictures_of(clips)
    assert torch.equal(picture[1, 2, 4:8], clips[1, 1, 2]) and torch.equal(clips_of(picture, 3), clips)
    assert torch.equal(pictures_of(clips[:, :, 0])[:, 8:], clips[:, 2, 0])
