"""State dict → state dict under other names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ...base.errors import InputError


class KeysCollide(InputError):
    """Two keys of a state dict mean the same weight."""


def renamed(weights: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Every tensor under `rename(key)`. Raises KeysCollide where two of them would bear one name."""
    found: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        name = rename(key)
        if name in found:
            raise KeysCollide(f"two of its keys mean {name!r}, the second is {key!r}; save one model only")
        found[name] = tensor
    return found
