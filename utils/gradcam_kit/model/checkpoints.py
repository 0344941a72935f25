"""Loading of weights into a detector. A file that does not fit is refused."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..base.errors import InputError
from ..base.text import one_line, printable, shortened
from .checkpoint_families import family_of
from .checkpoint_families.renaming import fitting_parts, unprefixed, unwrapped_step_by_step, without_wrappers
from .lora import merge_lora
from .weights_file import WeightsFile, is_usual, read_file

# transformers before 4.31 saved this buffer of 0, 1, 2, ...; newer versions do not.
POSITION_IDS = "embeddings.position_ids"
# Weights of classes and centres in a loss, which no prediction reads.
LOSS = re.compile(r"(^|\.)(loss|losses|loss_func|loss_fn|criterion)\.")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a checkpoint's tensors to the CPU, under the names of our detectors. Raises InputError."""
    return translate(read_file(path))


def translate(file: WeightsFile) -> dict[str, Tensor]:
    """Rename a file's weights to our detectors' names, with LoRA merged and prefixes removed. Raises InputError."""
    try:
        weights = without_wrappers(_without_counter(file.weights))
        if any(".lora_" in key for key in weights):
            weights = merge_lora(weights, file.path.parent)
        weights = unprefixed(weights)
        family = family_of(weights)
        try:
            return family.translate(weights)
        except (LookupError, RuntimeError) as error:  # a tensor is missing or has the wrong shape
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(f"not a complete checkpoint of {family.name} ({reason})") from error
    except InputError as error:
        raise InputError(f"{file.path}: {error}") from error


def fill(model: nn.Module, file: WeightsFile) -> None:
    """Load the file into all of `model`.

    The names in the file are tried first, then our detectors' names, then any other prefix under which the tensors fit
    in exactly one way, with a note on stderr. Ignored are `embeddings.position_ids`, weights of a loss, and keys whose
    last part is in the model's `unread_weights`. Raises InputError, and leaves the model unchanged, for missing,
    unexpected and mis-shaped keys, for weights of another kind of number, and for NaN or infinity.
    """
    wanted = _decisive(model.state_dict(), model)
    candidates = (_decisive(names, model) for names in unwrapped_step_by_step(_without_counter(file.weights)))
    found = next((weights for weights in candidates if set(weights) == set(wanted)), None)
    if found is None:
        found = _otherwise(file, model, wanted)
    differences = [
        *(f"missing {_describe(key, wanted)}" for key in wanted if key not in found),
        *(f"unexpected {_describe(key, found)}" for key in found if key not in wanted),
        *(
            f"{_describe(key, found)} instead of {tuple(tensor.shape)}"
            for key, tensor in wanted.items()
            if key in found and found[key].shape != tensor.shape
        ),
    ]
    if differences:
        kinds = _architecture(found), _architecture(wanted)
        which = f"the file holds {kinds[0]}, the detector holds {kinds[1]}; " if kinds[0] != kinds[1] else ""
        more = f" and {len(differences) - 10} more" if len(differences) > 10 else ""
        raise InputError(
            f"{file.path} does not fit the detector: {which}{len(differences)} of the keys differ:"
            f" {', '.join(differences[:10])}{more}"
        )
    for key, tensor in found.items():
        if problem := _problem(key, tensor, wanted[key].dtype):
            raise InputError(f"{file.path}: {problem}")
    _note_other_models(file, model, wanted)
    model.load_state_dict(found, strict=False)  # the keys are compared above


