"""--evaluate_explanations as a user runs it: from the flags to the files, and to the config that it writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers.command_server import CommandServer
from tests.helpers.datasets import DataTree, read_image
from tests.helpers.detectors import PIXELS
from tests.helpers.references.known_evidence import EVIDENCE, evidence_detector, evidence_tree, normalised, patch
from utils.gradcam_kit.engine.recipe import Recipe

SCRIPT = "test_with_gradcam.py"
LAYERS = ["encoder.layers.1", "encoder.layers.3"]


@pytest.mark.slow
def test_a_sweep_and_the_config_that_it_writes(commands: CommandServer, tmp_path: Path) -> None:
    tree, out, best = evidence_tree(tmp_path / "tree", EVIDENCE, videos=16), tmp_path / "run", tmp_path / "best.yaml"
    flags: list[str | Path] = [
        "--evaluate_explanations",
        "--sweep",
        "--gradcam_layers",
        *LAYERS,
        "--write_config",
        best,
    ]
    done = commands.run(SCRIPT, *tree.arguments(*flags, "--gradcam_output_dir", out), cwd=tmp_path)
    assert done.code == 0, done.err
    found = json.loads((out / "explanations.json").read_text())["toy"]
    assert found["detected_fakes"] == found["judged"] == found["masks"]["ok"] == found["paired_real"] == 16
    assert "detected fakes are from only 16 videos" in done.out and f"{found['verdict']}\n" in done.out
    winner = found["ranking"][0]
    name = Recipe.of(winner).title
    assert found["verdict"].startswith(f"toy: for this checkpoint: {name} (energy in mask 0.7")
    assert f"{name}: written as {best}\n" in done.out
    with (out / "explanations.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "energy in mask" and row["layer"]]
    # Five token methods at two sites and four that read attention, and balanced the five at one site and three, since
    # rollout has no gradient; at two layers and fused.
    assert len(rows) == (5 * 2 + 4 + 5 + 3) * 3 and {row["layer"] for row in rows} == {*LAYERS, "fused"}
    # One value again, from the maps as Python gives them: the energy of Grad-CAM at the last block.
    model = evidence_detector()
    energies = []
    for frame in tree.frames["toy_Fake"]:
        image = normalised(np.asarray(cv2.imread(str(frame)))[..., ::-1])
        heat = model.generate_gradcam({"image": image}, layers=LAYERS[1:], target="fake")[LAYERS[1]][0].numpy()
        energies.append(float(heat[patch(EVIDENCE)].sum() / heat.sum()))
    names = ("gradcam", LAYERS[1], "layer_norm1", "plain")
    (row,) = [row for row in rows if (row["method"], row["layer"], row["site"], row["backward"]) == names]
    assert float(row["mean"]) == pytest.approx(np.mean(energies), abs=1e-5) and row["videos"] == "16"
    # The written config, as a user would use it.
    again: list[str | Path] = [
        "--detector_path",
        best,
        "--test_config",
        tree.test_yaml,
        "--device",
        "cpu",
        "--save_all_predictions",
    ]
    done = commands.run(SCRIPT, *again, "--gradcam_output_dir", tmp_path / "again", cwd="/")
    assert done.code == 0, done.err
    sample = json.loads(next((tmp_path / "again" / "toy").glob("sample*/sample*.json")).read_text())
    assert sample["method"] == winner["method"] and sample["layers"][-1]["name"] == winner["layer"]
    assert sample["backward"] == winner["backward"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sweep"], "--sweep needs --evaluate_explanations"),
        (["--evaluate_explanations", "--write_config", "best.txt"], "give a .yaml file in an existing folder"),
        (["--evaluate_explanations", "--gradcam_target", "real"], "gradcam_target 'real' cannot be evaluated"),
        (["--evaluate_explanations", "--explanation_samples", "0"], "--explanation_samples"),
    ],
)
def test_unusable_flags(
    commands: CommandServer, data_tree: DataTree, tmp_path: Path, flags: list[str], message: str
) -> None:
    done = commands.run(SCRIPT, *data_tree.arguments("--gradcam_output_dir", tmp_path / "run", *flags), cwd=tmp_path)
    assert done.code == 2 and message in done.err and len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("left_out", [["deletion"], ["deletion", "saco", "transplant", "attack", "randomisation"]])
def test_curves_can_be_left_out(left_out: list[str], commands: CommandServer, tmp_path: Path) -> None:
    tree, out = evidence_tree(tmp_path / "tree", EVIDENCE, videos=4), tmp_path / "run"
    flags: list[str | Path] = ["--evaluate_explanations", "--gradcam_layers", LAYERS[1], "--leave_out", *left_out]
    done = commands.run(SCRIPT, *tree.arguments(*flags, "--gradcam_output_dir", out), cwd=tmp_path)
    assert done.code == 0, done.err
    drawn = {path.name for path in (out / "toy").glob("explanation_*.png")}
    assert drawn == {"explanation_heat_table.png"} and (out / "index.html").is_file()


def test_signed_both_and_fused_from_the_command_line(
    commands: CommandServer, data_tree: DataTree, tmp_path: Path
) -> None:
    layers = ["--gradcam_layers", "encoder.layers.1", "encoder.layers.3", "fused"]
    common = ["--gradcam_enabled", "--save_all_predictions", "--gradcam_samples", "1", *layers]
    for name, flags in (("both", ["--gradcam_target", "both"]), ("signed", ["--gradcam_signed"])):
        out = tmp_path / name
        done = commands.run(SCRIPT, *data_tree.arguments("--gradcam_output_dir", out, *common, *flags), cwd=tmp_path)
        assert done.code == 0, done.err
        sample = next((out / "toy").glob("sample*"))
        names = [layer["name"] for layer in json.loads(next(sample.glob("sample*.json")).read_text())["layers"]]
        if name == "both":
            assert names == [f"{layer}_{one}" for layer in layers[1:] for one in ("fake", "real")]
            assert "Target: both\n" in next(sample.glob("*metadata.txt")).read_text()
        else:
            assert names == layers[1:]
            assert "Target: margin, signed (red: fake, blue: real)" in next(sample.glob("*metadata.txt")).read_text()
            assert read_image(next(sample.glob("gradcam_encoder.layers.3_*"))).shape == (PIXELS, PIXELS, 3)
