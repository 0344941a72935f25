"""Weights on disk → a detector. A file that does not fit is refused."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import InputError
from ..base.files import read_text
from ..base.text import one_line, shortened
from .checkpoint_families import family_of
from .checkpoint_families.renaming import Weights, unwrapped_step_by_step, without_wrappers
from .weights_file import WeightsFile, read_file

# Files written with transformers before 4.31 carry this buffer of 0, 1, 2, ..., newer ones do not.
POSITION_IDS = "embeddings.position_ids"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU, under the names that the detectors use: `translated` of `read_file`."""
    return translated(read_file(path))


def translated(file: WeightsFile) -> dict[str, Tensor]:
    """The weights of a file by the detectors' names, LoRA merged, without `module.` and the like. Raises InputError."""
    try:
        weights = without_wrappers(_without_counter(file.weights))
        if any(".lora_" in key for key in weights):
            weights = merged_lora(weights, file.path.parent)
        family = family_of(weights)
        try:
            return family.translate(weights)
        except (LookupError, RuntimeError) as error:  # a tensor is missing, or has another shape
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(f"not a whole checkpoint of {family.name} ({reason})") from error
    except InputError as error:
        raise InputError(f"{file.path}: {error}") from error


def fill(model: nn.Module, file: WeightsFile) -> None:
    """Fill all of `model` from the file: under its own names where these are the model's, else translated.

    `embeddings.position_ids` is neither required nor refused, nor are keys whose last part is in the model's
    `unread_weights`. Raises InputError, and leaves the model as it was, for missing, unexpected and mis-shaped keys,
    and for weights of another kind of number, NaN or infinite.
    """
    wanted = _decisive(model.state_dict(), model)
    candidates = (_decisive(names, model) for names in unwrapped_step_by_step(_without_counter(file.weights)))
    found = next((weights for weights in candidates if set(weights) == set(wanted)), None)
    if found is None:
        found = _decisive(translated(file), model)
    differences = [
        *(f"missing {_shown(key, wanted)}" for key in wanted if key not in found),
        *(f"unexpected {_shown(key, found)}" for key in found if key not in wanted),
        *(
            f"{_shown(key, found)} instead of {tuple(tensor.shape)}"
            for key, tensor in wanted.items()
            if key in found and found[key].shape != tensor.shape
        ),
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
        if problem := _problem(key, tensor, wanted[key].dtype):
            raise InputError(f"{file.path}: {problem}")
    model.load_state_dict(found, strict=False)  # the keys are compared above


def sha256_of_state(model: nn.Module) -> str:
    """SHA-256 of the names, types and numbers of all weights, for a model whose weights are in no single file."""
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode("utf-8", "surrogatepass"))
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _without_counter(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # n_averaged: how many models torch's `AveragedModel` has averaged (`swa.pth`)
    return {key: value for key, value in weights.items() if key != "n_averaged" or value.ndim}


def _decisive(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Without what is neither demanded nor refused."""
    unread = getattr(model, "unread_weights", ())
    return {
        key: value
        for key, value in weights.items()
        if not f".{key}".endswith(f".{POSITION_IDS}") and key.rpartition(".")[2] not in unread
    }


def _problem(key: str, tensor: Tensor, wanted: torch.dtype) -> str:
    """What is wrong with numbers that `wanted` cannot hold as they are, 8-bit ones, NaN and infinity; else ""."""
    if tensor.is_floating_point() != wanted.is_floating_point or tensor.is_complex() or tensor.element_size() < 2:
        if tensor.dtype == wanted:
            return ""
        found, expected = (str(dtype).replace("torch.", "") for dtype in (tensor.dtype, wanted))
        return (
            f"the weight {key} is {found}, the detector's is {expected}: not converted, since that would change it;"
            " save the weights as float32, float16 or bfloat16"
        )
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum(dtype=torch.float32))):
        return ""
    bad = int((~torch.isfinite(tensor)).sum())
    if not bad:  # only the sum overflowed
        return ""
    return (
        f"the weight {key} holds NaN or infinity ({bad} of {tensor.numel()} values): the training that wrote the file"
        " has failed, or the file is damaged; take an earlier checkpoint"
    )


def _shown(key: str, weights: Mapping[str, Tensor]) -> str:
    name = shortened(key if key.isprintable() else repr(key), 120)
    return f"{name} {tuple(weights[key].shape)}"


def _architecture(weights: Mapping[str, Tensor]) -> str:
    """A short description of the model: "a ViT of 24 blocks, width 1024" where the keys show it."""
    blocks = {found[1] for key in weights if (found := re.search(r"\.(?:layers|resblocks|blocks)\.(\d+)\.", key))}
    tokens = (tensor for key, tensor in weights.items() if key.endswith(("class_embedding", "cls_token")))
    width = [tensor.shape[-1] for tensor in tokens if tensor.ndim]
    if blocks and width:
        return f"a ViT of {len(blocks)} blocks, width {width[0]}"
    first = next(iter(weights), None)
    return f"{len(weights)} tensors" + (f" from {_shown(first, weights)} on" if first is not None else "")


# LoRA adapters, as PEFT saves them (github.com/huggingface/peft).

CONFIG = "adapter_config.json"
MERGE = "or merge them where they were trained: torch.save(model.merge_and_unload().state_dict(), 'weights.pth')"

_FACTOR = re.compile(r"^(.*)\.lora_([AB])(?:\.([^.]+))?\.weight$")


def merged_lora(weights: Weights, folder: Path) -> dict[str, Tensor]:
    """Weights with their LoRA adapters merged, under the names that the model had before PEFT wrapped it.

    W' = W + α/r · B A, with α/√r for rank-stabilised LoRA (Hu et al. 2022, Kalajdzievski 2023). The rank r is that of
    A; α is in no weights file, but in the `adapter_config.json` that PEFT writes next to it.
    Raises InputError where `folder` lacks it, where the adapted weights are not there, and for other adapters.
    """
    factors: dict[str, dict[str, Tensor]] = {}
    plain: dict[str, Tensor] = {}
    adapters = set()
    for key, tensor in weights.items():
        name = key.removeprefix("base_model.model.")
        if found := _FACTOR.match(name):
            factors.setdefault(found[1], {})[found[2]] = tensor
            adapters.add(str(found[3]))
        elif ".lora_" in name:
            raise InputError(f"PEFT (LoRA) weights of a kind that is not merged here ({key}); {MERGE}")
        elif ".original_module." not in name:  # what modules_to_save replaces
            plain[re.sub(r"\.modules_to_save\.[^.]+\.", ".", name).replace(".base_layer.", ".")] = tensor
    if len(adapters) > 1:
        raise InputError(f"{len(adapters)} LoRA adapters ({', '.join(sorted(adapters))}); {MERGE}")
    lacking = next((stem for stem in factors if f"{stem}.weight" not in plain), None)
    if lacking is not None:
        raise InputError(
            f"a PEFT (LoRA) adapter alone: {lacking}.weight, which it adapts, is not in the file; save the adapted"
            f" model whole, {MERGE}"
        )
    config = _adapter_config(folder / CONFIG)
    for stem, pair in factors.items():
        if set(pair) != {"A", "B"}:
            raise InputError(f"PEFT (LoRA) weights of {stem} lack one of their two factors; {MERGE}")
        weight, a, b = plain[f"{stem}.weight"], pair["A"].float(), pair["B"].float()
        rank = len(a) if a.ndim == b.ndim == 2 else 0
        if not rank or weight.shape != (len(b), a.shape[1]) or b.shape[1] != rank:
            raise InputError(f"PEFT (LoRA) weights of {stem} do not fit it; {MERGE}")
        scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        plain[f"{stem}.weight"] = (weight.float() + scale * (b @ a)).to(weight.dtype)
    return plain


def _adapter_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_text(path))
    except FileNotFoundError:
        raise InputError(
            f"PEFT (LoRA) weights, whose lora_alpha is not in the file: put PEFT's {CONFIG} beside it, {MERGE}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({one_line(error)}); {MERGE}") from error
    alpha = config.get("lora_alpha") if isinstance(config, dict) else None
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) < 2**63:  # nor NaN
        raise InputError(f"{path}: lora_alpha is {alpha!r}; allowed: a number")
    for key in ("use_dora", "fan_in_fan_out", "alpha_pattern"):
        if config.get(key):
            raise InputError(f"{path}: {key} is {config[key]!r}, which is not merged here; {MERGE}")
    return dict(config)
