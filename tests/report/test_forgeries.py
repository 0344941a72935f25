"""Metrics of each forgery, beside scikit-learn on the same frames; DF40's forty names; the table of a paper."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn.metrics import accuracy_score, average_precision_score, recall_score, roc_auc_score, roc_curve

from tests.helpers.command_server import CommandServer
from tests.helpers.datasets import DataTree
from utils.gradcam_kit.judge.forgeries import GROUPS, METRICS, forgery_metrics, group_means, group_of, rates_of

# As DF40's README lists them, by the names of its folders and of the labels in its JSON files.
DF40 = {
    "face swapping": "fsgan faceswap simswap inswap blendface uniface mobileswap e4s facedancer deepfacelab",
    "face reenactment": "fomm facevid2vid wav2lip MRAA one_shot_free pirender tpsm lia danet sadtalker mcnet hyperreenact heygen",
    "entire face synthesis": "VQGAN StyleGAN2 StyleGAN3 StyleGANXL sd2.1 ddim RDDM PixArt DiT SiT MidJourney whichfaceisreal",
    "face editing": "CollabDiff e4e stargan starganv2 styleclip",
}


def frames(seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Scores, labels, forgeries and videos of 30 real and 2 × 20 fake videos of three frames, no forgery like the other."""
    rng = np.random.default_rng(seed)
    score, label, forgery, video = [], [], [], []
    for name, count, mean in (("real", 30, 0.35), ("easy", 20, 0.8), ("hard", 20, 0.45)):
        for number in range(count):
            middle = rng.normal(mean, 0.15)
            score += np.clip(rng.normal(middle, 0.05, 3), 0.01, 0.99).tolist()
            label += [int(name != "real")] * 3
            forgery += [name] * 3
            video += [f"{name}{number}"] * 3
    return np.array(score), np.array(label), forgery, video


def eer_of(truth: np.ndarray, score: np.ndarray) -> float:
    """Where the curve of scikit-learn meets the line of equal rates, found by bisection."""
    false, true, _ = roc_curve(truth, score, drop_intermediate=False)
    return float(brentq(lambda rate: 1 - rate - np.interp(rate, false, true), 0, 1))


def scikit_learns(truth: np.ndarray, score: np.ndarray) -> dict[str, float]:
    called = (score > 0.5).astype(int)
    return {
        "auc": roc_auc_score(truth, score), "ap": average_precision_score(truth, score), "eer": eer_of(truth, score),
        "acc": accuracy_score(truth, called), "recall": recall_score(truth, called),
    }  # fmt: skip


def by_video(truth: np.ndarray, score: np.ndarray, video: list[str]) -> tuple[np.ndarray, np.ndarray]:
    rows = {name: [i for i, one in enumerate(video) if one == name] for name in video}
    return np.array([truth[of[0]] for of in rows.values()]), np.array([score[of].mean() for of in rows.values()])


def test_every_forgery_against_all_real_frames() -> None:
    score, label, forgery, video = frames()
    score = score.round(2)  # frames and videos that share a score
    found = forgery_metrics(score.tolist(), label.tolist(), forgery, video)
    assert list(found) == ["easy", "hard"]
    for name, of in found.items():
        kept = [i for i, one in enumerate(forgery) if one in (name, "real")]
        for level, (truth, scores) in {
            "": (label[kept], score[kept]),
            "video_": by_video(label[kept], score[kept], [video[i] for i in kept]),
        }.items():
            for rate, value in scikit_learns(truth, scores).items():
                assert of[level + rate] == pytest.approx(value, abs=1e-9), (name, level + rate)
                low, high = of[f"{level}{rate}_low"], of[f"{level}{rate}_high"]
                assert low is not None and high is not None and (low < high or low == value == high == 1)
                assert low <= value <= high
        assert (of["frames"], of["videos"]) == (60, 20)
    assert found["easy"]["auc_low"] > found["hard"]["auc_high"]  # type: ignore[operator]  # both are there


@pytest.mark.parametrize("level", ["", "video_"])
def test_the_intervals_are_over_videos(level: str) -> None:
    """Resampled by scikit-learn alone, video by video; frames of one video say the same thing three times."""
    score, label, forgery, video = frames(1)
    of = forgery_metrics(score.tolist(), label.tolist(), forgery, video)["hard"]
    kept = [i for i, one in enumerate(forgery) if one != "easy"]
    names = sorted({video[i] for i in kept})
    rows = {name: [i for i in kept if video[i] == name] for name in names}
    truth, mean = (
        {name: label[of[0]] for name, of in rows.items()},
        {name: score[of].mean() for name, of in rows.items()},
    )
    rng, found = np.random.default_rng(7), []
    for _ in range(600):
        drawn = rng.choice(names, len(names))
        if level:
            found.append(
                scikit_learns(np.array([truth[name] for name in drawn]), np.array([mean[name] for name in drawn]))
            )
        else:
            some = [i for name in drawn for i in rows[name]]
            found.append(scikit_learns(label[some], score[some]))
    for rate in found[0]:
        low, high = np.quantile([one[rate] for one in found], [0.025, 0.975])
        assert of[f"{level}{rate}_low"] == pytest.approx(low, abs=0.035), rate
        assert of[f"{level}{rate}_high"] == pytest.approx(high, abs=0.035), rate


