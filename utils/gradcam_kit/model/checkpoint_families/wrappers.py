"""What wrappers put into the names of weights: DDP, torch.compile, FSDP, activation checkpointing, weight averaging."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

SEGMENTS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def without_wrappers(key: str) -> str:
    """The key without the segments that wrappers have put into it, wherever they stand."""
    return ".".join(part for part in key.split(".") if part not in SEGMENTS) or key


def unwrapped_step_by_step(weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The weights as they are, then with one such segment less at the start of all keys, and so on.

    What is left at any step may be a model's own names, `module` among them.
    """
    found = dict(weights)
    yield found
    while found and all(key.partition(".")[0] in SEGMENTS and "." in key for key in found):
        found = {key.partition(".")[2]: tensor for key, tensor in found.items()}
        yield found


def without_counters(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without `n_averaged`, the number of models that torch's `AveragedModel` has averaged (`swa.pth`)."""
    return {key: value for key, value in weights.items() if key != "n_averaged" or value.ndim}
