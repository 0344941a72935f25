"""A whole evaluation in this process, of a detector that is known to read one corner of the image and nothing else."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, jaccard_score

from tests.helpers.datasets import DataTree
from tests.helpers.detectors import PIXELS
from tests.helpers.references.known_evidence import DECOY, EVIDENCE, GRID, evidence_tree, patch
from utils.gradcam_kit.base.allowed import METHOD_NAMES
from utils.gradcam_kit.data.frame import Frame
from utils.gradcam_kit.data.readers import read_dataset
from utils.gradcam_kit.engine.recipe import Recipe
from utils.gradcam_kit.measure.comparison import ALL, MetricRow
from utils.gradcam_kit.measure.dataset_evaluation import ENERGY, SCREENING, DatasetEvaluation
from utils.gradcam_kit.measure.evaluate import (
    DatasetScores,
    ExplanationOptions,
    evaluate_dataset,
    evaluate_explanations,
)
from utils.gradcam_kit.measure.samples import read_samples
from utils.gradcam_kit.measure.sweep import FAILS_FROM
from utils.gradcam_kit.measure.tables import printed, verdict
from utils.gradcam_kit.model.detector import LoadedDetector
from utils.gradcam_kit.model.load import load_detector
from utils.gradcam_kit.settings.config import RunSettings, run_settings

LAYER = "encoder.layers.3"
# What reads the evidence there, and what points at the decoy: see `known_evidence`.
FINDS = {Recipe("hirescam", LAYER, "layer_norm1"), Recipe("layercam", LAYER, "layer_norm1"),
         Recipe("layercam", LAYER, "residual"), *(Recipe(name, LAYER, "attention") for name in ("rollout", "gradeclip", "attngrad")),
         *(Recipe(name, LAYER, "attention", "balanced") for name in ("gradeclip", "attngrad")),
         *(Recipe(name, LAYER, "residual", "balanced") for name in ("hirescam", "layercam"))}  # fmt: skip
MISLED = Recipe("gradcam", LAYER, "residual")
FILLS = ("blur", "mean", "paired real")


def loaded(
    tree: DataTree, folder: Path, dataset: str = "toy", **flags: Any
) -> tuple[LoadedDetector, RunSettings, list[Frame], list[dict[str, int]]]:
    """Detector, settings, frames, and the rows of a run's predictions, here with every fake detected."""
    settings = run_settings(tree.detector_yaml, tree.test_yaml, {"gradcam_site": "residual", **flags})
    detector = load_detector(settings.detector, torch.device("cpu"))
    frames = read_dataset(dataset, settings.data)
    folder.mkdir()
    predictions = [{"index": frame.index, "predicted": frame.label} for frame in frames]
    return detector, settings, frames, predictions


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> DatasetScores:
    """Masks on the evidence, all methods at both sites of one layer; Grad-CAM on the residual stream is configured."""
    folder = tmp_path_factory.mktemp("swept")
    tree = evidence_tree(folder / "tree", EVIDENCE, 10)
    detector, settings, frames, predictions = loaded(tree, folder / "toy")
    assert [bool(p > 0.5) for p in detector.predict(all_pixels(tree))[1]] == [False] * 10 + [True] * 10
    return evaluate_dataset(detector, frames, predictions, settings, ExplanationOptions(sweep=True, layers=[LAYER]))


def all_pixels(tree: DataTree) -> torch.Tensor:
    """(N, 3, H, W) uint8 of the reals, then of the fakes, as OpenCV reads them."""
    images = [np.asarray(cv2.imread(str(path)))[..., ::-1].copy() for paths in tree.frames.values() for path in paths]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def row_of(scores: DatasetScores, spec: Recipe, metric: str) -> MetricRow:
    (row,) = [r for r in scores.rows if (r.recipe, r.metric, r.forgery) == (spec, metric, ALL)]
    return row


def corner_map(place: tuple[int, int]) -> np.ndarray:
    """What a map of one hot patch of the grid is as it is drawn."""
    hot = torch.zeros(1, 1, GRID, GRID)
    hot[0, 0, place[0], place[1]] = 1
    drawn = F.interpolate(hot, (PIXELS, PIXELS), mode="bilinear", align_corners=False)[0, 0].double().numpy()
    return drawn / drawn.max()


# ------------------------------------------------------------------------------------------------- masks on the evidence


