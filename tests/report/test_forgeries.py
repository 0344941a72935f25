"""Metrics of each forgery, beside scikit-learn on the same frames; DF40's forty names; the table of a paper."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.helpers.command_server import CommandServer
from tests.helpers.datasets import DataTree
from utils.gradcam_kit.judge.forgeries import GROUPS, ForgeryMetrics, forgery_metrics, group_means, group_of

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


def test_every_forgery_against_all_real_frames() -> None:
    score, label, forgery, video = frames()
    found = forgery_metrics(score.tolist(), label.tolist(), forgery, video)
    assert list(found) == ["easy", "hard"]
    for name, of in found.items():
        kept = np.array([one in (name, "real") for one in forgery])
        assert of.auc == pytest.approx(roc_auc_score(label[kept], score[kept]), abs=1e-12)
        assert of.ap == pytest.approx(average_precision_score(label[kept], score[kept]), abs=1e-12)
        assert of.acc == pytest.approx(float(((score[kept] > 0.5) == label[kept]).mean()))
        assert of.recall == pytest.approx(float((score[kept & (label == 1)] > 0.5).mean()))
        assert (of.frames, of.videos) == (60, 20)
        assert of.auc_low is not None and of.auc_high is not None and of.auc is not None
        assert of.auc_low < of.auc < of.auc_high
    assert found["easy"].auc_low > found["hard"].auc_high  # type: ignore[operator]  # both are there


def test_the_interval_is_one_over_videos() -> None:
    """Resampled by scikit-learn alone, video by video; frames of one video say the same thing three times."""
    score, label, forgery, video = frames(1)
    of = forgery_metrics(score.tolist(), label.tolist(), forgery, video)["hard"]
    kept = [i for i, one in enumerate(forgery) if one != "easy"]
    names = sorted({video[i] for i in kept})
    rows = {name: [i for i in kept if video[i] == name] for name in names}
    rng = np.random.default_rng(7)
    drawn = [[i for name in rng.choice(names, len(names)) for i in rows[name]] for _ in range(600)]
    low, high = np.quantile([roc_auc_score(label[some], score[some]) for some in drawn], [0.025, 0.975])
    assert of.auc_low == pytest.approx(low, abs=0.03) and of.auc_high == pytest.approx(high, abs=0.03)


def test_without_real_frames_only_the_recall_is_known() -> None:
    (of,) = forgery_metrics([0.9, 0.2], [1, 1], ["a", "a"], ["v", "v"]).values()
    assert of == ForgeryMetrics(
        auc=None, auc_low=None, auc_high=None, ap=None, eer=None, acc=None, recall=0.5, video_auc=None, frames=2, videos=1
    )  # fmt: skip
    assert forgery_metrics([0.1], [0], ["real"], ["v"]) == {}


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
    values = {"auc_low": None, "auc_high": None, "eer": None, "recall": 0.5, "video_auc": 1.0, "frames": 2, "videos": 1}
    some = [("simswap_Fake", 0.5), ("e4s_Fake", 1.0), ("roop", 0.0), ("lia", 0.25)]
    of = [(name, ForgeryMetrics(auc=auc, ap=auc, acc=auc, **values)) for name, auc in some]  # type: ignore[arg-type]  # a dict's values
    means = group_means(of)
    assert list(means) == ["face swapping", "face reenactment"]
    assert means["face swapping"]["auc"] == 0.75 and means["face reenactment"]["auc"] == 0.25
    assert "eer" not in means["face swapping"] and means["face swapping"]["recall"] == 0.5


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
    truth, score = ([float(row[key]) for row in frames] for key in ("label", "prob_fake"))
    assert float(rows[0]["auc"]) == pytest.approx(roc_auc_score(truth, score), abs=1e-6)
    assert commands.run("utils/report.py", "table", "a", "b", "-o", "table.tex", cwd=tmp_path).code == 0
    text = (tmp_path / "table.tex").read_text()
    (line,) = re.findall(r"^toy\\_Fake & .*$", text, re.M)
    assert line.count("&") == 2 and f"{roc_auc_score(truth, score):.3f}" in line
    wrong = commands.run("utils/report.py", "table", "a", "-o", "t.csv", "--metrics", "aux", cwd=tmp_path)
    assert wrong.code == 2 and "did you mean 'auc'" in wrong.err
