"""test_with_gradcam.py and gradcam_demo.py as a user runs them: as processes, from elsewhere, their files read back."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.helpers.command_server import CommandServer
from tests.helpers.datasets import DataTree, change_yaml, make_data_tree, read_image, rows_of
from tests.helpers.detectors import ARCHITECTURE, BLOCKS, PATCH, PIXELS, tiny_detector
from tests.helpers.paths import DEMO, ROOT, SCRIPT
from tests.helpers.references import reference_clip as reference
from tests.helpers.references.method_references import grad_cam

METADATA_START = ("True Label: ", "Predicted Label: ", "Confidence: ", "Correct: ", "Dataset: ")


def reference_logits(frames: list[Path]) -> torch.Tensor:
    """Logits by plain OpenCV and a float64 CLIP that shares no code with the library."""
    images = []
    for frame in frames:
        image = cv2.cvtColor(read_image(frame), cv2.COLOR_BGR2RGB)
        image = cv2.resize(image, (PIXELS, PIXELS), interpolation=cv2.INTER_CUBIC)
        images.append((image.astype(np.float64) / 255 - 0.5) / 0.5)
    tower = reference.ReferenceTower(tiny_detector().state_dict(), BLOCKS, ARCHITECTURE["num_attention_heads"], PATCH)
    return tower.logits(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)).detach()


def test_a_whole_evaluation(commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    """The seed's command: metrics right, mistakes explained, every file of the contract there and true."""
    out = tmp_path / "results"
    done = commands.run(
        SCRIPT,
        *data_tree.arguments("--gradcam_enabled", "--gradcam_samples", "3", "--gradcam_output_dir", out),
        cwd=tmp_path,
    )
    assert done.code == 0, done.err
    frames = [*data_tree.frames["toy_Real"], *data_tree.frames["toy_Fake"]]
    expected = reference_logits(frames)
    rows = rows_of(out / "toy")
    assert list(rows[0]) == (
        [
            "index",
            "path",
            "dataset",
            "forgery",
            "video",
            "label",
            "prob_fake",
            "logit_real",
            "logit_fake",
            "predicted",
            "correct",
        ]
    )
    assert [row["index"] for row in rows] == [str(i) for i in range(len(frames))]
    by_path = {row["path"]: row for row in rows}
    for frame, logits in zip(frames, expected, strict=True):
        row = by_path[str(frame)]
        np.testing.assert_allclose([float(row["logit_real"]), float(row["logit_fake"])], logits, atol=1e-4)
        np.testing.assert_allclose(float(row["prob_fake"]), logits.softmax(0)[1], atol=1e-5)
        assert row["label"] == str(int("Fake" in str(frame))) and row["forgery"] == frame.parents[2].name
        assert row["predicted"] == str(int(logits[1] > logits[0])) and row["video"] == frame.parent.name
        assert row["correct"] == str(row["predicted"] == row["label"])

    metrics = json.loads((out / "metrics.json").read_text())["toy"]
    label = np.array([int("Fake" in str(frame)) for frame in frames])
    prob = expected.softmax(1)[:, 1].numpy()
    assert metrics["acc"] == pytest.approx(((prob > 0.5) == label).mean())
    assert metrics["auc"] == pytest.approx(roc_auc_score(label, prob))
    assert metrics["ap"] == pytest.approx(average_precision_score(label, prob))
    assert (metrics["frames"], metrics["videos"], metrics["unreadable"]) == (24, 8, 0)
    assert f"{metrics['auc']:.4f}" in done.out and "video AUC" in done.out

    wrong = [row for row in rows if row["correct"] == "False"]
    confidence = {row["index"]: abs(float(row["prob_fake"]) - 0.5) for row in wrong}
    most_confident = sorted(confidence, key=lambda index: -confidence[index])[:3]
    samples = {path.name for path in (out / "toy").glob("sample*")}
    assert samples == {f"sample{index}" for index in most_confident}
    for index in most_confident:
        check_sample(out / "toy" / f"sample{index}", rows[int(index)], ["encoder.layers.3", "encoder.layers.1"])
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["datasets"]["toy"]["frames"] == 24 and not list(out.rglob("*partial*"))