def test_the_map_that_finds_the_evidence_wins(swept: DatasetScores) -> None:
    assert swept.ranked_by == ENERGY and swept.configured == [MISLED] and len(swept.ranking) == 5 * 2 + 4 + 5 + 3
    assert set(swept.ranking[:4]) <= FINDS
    # HiResCAM on the residual stream of the last block is nothing but rounding here, and empty.
    assert set(swept.ranking[-2:]) == {MISLED, Recipe("hirescam", LAYER, "residual")}
    for spec in swept.ranking[:4]:
        assert row_of(swept, spec, ENERGY).better and row_of(swept, spec, "pointing game").better
    assert row_of(swept, MISLED, ENERGY).better is False
    means = [row_of(swept, spec, ENERGY).interval.mean for spec in swept.ranking]
    assert means == sorted(means, reverse=True)
    assert verdict(swept) == (
        f"toy: for this checkpoint: {swept.ranking[0].title} (energy in mask 0.766 [0.766, 0.766]);"
        " gradcam at encoder.layers.3, residual is no better than a random map"
    )


def test_localisation_by_hand(swept: DatasetScores) -> None:
    """One hot patch in a corner, drawn bilinearly: along each axis 14 of 16 parts of its mass lie inside the patch."""
    forged = np.zeros((PIXELS, PIXELS), bool)
    forged[patch(EVIDENCE)] = True
    drawn = np.rint(255 * corner_map(EVIDENCE)).ravel()
    expected = {
        ENERGY: (14 / 16) ** 2,
        "pointing game": 1.0,
        "pixel average precision": average_precision_score(forged.ravel(), drawn),
        "IoU (threshold 0.5)": jaccard_score(forged.ravel(), drawn >= 128),
        "IoU (best threshold)": max(jaccard_score(forged.ravel(), drawn >= t) for t in range(13, 256, 13)),
    }
    for metric, value in expected.items():
        for spec in FINDS:
            assert row_of(swept, spec, metric).interval.mean == pytest.approx(value, abs=2e-3), (spec, metric)
    # The decoy is two patches away: nothing of a map that points there reaches the evidence.
    assert row_of(swept, MISLED, ENERGY).interval.mean == pytest.approx(0, abs=1e-6)
    assert abs(DECOY[0] - EVIDENCE[0]) >= 2 and row_of(swept, MISLED, "pointing game").interval.mean == 0
    # The centred blob, from its formula.
    y, x = np.mgrid[-1 : 1 : PIXELS * 1j, -1 : 1 : PIXELS * 1j]
    blob = np.exp(-(x**2 + y**2) / 0.5)
    blob = (blob - blob.min()) / (blob.max() - blob.min())
    assert row_of(swept, Recipe.control("gaussian"), ENERGY).interval.mean == pytest.approx(
        blob[forged].sum() / blob.sum(), abs=1e-5
    )


@pytest.mark.parametrize("fill", FILLS)
def test_without_the_evidence_the_score_falls(swept: DatasetScores, fill: str) -> None:
    """Deletion: lower is better, and the difference to a control is signed so that above 0 the map is better."""
    deletion, insertion = (row_of(swept, swept.ranking[0], f"{kind} ({fill})") for kind in ("deletion", "insertion"))
    assert deletion.better and insertion.better
    misled = row_of(swept, MISLED, f"deletion ({fill})")
    assert misled.better is False
    for control in ("random", "gaussian", "face"):
        kept = row_of(swept, Recipe.control(control), f"deletion ({fill})").interval.mean
        (difference,) = [one for one in deletion.differences if one.control == control]
        assert deletion.interval.mean < kept and difference.mean == pytest.approx(kept - deletion.interval.mean)
        assert insertion.interval.mean > row_of(swept, Recipe.control(control), f"insertion ({fill})").interval.mean
    curves = swept.curves[fill][swept.ranking[0]]
    # Both curves end in the same two images. The 6.25 % of the evidence are gone from the fourth share (5 %) on.
    assert torch.equal(curves.deletion[:, 0], curves.insertion[:, -1]) and bool((curves.deletion[:, 0] > 0.9).all())
    assert bool((curves.deletion[:, 4] < 0.1).all()) and bool((curves.insertion[:, 4] > 0.5).all())
    text = printed(swept).splitlines()
    assert f"deletion ({fill}), lower is better" in text and f"insertion ({fill}), higher is better" in text