def test_more_scores_than_the_curve_of_a_resample_has_places(monkeypatch: pytest.MonkeyPatch) -> None:
    score, label, _, video = frames(2)
    fine = rates_of(score.tolist(), label.tolist(), video)
    monkeypatch.setattr("utils.gradcam_kit.judge.forgeries.PLACES", 60)  # of 210 scores
    coarse = rates_of(score.tolist(), label.tolist(), video)
    for key, value in fine.items():
        exact = not key.endswith(("_low", "_high"))
        assert coarse[key] == pytest.approx(value, abs=0 if exact else 0.03), key


def test_without_real_frames_only_the_recall_is_known() -> None:
    (of,) = forgery_metrics([0.9, 0.2], [1, 1], ["a", "a"], ["v", "v"]).values()
    known = {"recall": 0.5, "video_recall": 1.0, "frames": 2, "videos": 1}
    assert of == {key: known.get(key) for key in METRICS}
    assert forgery_metrics([0.1], [0], ["real"], ["v"]) == {}
    assert set(rates_of([], [], []).values()) == {None}
    (few,) = forgery_metrics([0.9, 0.2, 0.1], [1, 0, 0], ["a", "", ""], ["v", "r", "s"]).values()
    assert few["auc"] == 1 and few["auc_low"] is None and few["video_auc_high"] is None


def test_the_forty_forgeries_of_df40_and_their_groups() -> None:
    named = {group: names.split() for group, names in DF40.items()}
    assert [len(names) for names in named.values()] == [10, 13, 12, 5] and list(named) == list(GROUPS)
    for group, names in named.items():
        for name in names:
            assert {group_of(spelt) for spelt in (name, f"{name}_Fake", f"{name}_ff", f"{name}_cdf", name.upper())} == {
                group
            }
    assert group_of("FF-DF") == group_of("roop_Fake") == group_of("simswapped") == ""


def test_a_group_has_the_mean_of_its_forgeries() -> None:
    nothing = dict.fromkeys(METRICS)
    some = [("simswap_Fake", 0.5), ("e4s_Fake", 1.0), ("roop", 0.0), ("lia", 0.25)]
    means = group_means((name, {**nothing, "auc": auc, "recall": 0.5}) for name, auc in some)
    assert list(means) == ["face swapping", "face reenactment"]
    assert means["face swapping"] == {"auc": 0.75, "recall": 0.5, "forgeries": 2}
    assert means["face reenactment"]["auc"] == 0.25


def test_the_table_of_two_runs(commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    for name in ("a", "b"):
        flags: list[str | Path] = ["--no_gradcam", "--gradcam_output_dir", tmp_path / name, "--batch_size", "5"]
        assert commands.run("test_with_gradcam.py", *data_tree.arguments(*flags), cwd=tmp_path).code == 0
    made = commands.run("utils/report.py", "table", "a", "b", "-o", "table.csv", cwd=tmp_path)
    assert made.code == 0, made.err
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(row["run"], row["dataset"], row["forgery"]) for row in rows] == [
        ("a", "toy", "toy_Fake"), ("b", "toy", "toy_Fake")
    ]  # fmt: skip
    frames = list(csv.DictReader((tmp_path / "a" / "toy" / "predictions.csv").open()))
    truth, score = (np.array([float(row[key]) for row in frames]) for key in ("label", "prob_fake"))
    for rate, value in scikit_learns(truth, score).items():
        assert float(rows[0][rate]) == pytest.approx(value, abs=1e-6)
        assert float(rows[0][f"{rate}_low"]) - 1e-6 <= value <= float(rows[0][f"{rate}_high"]) + 1e-6
    entry = json.loads((tmp_path / "a" / "metrics.json").read_text())["toy"]
    of_video = by_video(truth, score, [row["forgery"] + row["video"] for row in frames])
    for level, reference in {"": scikit_learns(truth, score), "video_": scikit_learns(*of_video)}.items():
        for rate, value in reference.items():
            assert entry[level + rate] == pytest.approx(value, abs=1e-6)
            assert entry["by_forgery"]["toy_Fake"][level + rate] == pytest.approx(value, abs=1e-6)
    assert entry["groups"] == {} and entry["by_forgery"]["toy_Fake"]["group"] == ""
    assert commands.run("utils/report.py", "table", "a", "b", "-o", "table.tex", cwd=tmp_path).code == 0
    text = (tmp_path / "table.tex").read_text()
    (line,) = re.findall(r"^toy\\_Fake & .*$", text, re.M)
    assert line.count("&") == 2 and f"{roc_auc_score(truth, score):.3f}" in line
    wrong = commands.run("utils/report.py", "table", "a", "-o", "t.csv", "--metrics", "aux", cwd=tmp_path)
    assert wrong.code == 2 and "did you mean 'auc'" in wrong.err
