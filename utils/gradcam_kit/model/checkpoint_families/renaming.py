"""State dict → state dict under other names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from ...base.errors import InputError

Weights = Mapping[str, Tensor]

# What DDP, torch.compile, FSDP, activation checkpointing and weight averaging put into the names of weights.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def renamed(weights: Weights, rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Every tensor under `rename(key)`. Raises InputError where two of them would get one name."""
    found: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        name = rename(key)
        if name in found:
            raise InputError(f"two of its keys mean {name!r}, the second is {key!r}; save one model only")
        found[name] = tensor
    return found


def with_prefixes(weights: Weights, *pairs: tuple[str, str]) -> dict[str, Tensor]:
    """`renamed`, from old to new prefixes: pairs (old, new) in this order, since one may uncover the next."""

    def rename(key: str) -> str:
        for old, new in pairs:
            key = new + key[len(old) :] if key.startswith(old) else key
        return key

    return renamed(weights, rename)


def without_wrappers(weights: Weights) -> dict[str, Tensor]:
    """`renamed`, without WRAPPERS in the keys, wherever they stand."""
    return renamed(weights, lambda key: ".".join(part for part in key.split(".") if part not in WRAPPERS) or key)


def unwrapped_step_by_step(weights: Weights) -> Iterator[dict[str, Tensor]]:
    """The weights as they are, then with one wrapper less at the start of all keys, and so on: any may be meant."""
    found = dict(weights)
    yield found
    while found and all(key.partition(".")[0] in WRAPPERS and "." in key for key in found):
        found = {key.partition(".")[2]: tensor for key, tensor in found.items()}
        yield found