def check_sample(folder: Path, row: dict[str, str], layers: list[str]) -> None:
    i = row["index"]
    lines = (folder / f"sample{i}_metadata.txt").read_text().splitlines()
    prob = float(row["prob_fake"])
    kinds = {"0": "0 (Real)", "1": "1 (Fake)"}
    values = (
        kinds[row["label"]],
        kinds[row["predicted"]],
        f"{max(prob, 1 - prob):.4f}",
        row["correct"],
        row["dataset"],
    )
    assert lines[:5] == [start + value for start, value in zip(METADATA_START, values, strict=True)]
    text = "\n".join(lines)
    for part in (row["path"], f"Video: {row['video']}", "Target: predicted", "Method: gradcam", "Site: layer_norm1"):
        assert part in text
    details = json.loads((folder / f"sample{i}.json").read_text())
    assert details["logit_fake"] == pytest.approx(float(row["logit_fake"])) and details["path"] == row["path"]
    for layer in layers:
        entry = next(one for one in details["layers"] if one["name"] == layer)
        assert f"Layer {layer}: " in text and (entry["raw_maximum"] > 0) != entry["empty"]
        image = read_image(folder / f"gradcam_{layer}_sample{i}.png")
        assert image.shape == (PIXELS, PIXELS, 3)
    comparison = read_image(folder / "gradcam_comparison.png")
    assert comparison.shape[1] > (1 + len(layers)) * PIXELS and comparison.shape[0] > PIXELS


