"""Several kinds of map from one run, and a kind for each layer that was named: each is what it would be alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.command_server import CommandServer
from tests.helpers.datasets import DataTree, change_yaml
from tests.helpers.detectors import images, tiny_config, tiny_detector
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.engine.recipe import Recipe, names_of
from utils.gradcam_kit.judge.verdict import CHOSEN, UNDECIDED, Choice, Interval, TrialRow
from utils.gradcam_kit.settings.config import detector_settings
from utils.gradcam_kit.settings.config_values import gradcam_settings

LAST, MIDDLE = "encoder.layers.3", "encoder.layers.2"


def row(candidate: Recipe, low: float, share: float) -> TrialRow:
    return TrialRow(
        candidate=candidate, fall=1.0, random=0.0, beyond=Interval(0.5, low, 1.0), share=share, second=share, named=False
    )  # fmt: skip


def test_maps_are_named_by_the_least_that_tells_them_apart() -> None:
    gradcam, hirescam = Recipe("gradcam", [LAST]), Recipe("hirescam", [LAST])
    two = Recipe("hirescam", [LAST, MIDDLE])
    assert names_of([(gradcam, LAST)]) == [LAST]
    assert names_of([(gradcam, LAST), (hirescam, LAST)]) == ["gradcam", "hirescam"]
    both = [(gradcam, LAST), (two, LAST), (two, MIDDLE)]
    assert names_of(both) == ["gradcam", f"hirescam_{LAST}", f"hirescam_{MIDDLE}"]
    balanced = Recipe("hirescam", [LAST], "residual", "balanced")
    assert names_of([(hirescam, LAST), (balanced, LAST)]) == ["hirescam_plain", "hirescam_balanced"]
    assert names_of([(gradcam, LAST), (hirescam, MIDDLE)], one_per_layer=True) == [LAST, MIDDLE]
    assert len(set(names_of([(hirescam, LAST), (two, LAST), (two, MIDDLE)]))) == 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"gradcam_recipes": ["gradcam", "hirescam"], "gradcam_method": "legrad"},
            "exclude each other: give one of them",
        ),
        ({"gradcam_recipes": ["gradcam", "hirecam"]}, "did you mean 'hirescam'"),
        ({"gradcam_recipes": ["gradcam", "gradcam"]}, "name each once"),
        ({"gradcam_recipes": ["gradcam", "transplant"]}, "give it alone"),
        ({"gradcam_recipes": []}, "gradcam_recipes"),
    ],
)
def test_recipes_that_cannot_be_are_refused_in_a_line(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        gradcam_settings(keys)
    assert "\n" not in str(refused.value)


def test_a_method_beside_auto_is_drawn_as_it_is_named() -> None:
    settings = gradcam_settings({"gradcam_recipes": ["auto", "gradcam", "legrad"], "gradcam_layers": "auto"})
    assert settings.needs_choice and settings.recipes[1:] == (Recipe("gradcam"), Recipe("legrad"))


def test_each_of_several_recipes_gives_the_map_that_it_gives_alone() -> None:
    model = tiny_detector(gradcam_recipes=["gradcam", "hirescam", "legrad"])
    batch = images(3)
    together = model.explain(batch)
    assert list(together.layers) == ["gradcam", "hirescam", "legrad"] == model.map_names()
    for method, maps in together.layers.items():
        (alone,) = tiny_detector().explain(batch, method=method).layers.values()
        peak = float(alone.raw.max())
        assert peak > 0 and torch.allclose(maps.raw, alone.raw, rtol=0, atol=1e-6 * peak)
    both = tiny_detector(gradcam_recipes=["gradcam", "hirescam"], gradcam_target="both")
    assert list(both.explain(batch).layers) == both.map_names()


def test_each_named_layer_gets_its_own_best_map() -> None:
    model = tiny_detector(gradcam_method="auto", gradcam_layers=[LAST, MIDDLE])
    best = {
        LAST: Recipe("legrad", LAST, "attention", "plain"),
        MIDDLE: Recipe("hirescam", MIDDLE, "residual", "balanced"),
    }
    others = [Recipe("gradcam", layer, "residual", "plain") for layer in (LAST, MIDDLE)]
    rows = [row(best[MIDDLE], 0.3, 1.0), row(others[1], 0.2, 0.9), row(best[LAST], 0.1, 0.8), row(others[0], 0.1, 0.7)]
    model.set_gradcam_choice(Choice(CHOSEN, best[MIDDLE], rows=tuple(rows)))
    assert not model.gradcam.needs_choice and model.map_names() == [LAST, MIDDLE]
    explanation = model.explain(images(2))
    assert list(explanation.layers) == [LAST, MIDDLE]
    assert {name: made.recipe.at(layer) for name, (made, layer) in explanation.entries.items()} == best
    alone = tiny_detector().explain(images(2), method="legrad", layers=LAST)
    assert torch.allclose(explanation.layers[LAST].raw, alone.maps.raw, rtol=0, atol=1e-6 * float(alone.maps.raw.max()))


@pytest.mark.parametrize(("state", "low"), [(UNDECIDED, 0.1), (CHOSEN, -0.1)])
def test_a_layer_where_nothing_beats_random_patches_gets_the_kind_that_is_used(state: str, low: float) -> None:
    used, other = Recipe("hirescam", MIDDLE, "residual", "balanced"), Recipe("legrad", LAST, "attention", "plain")
    choice = Choice(state, used, rows=(row(used, 0.3, 1.0), row(other, low, 0.5)))
    assert choice.best_at(LAST) == used.at(LAST) and choice.best_at(MIDDLE) == used


def test_the_trial_of_named_layers_tries_every_one_of_them() -> None:
    candidates = tiny_detector(gradcam_method="auto", gradcam_layers=[0, 1, 2, 3]).gradcam_candidates()
    of_layer = {layer: [one.at("") for one in candidates if one.layers == (layer,)] for layer in "0123"}
    assert all(found and found == of_layer["0"] for found in of_layer.values()), of_layer
    plain = tiny_detector(gradcam_method="auto", gradcam_layers=[3], gradcam_backward="plain").gradcam_candidates()
    assert {one.backward for one in plain} == {"plain"}


def test_a_run_draws_them_all_and_says_how_each_was_made(
    commands: CommandServer, data_tree: DataTree, tmp_path: Path
) -> None:
    """The flag wins over the YAML's method; files made again from the database have the same bytes."""
    change_yaml(data_tree.detector_yaml, gradcam_method="layercam", gradcam_layers=None)
    out = tmp_path / "out"
    flags = ["--gradcam_enabled", "--save_all_predictions", "--gradcam_samples", "2", "--calibration_images", "0"]
    arguments = data_tree.arguments(*flags, "--gradcam_output_dir", out, "--recipes", "gradcam", "hirescam")
    done = commands.run("test_with_gradcam.py", *arguments, cwd=tmp_path)
    assert done.code == 0, done
    folder = min(out.glob("toy/sample*"))
    number = folder.name.removeprefix("sample")
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert {f"gradcam_{method}_sample{number}.png" for method in ("gradcam", "hirescam")} <= set(files)
    facts = json.loads(files[f"{folder.name}.json"])
    assert [layer["recipe"]["method"] for layer in facts["layers"]] == ["gradcam", "hirescam"]
    text = files[f"{folder.name}_metadata.txt"].decode()
    assert f"Recipe hirescam: hirescam at {LAST} (layer_norm1, plain)" in text
    for path in folder.glob("*.png"):
        path.unlink()
    assert commands.run("utils/report.py", out, cwd=tmp_path).code == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == files


