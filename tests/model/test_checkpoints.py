"""Checkpoints written by torch and safetensors as the hosts' users have them, read back."""

from __future__ import annotations

import fractions
import hashlib
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.helpers.weights import load_weights
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.base.files import sha256_of
from utils.gradcam_kit.model.checkpoints import read_weights


class Tower(nn.Module):
    """The key names of a detector with a CLIP tower."""

    def __init__(self, width: int, blocks: int, position_ids: bool) -> None:
        super().__init__()
        self.embeddings = nn.Module()
        self.embeddings.class_embedding = nn.Parameter(torch.randn(width))
        if position_ids:  # as transformers before 4.31
            self.embeddings.register_buffer("position_ids", torch.arange(5)[None])
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))


class Detector(nn.Module):
    def __init__(self, width: int = 6, blocks: int = 2, position_ids: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = Tower(width, blocks, position_ids)
        self.head = nn.Linear(width, 2)


def prefixed(weights: dict[str, Tensor], *renames: tuple[str, str]) -> dict[str, Tensor]:
    result = {}
    for key, value in weights.items():
        for old, new in renames:
            if key.startswith(old):
                key = new + key[len(old) :]
                break
        result[key] = value
    return result


def saved(tmp_path: Path, content: Any, name: str = "weights.pth", **options: Any) -> Path:
    torch.save(content, tmp_path / name, **options)
    return tmp_path / name


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key


LAYOUTS: dict[str, Any] = {
    "plain": lambda w: w,
    "state_dict": lambda w: {"state_dict": w, "epoch": 3},
    "model_state_dict": lambda w: {"epoch": 3, "model_state_dict": w},
    "model": lambda w: {"model": w},
    "ddp": lambda w: prefixed(w, ("", "module.")),
    "ddp of ddp": lambda w: {"state_dict": prefixed(w, ("", "module.module."))},
    "old names": lambda w: prefixed(w, ("backbone.", "base_model."), ("head.", "classifier.")),
    "old names under ddp": lambda w: prefixed(w, ("backbone.", "module.base_model."), ("head.", "module.classifier.")),
    "wrapped tower": lambda w: prefixed(w, ("backbone.", "backbone.vision_model.")),
    "everything": lambda w: prefixed(
        w, ("backbone.", "module.base_model.vision_model."), ("head.", "module.classifier.")
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("position_ids", [(False, False), (True, False), (False, True), (True, True)])
def test_every_released_layout_fills_the_detector(tmp_path: Path, layout: str, position_ids: tuple[bool, bool]) -> None:
    source = Detector(position_ids=position_ids[0], seed=1)
    model = Detector(position_ids=position_ids[1], seed=2)
    load_weights(model, saved(tmp_path, LAYOUTS[layout](dict(source.state_dict()))))
    assert_same_weights(model, source)
    if position_ids[1]:
        assert model.state_dict()["backbone.embeddings.position_ids"].tolist() == [[0, 1, 2, 3, 4]]


def test_safetensors_legacy_and_half_precision_files(tmp_path: Path) -> None:
    source = Detector(seed=1)
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    legacy = saved(tmp_path, source.state_dict(), "old.bin", _use_new_zipfile_serialization=False)
    for path in (tmp_path / "a.safetensors", legacy, str(legacy)):
        model = Detector(seed=2)
        load_weights(model, path)
        assert_same_weights(model, source)
    model = Detector(seed=2)
    load_weights(model, saved(tmp_path, source.half().state_dict()))
    assert model.head.weight.dtype == torch.float32
    assert_same_weights(model, source.float())


def test_renames_happen_at_the_start_of_a_key_only(tmp_path: Path) -> None:
    keys = {
        "module.a.module.b": "a.b",
        "backbone.base_model.x": "backbone.base_model.x",
        "head.classifier.weight": "head.classifier.weight",
        "backbone.block.vision_model.x": "backbone.block.vision_model.x",
        "my_module.x": "my_module.x",
        "xclassifier.w": "xclassifier.w",
        "modules.w": "modules.w",
        "base_model.classifier.w": "backbone.classifier.w",
    }
    weights = {key: torch.full((1,), float(i)) for i, key in enumerate(keys)}
    got = read_weights(saved(tmp_path, weights))
    assert {key: value.item() for key, value in got.items()} == {new: float(i) for i, new in enumerate(keys.values())}


def test_two_keys_of_one_meaning(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"two of its keys map to 'head\.w'"):
        read_weights(saved(tmp_path, {"head.w": torch.zeros(1), "module.classifier.w": torch.ones(1)}))


def refusal(model: nn.Module, path: Path) -> str:
    """The message of the refusal; the model must be as before."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError) as error:
        load_weights(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_missing_unexpected_and_misshaped_keys_are_named(tmp_path: Path) -> None:
    weights = dict(Detector(seed=1).state_dict())
    del weights["head.bias"]
    weights["head.extra"] = torch.zeros(3, 4)
    weights["head.weight"] = torch.zeros(5, 6)
    message = refusal(Detector(), saved(tmp_path, weights))
    assert "3 of the keys differ" in message
    assert "missing head.bias (2,)" in message
    assert "unexpected head.extra (3, 4)" in message
    assert "head.weight (5, 6) instead of (2, 6)" in message


@pytest.mark.parametrize(
    "key", ["backbone.embeddings.class_embedding", "backbone.encoder.layers.1.bias", "head.weight"]
)
def test_a_single_missing_key_is_fatal(tmp_path: Path, key: str) -> None:
    weights = dict(Detector(seed=1).state_dict())
    del weights[key]
    assert f"1 of the keys differ: missing {key}" in refusal(Detector(), saved(tmp_path, weights))


def test_only_position_ids_of_the_embeddings_are_excused(tmp_path: Path) -> None:
    weights = {**Detector(seed=1).state_dict(), "backbone.position_ids": torch.arange(5)}
    assert "unexpected backbone.position_ids (5,)" in refusal(Detector(), saved(tmp_path, weights))


def test_another_architecture_is_described(tmp_path: Path) -> None:
    message = refusal(Detector(width=6, blocks=2), saved(tmp_path, Detector(width=8, blocks=13).state_dict()))
    assert "the file holds a ViT of 13 blocks, width 8, the detector holds a ViT of 2 blocks, width 6" in message
    assert "unexpected backbone.encoder.layers.2.weight (8, 8)" in message
    other = refusal(Detector(), saved(tmp_path, {f"conv{i}.weight": torch.zeros(2, 3, 1, 1) for i in range(40)}))
    assert "the file holds 40 tensors, the first is conv0.weight (2, 3, 1, 1), the detector holds" in other
    assert other.count("missing") + other.count("unexpected") == 10
    assert "and 37 more" in other  # 7 missing and 40 unexpected, 10 of them named


MARK = "code_ran"


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (MARK,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["weights.pth", "weights.bin", "weights.safetensors"])
def test_code_in_a_checkpoint_never_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": Detector().state_dict(), "extra": Malicious()}
    path = saved(tmp_path, content, name, _use_new_zipfile_serialization=zipped)
    message = refusal(Detector(), path)
    if name.endswith(".safetensors"):
        assert "not a .safetensors file" in message
    else:
        assert all(part in message for part in ("pickled objects", "mkdir", "torch.save(model.state_dict()"))
    path.write_bytes(pickle.dumps(Malicious()))
    assert ("pickled objects" in refusal(Detector(), path)) == (path.suffix != ".safetensors")
    assert not Path(MARK).exists()
    pickle.loads(path.read_bytes())  # it would have run
    assert Path(MARK).exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"state_dict": {"a": torch.zeros(1)}, "where": fractions.Fraction(1, 2)}, "fractions.Fraction"),
    ],
)
def test_whole_objects_are_refused_with_advice(tmp_path: Path, content: Any, named: str) -> None:
    message = refusal(Detector(), saved(tmp_path, content))
    assert named in message
    assert "torch.save(model.state_dict()" in message
    assert "weights_only" not in message  # torch's own words advise to switch the protection off


def script(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), str(path))


FILES: dict[str, Any] = {
    "empty file": b"",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n",
    "a web page": b"\n<!DOCTYPE html><html>quota exceeded</html>",
    "not a checkpoint": b"hello world" * 50,
    "not a checkpoint, or damaged": b"PK\x03\x04" + b"\0" * 100,
    "not a dictionary": [torch.zeros(1)],
    "it holds 'epoch', 'lr'": {"epoch": 3, "lr": 0.1},
    "it holds nothing": {},
    "'epoch' holds int, not a named weight": {"a": torch.zeros(1), "epoch": 3},
    "3 holds Tensor, not a named weight": {"a": torch.zeros(1), 3: torch.zeros(1)},
}


@pytest.mark.parametrize("message", FILES)
def test_files_that_are_no_checkpoint(tmp_path: Path, message: str) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(FILES[message], bytes):
        path.write_bytes(FILES[message])
    else:
        torch.save(FILES[message], path)
    assert message in refusal(Detector(), path)


@pytest.mark.parametrize("share", [0.2, 0.7, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    if kind == "safetensors":
        save_file(Detector().state_dict(), path)
    else:
        torch.save(Detector().state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "damaged" in refusal(Detector(), path) or "pickled" in refusal(Detector(), path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_archive(tmp_path: Path) -> None:
    script(tmp_path / "a.pth")
    assert "TorchScript archive" in refusal(Detector(), tmp_path / "a.pth")


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pth' cannot be read \(No such file"):
        read_weights(tmp_path / "none.pth")
    with pytest.raises(InputError, match="a folder; give the weights file"):
        read_weights(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_weights("a\0b.pth")


def test_safetensors_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x" * 100)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(InputError, match="pip install safetensors"):
        read_weights(tmp_path / "a.safetensors")


def test_any_damage_ends_in_weights_or_a_reason(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = saved(tmp_path, Detector(width=3, blocks=1).state_dict())
    legacy = saved(tmp_path, Detector(width=3, blocks=1).state_dict(), "b.pth", _use_new_zipfile_serialization=False)
    save_file(Detector(width=3, blocks=1).state_dict(), tmp_path / "c.safetensors")
    refused = accepted = 0
    for source in (path, legacy, tmp_path / "c.safetensors"):
        original = source.read_bytes()
        for _ in range(150):
            data = bytearray(original)
            for _ in range(rng.integers(1, 8)):
                data[rng.integers(min(len(data), 1500))] = rng.integers(256)
            source.write_bytes(data)
            try:
                accepted += all(isinstance(value, Tensor) for value in read_weights(source).values())
            except InputError as error:
                refused += str(error).isprintable()  # not so: the sum below falls short
    assert refused + accepted == 450
    assert refused > 100


def test_sha256(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(3_000_001)
    (tmp_path / "a").write_bytes(data)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_a_text_file_is_told_as_text(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_text("model_name: clip\n" * 9)
    with pytest.raises(InputError, match="text, not a checkpoint: it begins with 'model_name: clip"):
        read_weights(tmp_path / "w.pth")
