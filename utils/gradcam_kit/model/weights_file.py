"""A weights file → the tensors in it, under the names that it has. No code in it ever runs."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import warnings
import zipfile
from _codecs import encode as _encode  # bytes of a NumPy scalar
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..base.errors import InputError
from ..base.files import check_ordinary, sha256_of
from ..base.text import one_line, shortened
from .checkpoint_folder import check_index, file_in, files_of

WRAPPERS = ("state_dict", "model_state_dict", "model")
MOST_EXPANSION = 20  # weights hardly shrink when they are compressed
SAFETENSORS = ".safetensors"
LFS, PAGE = b"version https://git-lfs", (b"<!doc", b"<html")

_RESAVE = "open it where you trust it and save only its weights: torch.save(model.state_dict(), 'weights.pth')"


class WeightsFile(NamedTuple):
    """`weights` as they stand in the file, on the CPU; `sha256` is of the very bytes that they were read from, of
    several files that of their hashes, one after another.

    `name`: of the dictionary that they are in, "" for the file's own. `others`: further state dicts in it, by name.
    """

    path: Path
    weights: dict[str, Tensor]
    sha256: str
    name: str = ""
    others: Mapping[str, dict[str, Tensor]] = {}


def no_checkpoint(path: Path, head: bytes, unpacked: int, error: Exception | None = None) -> str:
    """What a file that begins with `head` and unpacks to so many bytes is, where it is no checkpoint, else ""."""
    size, start, failed, reason = path.stat().st_size, head[:24], error is not None, one_line(error)
    is_text = bool(start) and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start)
    pickled = re.search(r"(?:GLOBAL|class) ([\w.]+\.\w+)", str(error))  # torch's message advises to load it anyway
    signs = {  # the first one counts
        "an empty file; download it again": not head,
        "a Git LFS pointer, not the weights themselves; fetch them with: git lfs pull": head.startswith(LFS),
        "a web page, not a checkpoint; the download went wrong, download it again": head.lstrip()[:5].lower() in PAGE,
        # torch.save writes uncompressed archives: one that unpacks to a multiple of itself is made to exhaust memory.
        f"{size:,} bytes that unpack to {unpacked:,}, which no torch.save writes; not read. Get the file from"
        " its source again": unpacked > MOST_EXPANSION * size + (1 << 20),
        f"not a .safetensors file, or damaged ({reason})": failed and path.suffix == SAFETENSORS,
        "a TorchScript archive, not a checkpoint; convert it where you trust it:"
        f" torch.save(torch.jit.load({path.name!r}, map_location='cpu').state_dict(), 'weights.pth')": (
            "TorchScript" in str(error)
        ),
        f"text, not a checkpoint: it begins with {start.decode('latin-1')!r}; give the file that torch.save wrote": (
            failed and is_text
        ),
        f"holds pickled objects{f' ({pickled[1]})' if pickled else ''}, which could run any code and are not loaded;"
        f" {_RESAVE}": isinstance(error, pickle.UnpicklingError),
        f"not a checkpoint, or damaged ({type(error).__name__}: {reason}); expected what"
        " torch.save(model.state_dict()) writes": failed,
    }
    return next((what for what, shows in signs.items() if shows), "")


def read_file(path: str | Path) -> WeightsFile:
    """`.safetensors`, or whatever `torch.save` wrote of a state dict, also inside `{'state_dict': ...}`; or a folder of
    a trainer, or the index of a model in several files.

    Raises InputError: no such file, no checkpoint, objects other than weights, `argparse.Namespace` and NumPy scalars
    (never unpickled), tensors without plain data, or a file that was written to meanwhile.
    """
    path = file_in(Path(path))
    files = files_of(path)
    if files == [path]:
        return _read_one(path)
    parts = [_read_one(file) for file in files]
    weights: dict[str, Tensor] = {}
    for part in parts:
        if twice := next((key for key in part.weights if key in weights), None):
            raise InputError(f"{part.path}: {shortened(repr(twice))} is in another of the files, too")
        weights.update(part.weights)
    check_index(path, weights)
    digest = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()
    return WeightsFile(path, weights, digest)


def _read_one(path: Path) -> WeightsFile:
    head, unpacked = _first_look(path)
    if what := no_checkpoint(path, head, unpacked):
        raise InputError(f"{path}: {what}")
    before, sha256 = _identity(path), sha256_of(path)
    try:
        content = _load(path)
    except (MemoryError, InputError):
        raise
    except Exception as error:  # a damaged file makes its readers raise anything, KeyError included
        raise InputError(f"{path}: {no_checkpoint(path, head, unpacked, error)}") from error
    name, *others = _state_dicts(content, path)
    if _identity(path) != before:
        raise InputError(f"{path}: was written to while it was read; wait until it is complete, and start again")
    found = {where: dict(_checked(weights, path)) for where, weights in (name, *others)}
    size = sum(tensor.numel() * tensor.element_size() for weights in found.values() for tensor in weights.values())
    if size > MOST_EXPANSION * path.stat().st_size + (1 << 20):  # tensors that repeat one number
        raise InputError(f"{path}: {no_checkpoint(path, head, size)}")
    return WeightsFile(path, found.pop(name[0]), sha256, name[0], found)


def _checked(weights: Mapping[str, Tensor], path: Path) -> Mapping[str, Tensor]:
    for key, tensor in weights.items():
        if unusual := _unusual(tensor):
            raise InputError(f"{path}: {shortened(repr(key))} has {unusual}; expected plain tensors. {_RESAVE}")
    return weights


def _first_look(path: Path) -> tuple[bytes, int]:
    """The first 64 bytes, and the bytes that a zip archive unpacks to. Raises InputError for no readable file."""
    unpacked = 0
    try:
        check_ordinary(path)
        with path.open("rb") as file:
            head = file.read(64)
        with suppress(zipfile.BadZipFile, NotImplementedError, OSError, ValueError):  # damaged: torch will say so
            if head.startswith(b"PK"):
                with zipfile.ZipFile(path) as archive:
                    unpacked = sum(entry.file_size for entry in archive.infolist())
        return head, unpacked
    except IsADirectoryError:
        raise InputError(f"{path}: a folder; give the weights file in it (.pth or .safetensors)") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"weights file {str(path)!r} cannot be read ({one_line(error)}); check the path of the weights"
        ) from None


def _identity(path: Path) -> tuple[int, ...]:
    """Differs where the file was written to or replaced."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _load(path: Path) -> Any:
    if path.suffix == SAFETENSORS:
        try:
            import safetensors.torch
        except ImportError as error:
            raise InputError(f"{path}: reading .safetensors needs a package: pip install safetensors") from error
        return safetensors.torch.load_file(str(path))
    with warnings.catch_warnings(), _harmless_types():
        warnings.simplefilter("ignore")  # torch warns of odd pickles before it refuses them; one sentence will do
        return torch.load(path, map_location="cpu", weights_only=True)