def test_only_an_attack_on_the_evidence_fools_the_detector(swept: DatasetScores) -> None:
    """Sixteen grey levels on the evidence turn the decision, on whatever else nothing does."""
    for spec, share in (
        (swept.ranking[0], 1.0),
        (MISLED, 0.0),
        (Recipe.control("gaussian"), 0.0),
        (Recipe.control("face"), 0.0),
    ):
        assert row_of(swept, spec, "accuracy drop (top 1)").interval.mean == share, spec
    assert row_of(swept, swept.ranking[0], "accuracy drop (top 1)").better


def test_random_weights_change_the_map(swept: DatasetScores) -> None:
    assert swept.randomised is not None
    assert swept.randomised.steps == ["head", *(f"encoder.layers.{i}" for i in (3, 2, 1, 0)), "embeddings and norms"]
    assert {spec.method for spec in swept.randomised.correlation} == set(METHOD_NAMES) - {
        "contrast",
        "contrast_z",
    }  # no bank
    assert swept.randomised.correlation[swept.ranking[0]][-1] < FAILS_FROM


# ------------------------------------------------------------------------------------------- masks elsewhere, and none


def test_masks_that_the_detector_does_not_read(tmp_path: Path) -> None:
    """The same map and other masks: it is no better now, while deletion, which asks the detector, stays with it.

    The whole output is read back; a config is not written, since no map deserves it.
    """
    tree = evidence_tree(tmp_path / "tree", (1, 1), 8)
    flags = {"gradcam_method": "hirescam", "gradcam_site": "layer_norm1"}
    detector, settings, frames, rows = loaded(tree, tmp_path / "toy", **flags)
    options = ExplanationOptions(write_config=tmp_path / "best.yaml")
    where = lambda name: rows, tmp_path
    text, problem, files = evaluate_explanations(detector, {"toy": frames}, *where, settings, options)
    assert len(files) == 6 and all(file.is_file() for file in files)
    assert (
        problem.startswith("--write_config: no map is better than the controls")
        and not (tmp_path / "best.yaml").exists()
    )
    sentence = "toy: for this checkpoint: no map is better than a centred blob: do not use its heatmaps"
    assert text.splitlines()[-1] == sentence
    values = json.loads((tmp_path / "explanations.json").read_text())["toy"]
    assert values["verdict"] == sentence and values["masks"]["ok"] == values["detected_fakes"] == 8
    assert values["paired_real"] == 8 and values["ranked_by"] == ENERGY
    assert (
        values["configured"]
        == values["ranking"]
        == [{"method": "hirescam", "layer": LAYER, "site": "layer_norm1", "backward": "plain"}]
    )
    with (tmp_path / "explanations.csv").open(newline="") as file:
        table = {(row["method"], row["metric"]): row for row in csv.DictReader(file)}
    energy, deletion = table["hirescam", ENERGY], table["hirescam", "deletion (paired real)"]
    assert (energy["better"], deletion["better"], table["face", ENERGY]["better"]) == ("no", "yes", "")
    assert float(energy["mean"]) == pytest.approx(0, abs=1e-3) and (energy["frames"], energy["videos"]) == ("8", "8")
    assert float(energy["difference_gaussian"]) < 0 and float(energy["p_gaussian"]) == 1
    kept = float(table["gaussian", "deletion (paired real)"]["mean"])
    assert float(deletion["difference_gaussian"]) == pytest.approx(kept - float(deletion["mean"]), abs=1e-5)
    assert table["face", ENERGY]["p_random"] == "" and table["face", ENERGY]["layer"] == ""
    for name in ("explanation_curves.png", "explanation_heat_table.png"):
        assert cv2.imread(str(tmp_path / "toy" / name)) is not None


