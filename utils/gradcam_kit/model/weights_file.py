"""Reading of a weights file: its tensors, under its own names. No code in the file is run."""

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
MOST_EXPANSION = 20  # compression hardly shrinks weights
SAFETENSORS = ".safetensors"
LFS, PAGE = b"version https://git-lfs", (b"<!doc", b"<html")
TORCH = (b"PK", b"\x80")  # first bytes of what torch.save writes: a zip archive, before torch 1.6 a pickle

_RESAVE = "open it where you trust it and save only its weights: torch.save(model.state_dict(), 'weights.pth')"


class WeightsFile(NamedTuple):
    """The content of a weights file. `weights` are on the CPU, under the file's own names.

    `sha256`: hash of the file, or of the joined hashes of several files. `name`: key of the dictionary that holds the
    weights, "" for the top. `others`: further state dicts in the file, by name.
    """

    path: Path
    weights: dict[str, Tensor]
    sha256: str
    name: str = ""
    others: Mapping[str, dict[str, Tensor]] = {}


def no_checkpoint(path: Path, head: bytes, unpacked: int, error: Exception | None = None) -> str:
    """Say what a file is instead of a checkpoint, else "". It begins with `head` and unpacks to `unpacked` bytes."""
    size, start, failed, reason = path.stat().st_size, head[:24], error is not None, one_line(error)
    is_text = bool(start) and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start)
    pickled = re.search(r"(?:GLOBAL|class) ([\w.]+\.\w+)", str(error))  # torch's own message advises loading it anyway
    signs = {  # the first that applies
        "an empty file; download it again": not head,
        "a Git LFS pointer, not the weights themselves; fetch them with: git lfs pull": head.startswith(LFS),
        "a web page, not a checkpoint; the download went wrong, download it again": head.lstrip()[:5].lower() in PAGE,
        # torch.save does not compress: an archive that unpacks to many times its size is meant to exhaust memory.
        f"{size:,} bytes that unpack to {unpacked:,}, which torch.save never writes; it is not read. Get the file from"
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
        f" {_RESAVE}": isinstance(error, pickle.UnpicklingError) and (bool(pickled) or head.startswith(TORCH)),
        f"not a checkpoint, or damaged ({type(error).__name__}: {reason}); expected what"
        " torch.save(model.state_dict()) writes": failed,
    }
    return next((what for what, shows in signs.items() if shows), "")


def read_file(path: str | Path) -> WeightsFile:
    """Read weights from `.safetensors`, a state dict of `torch.save` (also inside `{'state_dict': ...}`), a trainer's
    folder, or the index of a model in several files.

    Raises InputError for a missing file, no checkpoint, tensors without plain data, a file that changes during reading,
    and objects other than weights, `argparse.Namespace` and NumPy scalars (which are never unpickled).
    """
    path = file_in(Path(path))
    files = files_of(path)
    if files == [path]:
        return _read_one(path)
    parts = [_read_one(file) for file in files]
    weights: dict[str, Tensor] = {}
    for part in parts:
        if twice := next((key for key in part.weights if key in weights), None):
            raise InputError(f"{part.path}: {shortened(repr(twice))} is also in another of the files")
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
        content = _load(path, head)
    except (MemoryError, InputError):
        raise
    except Exception as error:  # a damaged file may raise anything, even KeyError
        raise InputError(f"{path}: {no_checkpoint(path, head, unpacked, error)}") from error
    name, *others = _state_dicts(content, path)
    if _identity(path) != before:
        raise InputError(f"{path}: changed while it was read; wait until it is complete, and start again")
    found = {where: dict(_checked(weights, path)) for where, weights in (name, *others)}
    size = sum(tensor.numel() * tensor.element_size() for weights in found.values() for tensor in weights.values())
    if size > MOST_EXPANSION * path.stat().st_size + (1 << 20):  # tensors that repeat one value
        raise InputError(f"{path}: {no_checkpoint(path, head, size)}")
    return WeightsFile(path, found.pop(name[0]), sha256, name[0], found)


def _checked(weights: Mapping[str, Tensor], path: Path) -> Mapping[str, Tensor]:
    for key, tensor in weights.items():
        if unusual := _unusual(tensor):
            raise InputError(f"{path}: {shortened(repr(key))} has {unusual}; expected plain tensors. {_RESAVE}")
    return weights


def _first_look(path: Path) -> tuple[bytes, int]:
    """Return the first 64 bytes, and the unpacked size of a zip archive. Raises InputError if it is unreadable."""
    unpacked = 0
    try:
        check_ordinary(path)
        with path.open("rb") as file:
            head = file.read(64)
        with suppress(zipfile.BadZipFile, NotImplementedError, OSError, ValueError):  # damaged: torch reports it
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
    """Return a value that changes if the file is modified or replaced."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _load(path: Path, head: bytes) -> Any:
    # Trainers name safetensors .bin too. After eight bytes of length comes JSON.
    if head[8:9] == b"{" or path.suffix == SAFETENSORS:
        try:
            import safetensors.torch
        except ImportError as error:
            raise InputError(f"{path}: reading .safetensors needs a package: pip install safetensors") from error
        return safetensors.torch.load_file(str(path))
    with warnings.catch_warnings(), _harmless_types():
        warnings.simplefilter("ignore")  # torch warns about odd pickles before it refuses them
        return torch.load(path, map_location="cpu", weights_only=True)


def _harmless_types() -> AbstractContextManager[Any]:
    """Let torch (2.5 and later) load types that only hold data and that training scripts save next to the weights."""
    scalar = np.float64(0).__reduce__()[0]
    numbers = [type(np.dtype(code)) for code in "?bhilqBHILQefd"]
    harmless: list[Any] = [argparse.Namespace, np.dtype, scalar, *numbers, _encode]
    allow = getattr(torch.serialization, "safe_globals", nullcontext)
    return allow(harmless)


def _state_dicts(content: Any, path: Path) -> list[tuple[str, Mapping[str, Tensor]]]:
    """Return every state dict in a file by name; first that of a usual wrapper, or the largest.

    Raises InputError if there is none, or if it contains anything else.
    """
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds {type(content).__name__}, not a dictionary of weights; {_RESAVE}")
    inner = {name: value for name, value in _inner(content) if _is_state_dict(value)}
    usual = next((name for name in WRAPPERS if isinstance(content.get(name), dict)), None)
    if usual is not None and not any(name.startswith(f"{usual}.") for name in inner):
        inner = {usual: content[usual], **inner}
    elif not inner or any(isinstance(value, Tensor) for value in content.values()):
        inner = {"": content}
    else:
        inner = dict(sorted(inner.items(), key=lambda pair: (not is_usual(pair[0]), -len(pair[1]))))
    first = next(iter(inner.values()))
    others = [key for key, value in first.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if len(others) == len(first):
        held = ", ".join(shortened(repr(key), 60) for key in others[:5]) or "nothing"
        raise InputError(f"{path}: a dictionary without weights, it holds {held}; {_RESAVE}")
    if others:
        kind = type(first[others[0]]).__name__
        raise InputError(f"{path}: {shortened(repr(others[0]))} holds {kind}, not a named weight; {_RESAVE}")
    return list(inner.items())


def is_usual(name: str) -> bool:
    """True if the last part of a state dict's name is one of WRAPPERS."""
    return name.rpartition(".")[2] in WRAPPERS


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