def test_a_method_named_by_flag_is_the_papers_own(tmp_path: Path) -> None:
    """Whatever the YAML leaves to a trial; what the YAML names, and what a flag names, is kept to."""
    path = tmp_path / "detector.yaml"
    path.write_text("model_name: clip_gradcam")
    change_yaml(path, **tiny_config(), **{f"gradcam_{key}": "auto" for key in ("method", "layers", "site", "backward")})
    by_flag = detector_settings(path, {"gradcam_method": "gradcam"}).gradcam
    assert by_flag.recipe == Recipe("gradcam") and not by_flag.needs_choice
    kept = detector_settings(path, {"gradcam_method": "hirescam", "gradcam_backward": "balanced"}).gradcam.recipe
    assert kept == Recipe("hirescam", None, "residual", "balanced")
    assert detector_settings(path, {"gradcam_method": "gradcam", "gradcam_layers": ["auto"]}).gradcam.needs_choice
    change_yaml(path, gradcam_site="residual", gradcam_backward="balanced")  # of the map that the trial chooses
    assert detector_settings(path, {}).gradcam.recipe == Recipe("auto", "auto", "residual", "balanced")
    assert detector_settings(path, {"gradcam_method": "gradcam"}).gradcam.recipe == Recipe("gradcam")
    change_yaml(path, gradcam_layers=[LAST, MIDDLE], gradcam_site="auto", gradcam_backward="auto")
    assert detector_settings(path, {"gradcam_method": "gradcam"}).gradcam.recipe == Recipe("gradcam", [LAST, MIDDLE])
