"""The passes that are announced are at least those that are made, and not many times more."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.explanation_metrics.test_evaluate import loaded
from tests.helpers.references.known_evidence import EVIDENCE, evidence_tree
from utils.gradcam_kit.measure.dataset_evaluation import DatasetEvaluation, in_words
from utils.gradcam_kit.measure.evaluate import ExplanationOptions, evaluate_dataset


def test_time_in_words() -> None:
    assert [in_words(s) for s in (0.2, 50, 720, 12_600)] == ["1 s", "50 s", "12 minutes", "3.5 hours"]


def test_the_announced_passes_bound_those_that_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = evidence_tree(tmp_path / "tree", EVIDENCE, 3)
    detector, settings, frames, predictions = loaded(tree, tmp_path / "toy")
    images = [0]
    measuring = [False]

    def counted(module: Any, inputs: Any) -> None:
        images[0] += len(inputs[0]["image"]) if measuring[0] else 0

    plain = DatasetEvaluation.perturbation

    def started(self: Any, *arguments: Any) -> None:
        measuring[0] = True
        plain(self, *arguments)

    monkeypatch.setattr(DatasetEvaluation, "perturbation", started)
    with_hook = detector.model.register_forward_pre_hook(counted)
    evaluate_dataset(detector, frames, predictions, settings, ExplanationOptions(samples=3))
    with_hook.remove()
    said = re.search(r"measuring the maps: up to ([0-9,]+) forward passes", capsys.readouterr().out)
    assert said is not None
    promised = int(said[1].replace(",", ""))
    assert promised / 20 < images[0] <= promised


def test_what_is_left_out_is_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = evidence_tree(tmp_path / "tree", EVIDENCE, 3)
    detector, settings, frames, predictions = loaded(tree, tmp_path / "toy")
    everything = ("deletion", "saco", "transplant", "attack", "randomisation")
    scores = evaluate_dataset(
        detector, frames, predictions, settings, ExplanationOptions(samples=3, leave_out=everything)
    )
    assert scores.randomised is None and scores.curves == {} and "measuring" not in capsys.readouterr().out
    assert not any(row.metric.startswith(("deletion", "SaCo", "accuracy drop")) for row in scores.rows)
    assert "skipped by --leave_out: deletion, saco, transplant, attack, randomisation" in scores.notes