def test_without_masks_maps_are_ranked_by_what_the_detector_loses(tmp_path: Path) -> None:
    """The hottest tenth of the image is blurred: of a good map that is the evidence, of the misled one it is not."""
    sites = ("layer_norm1", "residual")
    recipes = [Recipe(method, LAYER, site) for method in ("gradcam", "hirescam") for site in sites]
    evaluation = evaluation_of(tmp_path, evidence_tree(tmp_path / "tree", None, 8))
    evaluation.make_maps([*recipes, Recipe("rollout", LAYER)])
    evaluation.localisation()
    assert evaluation.columns == {} and evaluation.ranked_by == SCREENING
    ranking = evaluation.ranking()
    good = {Recipe("hirescam", LAYER, "layer_norm1"), Recipe("hirescam", LAYER, "residual"), *FINDS}
    assert set(ranking[:3]) <= good and set(ranking[3:]) == {MISLED, replace(MISLED, site="layer_norm1")}
    drops = evaluation.columns[SCREENING]
    assert drops[ranking[0]].min() > 0.8 and np.abs(drops[MISLED]).max() < 0.01
    assert np.abs(drops[Recipe.control("gaussian")]).max() < 0.01
    assert {row.recipe: row.better for row in evaluation.rows("toy")}[ranking[0]]


# --------------------------------------------------------------------------------------------------------------- notes


def evaluation_of(folder: Path, tree: DataTree, dataset: str = "toy", method: str = "hirescam") -> DatasetEvaluation:
    """The evaluation of all fakes, without any map yet."""
    detector, settings, frames, _ = loaded(tree, folder / dataset, dataset, gradcam_method=method)
    fakes = [frame for frame in frames if frame.label == 1]
    return DatasetEvaluation(detector, read_samples(fakes, PIXELS, 8, 0), settings, "fake")


@pytest.mark.parametrize(
    ("dataset", "missing", "fills", "note"),
    [
        ("toy", 0, set(FILLS), None),
        ("toy", 3, set(FILLS), "3 of 4 fakes have no real counterpart: skipped for that fill"),
        (
            "toy_fake",
            4,
            {"blur", "mean"},
            "no real counterparts in the dataset: the paired-real fill and transplant are skipped",
        ),
    ],
)
def test_without_real_counterparts_that_fill_is_left_out(
    tmp_path: Path, dataset: str, missing: int, fills: set[str], note: str | None
) -> None:
    tree = evidence_tree(tmp_path / "tree", None, 4)
    evaluation = evaluation_of(tmp_path, tree, dataset)
    for path in tree.frames["toy_Real"][:missing]:
        path.write_bytes(b"no image")
    spec = Recipe("hirescam", LAYER, "layer_norm1")
    evaluation.make_maps([spec])
    before = list(evaluation.notes)
    evaluation.perturbation([spec])
    assert evaluation.notes[len(before) :] == ([] if note is None else [note])
    assert set(evaluation.curves) == fills and evaluation.paired == 4 - missing
    for fill in fills:
        values = evaluation.columns[f"deletion ({fill})"][spec]
        assert np.isfinite(values).sum() == len(evaluation.curve_videos[fill]) == (4 - missing if "real" in fill else 4)


def test_without_scikit_image_the_attack_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = evaluation_of(tmp_path, evidence_tree(tmp_path / "tree", None, 2))
    evaluation.make_maps([Recipe("hirescam", LAYER, "layer_norm1")])
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    evaluation.perturbation([Recipe("hirescam", LAYER, "layer_norm1")])
    assert evaluation.notes[-1] == "segment attack skipped: it needs scikit-image: pip install scikit-image"
    assert not [metric for metric in evaluation.columns if metric.startswith("accuracy")]


def test_few_fakes_and_none(tmp_path: Path) -> None:
    detector, settings, frames, predictions = loaded(evidence_tree(tmp_path / "tree", None, 2), tmp_path / "toy")
    scores = evaluate_dataset(detector, frames, predictions, settings, ExplanationOptions())
    assert "detected fakes are from only 2 videos: intervals over so few are too narrow" in scores.notes
    assert verdict(scores).endswith("2 videos are too few to tell whether a map is better than the controls")
    none = [{"index": frame.index, "predicted": 0} for frame in frames]
    where = lambda name: none, tmp_path
    text, problem, _ = evaluate_explanations(detector, {"toy": frames}, *where, settings, ExplanationOptions())
    nothing = "no detected fakes: nothing to evaluate"
    assert text.splitlines() == ["toy: explanations", nothing, f"toy: {nothing}"] and problem == ""
    assert (tmp_path / "explanations.csv").read_text().count("\n") == 1
    values = json.loads((tmp_path / "explanations.json").read_text())["toy"]
    assert (values["verdict"], values["detected_fakes"], values["rows"]) == (f"toy: {nothing}", 0, [])