def _harmless_types() -> AbstractContextManager[Any]:
    """Lets torch, from 2.5 on, load types that training scripts save besides the weights, and that hold only data."""
    scalar = np.float64(0).__reduce__()[0]
    numbers = [type(np.dtype(code)) for code in "?bhilqBHILQefd"]
    harmless: list[Any] = [argparse.Namespace, np.dtype, scalar, *numbers, _encode]
    allow = getattr(torch.serialization, "safe_globals", nullcontext)
    return allow(harmless)


def _state_dicts(content: Any, path: Path) -> list[tuple[str, Mapping[str, Tensor]]]:
    """Every state dict in a file, by its name; first that of a usual wrapper, or the largest. Raises InputError where
    there is none, or where other things are among the weights."""
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds {type(content).__name__}, not a dictionary of weights; {_RESAVE}")
    inner = {name: value for name, value in _inner(content) if _is_state_dict(value)}
    usual = next((name for name in WRAPPERS if isinstance(content.get(name), dict)), None)
    if usual is not None:
        inner = {usual: content[usual], **inner}
    elif not inner or any(isinstance(value, Tensor) for value in content.values()):
        inner = {"": content}
    else:
        inner = dict(sorted(inner.items(), key=lambda pair: -len(pair[1])))
    first = next(iter(inner.values()))
    others = [key for key, value in first.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if len(others) == len(first):
        held = ", ".join(shortened(repr(key), 60) for key in others[:5]) or "nothing"
        raise InputError(f"{path}: a dictionary without weights, it holds {held}; {_RESAVE}")
    if others:
        kind = type(first[others[0]]).__name__
        raise InputError(f"{path}: {shortened(repr(others[0]))} is no weight but {kind} among weights; {_RESAVE}")
    return list(inner.items())


def _inner(content: Mapping[Any, Any], above: str = "", depth: int = 3) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and depth:
            yield f"{above}{key}", value
            yield from _inner(value, f"{above}{key}.", depth - 1)


def _is_state_dict(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(key, str) and isinstance(one, Tensor) for key, one in value.items())


def _unusual(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "no data (it is on the meta device)"
    if tensor.is_quantized:
        return "8-bit quantised values"
    return "" if tensor.layout == torch.strided else f"the layout {str(tensor.layout).replace('torch.', '')}"
