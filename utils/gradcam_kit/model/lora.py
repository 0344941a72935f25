"""Merging of LoRA adapters from PEFT (github.com/huggingface/peft) into the weights that they adapt."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base.errors import InputError
from ..base.files import read_text
from ..base.text import one_line
from .checkpoint_families.renaming import Weights

CONFIG = "adapter_config.json"
MERGE = "or merge them where they were trained: torch.save(model.merge_and_unload().state_dict(), 'weights.pth')"

_FACTOR = re.compile(r"^(.*)\.lora_([AB])(?:\.([^.]+))?\.weight$")


def merge_lora(weights: Weights, folder: Path) -> dict[str, Tensor]:
    """Merge LoRA adapters into their weights, under the model's names before PEFT wrapped it.

    W' = W + α/r · B A, or α/√r for rank-stabilised LoRA (Hu et al. 2022, Kalajdzievski 2023), with W (m, n), A (r, n)
    and B (m, r). α is not in a weights file, but in PEFT's `adapter_config.json` in `folder`.
    Raises InputError if that file or an adapted weight is missing, and for other kinds of adapters.
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
            raise InputError(f"PEFT (LoRA) weights of an unsupported kind ({key}); {MERGE}")
        elif ".original_module." not in name:  # modules_to_save replaces these
            plain[re.sub(r"\.modules_to_save\.[^.]+\.", ".", name).replace(".base_layer.", ".")] = tensor
    if len(adapters) > 1:
        raise InputError(f"{len(adapters)} LoRA adapters ({', '.join(sorted(adapters))}); {MERGE}")
    missing = next((stem for stem in factors if f"{stem}.weight" not in plain), None)
    if missing is not None:
        raise InputError(
            f"only a PEFT (LoRA) adapter: {missing}.weight, which it adapts, is not in the file; save the whole"
            f" adapted model, {MERGE}"
        )
    config = _adapter_config(folder / CONFIG)
    for stem, pair in factors.items():
        if set(pair) != {"A", "B"}:
            raise InputError(f"PEFT (LoRA) weights of {stem} lack one of their two factors; {MERGE}")
        weight, a, b = plain[f"{stem}.weight"], pair["A"], pair["B"]
        _check(stem, weight, a, b)
        rank = len(a)
        scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        plain[f"{stem}.weight"] = (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)
    return plain


def _check(stem: str, weight: Tensor, a: Tensor, b: Tensor) -> None:
    """Raise InputError unless W (m, n), A (r, n) and B (m, r) are floating point, and r is at most max(m, n)."""
    for name, tensor in (("weight", weight), ("factor A", a), ("factor B", b)):
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            kind = str(tensor.dtype).replace("torch.", "")
            raise InputError(f"PEFT (LoRA) weights of {stem}: its {name} is {kind}, expected floating point; {MERGE}")
    rank = len(a) if a.ndim == b.ndim == weight.ndim == 2 else 0
    if not 0 < rank <= max(weight.shape) or weight.shape != (len(b), a.shape[1]) or b.shape[1] != rank:
        shapes = f"A {tuple(a.shape)} and B {tuple(b.shape)} for a weight {tuple(weight.shape)}"
        raise InputError(f"PEFT (LoRA) weights of {stem} do not fit it: {shapes}; {MERGE}")


def _adapter_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_text(path))
    except FileNotFoundError:
        raise InputError(
            f"PEFT (LoRA) weights without lora_alpha: put PEFT's {CONFIG} next to the file, {MERGE}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({one_line(error)}); {MERGE}") from error
    alpha = config.get("lora_alpha") if isinstance(config, dict) else None
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) < 2**63:  # nor NaN
        raise InputError(f"{path}: lora_alpha is {alpha!r}; allowed: a number")
    for key in ("use_dora", "fan_in_fan_out", "alpha_pattern"):
        if config.get(key):
            raise InputError(f"{path}: {key} is {config[key]!r}, which is not supported; {MERGE}")
    return dict(config)
