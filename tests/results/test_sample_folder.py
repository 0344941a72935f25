"""One explained image on disk: what is written is what is read back, and what is lost is said."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.helpers.datasets import DataTree, make_data_tree
from tests.helpers.fake_run import (
    LAYERS,
    Row,
    changed_row,
    drawn_of,
    image_of,
    layer_image,
    raw_map,
    sample_of,
    with_values,
    write_row,
    write_tables,
)
from utils.gradcam_kit.base.decision import UNKNOWN
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.data.frame import Frame
from utils.gradcam_kit.data.images import UnreadableImage
from utils.gradcam_kit.drawing.overlays import Box
from utils.gradcam_kit.engine.recipe import Recipe
from utils.gradcam_kit.judge.check import MapCheck
from utils.gradcam_kit.model.load import find_device, load_detector
from utils.gradcam_kit.run.explainer import explain_images
from utils.gradcam_kit.settings.config import detector_settings
from utils.gradcam_kit.store.read_run import original, read_run, stored_maps
from utils.gradcam_kit.store.sample import CompletenessFacts, LayerFacts, Sample
from utils.gradcam_kit.store.sample_folder import (
    RenderedSample,
    comparison_title,
    is_as_written,
    metadata_text,
    write_sample,
)
from utils.gradcam_kit.store.sample_writer import expected_output

ROW = Row(7, "faces", "swap_Fake", "003", 1, 0.25, "/data/größe\udcff.png")


CHECK = MapCheck(word="supported", margin=2.5, fall=1.25, random=-0.125, mass=0.75, votes=0.5, others=None)


def facts(name: str, low: float, high: float, **changes: Any) -> LayerFacts:
    values = {"signed_extreme": 1e-30, "empty": False, "drawn_empty": False, **changes}
    return LayerFacts(name=name, raw_minimum=low, raw_maximum=high, **values)


RECIPE = Recipe("hirescam", "encoder.layers.3", "residual", "both")


def sample(**changes: Any) -> Sample:
    """Values of which no two are alike, so that none can stand in for another."""
    layers = [
        facts("encoder.layers.3", 0.125, 2.5, signed_extreme=3.75, check=CHECK, recipe=RECIPE.facts()),
        facts("fused", 0.0, 0.0, empty=True, artefact=True, recipe=RECIPE.at("fused").facts()),
    ]
    values: dict[str, Any] = {
        "index": 7, "path": "/data/größe\udcff.png", "dataset": "faces", "forgery": "swap", "video": "003",
        "label": 1, "prob_fake": 0.2, "logit_real": 0.1, "logit_fake": -1 / 3, "target": "predicted (real)", "method": "gradcam++",
        "site": "residual", "backward": "balanced", "weights": "best.pth", "layers": layers,
        "original": Box(8, 38, 64, 60, 224, 130),
        "completeness": {"encoder.layers.3": CompletenessFacts(1e-7, 0.25)}, "chosen": ("hirescam at sum, chosen",),
    }  # fmt: skip
    return Sample(**{**values, **changes})


@pytest.mark.parametrize("label", [0, 1, UNKNOWN])
@pytest.mark.parametrize("prob_fake", [0.0, 0.5, float(np.float32(0.7)), 1.0])
def test_a_sample_comes_back_from_json_as_it_was(label: int, prob_fake: float) -> None:
    before = sample(label=label, prob_fake=prob_fake)
    assert Sample.from_json(json.loads(json.dumps(before.to_json()))) == before


def test_the_json_of_a_sample_is_an_interface() -> None:
    assert sample().to_json() == {
        "index": 7, "path": "/data/größe\udcff.png", "dataset": "faces", "forgery": "swap", "video": "003",
        "label": 1, "predicted": 0, "correct": False, "confidence": 0.8, "prob_fake": 0.2, "logit_real": 0.1,
        "logit_fake": -1 / 3, "target": "predicted (real)", "method": "gradcam++", "site": "residual",
        "backward": "balanced", "weights": "best.pth",
        "layers": [
            {"name": "encoder.layers.3", "raw_minimum": 0.125, "raw_maximum": 2.5, "signed_extreme": 3.75,
             "empty": False, "drawn_empty": False, "artefact": False,
             "check": {"word": "supported", "margin": 2.5, "fall": 1.25, "random": -0.125, "mass": 0.75, "votes": 0.5,
                       "others": None, "contrast": None, "concentration": None, "standard": None},
             "recipe": {"method": "hirescam", "layer": "encoder.layers.3", "site": "residual", "backward": "both"}},
            {"name": "fused", "raw_minimum": 0.0, "raw_maximum": 0.0, "signed_extreme": 1e-30, "empty": True,
             "drawn_empty": False, "artefact": True, "check": None,
             "recipe": {"method": "hirescam", "layer": "fused", "site": "residual", "backward": "both"}},
        ],
        "chosen": ["hirescam at sum, chosen"],
        "original": {"left": 8, "top": 38, "width": 64, "height": 60, "of_width": 224, "of_height": 130},
        "completeness": {"encoder.layers.3": {"error": 1e-7, "bias_share": 0.25}},
        "image_hash": "", "landmarks_hash": "",
    }  # fmt: skip
    pair = "/data/real/003.png"
    assert sample(paired_real=pair).to_json() == {**sample().to_json(), "paired_real": pair}
    unlabelled = sample(label=UNKNOWN).to_json()
    assert unlabelled["label"] is None and unlabelled["correct"] is None and unlabelled["predicted"] == 0


def test_a_half_is_real_and_confidence_is_of_the_predicted_class() -> None:
    """The host counts as fake what is above one half, not what is at it."""
    cases = [(0.5, 0, 0.5, "TN"), (0.5001, 1, 0.5001, "FP"), (0.0, 0, 1.0, "TN"), (1.0, 1, 1.0, "FP")]
    for prob_fake, predicted, confidence, outcome in cases:
        real = sample(label=0, prob_fake=prob_fake)
        assert (real.predicted, real.outcome, real.correct) == (predicted, outcome, not predicted)
        assert real.confidence == pytest.approx(confidence)
    assert [sample(label=1, prob_fake=p).outcome for p in (0.5, 0.6)] == ["FN", "TP"]


def test_the_metadata_in_words() -> None:
    lines = metadata_text(sample()).splitlines()
    assert lines[:6] == [
        "True Label: 1 (Fake)", "Predicted Label: 0 (Real)", "Confidence: 0.8000", "Correct: False", "Dataset: faces",
        "Image: /data/größe\\udcff.png",
    ]  # fmt: skip
    assert lines[-5] == "Layer encoder.layers.3: raw maximum 2.5"
    assert lines[-4].startswith(
        "Layer fused: empty map, an artefact: the raw maximum 0 is only rounding error and LayerNorm's"
    )
    assert lines[-3] == "Completeness encoder.layers.3: error 1e-07, bias share 0.25"
    assert lines[-2] == (
        "Check encoder.layers.3: Supported: replacing its hottest patches lowered the margin (2.5) by 1.25, replacing random"
        " ones raised it by 0.125; 50% of the blocks' maps peak there"
    )
    assert lines[-1] == "Choice: hirescam at sum, chosen"
    against = sample(layers=[facts("fused", 0.0, 0.0, empty=True)], completeness={}, chosen=())
    assert metadata_text(against).endswith(
        "fused: no patch is evidence for the target; the overlay shows evidence against it\n"
    )
    assert metadata_text(sample(label=UNKNOWN)).splitlines()[0] == "True Label: unknown"
    title = "true label: fake   prediction: real ✗   confidence: 0.800   evidence for real"
    assert comparison_title(sample()) == title
    asked = {"fake": "fake", "margin": "fake over real", "predicted (fake)": "fake", "label (deepfakes)": "deepfakes"}
    assert all(sample(target=target).evidence == f"evidence for {words}" for target, words in asked.items())
    assert comparison_title(sample(label=0)).startswith("true label: real   prediction: real ✓")
    assert comparison_title(sample(label=UNKNOWN)).startswith("prediction: real   confidence")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> DataTree:
    return make_data_tree(tmp_path_factory.mktemp("data"), tiny_weights)


@pytest.mark.parametrize(
    ("flags", "target"),
    [
        ({"gradcam_target": "fake"}, "fake"),
        ({"gradcam_target": "predicted"}, "predicted ({})"),
        ({"gradcam_target": "both"}, "both"),
        ({"gradcam_signed": True}, "margin, signed (red: fake, blue: real)"),
    ],
)
def test_a_sample_of_an_explained_image(flags: dict[str, Any], target: str, tree: DataTree) -> None:
    settings = detector_settings(tree.detector_yaml, {"gradcam_enabled": True, "gradcam_site": "residual", **flags})
    detector = load_detector(settings, find_device("cpu"))
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits, prob = detector.predict(pixels)
    explanation, drawn, _ = explain_images(detector, pixels)
    frame = Frame("/a.png", "toy", "swap", "003", 1, 11)
    made = Sample.of(frame, explanation, 2, drawn[2], detector.settings)
    assert (made.index, made.path, made.dataset, made.forgery, made.video, made.label) == (
        11,
        *frame[:2],
        "swap",
        "003",
        1,
    )
    np.testing.assert_allclose(made.logits, logits[2], rtol=1e-5)
    assert made.prob_fake == pytest.approx(float(prob[2]), rel=1e-5)
    assert made.target == target.format(("real", "fake")[int(prob[2] > 0.5)])
    assert (explanation.method, explanation.site) == ("gradcam", "residual")
    assert (made.method, made.site, made.weights) == ("gradcam", "residual", str(settings.weights_path))
    assert [layer.name for layer in made.layers] == list(explanation.layers)
    for layer, maps in zip(made.layers, explanation.layers.values(), strict=True):
        assert layer.raw_maximum == float(maps.raw[2].max()) and layer.raw_minimum == float(maps.raw[2].min())
        assert layer.signed_extreme == float(maps.signed[2].abs().max())
    assert made.original is not None and (made.original.width, made.original.height) == (64, 64)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_tables(tmp_path, [ROW])
    folder = write_row(tmp_path, ROW)
    layers = drawn_of(ROW).layers
    (read,) = read_run(tmp_path).datasets[0].samples
    assert read == replace(sample_of(ROW, layers), folder=folder, comparison="gradcam_comparison.png")
    for layer in layers:
        np.testing.assert_array_equal(stored_maps(read)[layer.name].raw, layer.raw)
        np.testing.assert_array_equal(stored_maps(read)[layer.name].signed, layer.signed)
    assert json.loads((folder / "sample7.json").read_text()) == json.loads(json.dumps(read.to_json()))


def test_deleted_images_are_said(tmp_path: Path) -> None:
    """Where the dataset's own file is there as it was, the image is made from it."""
    frame = tmp_path / "a.png"
    cv2.imwrite(str(frame), image_of(ROW)[..., ::-1])
    row = ROW._replace(path=str(frame))
    write_tables(tmp_path, [row])
    folder = write_row(tmp_path, row)
    digest = hashlib.sha256(frame.read_bytes()).hexdigest()[:16]
    changed_row(tmp_path, "sample", "facts", with_values(image_hash=digest))
    shutil.rmtree(folder / "heatmaps")
    (read,) = read_run(tmp_path).datasets[0].samples
    assert (read.comparison, read.lost) == ("", "") and np.array_equal(original(read), image_of(row))
    frame.write_bytes(b"another")
    (read,) = read_run(tmp_path).datasets[0].samples
    assert read.lost == "its images were not saved, and the dataset's file is gone or has changed"
    with pytest.raises(UnreadableImage, match="not saved"):
        original(read)


