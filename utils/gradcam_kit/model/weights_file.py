"""A weights file → the tensors in it, under the names that it has. No code in it ever runs."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from _codecs import encode as _encode  # bytes of a NumPy scalar
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..base.errors import InputError
from ..base.files import check_ordinary, sha256_of
from ..base.text import one_line, shortened

WRAPPERS = ("state_dict", "model_state_dict", "model")
MOST_EXPANSION = 20  # weights hardly shrink when they are compressed

_RESAVE = "open it where you trust it and save only its weights: torch.save(model.state_dict(), 'weights.pth')"


class WeightsFile(NamedTuple):
    """`weights` as they stand in the file, on the CPU; `sha256` is of the very bytes that they were read from."""

    path: Path
    weights: dict[str, Tensor]
    sha256: str


def read_file(path: str | Path) -> WeightsFile:
    """`.safetensors`, or whatever `torch.save` wrote of a state dict, also inside `{'state_dict': ...}`.

    Beside the weights a file may hold an `argparse.Namespace` and NumPy scalars, as training scripts save them.

    Raises InputError: no such file, empty, a Git LFS pointer, a web page, damaged, not a checkpoint, one that unpacks
    to many times its size, that holds other objects (never unpickled) or tensors without plain data, or that was
    written to meanwhile.
    """
    path = Path(path)
    _check_file(path)
    before, sha256 = _identity(path), sha256_of(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    weights = _tensors(content, path)
    if _identity(path) != before:
        raise InputError(f"{path}: was written to while it was read; wait until it is complete, and start again")
    for key, tensor in weights.items():
        what = "no data (it is on the meta device)" if tensor.is_meta else _unusual(tensor)
        if what:
            raise InputError(f"{path}: {shortened(repr(key))} has {what}; expected plain tensors. {_RESAVE}")
    return WeightsFile(path, dict(weights), sha256)


def _identity(path: Path) -> tuple[int, ...]:
    """Differs where the file was written to or replaced."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _unusual(tensor: Tensor) -> str:
    if tensor.is_quantized:
        return "8-bit quantised values"
    return "" if tensor.layout == torch.strided else f"the layout {str(tensor.layout).replace('torch.', '')}"


def _check_file(path: Path) -> None:
    """Refuse what the first bytes, or the table of a zip archive, show to be no checkpoint. Raises InputError."""
    try:
        check_ordinary(path)
        with path.open("rb") as file:
            head = file.read(64)
    except IsADirectoryError:
        raise InputError(f"{path}: a folder; give the weights file in it (.pth or .safetensors)") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"weights file {str(path)!r} cannot be read ({one_line(error)}); check the path of the weights"
        ) from None
    if not head:
        raise InputError(f"{path}: an empty file; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: a Git LFS pointer, not the weights themselves; fetch them with: git lfs pull")
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        raise InputError(f"{path}: a web page, not a checkpoint; the download went wrong, download it again")
    if head.startswith(b"PK"):
        _check_archive(path)


def _check_archive(path: Path) -> None:
    """torch.save writes uncompressed archives: one that unpacks to a multiple of itself is made to exhaust memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # damaged: torch will say so
    size = path.stat().st_size
    if unpacked > MOST_EXPANSION * size + (1 << 20):
        raise InputError(
            f"{path}: {size:,} bytes that unpack to {unpacked:,}, which no torch.save writes; not read. Get the file"
            " from its source again"
        )


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise InputError(f"{path}: reading .safetensors needs a package: pip install safetensors") from error
    try:
        return load_file(str(path))
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a .safetensors file, or damaged ({one_line(error)})") from error


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(24)


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), _harmless_types():
            warnings.simplefilter("ignore")  # torch warns of odd pickles before it refuses them; one sentence will do
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes its readers raise anything, KeyError included
        if "TorchScript" in str(error):
            raise InputError(
                f"{path}: a TorchScript archive, not a checkpoint; convert it where you trust it:"
                f" torch.save(torch.jit.load({path.name!r}, map_location='cpu').state_dict(), 'weights.pth')"
            ) from error
        start = _first_bytes(path)
        if start and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start):
            raise InputError(
                f"{path}: text, not a checkpoint: it begins with {start.decode()!r}; give the file that torch.save"
                " wrote"
            ) from error
        if isinstance(error, pickle.UnpicklingError):  # torch's own message advises to load it anyway: not repeated
            named = re.search(r"(?:GLOBAL|class) ([\w.]+\.\w+)", str(error))
            what = f" ({named[1]})" if named else ""
            raise InputError(
                f"{path}: holds pickled objects{what}, which could run any code and are not loaded; {_RESAVE}"
            ) from error
        raise InputError(
            f"{path}: not a checkpoint, or damaged ({type(error).__name__}: {one_line(error)}); "
            f"expected what torch.save(model.state_dict()) writes"
        ) from error


def _harmless_types() -> AbstractContextManager[Any]:
    """Types by name that training scripts save beside the weights, and that hold data alone. Of torch 2.5 and newer."""
    allow = getattr(torch.serialization, "safe_globals", None)
    if allow is None:
        return nullcontext()
    scalar = np.float64(0).__reduce__()[0]
    numbers = [type(np.dtype(code)) for code in "?bhilqBHILQefd"]
    harmless: list[Any] = [argparse.Namespace, np.dtype, scalar, *numbers, _encode]
    return allow(harmless)


def _tensors(content: Any, path: Path) -> Mapping[str, Tensor]:
    """The state dict, out of its wrapper if it has one. Raises InputError where there is none."""
    if isinstance(content, dict):
        for wrapper in WRAPPERS:
            if isinstance(content.get(wrapper), dict):
                content = content[wrapper]
                break
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds {type(content).__name__}, not a dictionary of weights; {_RESAVE}")
    others = [key for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if len(others) == len(content):
        held = ", ".join(shortened(repr(key), 60) for key in others[:5]) or "nothing"
        raise InputError(f"{path}: a dictionary without weights, it holds {held}; {_RESAVE}")
    if others:
        raise InputError(
            f"{path}: {shortened(repr(others[0]))} is no weight but {type(content[others[0]]).__name__} among weights;"
            f" {_RESAVE}"
        )
    return content
