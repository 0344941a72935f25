"""The map of a run is chosen on its own data, kept, and said; a named one is judged. As a user runs the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.helpers.command_server import CommandServer
from tests.helpers.datasets import DataTree, change_yaml, read_image
from tests.helpers.detectors import PIXELS
from tests.helpers.paths import SCRIPT
from tests.helpers.references.known_evidence import EVIDENCE, FAKE_LEVEL, REAL_LEVEL, evidence_tree, patch

ASKED = "choosing a heatmap method: "


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> DataTree:
    """The detector that reads one patch; its YAML names no method and no layer."""
    tree = evidence_tree(tmp_path_factory.mktemp("evidence") / "tree", None, 8)
    change_yaml(tree.detector_yaml, gradcam_layers=...)
    return tree


def run(commands: CommandServer, tree: DataTree, out: Path, *flags: str) -> tuple[str, dict[str, Any]]:
    """Output and manifest."""
    save = ("--gradcam_enabled", "--save_all_predictions", "--gradcam_samples", "6", "--check_maps")
    done = commands.run(
        SCRIPT, *tree.arguments(*save, "--gradcam_target", "fake", "--gradcam_output_dir", out, *flags), cwd=out.parent
    )
    assert done.code == 0, done.err
    return done.out, json.loads((out / "manifest.json").read_text())


def test_a_run_chooses_its_map_and_keeps_the_choice(commands: CommandServer, tree: DataTree, tmp_path: Path) -> None:
    out, manifest = run(commands, tree, tmp_path / "first")
    assert ASKED in out and "skip with --calibration_images 0" in out
    choice = manifest["choice"]
    assert choice["state"] == "chosen" and (choice["images"], choice["videos"]) == (8, 8)
    assert "chosen by test" in out and "images of 8 videos" in out
    with (tmp_path / "first" / "calibration.csv").open() as file:
        rows = list(csv.DictReader(file))
    (used,) = [row for row in rows if row["used"] == "True"]
    assert {key: used[key] for key in ("method", "layer", "site", "backward")} == choice["used"]
    best = max(float(row["beyond_random"]) for row in rows)
    assert float(used["beyond_random"]) > 0.9 * best and len(rows) == len(choice["rows"])
    words = manifest["heatmaps"]["toy"]["checks"]
    assert sum(words.values()) == 6 and f"map check: {words.get('supported', 0)} supported" in out
    for folder in (tmp_path / "first" / "toy").glob("sample*"):
        sample = json.loads((folder / f"{folder.name}.json").read_text())
        assert (sample["method"], sample["backward"]) == (choice["used"]["method"], choice["used"]["backward"])
        assert sample["chosen"] and sample["layers"][0]["check"]["word"] in ("supported", "weak", "artefact")
        assert "Check " in (folder / f"{folder.name}_metadata.txt").read_text()
        if sample["predicted"] == 1:
            grey = read_image(folder / "heatmaps" / f"{choice['used']['layer']}.png")[..., 0]
            assert divmod(int(grey.argmax()), grey.shape[1]) == EVIDENCE
            assert sample["layers"][0]["check"]["word"] == "supported"
    page = (tmp_path / "first" / "index.html").read_text()
    assert "How the map was chosen" in page and "chosen by test" in page

    # The same weights, data and candidates: nothing is asked again, here or in a folder beside it.
    for name, flags in (("first", ["--overwrite"]), ("second", [])):
        again, later = run(commands, tree, tmp_path / name, *flags)
        assert ASKED not in again and later["choice"] == choice
    asked, _ = run(commands, tree, tmp_path / "third", "--gradcam_backward", "plain")
    assert ASKED in asked  # other candidates


def test_without_calibration_the_first_candidate_is_drawn(
    commands: CommandServer, tree: DataTree, tmp_path: Path
) -> None:
    out, manifest = run(commands, tree, tmp_path / "run", "--calibration_images", "0")
    assert ASKED not in out and "hirescam at scaled (residual, plain), not tried" in out
    assert not (tmp_path / "run" / "calibration.csv").exists() and manifest["choice"]["state"] == "untried"


def test_a_wrong_map_by_name_is_drawn_and_said_to_be_wrong(
    commands: CommandServer, tree: DataTree, tmp_path: Path
) -> None:
    named = ["--gradcam_layers", "encoder.layers.3", "--gradcam_method"]
    out, manifest = run(commands, tree, tmp_path / "wrong", *named, "gradcam", "--gradcam_site", "residual")
    says = "shows nothing of the detector's evidence: the margin drops"
    assert says in out and manifest["choice"]["state"] == "named"
    texts = [path.read_text() for path in (tmp_path / "wrong").rglob("*_metadata.txt")]
    assert len(texts) == 6 and all(says in text and "Method: gradcam\n" in text for text in texts)
    assert says.replace("'", "&#39;") in (tmp_path / "wrong" / "index.html").read_text()
    right, _ = run(commands, tree, tmp_path / "right", *named, "hirescam", "--gradcam_site", "layer_norm1")
    assert "of the detector's evidence" not in right


def test_contrast_can_be_named_and_needs_real_images(
    commands: CommandServer, data_tree: DataTree, tmp_path: Path
) -> None:
    flags = ("--gradcam_enabled", "--gradcam_method", "contrast", "--gradcam_output_dir", str(tmp_path / "out"))
    refused = commands.run(SCRIPT, *data_tree.arguments(*flags, "--calibration_images", "0"), cwd=tmp_path)
    assert refused.code == 2 and "compares patches with real images" in refused.err
    misspelt = commands.run(SCRIPT, *data_tree.arguments(*flags[:2], "contrasd"), cwd=tmp_path)
    assert misspelt.code == 2 and "did you mean 'contrast'" in misspelt.err


def scene(video: int) -> np.ndarray:
    """Light and dark of one video, (PIXELS, PIXELS, 3) uint8; fakes differ from it in the patch EVIDENCE alone."""
    coarse = np.random.default_rng(video).choice(np.array([10, 245], np.uint8), (5, 5, 1)).repeat(3, 2)
    return np.asarray(cv2.resize(coarse, (PIXELS, PIXELS), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


@pytest.mark.parametrize(("flags", "apart", "count"), [((), 0, 8), (("--paired_reals", "off"), 0, 0), ((), 100, 0)])
def test_a_fake_is_compared_with_the_frame_that_it_was_made_from(
    flags: tuple[str, ...], apart: int, count: int, commands: CommandServer, tmp_path: Path
) -> None:
    """Not where that is not wanted, and not with a frame of the same name that shows another scene."""
    tree = evidence_tree(tmp_path / "tree", None, 8)
    for label, level, shift in (("toy_Real", REAL_LEVEL, apart), ("toy_Fake", FAKE_LEVEL, 0)):
        for video, path in enumerate(tree.frames[label]):
            image = scene(video + shift)
            image[patch(EVIDENCE)] = level
            cv2.imwrite(str(path), image)
    named = ("--gradcam_method", "contrast", "--gradcam_layers", "scaled", "--gradcam_samples", "16")
    run(commands, tree, tmp_path / "out", *named, *flags)
    compared = 0
    for folder in (tmp_path / "out" / "toy").glob("sample*"):
        sample = json.loads((folder / f"{folder.name}.json").read_text())
        text = (folder / f"{folder.name}_metadata.txt").read_text()
        if "paired_real" in sample:
            compared += 1
            assert sample["label"] == 1 and sample["paired_real"] == sample["path"].replace("toy_Fake", "toy_Real")
            assert f"Compared with: {sample['paired_real']}, the real frame it was made from" in text
            grey = read_image(folder / "heatmaps" / "scaled.png")[..., 0]
            assert divmod(int(grey.argmax()), grey.shape[1]) == EVIDENCE
        else:
            assert "Compared with" not in text
    assert compared == count