def test_a_sample_of_which_any_byte_was_changed_is_not_whole(tmp_path: Path) -> None:
    """Also where the size is the same; what somebody put there does not matter."""
    folder = tmp_path / "sample7"
    files = write_sample(folder, drawn_of(ROW))
    (folder / "stray.txt").write_text("not of this sample")
    assert is_as_written(folder, files) and len(files) == 9
    for name in files:
        content = (folder / name).read_bytes()
        for place in range(0, len(content), 97):
            (folder / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            assert not is_as_written(folder, files), (name, place)
        (folder / name).unlink()
        assert not is_as_written(folder, files)
        (folder / name).write_bytes(content)
    assert is_as_written(folder, files)


def test_the_files_of_a_sample(tmp_path: Path) -> None:
    folder = tmp_path / "faces" / "sample7"
    folder.parent.mkdir()
    layer = layer_image("other", image_of(ROW), raw_map((0, 0)), raw_map((0, 0)))
    write_sample(folder, RenderedSample(sample_of(ROW, [layer]), image_of(ROW), [layer]), "jpg", save_raw=True)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} == {
        "gradcam_other_sample7.jpg", "gradcam_comparison.jpg", "sample7_metadata.txt", "sample7.json", "raw_sample7.npz",
        "heatmaps/other.png", "heatmaps/other_signed.png",
    }  # fmt: skip
    assert [path.name for path in folder.parent.iterdir()] == ["sample7"]


