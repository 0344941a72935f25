"""A whole evaluation in this process, of a detector that is known to read one corner of the image and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, jaccard_score

from tests.helpers.datasets import DataTree
from tests.helpers.detectors import PIXELS
from tests.helpers.known_evidence import DECOY, EVIDENCE, GRID, evidence_tree, patch
from utils.cam.methods import METHOD_NAMES
from utils.data.frames import Frame, read_dataset
from utils.explanation_metrics.comparison import ALL, Row
from utils.explanation_metrics.evaluate import ENERGY, SCREENING, DatasetScores, ExplanationOptions, evaluate_dataset
from utils.explanation_metrics.randomisation import FAILS_FROM
from utils.explanation_metrics.sweep import MapSpec
from utils.explanation_metrics.tables import printed, verdict
from utils.model.config import RunSettings, run_settings
from utils.model.detector import LoadedDetector, load_detector

LAYER = "encoder.layers.3"
# What reads the evidence there, and what points at the decoy: see `known_evidence`.
FINDS = {MapSpec("hirescam", LAYER, "layer_norm1"), MapSpec("layercam", LAYER, "layer_norm1"),
         MapSpec("layercam", LAYER, "residual"), MapSpec("rollout", LAYER, "attention")}  # fmt: skip
MISLED = MapSpec("gradcam", LAYER, "residual")
FILLS = ("blur", "mean", "paired real")


def loaded(tree: DataTree, **flags: Any) -> tuple[LoadedDetector, RunSettings, list[Frame], Path]:
    """Detector, settings, frames, and predictions as a run leaves them, here with every fake detected."""
    settings = run_settings(tree.detector_yaml, tree.test_yaml, flags)
    detector = load_detector(settings.detector, torch.device("cpu"))
    frames = read_dataset("toy", settings.data)
    predictions = tree.folder / "predictions.csv"
    predictions.write_text("index,predicted\n" + "".join(f"{frame.index},{frame.label}\n" for frame in frames))
    return detector, settings, frames, predictions


def evaluated(
    folder: Path, masked: tuple[int, int] | None, sweep: bool, videos: int = 16, **flags: Any
) -> DatasetScores:
    flags = {"gradcam_site": "residual", **flags}
    detector, settings, frames, predictions = loaded(evidence_tree(folder, masked, videos), **flags)
    options = ExplanationOptions(sweep=sweep, layers=[LAYER])
    return evaluate_dataset(detector, frames, predictions, settings, options)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> DatasetScores:
    """Masks on the evidence, all methods at both sites of one layer; Grad-CAM on the residual stream is configured."""
    return evaluated(tmp_path_factory.mktemp("swept") / "tree", EVIDENCE, sweep=True)


def row_of(scores: DatasetScores, spec: MapSpec, metric: str) -> Row:
    (row,) = [r for r in scores.rows if (r.spec, r.metric, r.forgery) == (spec, metric, ALL)]
    return row


def corner_map(place: tuple[int, int]) -> np.ndarray:
    """What a map of one hot patch of the grid is as it is drawn."""
    hot = torch.zeros(1, 1, GRID, GRID)
    hot[0, 0, place[0], place[1]] = 1
    drawn = F.interpolate(hot, (PIXELS, PIXELS), mode="bilinear", align_corners=False)[0, 0].double().numpy()
    return drawn / drawn.max()


# ------------------------------------------------------------------------------------------------- masks on the evidence


def test_the_map_that_finds_the_evidence_wins(swept: DatasetScores) -> None:
    assert swept.ranked_by == ENERGY and swept.configured == [MISLED] and len(swept.ranking) == 5 * 2 + 2
    assert swept.ranking[0] in FINDS and set(swept.ranking[:4]) <= FINDS | {MapSpec("hirescam", LAYER, "residual")}
    assert swept.ranking[-1] == MISLED
    for spec in swept.ranking[:4]:
        assert row_of(swept, spec, ENERGY).better and row_of(swept, spec, "pointing game").better
    assert row_of(swept, MISLED, ENERGY).better is False
    means = [row_of(swept, spec, ENERGY).interval.mean for spec in swept.ranking]
    assert means == sorted(means, reverse=True)
    assert verdict(swept) == (
        f"toy: for this checkpoint: {swept.ranking[0]} (energy in mask 0.766 [0.766, 0.766]);"
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
    assert row_of(swept, MapSpec("gaussian"), ENERGY).interval.mean == pytest.approx(
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
        kept = row_of(swept, MapSpec(control), f"deletion ({fill})").interval.mean
        (difference,) = [one for one in deletion.differences if one.control == control]
        assert deletion.interval.mean < kept and difference.mean == pytest.approx(kept - deletion.interval.mean)
        assert insertion.interval.mean > row_of(swept, MapSpec(control), f"insertion ({fill})").interval.mean
    curves = swept.curves[fill][swept.ranking[0]]
    # Both curves end in the same two images. The 6.25 % of the evidence are gone from the fourth share (5 %) on.
    assert torch.equal(curves.deletion[:, 0], curves.insertion[:, -1]) and bool((curves.deletion[:, 0] > 0.9).all())
    assert bool((curves.deletion[:, 4] < 0.1).all()) and bool((curves.insertion[:, 4] > 0.5).all())
    text = printed(swept).splitlines()
    assert f"deletion ({fill}), lower is better" in text and f"insertion ({fill}), higher is better" in text


def test_only_an_attack_on_the_evidence_fools_the_detector(swept: DatasetScores) -> None:
    """Sixteen grey levels on the evidence turn the decision, on whatever else nothing does."""
    for spec, share in ((swept.ranking[0], 1.0), (MISLED, 0.0), (MapSpec("gaussian"), 0.0), (MapSpec("face"), 0.0)):
        assert row_of(swept, spec, "accuracy drop (top 1)").interval.mean == share, spec
    assert row_of(swept, swept.ranking[0], "accuracy drop (top 1)").better


def test_random_weights_change_the_map(swept: DatasetScores) -> None:
    assert swept.randomised is not None
    assert swept.randomised.steps == ["head", *(f"encoder.layers.{i}" for i in (3, 2, 1, 0)), "embeddings and norms"]
    assert {spec.method for spec in swept.randomised.correlation} == set(METHOD_NAMES)
    assert swept.randomised.correlation[swept.ranking[0]][-1] < FAILS_FROM


# ------------------------------------------------------------------------------------------- masks elsewhere, and none


def test_masks_that_the_detector_does_not_read(tmp_path: Path) -> None:
    """The same maps and another mask: no map is better, while deletion, which asks the detector, stays with the map."""
    scores = evaluated(
        tmp_path / "tree",
        (1, 1),
        sweep=False,
        gradcam_method="hirescam",
        gradcam_site="layer_norm1",
        gradcam_layers=[LAYER],
    )
    (spec,) = scores.ranking
    assert spec == MapSpec("hirescam", LAYER, "layer_norm1") and row_of(scores, spec, ENERGY).better is False
    assert verdict(scores) == (
        "toy: for this checkpoint: no map is better than a centred blob, so its heatmaps show nothing"
    )
    assert row_of(scores, spec, "deletion (paired real)").better


def test_without_masks_maps_are_ranked_by_what_the_detector_loses(tmp_path: Path) -> None:
    """The hottest tenth of the image is blurred: of a good map that is the evidence, of the misled one it is not."""
    scores = evaluated(tmp_path / "tree", None, sweep=True, videos=8)
    assert scores.ranked_by == SCREENING and scores.ranking[0] in FINDS | {MapSpec("hirescam", LAYER, "residual")}
    best, misled = (row_of(scores, spec, SCREENING) for spec in (scores.ranking[0], MISLED))
    assert best.interval.mean > 0.8 and best.better
    assert abs(misled.interval.mean) < 0.01 and not misled.better
    assert row_of(scores, MapSpec("gaussian"), SCREENING).interval.mean == pytest.approx(0, abs=0.01)
