"""Whether a model still has the weights that its constructor gave it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

WeightVersions = tuple[tuple[int, int], ...]


def weight_versions(parameters: Iterable[nn.Parameter]) -> WeightVersions:
    """Of each parameter, which tensor it is and how often that was written to: loading and training change it.

    Tensors made under `torch.inference_mode` count no writes.
    """
    return tuple((id(each), 0 if each.is_inference() else each._version) for each in parameters)
