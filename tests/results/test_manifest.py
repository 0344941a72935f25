"""The manifest: what was written is read back, a foreign one is refused by file and field, and runs are told apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fake_run import some_manifest as manifest
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.engine.recipe import Recipe
from utils.gradcam_kit.judge.check import MapCheck
from utils.gradcam_kit.judge.verdict import Choice
from utils.gradcam_kit.store.manifest import (
    DatasetRecord,
    HeatmapCounts,
    Manifest,
    Numbers,
    Vanished,
    Weights,
    parse_json,
)
from utils.gradcam_kit.store.sample import LayerFacts

FINISHED = {
    "finished": "2024-01-01T01:00:00+00:00",
    "heatmaps": {
        "toy": HeatmapCounts(heatmaps=3, empty_maps={"a": 1}, non_finite=[4], vanished=[Vanished(5, "no such file")])
    },
}


@pytest.mark.parametrize("changes", [{}, {"weights": None}, FINISHED])
def test_a_manifest_comes_back_as_it_was(changes: dict[str, Any]) -> None:
    before = manifest(**changes)
    assert Manifest.from_json(json.loads(json.dumps(before.to_json())), "m") == before


def test_the_json_of_a_manifest_is_an_interface() -> None:
    assert list(manifest().to_json()) == [
        "command", "started", "config", "settings", "weights", "datasets", "options", "device", "threads", "versions",
        "top_files", "detector",
    ]  # fmt: skip
    finished = manifest(**FINISHED, weights=None).to_json()
    assert finished["weights"] == "random" and finished["settings"] == {"batch_size": 5, "seed": 7}
    assert finished["datasets"] == {"toy": {"frames": 24, "json_sha256": "cd" * 32, "frames_sha256": "ef" * 32}}
    assert finished["heatmaps"] == {
        "toy": {"heatmaps": 3, "empty_maps": {"a": 1}, "checks": {}, "non_finite": [4],
                "vanished": [{"index": 5, "reason": "no such file"}]},
    }  # fmt: skip


def test_the_manifest_of_an_earlier_version_lists_no_files() -> None:
    values = manifest().to_json()
    del values["top_files"], values["detector"]
    assert Manifest.from_json(values, "m") == manifest(top_files=[])


MISSING = object()


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("threads",), "many", "threads is 'many', which no run writes"),
        (("threads",), 0, "threads is 0, which no run writes"),
        (("threads",), 10**9, "threads is 1000000000, which no run writes"),
        (("threads",), None, "threads is None, which no run writes"),
        (("threads",), True, "threads is True, which no run writes"),
        (("command",), "python", "command is 'python', which no run writes"),
        (("config",), [1], "config is [1], which no run writes"),
        (("weights",), "secret", "weights is 'secret', which no run writes"),
        (("weights", "sha256"), MISSING, "weights: the field sha256 is missing"),
        (("settings", "seed"), -1, "settings: seed is -1, which no run writes"),
        (("datasets",), ["toy"], "datasets is ['toy'], which no run writes"),
        (("datasets", "../up"), {"frames": 1, "json_sha256": "", "frames_sha256": ""}, "datasets is {'toy'"),
        (("datasets", "toy", "frames"), "24", "datasets.toy: frames is '24', which no run writes"),
        (("datasets", "toy", "frames"), MISSING, "datasets.toy: the field frames is missing"),
        (("top_files",), ["/etc/passwd"], "top_files is ['/etc/passwd'], which no run writes"),
        (("device",), MISSING, "the field device is missing"),
        (("mood",), "good", "the field 'mood' is unknown"),
        (("heatmaps",), MISSING, "the field heatmaps is missing"),
        (("heatmaps",), {}, "heatmaps: the field toy is missing"),
        (("heatmaps", "other"), {}, "heatmaps: the field 'other' is unknown"),
        (("heatmaps", "toy", "empty_maps"), {"a": "one"}, "heatmaps.toy: empty_maps is {'a': 'one'}, which no run"),
        (("heatmaps", "toy", "vanished"), [{"index": 5}], "heatmaps.toy.vanished.0: the field reason is missing"),
    ],
)
def test_a_foreign_manifest_is_refused_by_file_and_field(place: tuple[str, ...], value: object, says: str) -> None:
    values = manifest(**FINISHED).to_json()
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    with pytest.raises(InputError) as refused:
        Manifest.from_json(json.loads(json.dumps(values)), "run.sqlite")
    assert str(refused.value).startswith(f"run.sqlite: {says}") and "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", "[" * 100_000])
def test_a_text_that_is_no_manifest(text: str) -> None:
    with pytest.raises(InputError, match=r"manifest\.json"):
        Manifest.from_json(parse_json(text, Path("manifest.json")), "manifest.json")


def test_what_tells_two_runs_apart() -> None:
    before = manifest()
    assert manifest().differences(before) == []
    for changes, says in (
        ({"settings": Numbers(5, 8)}, "settings.seed was 7 and is 8"),
        ({"device": "cuda"}, "device was 'cpu' and is 'cuda'"),
        ({"weights": None}, "weights.path was 'best.pth' and is None"),
        ({"weights": Weights("best.pth", "cd" * 32)}, "weights.sha256 was"),
        ({"datasets": {**before.datasets, "more": DatasetRecord(1, "", "")}}, "datasets.more.frames was None and is 1"),
        ({"versions": {**before.versions, "torch": "2.2.0"}}, "versions.torch was '2.1.0' and is '2.2.0'"),
        (
            {"config": {**before.config, "backbone_config": {}}},
            "config.backbone_config.architecture.hidden_size was 32",
        ),
        ({"options": {**before.options, "precision": "bf16"}}, "options.precision was 'fp32' and is 'bf16'"),
    ):
        assert replace(before, **changes).differences(before)[0].startswith(says)
    elsewhere = replace(before, config={**before.config, "workers": 9, "gradcam_save_dir": "/elsewhere"})
    assert elsewhere.differences(before) == []
    assert replace(before, started="later", command=[], threads=1, top_files=[]).differences(before) == []
    resumed = replace(before, options={**before.options, "resume": True})
    assert resumed.differences(before) == []


def test_a_finished_manifest_says_how_the_map_was_chosen() -> None:
    chosen = Choice("chosen", Recipe("hirescam", "sum", "residual", "balanced"), images=8, videos=4, margin=2.5)
    values = json.loads(json.dumps(manifest(**FINISHED, choice=chosen).to_json()))
    assert values["choice"]["used"]["layer"] == "sum" and Manifest.from_json(values, "m").choice == chosen
    del values["choice"]["rows"]
    with pytest.raises(InputError, match=r"m: choice is .*, which no run writes"):
        Manifest.from_json(values, "m")


def test_the_heatmaps_of_an_earlier_version_were_not_checked() -> None:
    values = manifest(**FINISHED).to_json()
    del values["heatmaps"]["toy"]["checks"]
    assert Manifest.from_json(values, "m") == manifest(**FINISHED)


def test_counts_of_samples() -> None:
    check = MapCheck(word="weak", margin=2.0, fall=0.1, random=0.0, mass=1.0, votes=0.5, others=None)
    values: Any = {"raw_minimum": 0.0, "raw_maximum": 1.0, "signed_extreme": 1.0}
    layers = [
        LayerFacts(name="a", empty=False, drawn_empty=False, check=check, **values),
        LayerFacts(name="b", empty=True, drawn_empty=True, **values),
    ]
    counts = HeatmapCounts()
    for some in (layers, layers, [layers[1], replace(layers[0], empty=True)]):
        counts.add_sample(some)
    assert counts == HeatmapCounts(heatmaps=3, empty_maps={"a": 1, "b": 3}, checks={"weak": 3})


def test_the_key_of_predictions() -> None:
    """It depends on what the outputs do, and on the code; not on the moment."""
    before = manifest()
    assert before.key("code") == replace(before, started="later", command=[], threads=1).key("code")
    others = [replace(before, settings=Numbers(5, 8)), replace(before, detector={"activation": "relu"})]
    assert len({one.key("code") for one in (before, *others)} | {before.key("other code")}) == 4
