"""Options and flags: which ones a resumed run may change, and that none is given twice."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import test_with_gradcam
from tests.helpers.datasets import DataTree, change_yaml
from tests.helpers.paths import ROOT
from utils import gradcam_demo
from utils.gradcam_kit.app.command import parser as app_parser
from utils.gradcam_kit.base.allowed import METHOD_NAMES
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.data.readers import read_dataset
from utils.gradcam_kit.engine.methods import DEFAULT_EPSILON, METHODS, method_names
from utils.gradcam_kit.measure import evaluate
from utils.gradcam_kit.model.detector import LoadedDetector
from utils.gradcam_kit.run import exports
from utils.gradcam_kit.run.evaluation import run_manifest
from utils.gradcam_kit.settings.config import RunSettings, run_settings
from utils.gradcam_kit.settings.config_values import Section
from utils.gradcam_kit.settings.options import OPTIONS, Option
from utils.gradcam_kit.settings.options import options_of as options_of_command
from utils.gradcam_kit.settings.run_options import RunOptions
from utils.gradcam_kit.store.manifest import Manifest

PATHS = ["--detector_path", "config/detector/clip_gradcam_demo.yaml"]


def options_of(*flags: str, cls: type[RunOptions] = RunOptions, **more: Any) -> RunOptions:
    """As the command makes them of its flags."""
    arguments = test_with_gradcam.parser().parse_args([*PATHS, *flags])
    options = RunOptions.of(arguments, Path("out"), ["test_with_gradcam.py", *flags])
    return cls(**{option.name: getattr(options, option.name) for option in fields(options)}, **more)


@pytest.fixture
def settings(data_tree: DataTree) -> RunSettings:
    return run_settings(data_tree.detector_yaml, data_tree.test_yaml, {})


def manifest_of(settings: RunSettings, options: RunOptions) -> Manifest:
    frames = {"toy": read_dataset("toy", settings.data)}
    detector = LoadedDetector(
        model=nn.Identity(), device=torch.device("cpu"), precision="fp32", settings=settings.detector,
        weights_sha256="0" * 64,
    )  # fmt: skip
    return run_manifest(settings, options, detector, frames)


@pytest.mark.parametrize(
    ("flags", "free"),
    [
        (["--device", "cpu"], True),
        (["--overwrite"], True),
        (["--resume"], True),
        (["--max_unreadable", "10%"], True),
        (["--fiftyone", "--video_strips", "--tensorboard", "x"], True),
        (["--precision", "bf16"], False),
        (["--compile"], False),
        (["--save_all_predictions"], False),
        (["--gradcam_select", "first"], False),
        (["--random_weights"], False),
        (["--image_format", "webp"], False),
        (["--save_raw"], False),
        (["--save_features"], False),
        (["--evaluate_explanations"], False),
    ],
)
def test_a_resumed_run_may_change_what_no_output_depends_on(
    flags: list[str], free: bool, settings: RunSettings
) -> None:
    differences = manifest_of(settings, options_of(*flags)).differences(manifest_of(settings, options_of()))
    assert (differences == []) == free, differences
    assert all(difference.startswith("options.") for difference in differences)


@dataclass(frozen=True, kw_only=True)
class MoreOptions(RunOptions):
    """As a later version may have them."""

    added: int = 1


@pytest.mark.parametrize("outputs", [False, True])
def test_the_table_says_whether_a_new_option_breaks_resumption(
    outputs: bool, settings: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = manifest_of(settings, options_of())
    monkeypatch.setitem(OPTIONS, "added", Option("--added", "a new one", int, 1, outputs=outputs))
    later = manifest_of(settings, options_of(cls=MoreOptions))
    assert later.differences(earlier) == (["options.added was None and is 1"] if outputs else [])
    assert later.to_json()["options"]["added"] == 1


@pytest.mark.parametrize(("key", "free"), [("workers", True), ("gradcam_save_dir", True), ("gradcam_target", False)])
def test_the_table_says_which_keys_a_resumed_run_may_change(key: str, free: bool, settings: RunSettings) -> None:
    config = {**settings.detector.config, key: {"workers": 7}.get(key, "fake")}
    changed = settings._replace(detector=settings.detector._replace(config=config))
    differences = manifest_of(changed, options_of()).differences(manifest_of(settings, options_of()))
    assert [difference.split(" ")[0] for difference in differences] == ([] if free else [f"config.{key}"])


def test_the_manifest_lists_every_file_at_the_top(settings: RunSettings) -> None:
    listed = manifest_of(settings, options_of()).top_files
    chosen = {"calibration.json", "calibration.csv"}
    assert {"metrics.json", *chosen, *exports.TOP_FILES, evaluate.CSV_FILE, evaluate.JSON_FILE} == set(listed)


# --------------------------------------------------------------------------------------------------------- the parser


def test_flags_that_are_not_given_leave_the_yaml_alone() -> None:
    for parser, flags in (
        (test_with_gradcam.parser(), PATHS),
        (gradcam_demo.parser(), ["--input", "x", "--output", "y"]),
    ):
        keys = parser.config(parser.parse_args(flags))
        assert {"weights_path", "gradcam_layers", "gradcam_method", "gradcam_signed"} <= set(keys)
        assert set(keys.values()) == {None}


def test_flags_reach_their_keys() -> None:
    flags = [
        "--batch_size",
        "7",
        "--seed",
        "3",
        "--gradcam_output_dir",
        "there",
        "--gradcam_enabled",
        "--gradcam_signed",
    ]
    arguments = test_with_gradcam.parser().parse_args([*PATHS, *flags])
    assert (arguments.test_batchSize, arguments.manualSeed, arguments.gradcam_save_dir) == (7, 3, "there")
    assert arguments.gradcam_enabled is True and arguments.gradcam_signed is True


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--precision", "fp8"], "--precision is 'fp8'; did you mean 'fp32'? allowed: fp32, bf16, fp16"),
        (["--gradcam_select", "best"], "--gradcam_select is 'best'; allowed: confident, first, random"),
        (["--image_format", "gif"], "--image_format is 'gif'; allowed: png, jpg, webp"),
        (["--gradcam_method", "grad-cam"], "--gradcam_method is 'grad-cam'; did you mean 'gradcam'"),
        (["--gradcam_site", "layernorm1"], "--gradcam_site is 'layernorm1'; did you mean 'layer_norm1'"),
        (["--gradcam_samples", "0"], "--gradcam_samples: 0 is not a whole number of at least 1"),
        (["--gradcam_sample", "3"], "did you mean '--gradcam_samples'"),
        (
            ["--gradcam_method", "gradcampp"],
            "--gradcam_method is 'gradcampp'; did you mean 'gradcam++'? allowed: auto,",
        ),
        (["--batch_size", "0"], "--batch_size: 0 is not a whole number of at least 1"),
        (["--max_unreadable", "101"], "not between 0 and 100 percent"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_what_is_allowed(flags: list[str], says: str) -> None:
    with pytest.raises(InputError) as refused:
        test_with_gradcam.parser().parse_args([*PATHS, *flags])
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("flag", ["--explanation_samples", "--sweep", "--write_config"])
def test_flags_of_the_measurement_need_it(flag: str) -> None:
    value = {"--explanation_samples": ["5"], "--write_config": ["best.yaml"]}.get(flag, [])
    with pytest.raises(InputError, match=f"{flag} needs --evaluate_explanations: give both"):
        options_of(flag, *value)


HEAVY = ("torch", "cv2", "numpy", "transformers", "sklearn", "matplotlib", "yaml")


@pytest.mark.parametrize(
    ("command", "flags", "code"),
    [
        ("test_with_gradcam.py", ["--help"], 0),
        ("test_with_gradcam.py", ["--version"], 0),
        ("test_with_gradcam.py", ["--gradcam_metod", "x"], 2),
        ("utils/gradcam_demo.py", ["--help"], 0),
        ("utils/gradcam_demo.py", ["--input", "x", "--output", "y", "--method", "gradcampp"], 2),
        ("test_with_gradcam.py", ["--help-all"], 0),
        ("utils/gradcam_demo.py", ["--help-all"], 0),
        ("utils/app.py", ["--help"], 0),
        ("utils/report.py", ["--help"], 0),
        ("utils/report.py", ["figure", "--help"], 0),
        ("utils/dataset_json.py", ["--help"], 0),
    ],
)
def test_help_and_misspelt_flags_load_nothing_heavy(command: str, flags: list[str], code: int, tmp_path: Path) -> None:
    """Counted, not timed: the modules that are loaded when the command ends."""
    module = command.replace(".py", "").replace("/__main__", "").replace("/", ".")
    script = (
        "import runpy, sys\n"
        f"sys.argv = [{command!r}, *{flags!r}]\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "try:\n"
        f"    runpy.run_module({module!r}, run_name='__main__', alter_sys=False)\n"
        "except SystemExit as end:\n"
        f"    print('LOADED', end.code, [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"LOADED {code} []" in done.stdout, done.stdout + done.stderr


HELP_ALONE = {"-h", "--help", "--help-all", "--version"}


def flags_in(text: str) -> set[str]:
    """The flags that a help text explains, each on a line of its own."""
    return {
        flag for line in re.findall(r"^  (-.*)", text, re.MULTILINE) for flag in re.findall(r"(?:^|, )(-[\w-]+)", line)
    }


def shown(capsys: pytest.CaptureFixture[str], parser: argparse.ArgumentParser, flag: str) -> set[str]:
    with pytest.raises(SystemExit) as end:
        parser.parse_args([flag])
    assert end.value.code == 0
    return flags_in(capsys.readouterr().out)


def test_help_shows_a_dozen_flags_and_names_the_help_that_shows_all(capsys: pytest.CaptureFixture[str]) -> None:
    first = shown(capsys, test_with_gradcam.parser(), "--help")
    every = shown(capsys, test_with_gradcam.parser(), "--help-all")
    options = [option for _, option in options_of_command("test_with_gradcam.py") if option.flags]
    assert first - HELP_ALONE == {flag for option in options for flag in option.flags if option.basic}
    assert every - HELP_ALONE == {flag for option in options for flag in option.flags}
    assert first >= HELP_ALONE and sum(option.basic for option in options) == 12


def test_help_of_a_command_with_few_flags_shows_all(capsys: pytest.CaptureFixture[str]) -> None:
    flags = {flag for _, option in options_of_command("python -m utils.app") for flag in option.flags}
    assert shown(capsys, app_parser(), "--help") == flags | HELP_ALONE - {"--help-all"}


@pytest.mark.parametrize("command", ["test_with_gradcam.py", "utils/gradcam_demo.py", "python -m utils.app"])
def test_no_flag_and_no_name_stands_twice_in_the_table(command: str) -> None:
    flags = [flag for _, option in options_of_command(command) for flag in option.flags]
    names = [option.name for _, option in options_of_command(command) if option.sets]
    assert len(flags) == len(set(flags)) and len(names) == len(set(names))


def test_the_tables_defaults_are_allowed() -> None:
    """Each default passes the check of a YAML's value, and is what the engine has where it has one of its own."""
    for key, option in OPTIONS.items():
        if option.key and option.default is not None:
            assert Section({key: option.default}, "x")[key] == option.default
    assert OPTIONS["gradcam_pp_epsilon"].default == DEFAULT_EPSILON