def test_overlay_is_the_jet_of_the_map_over_the_image(
    commands: CommandServer, data_tree: DataTree, tmp_path: Path
) -> None:
    out = tmp_path / "all"
    flags = [
        "--gradcam_enabled",
        "--save_all_predictions",
        "--gradcam_target",
        "fake",
        "--check_maps",
        "off",
        "--gradcam_output_dir",
        str(out),
    ]
    done = commands.run(SCRIPT, *data_tree.arguments(*flags), cwd=tmp_path)
    assert done.code == 0, done.err
    assert len(list((out / "toy").glob("sample*"))) == 24
    row = rows_of(out / "toy")[7]
    image = cv2.resize(read_image(row["path"]), (PIXELS, PIXELS), interpolation=cv2.INTER_CUBIC)
    pixels = torch.from_numpy((cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.float32) / 255 - 0.5) / 0.5)
    tower = reference.reference_gradients(
        tiny_detector().state_dict(), pixels.permute(2, 0, 1)[None], BLOCKS, 4, PATCH, [[0.0, 1.0]]
    )
    raw = reference.maps_of(tower, "encoder.layers.1", "layer_norm1", grad_cam, (4, 4))[0]
    heat = cv2.resize(raw, (PIXELS, PIXELS), interpolation=cv2.INTER_LINEAR)
    heat = (heat - heat.min()) / (heat.max() - heat.min())
    expected = 0.5 * image + 0.5 * cv2.applyColorMap((heat * 255).round().astype(np.uint8), cv2.COLORMAP_JET)
    drawn = read_image(out / "toy" / "sample7" / "gradcam_encoder.layers.1_sample7.png")
    # Where the heat is high the colour is red: OpenCV reads blue, green, red.
    hottest = np.unravel_index(heat.argmax(), heat.shape)
    assert np.abs(drawn.astype(float) - expected).mean() < 1.0
    assert (drawn.astype(int) - image // 2)[hottest][2] > (drawn.astype(int) - image // 2)[hottest][0]


def test_plain_evaluation_renders_nothing(commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    done = commands.run(SCRIPT, *data_tree.arguments("--gradcam_output_dir", tmp_path / "out"), cwd=tmp_path)
    assert done.code == 0, done.err
    assert {path.name for path in (tmp_path / "out").rglob("*")} == {
        "toy",
        "run.sqlite",
        "predictions.csv",
        "metrics.json",
        "manifest.json",
        "index.html",
    }


def test_flags_override_the_yaml_and_both_data_sets_are_evaluated(
    commands: CommandServer, data_tree: DataTree, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = ["--gradcam_enabled", "--gradcam_output_dir", str(out), "--test_dataset", "toy", "toy_fake", "--gradcam_samples", "2",
             "--gradcam_layers", "encoder.layers.2", "--gradcam_method", "gradcam++", "--gradcam_target", "margin",
             "--gradcam_site", "residual", "--gradcam_select", "first", "--batch_size", "7", "--workers", "1",
             "--precision", "bf16", "--image_format", "jpg", "--gradcam_colormap", "viridis"]  # fmt: skip
    done = commands.run(SCRIPT, *data_tree.arguments(*flags), cwd=tmp_path)
    assert done.code == 0 and "toy_fake: all 12 frames are fake: AUC, EER, AP and video AUC need both" in done.out
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["toy_fake"]["auc"] is None and metrics["toy_fake"]["acc"] is not None and metrics["toy_fake"]["note"]
    wrong = [int(row["index"]) for row in rows_of(out / "toy") if row["correct"] == "False"]
    assert {path.name for path in (out / "toy").glob("sample*")} == {f"sample{i}" for i in wrong[:2]}
    text = (out / "toy" / f"sample{wrong[0]}" / f"sample{wrong[0]}_metadata.txt").read_text()
    assert "Method: gradcam++" in text and "Site: residual" in text and "Target: margin" in text
    assert (out / "toy" / f"sample{wrong[0]}" / f"gradcam_encoder.layers.2_sample{wrong[0]}.jpg").is_file()


def test_what_the_yaml_says_of_mistakes_does_not_limit_all_of_them(
    commands: CommandServer, tiny_weights: Path, tmp_path: Path
) -> None:
    tree = make_data_tree(tmp_path / "tree", tiny_weights, gradcam_samples=2, gradcam_enabled=True)
    for name, flags, count in (
        ("all", ["--save_all_predictions", "--gradcam_layers", "-1", "2"], 24),
        ("some", ["--save_all_predictions", "--gradcam_samples", "5", "--gradcam_layers", "-1"], 5),
        ("none", ["--no-gradcam_enabled"], 0),
    ):
        done = commands.run(SCRIPT, *tree.arguments(*flags, "--gradcam_output_dir", tmp_path / name), cwd=tmp_path)
        assert done.code == 0, done.err
        assert len(list(tmp_path.glob(f"{name}/toy/sample*"))) == count
        assert (f"toy: heatmaps of {count} of 24 samples" in done.out) == (count > 0)
    sample = json.loads((tmp_path / "all" / "toy" / "sample0" / "sample0.json").read_text())
    assert [layer["name"] for layer in sample["layers"]] == ["-1", "2"]


def test_random_weights_are_marked_everywhere(commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["--gradcam_enabled", "--random_weights", "--gradcam_samples", "1", "--save_all_predictions"]
    done = commands.run(SCRIPT, *data_tree.arguments(*flags, "--gradcam_output_dir", out), cwd=tmp_path)
    assert done.code == 0, done.err
    folder = next((out / "toy").glob("sample*"))
    trained = tmp_path / "trained"
    commands.run(
        SCRIPT,
        *data_tree.arguments("--gradcam_enabled", *flags[2:], "--gradcam_output_dir", trained),
        cwd=tmp_path,
    )
    assert "random weights" in done.out and "Weights: random" in next(folder.glob("*_metadata.txt")).read_text()
    assert json.loads((out / "manifest.json").read_text())["weights"] == "random"
    marked = read_image(folder / "gradcam_comparison.png")
    plain = read_image(next((trained / "toy").glob("sample*")) / "gradcam_comparison.png")
    assert marked.shape[0] > plain.shape[0]
    red = (marked[..., 2].astype(int) - marked[..., 0] > 100) & (marked[..., 2].astype(int) - marked[..., 1] > 100)
    assert red[: marked.shape[0] - PIXELS - 32].sum() > 100  # the warning's own letters, above the panels


def test_list_layers_needs_no_weights_and_names_what_can_be_asked_for(
    commands: CommandServer, data_tree: DataTree, tmp_path: Path
) -> None:
    done = commands.run(SCRIPT, "--detector_path", data_tree.detector_yaml, "--test_config", data_tree.test_yaml,
                        "--list_layers", cwd=tmp_path)  # fmt: skip
    assert done.code == 0, done.err
    names = [line for line in done.out.splitlines() if not line.startswith("#")]
    assert done.out.splitlines()[0].endswith(": encoder.layers.3 encoder.layers.1")  # the YAML's
    assert names[:BLOCKS] == [f"encoder.layers.{i}" for i in range(BLOCKS)]
    assert set(names) == {name for name, _ in tiny_detector().backbone.named_modules() if name}


def test_an_output_folder_in_use_is_refused_until_overwrite(
    commands: CommandServer, data_tree: DataTree, tmp_path: Path
) -> None:
    flags = data_tree.arguments("--gradcam_output_dir", tmp_path / "out")
    assert commands.run(SCRIPT, *flags, cwd=tmp_path).code == 0
    again = commands.run(SCRIPT, *flags, cwd=tmp_path)
    assert again.code == 2 and "--overwrite" in again.err and len(again.err.splitlines()) == 1
    assert commands.run(SCRIPT, *flags, "--overwrite", cwd=tmp_path).code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    foreign = commands.run(
        SCRIPT, *data_tree.arguments("--gradcam_output_dir", tmp_path / "mine", "--overwrite"), cwd=tmp_path
    )
    assert foreign.code == 2 and (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


BAD_INPUT: dict[str, tuple[dict[str, Any], dict[str, Any], list[str], list[str]]] = {
    # name: changes of the detector YAML, changes of the test YAML, flags, what the one line says
    "no model name": ({"model_name": ...}, {}, [], ["tiny.yaml", "model_name is missing"]),
    "unknown model": ({"model_name": "clpi_gradcam"}, {}, [], ["did you mean 'clip_gradcam'"]),
    "layers of wrong type": ({"gradcam_layers": 7.5}, {}, [], ["tiny.yaml", "gradcam_layers is 7.5", "list"]),
    "misspelt key": ({"gradcam_layer": ["x"]}, {}, [], ["gradcam_layer ", "did you mean 'gradcam_layers'"]),
    "enabled of wrong type": ({"gradcam_enabled": "yes"}, {}, [], ["gradcam_enabled is 'yes'", "true or false"]),
    "batch size": ({"test_batchSize": 0}, {}, [], ["test_batchSize is 0", "at least 1"]),
    "mean": ({"mean": [0.5]}, {}, [], ["mean is [0.5]", "three numbers"]),
    "backbone": ({"backbone_config": {"architecture": {"hidden_sise": 3}}}, {}, [], ["hidden_sise", "'hidden_size'"]),
    "sampling": ({"frame_sampling": "evn"}, {}, [], ["frame_sampling is 'evn'", "did you mean 'even'", "host"]),
    "no label_dict": ({}, {"label_dict": ...}, [], ["label_dict is missing"]),
    "label without entry": ({}, {"label_dict": {"toy_Real": 0, "toy_Fak": 1}}, [], ["toy_Fake", "toy_Fak"]),
    "label of wrong type": ({}, {"label_dict": {"toy_Real": "zero"}}, [], ["label_dict.toy_Real is 'zero'"]),
    "json folder": ({}, {"dataset_json_folder": "nowhere"}, [], ["no dataset_json_folder at 'nowhere'", "looked at"]),
    "unknown dataset": ({}, {}, ["--test_dataset", "tay"], ["tay", "toy", "dataset_json"]),
    "unknown method": ({}, {}, ["--gradcam_method", "grad-cam"], ["did you mean 'gradcam'"]),
    "unknown layer": ({"gradcam_layers": ["encoder.layers.23"]}, {}, ["--gradcam_enabled"], ["encoder.layers.23", "layers.3", "--list_layers"]),
    "blank layer": ({"gradcam_layers": ["encoder.layers.3.mlp"]}, {}, ["--gradcam_enabled"], ["layers.3.mlp", "CLS token"]),
    "unknown flag": ({}, {}, ["--gradcam_sample", "3"], ["did you mean '--gradcam_samples'"]),
    "unknown select": ({}, {}, ["--gradcam_select", "best"], ["--gradcam_select is 'best'", "confident, first, random"]),
    "weights missing": ({"weights_path": "gone.pth"}, {}, [], ["no weights file at 'gone.pth'", "looked at"]),
    "no weights at all": ({"weights_path": ...}, {}, [], ["no weights", "--weights_path", "--random_weights"]),
    "both": ({}, {}, ["--random_weights", "--weights_path", "x.pth"], ["exclude each other"]),
    "other architecture": ({"backbone_config": {"architecture": {**ARCHITECTURE, "hidden_size": 48}}}, {}, [],
                           ["tiny.pth", "backbone.embeddings.class_embedding", "48"]),
    "detector YAML missing": ({}, {}, ["--detector_path", "gone.yaml"], ["gone.yaml"]),
    "device": ({}, {}, ["--device", "gpu"], ["device is 'gpu'", "cuda:<n>", "(--device)"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(
    case: str, commands: CommandServer, data_tree: DataTree, tmp_path: Path
) -> None:
    detector, test, flags, says = BAD_INPUT[case]
    change_yaml(data_tree.detector_yaml, **detector)
    change_yaml(data_tree.test_yaml, **test)
    arguments = data_tree.arguments("--gradcam_output_dir", tmp_path / "out")
    done = commands.run(SCRIPT, *arguments, *flags, cwd=tmp_path)
    assert done.code == 2, done.err
    assert len(done.err.splitlines()) == 1 and done.err.startswith("error: ")
    for part in says:
        assert part in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model_name: [", "not valid YAML"),
        ("- a list", "holds list"),
        ("!!python/object:os.system {}", "not valid YAML"),
    ],
)
def test_unparsable_yaml(text: str, says: str, commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    data_tree.detector_yaml.write_text(text)
    done = commands.run(SCRIPT, *data_tree.arguments(), cwd=tmp_path)
    assert done.code == 2 and says in done.err and len(done.err.splitlines()) == 1 and "tiny.yaml" in done.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_where_there_is_none(commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    done = commands.run(SCRIPT, *data_tree.arguments("--device", "cuda"), cwd=tmp_path)
    assert done.code == 2 and "no CUDA device" in done.err and len(done.err.splitlines()) == 1
    auto = commands.run(
        SCRIPT, *data_tree.arguments("--device", "auto", "--gradcam_output_dir", tmp_path / "out"), cwd=tmp_path
    )
    assert auto.code == 0 and "device: cpu" in auto.out


def test_unreadable_frames_are_listed_and_never_replaced(
    commands: CommandServer, tmp_path: Path, tiny_weights: Path
) -> None:
    tree = make_data_tree(tmp_path / "data", tiny_weights, videos=10)
    fakes = tree.frames["toy_Fake"]
    fakes[0].unlink()
    fakes[4].write_bytes(b"")
    fakes[8].write_bytes(fakes[8].read_bytes()[:200])
    fakes[12].write_text("not an image")
    out = tmp_path / "out"
    flags = tree.arguments("--gradcam_enabled", "--save_all_predictions", "--gradcam_output_dir", out)
    strict = commands.run(SCRIPT, *flags, cwd=tmp_path)
    assert strict.code == 1 and "4 of 60 frames" in strict.err and "--max_unreadable 5%" in strict.err
    loose = commands.run(SCRIPT, *flags, "--overwrite", "--max_unreadable", "10%", cwd=tmp_path)
    assert loose.code == 0 and "4 frames could not be read" in loose.out
    with (out / "toy" / "unreadable.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [row["path"] for row in listed] == [str(fakes[i]) for i in (0, 4, 8, 12)]
    assert all(len(row["reason"]) > 5 for row in listed)
    assert json.loads((out / "metrics.json").read_text())["toy"]["unreadable"] == 4
    rows = rows_of(out / "toy")
    readable = [
        path
        for label in ("toy_Real", "toy_Fake")
        for path in tree.frames[label]
        if path not in [fakes[i] for i in (0, 4, 8, 12)]
    ]
    assert [row["path"] for row in rows] == [str(path) for path in readable]
    expected = reference_logits(readable)
    got = np.array([(float(row["logit_real"]), float(row["logit_fake"])) for row in rows])
    np.testing.assert_allclose(got, expected, atol=1e-4)  # every frame still has its own prediction
    assert {path.name for path in (out / "toy").glob("sample*")} == {f"sample{row['index']}" for row in rows}


def test_no_readable_frame_at_all(commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    for frames in data_tree.frames.values():
        for frame in frames:
            frame.write_bytes(b"")
    done = commands.run(SCRIPT, *data_tree.arguments("--gradcam_output_dir", tmp_path / "out"), cwd=tmp_path)
    assert done.code == 1 and "none of its 24 frames could be read" in done.err


# ------------------------------------------------------------------------------------------------------ single images


def demo_flags(tree: DataTree, out: Path) -> list[str]:
    return ["--output", str(out), "--detector_path", str(tree.detector_yaml), "--device", "cpu"]


def test_demo_explains_a_file_a_folder_and_a_pattern(
    commands: CommandServer, data_tree: DataTree, tmp_path: Path
) -> None:
    one = data_tree.frames["toy_Fake"][0]
    expected = float(reference_logits([one])[0].softmax(0)[1])
    for number, (given, count) in enumerate([(one, 1), (one.parent, 3), (one.parent.parent / "*" / "00[01].png", 8)]):
        out = tmp_path / f"demo{number}"
        done = commands.run(DEMO, "--input", given, *demo_flags(data_tree, out), cwd=tmp_path)
        assert done.code == 0, done.err
        lines = done.out.splitlines()
        assert len(lines) == count and len(list(out.iterdir())) == count
        assert str(one) in lines[0] and f"{expected:.4f}" in lines[0] and str(out / "000") in lines[0]
        names = {path.name for path in (out / "000").iterdir()}
        assert {"gradcam_encoder.layers.3_sample0.png", "gradcam_comparison.png", "sample0_metadata.txt"} <= names
        folders = [folder.name for folder in out.iterdir()]  # 000 and 001 of four videos: 000, 000_2, ...
        assert all((out / name / f"{name}_heatmap.png").is_file() for name in folders)


def test_demo_options_and_unreadable_images(commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    folder = tmp_path / "loose"
    folder.mkdir()
    (folder / "good.png").write_bytes(data_tree.frames["toy_Fake"][0].read_bytes())
    (folder / "bad.png").write_bytes(b"nothing")
    out = tmp_path / "out"
    flags = ["--layers", "encoder.layers.1", "--method", "gradcam++", "--target", "fake", "--site", "residual"]
    done = commands.run(DEMO, "--input", folder, *demo_flags(data_tree, out), *flags, cwd=tmp_path)
    assert done.code == 1 and "bad.png: left out" in done.err and "good.png: fake probability" in done.out
    text = (out / "good" / "sample0_metadata.txt").read_text()
    assert "Method: gradcam++" in text and "Target: fake" in text and "True Label: unknown" in text
    assert (out / "good" / "gradcam_encoder.layers.1_sample0.png").is_file() and not (out / "bad").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--input", "nowhere/*.png"], "no such file or folder, and no file matches that pattern"),
        (["--input", ".", "--target", "label"], "single images do not have"),
        (["--input", "{one}", "--landmark_model", "x.dat"], "dlib"),
        (["--input", "{one}", "--layers", "encoder.layers.7"], "encoder.layers.7"),
    ],
)
def test_demo_bad_input(
    flags: list[str], says: str, commands: CommandServer, data_tree: DataTree, tmp_path: Path
) -> None:
    flags = [flag.replace("{one}", str(data_tree.frames["toy_Fake"][0])) for flag in flags]
    done = commands.run(DEMO, *flags, *demo_flags(data_tree, tmp_path / "out"), cwd=tmp_path)
    assert done.code == 2 and says in done.err and len(done.err.splitlines()) == 1, done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_commands_run_without_the_server_too(data_tree: DataTree, tmp_path: Path) -> None:
    """A plain process from another folder, so that the server hides no import."""
    script = [
        sys.executable,
        str(ROOT / SCRIPT),
        *data_tree.arguments("--gradcam_enabled", "--gradcam_output_dir", "out"),
    ]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "metrics.json").is_file()
    demo = [
        sys.executable,
        str(ROOT / DEMO),
        "--input",
        str(data_tree.frames["toy_Fake"][0]),
        *demo_flags(data_tree, tmp_path / "d"),
    ]
    assert subprocess.run(demo, cwd=tmp_path, capture_output=True, check=False).returncode == 0
