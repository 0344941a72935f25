"""Renaming of the keys of a state dict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from ...base.errors import InputError

Weights = Mapping[str, Tensor]

# Parts of names that DDP, torch.compile, FSDP, activation checkpointing and weight averaging add.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def renamed(weights: Weights, rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Store every tensor under `rename(key)`. Raises InputError if two would get the same name."""
    found: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        name = rename(key)
        if name in found:
            raise InputError(f"two of its keys map to {name!r}, one of them {key!r}; save one model only")
        found[name] = tensor
    return found


def with_prefixes(weights: Weights, *pairs: tuple[str, str]) -> dict[str, Tensor]:
    """Replace prefixes: pairs (old, new), applied in this order. Raises InputError if two tensors get the same name."""

    def rename(key: str) -> str:
        for old, new in pairs:
            key = new + key[len(old) :] if key.startswith(old) else key
        return key

    return renamed(weights, rename)


def without_wrappers(weights: Weights) -> dict[str, Tensor]:
    """Remove WRAPPERS anywhere in the keys. Raises InputError if two tensors get the same name."""
    return renamed(weights, lambda key: ".".join(part for part in key.split(".") if part not in WRAPPERS) or key)


def unwrapped_step_by_step(weights: Weights) -> Iterator[dict[str, Tensor]]:
    """Yield the weights unchanged, then without the first wrapper of all keys, then without the second, and so on."""
    found = dict(weights)
    yield found
    while found and all(key.partition(".")[0] in WRAPPERS and "." in key for key in found):
        found = {key.partition(".")[2]: tensor for key, tensor in found.items()}
        yield found


# The first parts of names that some family recognises.
_KNOWN = {"model", "visual", "vision_model", "backbone", "head", "base_model", "feature_extractor", "fc"}


def unprefixed(weights: Weights) -> dict[str, Tensor]:
    """Remove a common prefix of all keys (`net.`), if a name that some family recognises follows it."""
    plain = found = dict(weights)
    while found and all("." in key for key in found) and not _KNOWN & {key.partition(".")[0] for key in found}:
        if len({key.partition(".")[0] for key in found}) > 1:
            return plain
        found = {key.partition(".")[2]: tensor for key, tensor in found.items()}
    return found if _KNOWN & {key.partition(".")[0] for key in found} else plain


def fitting_parts(weights: Weights, wanted: Weights) -> list[tuple[str, dict[str, Tensor]]]:
    """Find every way in which tensors of `weights` fit `wanted`, by name and shape: (prefix, renamed tensors).

    A way is one common prefix, which may leave other tensors out. Or it is one prefix per child of the model
    (`backbone.`, `head.`), if it is unique for each child and no tensor is left over.
    """
    found = [(prefix, _under(weights, prefix, wanted)) for prefix in _prefixes(weights, wanted)]
    if found or not wanted:
        return found
    parts: dict[str, Tensor] = {}
    used: list[str] = []
    for child in dict.fromkeys(key.partition(".")[0] for key in wanted):
        of_child = {key.partition(".")[2]: tensor for key, tensor in wanted.items() if key.partition(".")[0] == child}
        prefixes = _prefixes(weights, of_child) if "" not in of_child else []
        if len(prefixes) != 1:
            return []
        used.append(prefixes[0])
        inner = _under(weights, prefixes[0], of_child)
        parts.update({f"{child}.{key}": tensor for key, tensor in inner.items()})
    return [(", ".join(used), parts)] if len(parts) == len(weights) else []


def _prefixes(weights: Weights, wanted: Weights) -> list[str]:
    """Return the prefixes under which exactly the tensors of `wanted` are, with the same shapes."""
    longest = max(wanted, key=len, default="")
    ends = [key[: -len(longest)] for key in weights if key == longest or key.endswith(f".{longest}")]
    return [
        prefix
        for prefix in ends
        if sum(key.startswith(prefix) for key in weights) == len(wanted)
        and all(f"{prefix}{key}" in weights for key in wanted)
        and all(weights[f"{prefix}{key}"].shape == tensor.shape for key, tensor in wanted.items())
    ]


def _under(weights: Weights, prefix: str, wanted: Weights) -> dict[str, Tensor]:
    return {key: weights[f"{prefix}{key}"] for key in wanted}
