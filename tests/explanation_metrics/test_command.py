"""--evaluate_explanations as a user runs it: files read back, and every row of what can be missing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from tests.helpers.command_server import CommandServer, Finished
from tests.helpers.datasets import DataTree, make_data_tree
from tests.helpers.detectors import PATCH, PIXELS, tiny_detector

SCRIPT = "test_with_gradcam.py"
SIDE = PIXELS // PATCH


def always_fake(folder: Path) -> Path:
    """Weights of a detector that calls every picture fake."""
    state = tiny_detector().state_dict()
    state["head.bias"] = torch.tensor([-40.0, 40.0])
    torch.save(state, folder / "fake.pth")
    return folder / "fake.pth"


def write_masks(tree: DataTree, size: int = 80, forged: tuple[slice, slice] = (slice(20, 40), slice(20, 60))) -> None:
    """A mask of `size` pixels for each fake."""
    mask = np.zeros((80, 80), np.uint8)
    mask[forged] = 255
    for frame in tree.frames["toy_Fake"]:
        path = Path(str(frame).replace("/frames/", "/masks/"))
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST))


@pytest.fixture
def tree(tmp_path: Path) -> DataTree:
    return make_data_tree(tmp_path / "data", always_fake(tmp_path), videos=3, frames=2)


def evaluated(commands: CommandServer, tree: DataTree, out: Path, *more: str) -> tuple[Finished, dict[str, Any]]:
    done = commands.run(
        SCRIPT, *tree.arguments("--evaluate_explanations", "--gradcam_output_dir", out, *more), cwd=out.parent
    )
    assert done.code == 0, done.err
    return done, json.loads((out / "explanations.json").read_text())["toy"]


def read(path: Path) -> Any:
    """Pixels as OpenCV reads them: blue, green, red."""
    return cv2.imread(str(path))


def table(out: Path) -> list[dict[str, str]]:
    with (out / "explanations.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_and_the_config_that_it_writes(commands: CommandServer, tree: DataTree, tmp_path: Path) -> None:
    write_masks(tree, size=40)  # another size than the frames': resized to the nearest pixel
    out, best = tmp_path / "run", tmp_path / "best.yaml"
    done, found = evaluated(commands, tree, out, "--sweep", "--gradcam_layers", "encoder.layers.1", "encoder.layers.3")
    assert found["detected_fakes"] == found["judged"] == 6 and found["masks"]["ok"] == 6 and found["paired_real"] == 6
    rows = [row for row in table(out) if row["metric"] == "energy in mask" and row["layer"]]
    # Five token methods at two sites and two that read attention, at two layers and fused.
    assert len(rows) == (5 * 2 + 2) * 3 and {row["layer"] for row in rows} == {
        "encoder.layers.1",
        "encoder.layers.3",
        "fused",
    }
    assert "only 6 detected fakes" in done.out and "for this checkpoint: " in done.out
    # One value again, from the maps themselves: the energy of Grad-CAM at the last block.
    model = tiny_detector()
    model.load_state_dict(torch.load(tmp_path / "fake.pth", weights_only=True))
    energies = []
    for frame in tree.frames["toy_Fake"]:
        pixels = cv2.resize(read(frame)[..., ::-1], (PIXELS, PIXELS), interpolation=cv2.INTER_CUBIC)
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        maps = model.generate_gradcam({"image": image}, layers=["encoder.layers.3"], target="fake")
        heat = maps["encoder.layers.3"][0].numpy()
        mask = read(Path(str(frame).replace("/frames/", "/masks/")))[..., 0]
        forged = cv2.resize(mask, (PIXELS, PIXELS), interpolation=cv2.INTER_NEAREST) > 127
        energies.append(float(heat[forged].sum() / max(float(heat.sum()), 1e-9)))
    row = next(
        r for r in rows if (r["method"], r["layer"], r["site"]) == ("gradcam", "encoder.layers.3", "layer_norm1")
    )
    assert float(row["mean"]) == pytest.approx(np.mean(energies), abs=1e-3)
    assert float(row["low"]) <= float(row["mean"]) <= float(row["high"]) and row["videos"] == "3"
    for picture in ("explanation_curves.png", "explanation_heat_table.png"):
        drawn = read(out / "toy" / picture)
        assert drawn.shape[1] > 400 and drawn.std() > 10
    # Six random pictures are no evidence: nothing beats the controls, so there is no config to write.
    again = tree.arguments(
        "--evaluate_explanations", "--write_config", best, "--gradcam_output_dir", out, "--overwrite"
    )
    done = commands.run(SCRIPT, *again, cwd=tmp_path)
    assert done.code == 1 and "no map is better than the controls" in done.err and not best.exists()


def test_without_masks_localisation_is_left_out_and_the_rest_is_given(
    commands: CommandServer, tree: DataTree, tmp_path: Path
) -> None:
    done, found = evaluated(commands, tree, tmp_path / "run")
    assert "no masks: localisation metrics are left out" in done.out and found["masks"]["none"] == 6
    metrics = {row["metric"] for row in table(tmp_path / "run")}
    assert not metrics & {"energy in mask", "pointing game", "pixel average precision"}
    assert {"drop at 10 % deleted", "deletion (blur)", "insertion (mean)", "deletion (paired real)"} <= metrics


def test_empty_full_and_unreadable_masks_are_counted(commands: CommandServer, tree: DataTree, tmp_path: Path) -> None:
    write_masks(tree)
    masks = [Path(str(frame).replace("/frames/", "/masks/")) for frame in tree.frames["toy_Fake"]]
    cv2.imwrite(str(masks[0]), np.zeros((80, 80), np.uint8))
    cv2.imwrite(str(masks[1]), np.full((80, 80), 255, np.uint8))
    masks[2].write_bytes(b"no picture")
    masks[3].unlink()
    done, found = evaluated(commands, tree, tmp_path / "run")
    assert found["masks"] == {"ok": 2, "none": 1, "empty": 1, "full": 1, "unreadable": 1}
    assert "1 of 6 masks are empty" in done.out and "1 of 6 masks are full" in done.out
    energy = [row for row in found["rows"] if row["metric"] == "energy in mask"]
    assert {row["frames"] for row in energy} == {2}


def test_a_mask_that_is_the_whole_face_is_no_place_to_find(
    commands: CommandServer, tree: DataTree, tmp_path: Path
) -> None:
    write_masks(tree, forged=(slice(5, 75), slice(5, 75)))
    done, found = evaluated(commands, tree, tmp_path / "run")
    assert found["whole_face"] == ["toy_Fake"] and "toy_Fake: the mask is the whole face" in done.out
    assert "energy in mask" not in {row["metric"] for row in table(tmp_path / "run")}


def test_without_real_counterparts_that_fill_is_left_out(
    commands: CommandServer, tree: DataTree, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = tree.arguments("--evaluate_explanations", "--gradcam_output_dir", out, "--test_dataset", "toy_fake")
    done = commands.run(SCRIPT, *arguments, cwd=tmp_path)  # one class alone: no AUC, so the exit code is 1
    assert done.code == 1 and "no real counterparts in the data set: the paired-real fill is left out" in done.out
    fills = {row["metric"] for row in table(out) if row["metric"].startswith("deletion")}
    assert fills == {"deletion (blur)", "deletion (mean)"}


def test_counterparts_in_the_naming_of_faceforensics(tmp_path: Path) -> None:
    from utils.data.frames import DataSettings, read_dataset
    from utils.explanation_metrics.samples import RealCounterparts

    labels = {
        "FF-real": {"test": {"000": {"label": "FF-real", "frames": ["r/frames/000/012.png", "r/frames/000/024.png"]}}},
        "FF-DF": {
            "test": {"000_003": {"label": "FF-DF", "frames": ["f/frames/000_003/024.png", "f/frames/000_003/036.png"]}}
        },
    }
    (tmp_path / "toy.json").write_text(json.dumps({"toy": labels}))
    settings = DataSettings(tmp_path, tmp_path, {"FF-real": 0, "FF-DF": 1}, "c23", 1, "even", 64)
    fakes = [frame for frame in read_dataset("toy", settings._replace(frame_num=None)) if frame.label]
    paths = [RealCounterparts("toy", settings).path(fake) for fake in fakes]
    assert paths[0] is not None and paths[0].endswith("r/frames/000/024.png") and paths[1] is None


def test_nothing_detected_is_said(commands: CommandServer, tmp_path: Path) -> None:
    state = tiny_detector().state_dict()
    state["head.bias"] = torch.tensor([40.0, -40.0])
    torch.save(state, tmp_path / "real.pth")
    tree = make_data_tree(tmp_path / "data", tmp_path / "real.pth", videos=2, frames=1)
    done, found = evaluated(commands, tree, tmp_path / "run")
    assert "toy: no detected fakes: nothing to evaluate_dataset" in done.out and found["detected_fakes"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sweep"], "--sweep needs --evaluate_explanations"),
        (["--evaluate_explanations", "--write_config", "best.txt"], "give a .yaml file in a folder that is there"),
        (["--evaluate_explanations", "--gradcam_target", "real"], "gradcam_target 'real' does not go with it"),
        (["--evaluate_explanations", "--explanation_samples", "0"], "--explanation_samples"),
    ],
)
def test_unusable_flags(
    commands: CommandServer, tree: DataTree, tmp_path: Path, flags: list[str], message: str
) -> None:
    done = commands.run(SCRIPT, *tree.arguments("--gradcam_output_dir", tmp_path / "run", *flags), cwd=tmp_path)
    assert done.code == 2 and message in done.err and len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_written_config_runs(tmp_path: Path, commands: CommandServer, tree: DataTree) -> None:
    """The writer alone, given a map that is better than the controls; then its file, as a user would use it."""
    from utils.explanation_metrics.bootstrap import Interval
    from utils.explanation_metrics.comparison import ALL, Difference, Row
    from utils.explanation_metrics.evaluate import ENERGY, DatasetScores
    from utils.explanation_metrics.output import best_over_all, write_config
    from utils.explanation_metrics.sweep import MapSpec
    from utils.model.config import run_settings

    settings = run_settings(tree.detector_yaml, tree.test_yaml, {})
    spec = MapSpec("layercam", "encoder.layers.2", "residual")
    better = [Difference(control, 0.4, 0.3, 0.5, 0.001) for control in ("random", "gaussian", "face")]
    row = Row("toy", ALL, spec, ENERGY, Interval(0.8, 0.7, 0.9, 60, 20), better)
    judged = DatasetScores("toy", 60, [spec], ranking=[spec], rows=[row])
    assert best_over_all([judged]) == spec
    write_config(tmp_path / "best.yaml", spec, [judged], settings)
    written = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert (written["gradcam_method"], written["gradcam_layers"], written["gradcam_site"]) == (
        "layercam",
        ["encoder.layers.2"],
        "residual",
    )
    flags: list[str | Path] = [
        "--detector_path",
        tmp_path / "best.yaml",
        "--test_config",
        tree.test_yaml,
        "--device",
        "cpu",
    ]
    done = commands.run(SCRIPT, *flags, "--gradcam_output_dir", tmp_path / "again", cwd="/")
    assert done.code == 0, done.err
    sample = json.loads(next((tmp_path / "again" / "toy").glob("sample*/sample*.json")).read_text())
    assert sample["method"] == "layercam" and sample["layers"][0]["name"] == "encoder.layers.2"


def test_signed_both_and_fused_from_the_command_line(commands: CommandServer, tree: DataTree, tmp_path: Path) -> None:
    layers = ["--gradcam_layers", "encoder.layers.1", "encoder.layers.3", "fused"]
    common = ["--gradcam_enabled", "--save_all_predictions", "--gradcam_samples", "1", *layers]
    for name, flags in (("both", ["--gradcam_target", "both"]), ("signed", ["--gradcam_signed"])):
        out = tmp_path / name
        done = commands.run(SCRIPT, *tree.arguments("--gradcam_output_dir", out, *common, *flags), cwd=tmp_path)
        assert done.code == 0, done.err
        sample = next((out / "toy").glob("sample*"))
        names = [layer["name"] for layer in json.loads(next(sample.glob("sample*.json")).read_text())["layers"]]
        if name == "both":
            assert names == [f"{layer}_{one}" for layer in layers[1:] for one in ("fake", "real")]
            assert "Target: both\n" in next(sample.glob("*metadata.txt")).read_text()
        else:
            assert names == layers[1:]
            assert "Target: margin, signed (red: fake, blue: real)" in next(sample.glob("*metadata.txt")).read_text()
            assert read(next(sample.glob("gradcam_encoder.layers.3_*"))).shape == (PIXELS, PIXELS, 3)