@pytest.mark.parametrize(("image_format", "save_raw"), [("png", False), ("webp", True)])
def test_the_flood_that_is_announced_is_the_flood_that_comes(image_format: str, save_raw: bool, tmp_path: Path) -> None:
    """As many files, and about as many bytes, of an image that is grainy as photographs are."""
    side, random = 224, np.random.default_rng(0)
    smooth = np.linspace(40, 200, side)[:, None, None] * np.array([1.0, 0.8, 0.7]) * np.ones((1, side, 1))
    image = (smooth + random.normal(0, 2.5, (side, side, 1))).clip(0, 255).astype(np.uint8)
    raw = random.random((16, 16)).astype(np.float32)
    layers = [layer_image(name, image, raw, raw - 0.5) for name in LAYERS]
    write_sample(tmp_path / "sample7", RenderedSample(sample_of(ROW, layers), image, layers), image_format, save_raw)
    sizes = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]
    files, size = expected_output(10, len(LAYERS), side, image_format, save_raw)
    assert files == 10 * len(sizes) and 0.5 < size / (10 * sum(sizes)) < 2


@pytest.mark.parametrize("name", ["notes.txt", "gradcam_comparison.png", "sample7.json", "sample8.json"])
def test_what_is_not_the_samples_stays_when_it_is_written_again(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "sample7"
    write_sample(folder, drawn_of(ROW))
    whole = {path: path.read_bytes() for path in folder.rglob("*.*")}
    (folder / name).write_text("{}")
    write_sample(folder, drawn_of(ROW))
    kept = {} if folder / name in whole else {folder / name: b"{}"}
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == {**whole, **kept}


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "sample7").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="exists and is not a folder"):
        write_sample(tmp_path / "sample7", drawn_of(ROW))
    assert list((tmp_path / "mine").iterdir()) == []
