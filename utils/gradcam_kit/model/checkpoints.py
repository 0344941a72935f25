"""Weights on disk → a detector. A file that does not fit is refused."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..base.errors import InputError
from ..base.text import shortened
from .checkpoint_families import family_of
from .checkpoint_families.peft_lora import is_lora, merged_lora
from .checkpoint_families.renaming import KeysCollide, renamed
from .checkpoint_families.wrappers import unwrapped_step_by_step, without_counters, without_wrappers
from .weights_file import WeightsFile, read_file

# Files written with transformers before 4.31 carry this buffer of 0, 1, 2, ..., newer ones do not.
POSITION_IDS = "embeddings.position_ids"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU, under the names that the detectors use: `translated` of `read_file`."""
    return translated(read_file(path))


def translated(file: WeightsFile) -> dict[str, Tensor]:
    """The weights of a file under the names that the detectors use.

    Segments such as DDP's `module.` are taken off the keys and LoRA is merged, then the file's family translates them
    (`model.checkpoint_families`). Raises InputError where two keys mean one weight, or something is lacking.
    """
    try:
        weights = renamed(without_counters(file.weights), without_wrappers)
        if is_lora(weights):
            weights = merged_lora(weights, file.path.parent)
        return family_of(weights).translate(weights)
    except KeysCollide as error:
        raise InputError(f"{file.path}: {error}") from error
    except InputError as error:
        raise InputError(f"{file.path}: {error}") from error


def load_weights(model: nn.Module, path: str | Path) -> str:
    """Fill all of `model` from a checkpoint; on any difference the model stays as it was. Returns the file's SHA-256.

    Raises InputError as `read_file` and `fill` do.
    """
    file = read_file(path)
    fill(model, file)
    return file.sha256


def fill(model: nn.Module, file: WeightsFile) -> None:
    """Fill all of `model` from the file: under its own names where these are the model's, else translated.

    `embeddings.position_ids` is neither demanded nor refused, nor are the last parts of a key that the model's class
    lists as `unread_weights` because its forward pass does not read them. Raises InputError for missing, unexpected and
    mis-shaped keys, naming the first ten, and for weights of another kind of number, NaN or infinite.
    """
    wanted = _decisive(model.state_dict(), model)
    for names in unwrapped_step_by_step(without_counters(file.weights)):
        found = _decisive(names, model)
        if set(found) == set(wanted):
            break
    else:
        found = _decisive(translated(file), model)
    differences = [f"missing {_shown(key, wanted)}" for key in wanted if key not in found]
    differences += [f"unexpected {_shown(key, found)}" for key in found if key not in wanted]
    differences += [
        f"{_shown(key, found)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    if differences:
        kinds = _architecture(found), _architecture(wanted)
        which = f"the file is {kinds[0]}, the detector {kinds[1]}; " if kinds[0] != kinds[1] else ""
        more = f" and {len(differences) - 10} more" if len(differences) > 10 else ""
        raise InputError(
            f"{file.path} does not fit the detector: {which}{len(differences)} of the keys differ:"
            f" {', '.join(differences[:10])}{more}"
        )
    for key, tensor in found.items():
        _check_numbers(key, tensor, wanted[key], file.path)
    model.load_state_dict(found, strict=False)  # strict but for those: the keys are compared above


def sha256_of_state(model: nn.Module) -> str:
    """SHA-256 of the names, types and numbers of all weights, for a model whose weights are in no one file."""
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode("utf-8", "surrogatepass"))
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _decisive(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Without what is neither demanded nor refused."""
    unread = getattr(model, "unread_weights", ())
    return {
        key: value
        for key, value in weights.items()
        if not _is_position_ids(key) and key.rpartition(".")[2] not in unread
    }


def _check_numbers(key: str, tensor: Tensor, wanted: Tensor, path: Path) -> None:
    """Raises InputError for numbers that `wanted` cannot hold as they are, and for NaN and infinity."""
    kind = str(tensor.dtype).replace("torch.", "")
    if tensor.is_floating_point() != wanted.is_floating_point() or tensor.is_complex() or tensor.element_size() < 2:
        if tensor.dtype == wanted.dtype:
            return
        expected = str(wanted.dtype).replace("torch.", "")
        raise InputError(
            f"{path}: the weight {key} is {kind}, the detector's is {expected}: not converted, since that would change"
            " it; save the weights in floating point"
        )
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum(dtype=torch.float32))):
        return
    bad = int((~torch.isfinite(tensor)).sum())  # none where only the sum overflowed
    if bad:
        raise InputError(
            f"{path}: the weight {key} holds NaN or infinity ({bad} of {tensor.numel()} values): the training that"
            " wrote the file has failed, or the file is damaged; take an earlier checkpoint"
        )


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