def _otherwise(file: WeightsFile, model: nn.Module, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the file's tensors for `model`. If they do not fit, return them as the checkpoint families rename them.

    Raises InputError if they fit in several ways.
    """
    problem: InputError | None = None
    translated: dict[str, Tensor] = {}
    try:
        translated = _decisive(translate(file), model)
        if _fits(translated, wanted):
            return translated
    except InputError as error:
        problem = error
    ways = {
        name or place: weights
        for name, content in ((file.name, file.weights), *file.others.items())
        for place, weights in fitting_parts(_decisive(without_wrappers(_without_counter(content)), model), wanted)
    }
    if len(ways) > 1:
        names = " and ".join(repr(shortened(name)) for name in ways)
        raise InputError(f"{file.path}: the detector's weights are in it more than once, as {names}: save one of them")
    for name, weights in ways.items():
        note = f"note: {file.path}: only the tensors named {shortened(name)!r} fit the detector, so these are loaded"
        print(printable(note), file=sys.stderr)
        return weights
    if problem is not None:
        raise problem
    return translated


def _note_other_models(file: WeightsFile, model: nn.Module, wanted: Mapping[str, Tensor]) -> None:
    """Note other models in the file that fit, such as averaged weights. Raises InputError if the choice is unclear."""
    also = [
        name
        for name, content in file.others.items()
        if fitting_parts(_decisive(without_wrappers(_without_counter(content)), model), wanted)
    ]
    if not also:
        return
    names = " and ".join(repr(shortened(name)) for name in also)
    if not is_usual(file.name):
        raise InputError(f"{file.path}: holds several models that fit, {file.name!r} and {names}: save one of them")
    print(printable(f"note: {file.path}: the model {file.name!r} is loaded, not {names}"), file=sys.stderr)


def _fits(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return set(weights) == set(wanted) and all(weights[key].shape == wanted[key].shape for key in wanted)


def sha256_of_state(model: nn.Module) -> str:
    """Hash the names, types and values of all weights (SHA-256), for a model without a single weights file."""
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode("utf-8", "surrogatepass"))
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _without_counter(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # n_averaged: the number of models that torch's `AveragedModel` has averaged (`swa.pth`)
    return {key: value for key, value in weights.items() if key != "n_averaged" or value.ndim}


def _decisive(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the weights without the ignored ones."""
    unread = getattr(model, "unread_weights", ())
    return {
        key: value
        for key, value in weights.items()
        if not f".{key}".endswith(f".{POSITION_IDS}") and not LOSS.search(key) and key.rpartition(".")[2] not in unread
    }


def _problem(key: str, tensor: Tensor, wanted: torch.dtype) -> str:
    """Describe a tensor that `wanted` cannot hold unchanged, or that has 8-bit values, NaN or infinity; else ""."""
    if tensor.is_floating_point() != wanted.is_floating_point or tensor.is_complex() or tensor.element_size() < 2:
        if tensor.dtype == wanted:
            return ""
        found, expected = (str(dtype).replace("torch.", "") for dtype in (tensor.dtype, wanted))
        return (
            f"the weight {key} is {found}, the detector's is {expected}: a conversion would change it;"
            " save the weights as float32, float16 or bfloat16"
        )
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum(dtype=torch.float32))):
        return ""
    bad = int((~torch.isfinite(tensor)).sum())
    if not bad:  # only the sum overflowed
        return ""
    return (
        f"the weight {key} holds NaN or infinity ({bad} of {tensor.numel()} values): the training diverged,"
        " or the file is damaged; take an earlier checkpoint"
    )


def _describe(key: str, weights: Mapping[str, Tensor]) -> str:
    name = shortened(key if key.isprintable() else repr(key), 120)
    return f"{name} {tuple(weights[key].shape)}"


def _architecture(weights: Mapping[str, Tensor]) -> str:
    """Describe the model in a few words: "a ViT of 24 blocks, width 1024" if the keys tell."""
    blocks = {found[1] for key in weights if (found := re.search(r"\.(?:layers|resblocks|blocks)\.(\d+)\.", key))}
    tokens = (tensor for key, tensor in weights.items() if key.endswith(("class_embedding", "cls_token")))
    width = [tensor.shape[-1] for tensor in tokens if tensor.ndim]
    if blocks and width:
        return f"a ViT of {len(blocks)} blocks, width {width[0]}"
    first = next(iter(weights), None)
    return f"{len(weights)} tensors" + (f", the first is {_describe(first, weights)}" if first is not None else "")
