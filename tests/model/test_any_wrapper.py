"""Checkpoints under names that no table lists, in several files, in folders of trainers: right, or one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.helpers.detectors import images, tiny_detector
from tests.helpers.weights import load_weights
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.model.checkpoints import fill, read_weights
from utils.gradcam_kit.model.weights_file import read_file

Weights = dict[str, Tensor]


def state(seed: int = 1) -> Weights:
    return {key: value.clone() for key, value in tiny_detector(seed).state_dict().items()}


def scores(path: Path) -> Tensor:
    """Of the detector of another seed, filled from the file."""
    model = tiny_detector(0)
    load_weights(model, path)
    with torch.no_grad():
        found: Tensor = model({"image": images(2)})["cls"]
    return found


def wanted(seed: int = 1) -> Tensor:
    with torch.no_grad():
        found: Tensor = tiny_detector(seed)({"image": images(2)})["cls"]
    return found


def renamed(change: Callable[[str], str]) -> Weights:
    return {change(key): value for key, value in state().items()}


OPTIMIZER = torch.optim.AdamW([nn.Parameter(torch.zeros(2))]).state_dict()
CONTENTS: dict[str, Callable[[], Any]] = {
    "net": lambda: {"net": state(), "epoch": 3, "optimizer": OPTIMIZER},
    "detector.weights": lambda: {"detector": {"weights": state(), "auc": 0.9}},
    "params_ema": lambda: {"params_ema": state()},
    "any prefix": lambda: renamed(lambda key: f"student.{key}"),
    "three prefixes": lambda: {"model": renamed(lambda key: f"engine.net.core.{key}")},
    "a prefix inside a wrapper": lambda: {"weights": renamed(lambda key: f"module.classifier.{key}"), "step": 1},
    "beside a loss": lambda: {**renamed(lambda key: f"net.{key}"), "criterion.centres": torch.zeros(2, 5)},
    "another name for each part": lambda: renamed(
        lambda key: key.replace("backbone.", "feature.clip.", 1).replace("head.", "cls_head.fc.", 1)
    ),
    "averaged beside it, of another size": lambda: {"state_dict": state(), "ema": {"shadow": torch.zeros(3)}},
}


@pytest.mark.parametrize("name", CONTENTS)
def test_tensors_that_fit_in_one_way_are_loaded(name: str, tmp_path: Path) -> None:
    torch.save(CONTENTS[name](), tmp_path / "w.pth")
    torch.testing.assert_close(scores(tmp_path / "w.pth"), wanted(), rtol=0, atol=0)


def test_another_is_in_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two: list[Mapping[str, Any]] = [
        {"student": state(1), "teacher": state(2)},
        {f"{name}.{key}": value for name in ("student", "teacher") for key, value in state().items()},
        {"nets": {"a": state(1), "b": state(2)}},
    ]
    for content in two:
        torch.save(content, tmp_path / "two.pth")
        with pytest.raises(InputError, match="(several models|more than once).*: save one of them"):
            scores(tmp_path / "two.pth")
    torch.save({"model": state(1), "model_ema": state(2)}, tmp_path / "ema.pth")
    torch.testing.assert_close(scores(tmp_path / "ema.pth"), wanted(1), rtol=0, atol=0)
    assert "the model 'model' is loaded, not 'model_ema'" in capsys.readouterr().err


def test_nothing_fits_and_a_shape_that_does_not(tmp_path: Path) -> None:
    for content in (
        {"net": {**state(), "head.weight": torch.zeros(2, 7)}},
        {"net": {key: value for key, value in state().items() if "layers.0." not in key}},
        {"net": {**renamed(lambda key: f"x.{key}"), "x.more": torch.zeros(1)}},
    ):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(InputError, match="does not fit the detector"):
            scores(tmp_path / "w.pth")


# --------------------------------------------------------------------------------------------------- several files


def shards(folder: Path, suffix: str = ".safetensors", stem: str = "model") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[Weights] = [{}, {}, {}]
    for number, (key, value) in enumerate(state().items()):
        parts[number % 3][key] = value.contiguous()
    places = {}
    for number, part in enumerate(parts, start=1):
        name = f"{stem}-{number:05d}-of-00003{suffix}"
        if suffix == ".safetensors":
            save_file(part, folder / name)
        else:
            torch.save(part, folder / name)
        places.update(dict.fromkeys(part, name))
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize(("suffix", "stem"), [(".safetensors", "model"), (".bin", "pytorch_model")])
def test_a_model_in_several_files(tmp_path: Path, suffix: str, stem: str) -> None:
    index = shards(tmp_path / "m", suffix, stem)
    for given in (index, index.parent):
        torch.testing.assert_close(scores(given), wanted(), rtol=0, atol=0)
    one = tmp_path / "m" / f"{stem}-00002-of-00003{suffix}"
    with pytest.raises(InputError, match=r"one of several files of a model: give its folder, or .*index\.json"):
        scores(one)
    one.write_bytes(one.read_bytes()[:-40])
    with pytest.raises(InputError, match="00002-of-00003.*damaged"):
        read_file(index)
    one.unlink()
    with pytest.raises(InputError, match="1 of its 3 files are missing"):
        read_file(index)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "no weight_map"),
        ("{", "cannot be read as the index"),
        ('{"weight_map": {"a": 1}}', "no weight_map"),
        ('{"weight_map": {"a": "../w.pth"}}', "expected files next to it"),
        ('{"weight_map": {}}', "0 of its 0 files"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "expected files next to it"),
        ('{"weight_map": {"missing": "w.safetensors"}}', "lists 'missing', which is in none of its files"),
    ],
)
def test_an_index_that_is_none(tmp_path: Path, text: str, said: str) -> None:
    save_file(state(), tmp_path / "w.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=said):
        read_file(tmp_path / "model.safetensors.index.json")


def test_folders_of_trainers(tmp_path: Path) -> None:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "scaler.pt"):
        torch.save({"step": 1}, tmp_path / name)
    with pytest.raises(InputError, match=r"a folder; .* it holds no model"):
        read_file(tmp_path)
    torch.save(state(), tmp_path / "best.ckpt")
    torch.testing.assert_close(scores(tmp_path), wanted(), rtol=0, atol=0)
    torch.save(state(2), tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"it holds 'best\.ckpt', 'last\.ckpt': name one of them"):
        read_file(tmp_path)
    torch.save(state(3), tmp_path / "pytorch_model.bin")
    torch.testing.assert_close(scores(tmp_path), wanted(3), rtol=0, atol=0)
    for step in (500, 1000):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
        save_file(state(), tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors")
    with pytest.raises(
        InputError, match="checkpoint-500, checkpoint-1000, the last is checkpoint-1000: name one of them"
    ):
        read_file(tmp_path / "run")
    (tmp_path / "adapter").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(InputError, match="only a PEFT adapter"):
        read_file(tmp_path / "adapter")


# ----------------------------------------------------------------------------------------------- factors of LoRA

BASE = torch.ones(6, 4)
A, B = torch.ones(2, 4), torch.ones(6, 2)


@pytest.mark.parametrize(
    ("weight", "a", "b", "said"),
    [
        (BASE, A.to(torch.complex64), B, "factor A is complex64"),
        (BASE, A, B.to(torch.complex128), "factor B is complex128"),
        (BASE, A > 0, B, "factor A is bool"),
        (BASE, A, B.to(torch.int64), "factor B is int64"),
        (BASE, A.to(torch.int8), B, "factor A is int8"),
        (BASE, A, B.to(torch.float8_e4m3fn), "factor B is float8"),
        (BASE.to(torch.complex64), A, B, "weight is complex64"),
        (BASE.to(torch.int32), A, B, "weight is int32"),
        (BASE, A[0], B[:, 0], "do not fit it"),
        (BASE, A, B[0], "do not fit it"),
        (BASE[0], A, B, "do not fit it"),
        (BASE, A[None], B[None], "do not fit it"),
        (BASE[..., None, None], A, B, "do not fit it"),
        (BASE, torch.ones(7, 4), torch.ones(6, 7), "do not fit it"),
        (BASE, A, torch.ones(6, 3), "do not fit it"),
        (BASE, torch.zeros(1, 1).expand(1 << 24, 4), torch.zeros(1, 1).expand(6, 1 << 24), "bytes that unpack to"),
    ],
)
def test_odd_factors_are_refused(weight: Tensor, a: Tensor, b: Tensor, said: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 16}')
    torch.save({"x.weight": weight, "x.lora_A.weight": a, "x.lora_B.weight": b}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=said):
        read_weights(tmp_path / "w.pth")


def test_factors_of_any_usual_kind_are_merged(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 16}')
    for rank, kind in ((1, torch.float16), (2, torch.bfloat16), (6, torch.float64)):  # W + 16/r · r
        a, b = torch.ones(rank, 4, dtype=kind), torch.ones(6, rank, dtype=kind)
        torch.save({"x.weight": BASE, "x.lora_A.weight": a, "x.lora_B.weight": b}, tmp_path / "w.pth")
        torch.testing.assert_close(read_weights(tmp_path / "w.pth")["x.weight"], BASE + 16)


def test_numbers_that_are_repeated_fill_no_memory(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1, 1).expand(1 << 20, 1 << 20)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="bytes that unpack to"):
        fill(nn.Linear(2, 2), read_file(tmp_path / "w.pth"))


# --------------------------------------------------------------------------------------- what training leaves beside it

NESTED: dict[str, Callable[[], Any]] = {
    "a usual name in a usual name": lambda: {"state_dict": {"model": state(), "step": 3}, "epoch": 1},
    "three deep": lambda: {"model": {"ema": {"state_dict": state(), "decay": 0.9}}},
    "an unusual name in a usual one": lambda: {"state_dict": {"detector": state(), "optimizer": OPTIMIZER}},
    "in a folder of its own": lambda: {"checkpoint": {"model_state_dict": state(), "args": {"lr": 1e-3}}},
    "a loss's weights of classes": lambda: {**state(), "loss_func.weight": torch.ones(2)},
    "a loss below the model": lambda: renamed(lambda key: f"model.{key}") | {"model.loss_fn.pos_weight": torch.ones(1)},
    "centres of a criterion": lambda: {"state_dict": {**state(), "criterion.inner.centres": torch.zeros(2, 5)}},
}


@pytest.mark.parametrize("name", NESTED)
def test_what_training_saves_beside_the_weights_is_left_out(name: str, tmp_path: Path) -> None:
    torch.save(NESTED[name](), tmp_path / "w.pth")
    torch.testing.assert_close(scores(tmp_path / "w.pth"), wanted(), rtol=0, atol=0)


@pytest.mark.parametrize("key", ["adapter.weight", "backbone.prompt", "lossless.weight", "head.scale"])
def test_other_weights_beside_it_are_not_left_out(key: str, tmp_path: Path) -> None:
    torch.save({**state(), key: torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=rf"unexpected {key}"):
        scores(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "best.pth", "epoch_3.ckpt", "weights"])
def test_safetensors_under_another_name_are_read(name: str, tmp_path: Path) -> None:
    save_file({key: value.contiguous() for key, value in state().items()}, tmp_path / name)
    torch.testing.assert_close(scores(tmp_path / name), wanted(), rtol=0, atol=0)


FOREIGN = {
    "model.h5": b"\x89HDF\r\n\x1a\n" + bytes(200),
    "model.onnx": b"\x08\x07\x12\x07pytorch" + bytes(200),
    "w.pth.gz": b"\x1f\x8b\x08\x00" + bytes(200),
    "w.pth": b"\x00\x01\x02\x03" * 50,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_not_called_a_pickle(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FOREIGN[name])
    with pytest.raises(InputError, match="not a checkpoint, or damaged") as error:
        read_file(tmp_path / name)
    assert "pickle" not in str(error.value).partition("(")[0]
