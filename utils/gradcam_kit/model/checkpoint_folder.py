"""Weights in several files, and in the output folders of Hugging Face's trainers, accelerate and PEFT."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path

from ..base.errors import InputError
from ..base.files import read_text
from ..base.text import in_number_order, is_plain_name, one_line, shortened
from ..base.typed import Misfit, fit

INDEX = ".index.json"
# Names of the model in a trainer's folder, in the order of preference.
MODEL_FILES = (
    "model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}",
    "diffusion_pytorch_model.safetensors",
)  # fmt: skip
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
NOT_WEIGHTS = ("optimizer", "scheduler", "rng_state", "random_states", "training_args", "scaler", "sampler", "dl_state")
ADAPTER = "adapter_model."


def file_in(path: Path) -> Path:
    """Return `path`, or if it is a folder, the weights file in it. Raises InputError if there is none or several."""
    if not os.path.isdir(path):  # noqa: PTH112 (Path's method raises for a name of 5,000 characters)
        return path
    there = sorted((entry.name for entry in path.iterdir()), key=in_number_order)
    found = [name for name in MODEL_FILES if name in there][:1]
    if not found:
        found = [
            name
            for name in there
            if name.endswith(SUFFIXES) and not name.startswith((".", *NOT_WEIGHTS, ADAPTER)) and (path / name).is_file()
        ]
    if len(found) == 1:
        return path / found[0]
    inside = [
        name for name in there if (path / name).is_dir() and any((path / name / one).is_file() for one in MODEL_FILES)
    ]
    if found:
        held = f"it holds {', '.join(map(repr, found[:5]))}{' and others' if len(found) > 5 else ''}: name one of them"
    elif inside:
        held = f"it holds {', '.join(inside[:5])}, the last is {inside[-1]}: name one of them"
    elif any(name.startswith(ADAPTER) for name in there):
        held = "it holds only a PEFT adapter: merge it where it was trained, and save the whole model"
    else:
        held = "it holds no model (.safetensors, .pth or .bin)"
    raise InputError(f"{path}: a folder; give the weights file in it; {held}")


def files_of(path: Path) -> list[Path]:
    """Return the files that a model's index lists, each once; for any other file, the file. Raises InputError."""
    if not path.name.endswith(INDEX):
        index = _index_of(path)
        if index is not None:
            raise InputError(f"{path}: one of several files of a model: give its folder, or {index.name}")
        return [path]
    names = list(dict.fromkeys(_weight_map(path).values()))
    odd = next((name for name in names if not is_plain_name(name)), None)
    if odd is not None:
        raise InputError(f"{path}: lists the file {shortened(repr(odd))}: expected files next to it")
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing or not names:
        raise InputError(f"{path}: {len(missing)} of its {len(names)} files are missing, first {missing[:1]}")
    return [path.parent / name for name in names]


def check_index(path: Path, keys: Collection[str]) -> None:
    """Raise InputError if a tensor that the index lists is in none of its files."""
    missing = next((key for key in _weight_map(path) if key not in keys), None)
    if missing is not None:
        raise InputError(f"{path}: lists {shortened(repr(missing))}, which is in none of its files; get them again")


def _index_of(path: Path) -> Path | None:
    """Return the index that lists `path`, if it is one of several files (`model-00001-of-00002.safetensors`)."""
    if "-of-" not in path.name:
        return None
    stem = path.name.partition("-")[0]
    index = path.with_name(f"{stem}{path.suffix}{INDEX}")
    return index if index.is_file() and path.name in _weight_map(index).values() else None


def _weight_map(path: Path) -> dict[str, str]:
    try:
        values = json.loads(read_text(path))
        return fit(values.get("weight_map") if isinstance(values, dict) else None, dict[str, str])
    except (OSError, ValueError, RecursionError) as error:
        reason = "no weight_map of names" if isinstance(error, Misfit) else one_line(error)
        raise InputError(f"{path}: cannot be read as the index of a model ({reason})") from error