def test_a_method_of_the_users_is_known_where_it_was_registered(
    data_tree: DataTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, by a module that --detector names, and not without it."""
    monkeypatch.setitem(METHODS, "abscam", METHODS["gradcam"])
    parser = test_with_gradcam.parser()
    assert parser.parse_args([*PATHS, "--method", "abscam"]).gradcam_method == "abscam"
    change_yaml(data_tree.detector_yaml, gradcam_method="abscam")
    assert run_settings(data_tree.detector_yaml, data_tree.test_yaml, {}).detector.gradcam.recipe.method == "abscam"
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"gradcam_method is 'abscam'; .*allowed: auto, gradcam,.*transplant$"):
        run_settings(data_tree.detector_yaml, data_tree.test_yaml, {})
    with pytest.raises(InputError, match="^--gradcam_method is 'abscam'"):
        parser.parse_args([*PATHS, "--method", "abscam"])
    assert parser.parse_args(["--detector", "mine:build", "--method", "abscam"]).gradcam_method == "abscam"


def test_a_module_of_the_users_is_imported_before_the_settings_are_read(data_tree: DataTree, tmp_path: Path) -> None:
    module = tmp_path / "registers.py"
    module.write_text(
        "from utils.gradcam_kit.engine.methods import METHODS\n"
        "METHODS['mycam'] = METHODS['gradcam']\n"
        "def build(): raise ValueError('reached')\n"
    )
    arguments = ["--detector", f"{module}:build", "--list_layers", *data_tree.arguments("--test_dataset", "toy")]
    try:
        with pytest.raises(InputError, match=r"failed \(ValueError: reached\)"):
            test_with_gradcam.main([*arguments, "--method", "mycam"])
        with pytest.raises(InputError, match=r"^--gradcam_method is 'mycm'; did you mean 'mycam'\?"):
            test_with_gradcam.main([*arguments, "--method", "mycm"])
    finally:
        del METHODS["mycam"]


def test_the_same_thing_has_the_same_name_in_both_commands() -> None:
    """And the short names of one command are understood by the other."""
    both = [
        {tuple(a.option_strings): a for a in module.parser()._actions} for module in (test_with_gradcam, gradcam_demo)
    ]
    shared = {names for names in both[0] if any(set(names) & set(others) for others in both[1])}
    assert shared <= set(both[1]) and {"--layers", "--method", "--target", "--output"} <= {
        n for names in shared for n in names
    }
    assert all(both[0][names].choices == both[1][names].choices for names in shared)


def test_a_value_from_a_flag_is_blamed_on_the_flag_and_one_from_the_yaml_on_the_yaml(data_tree: DataTree) -> None:
    names = {"gradcam_target": "--gradcam_target", "resolution": "--resolution"}
    with pytest.raises(InputError, match=r"^--gradcam_target is 'fakes'; did you mean 'fake'\? allowed: predicted"):
        run_settings(data_tree.detector_yaml, data_tree.test_yaml, {"gradcam_target": "fakes"}, "", names)
    change_yaml(data_tree.detector_yaml, gradcam_target="fakes")
    with pytest.raises(InputError, match=r"\.yaml.*: gradcam_target is 'fakes'"):
        run_settings(data_tree.detector_yaml, data_tree.test_yaml, {"gradcam_target": None}, "", names)


def test_the_names_of_methods_are_those_of_the_functions() -> None:
    assert tuple(method_names()) == METHOD_NAMES


def test_a_run_begins_without_what_only_its_end_needs(tmp_path: Path) -> None:
    """Decoding processes are forked before these are loaded, and a wrong path is said a second earlier."""
    late = ("sklearn", "scipy", "pandas", "matplotlib", "jinja2", "tensorboard", "skimage", "av")
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import utils.gradcam_kit.run.evaluation; "
    script += f"print('LOADED', [name for name in {late!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "LOADED []" in done.stdout, done.stdout + done.stderr
