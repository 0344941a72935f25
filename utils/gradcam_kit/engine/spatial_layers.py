"""Watch a forward pass: which modules return maps that the score depends on, and how often each runs.

Only a pass can show this: modules may be listed in any order, never run, or run at several places (a shared ReLU).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..base.errors import InputError
from ..base.threads import hooked
from .heads import ANY_MODEL
from .towers.channel_axis import OFF, ChannelAxes, channels_first

LEAST_CHANNELS = 8  # fewer channels: predicted masks or attention maps, not features


class SpatialLayer(NamedTuple):
    """A module that returned (B, channels, rows, columns)."""

    name: str
    channels: int
    rows: int
    columns: int

    @property
    def shape(self) -> str:
        """Return the shape as text for the terminal."""
        return f"{self.channels} x {self.rows} x {self.columns}"


def last_spatial_layer(tower: nn.Module, run: Callable[[], Any]) -> SpatialLayer:
    """Find the last activation of `tower` on a spatial grid that the score's gradient reaches.

    It needs at least 8 channels, unless no activation of the network has as many. `run` runs the whole model once, with
    gradients enabled, and returns logits for `engine.heads.HeadReader`.

    Raises InputError if no activation on a grid reaches the score.
    """
    reached = reached_outputs(tower, run, (4,))
    on_grid = [
        SpatialLayer(name, *shape[1:])
        for name, shape in ((name, channels_first(output)) for name, output in reached.outputs)
        if shape[0] == reached.batch and shape[2] * shape[3] > 1
    ]
    wide = [layer for layer in on_grid if layer.channels >= LEAST_CHANNELS] or on_grid
    if wide:
        return wide[-1]
    raise InputError("none of its modules returns maps (B, C, h, w) that the score depends on: name a layer")


class Reached(NamedTuple):
    """Module outputs that the score's gradient reaches, in running order, and the batch size."""

    outputs: list[tuple[str, Tensor]]
    batch: int


def reached_outputs(tower: nn.Module, run: Callable[[], Any], axes: Sequence[int]) -> Reached:
    """Return the outputs with `axes` axes, see `last_spatial_layer`. Raises InputError if no gradient can reach any."""
    outputs: list[tuple[str, Tensor]] = []
    followed = ChannelAxes()

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or output.ndim not in axes or not output.is_floating_point():
            return None
        if output.ndim == 4 and followed.axis_of(output, inputs[0] if inputs else None) == OFF:
            return None
        if output.requires_grad or not torch.is_grad_enabled():
            outputs.append((name, output))
            return None
        leaf = output.detach().requires_grad_()  # weights are constant, so the graph starts here
        outputs.append((name, leaf))
        return leaf.clone()

    parts = [(name, module) for name, module in tower.named_modules() if name]
    with hooked(parts, note), torch.enable_grad(), followed:
        result = run()
    logits = result if isinstance(result, Tensor) else ANY_MODEL.read(result)[0]["cls"]
    found = [(name, output) for name, output in outputs if output.requires_grad]
    if outputs and not found:
        raise InputError("its network runs under torch.no_grad(), so no gradient reaches a layer")
    if not found or not logits.requires_grad:
        return Reached([], len(logits))
    gradients = torch.autograd.grad(logits.sum(), [output for _, output in found], allow_unused=True)
    return Reached([one for one, gradient in zip(found, gradients, strict=True) if gradient is not None], len(logits))


# ----------------------------------------------------------------------------------------------------------------- runs


def is_shareable(module: nn.Module) -> bool:
    """True if `module` has no weights (e.g. a ReLU): a network may use it at several, different places."""
    return next(module.parameters(), None) is None and next(module.buffers(), None) is None


def count_runs(modules: Mapping[str, nn.Module], forward: Callable[[], Any]) -> Counter[str]:
    """Count how often each of `modules` runs in a forward pass."""
    runs: Counter[str] = Counter()

    def count(name: str, *given: Any) -> None:
        runs[name] += 1

    with hooked(modules.items(), count), torch.no_grad():
        forward()
    return runs


def last_run(name: str, modules: Mapping[str, nn.Module], runs: Mapping[str, int]) -> int:
    """Return which run of the shareable module `name` to explain: its last, if only such modules run more than once.

    It is 1 if the modules with weights around it also run more than once: then the whole network runs several times,
    and it is unclear which run to explain. `runs`: each module's count from `count_runs`.
    """
    around = name.rpartition(".")[0]
    weighted = [
        other
        for other, module in modules.items()
        if (not around or other.startswith(f"{around}.")) and next(module.parameters(recurse=False), None) is not None
    ]
    return 1 if any(runs[other] > 1 for other in weighted) else max(1, runs[name])
