"""Weights on disk → a detector. A file that does not fit is refused; no code in it ever runs."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any, Mapping

import torch
from torch import Tensor, nn

from utils.errors import InputError
from utils.model.checkpoint_families import family_of
from utils.model.checkpoint_families.renaming import KeysCollide, renamed
from utils.text import one_line, shortened

WRAPPERS = ("state_dict", "model_state_dict", "model")
# Files written with transformers before 4.31 carry this buffer of 0, 1, 2, ..., newer ones do not.
POSITION_IDS = "embeddings.position_ids"

_RESAVE = "open it where you trust it and save only its weights: torch.save(model.state_dict(), 'weights.pth')"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU, under the names that the detectors use.

    `.safetensors`, or whatever `torch.save` wrote of a state dict, also inside `{'state_dict': ...}`. DDP's `module.`
    is taken off the keys, then the file's family translates them (`utils.model.checkpoint_families`).

    Raises InputError: no such file, empty, a Git LFS pointer, a web page, damaged, not a checkpoint, or one that holds
    objects other than tensors (these are never unpickled).
    """
    path = Path(path)
    _check_file(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    try:
        weights = renamed(_tensors(content, path), _without_ddp)
        return family_of(weights).translate(weights)
    except KeysCollide as error:
        raise InputError(f"{path}: {error}") from error


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill all of `model` from a checkpoint; on any difference the model stays as it was.

    `embeddings.position_ids` is neither demanded nor refused, nor are the last parts of a key that the model's class
    lists as `unread_weights` because its forward pass does not read them. Raises InputError as `read_weights` does, and
    for missing, unexpected and mis-shaped keys, naming the first ten.
    """
    unread = getattr(model, "unread_weights", ())
    wanted, found = [
        {
            key: value
            for key, value in weights.items()
            if not _is_position_ids(key) and key.rpartition(".")[2] not in unread
        }
        for weights in (model.state_dict(), read_weights(path))
    ]
    differences = [f"missing {_shown(key, wanted)}" for key in wanted if key not in found]
    differences += [f"unexpected {_shown(key, found)}" for key in found if key not in wanted]
    differences += [
        f"{_shown(key, found)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    if differences:
        more = f" and {len(differences) - 10} more" if len(differences) > 10 else ""
        raise InputError(
            f"{path} does not fit the detector: the file is {_architecture(found)}, the detector "
            f"{_architecture(wanted)}; {len(differences)} of the keys differ: {', '.join(differences[:10])}{more}"
        )
    model.load_state_dict(found, strict=False)  # strict but for those: the keys are compared above


def _check_file(path: Path) -> None:
    """Refuse what the first bytes show to be no checkpoint. Raises InputError."""
    try:
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


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of odd pickles before it refuses them; one sentence will do
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes its readers raise anything, KeyError included
        if "TorchScript" in str(error):
            raise InputError(f"{path}: a TorchScript archive, not a checkpoint; {_RESAVE}") from error
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


def _without_ddp(key: str) -> str:
    while key.startswith("module."):
        key = key[len("module.") :]
    return key


def _is_position_ids(key: str) -> bool:
    return key == POSITION_IDS or key.endswith("." + POSITION_IDS)


def _shown(key: str, weights: Mapping[str, Tensor]) -> str:
    name = shortened(key if key.isprintable() else repr(key), 120)
    return f"{name} {tuple(weights[key].shape)}"


def _architecture(weights: Mapping[str, Tensor]) -> str:
    """A short description of the model: "a ViT of 24 blocks, width 1024" where the keys show it."""
    numbered = [re.search(r"\.(?:layers|resblocks|blocks)\.(\d+)\.", key) for key in weights]
    blocks = {match[1] for match in numbered if match}
    width = [
        tensor.shape[-1]
        for key, tensor in weights.items()
        if key.endswith(("class_embedding", "cls_token")) and tensor.ndim
    ]
    if blocks and width:
        return f"a ViT of {len(blocks)} blocks, width {width[0]}"
    first = next(iter(weights), None)
    return f"{len(weights)} tensors" + (f" from {_shown(first, weights)} on" if first is not None else "")
