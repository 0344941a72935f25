"""Exchange patches inside a forward pass: from one layer on, the model runs with other tokens.

Filling a patch of the image with grey, blur or another face adds evidence of its own. Replacing a token by its nearest
real one does not: doing so for random patches moves the margin by a few percent (benchmarks/WHICH_MAP.md).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...base.threads import hooked, in_this_thread
from ..frozen import frozen_for_explaining, replaced_forward
from ..hooks import Tap
from ..layers import LayerError, Site
from ..tokens import Tokens, on_grid
from ..towers import Grid
from ..towers.channel_axis import LAST, ChannelAxes
from ..towers.places import PassEnds, waits_for_end
from ..towers.tower import Tower

Run = Callable[[], Any]  # a forward pass


@dataclass(frozen=True, slots=True)
class Seen:
    """The activations of B images at a site: the tower's own tensor, and its patches (B, C, h, w).

    `before`: the number of tokens before the patches.
    """

    tap: Tap
    patches: Tensor
    before: int

    @classmethod
    def of(cls, tap: Tap, ordered: Tensor, grid: Grid | None) -> Seen:
        """Build from a site's activations, also `ordered` by `Tap.in_order`. Raises LayerError if it has no patches."""
        layer = tap.site.name
        patches = on_grid({layer: Tokens(ordered, ordered)}, grid)[layer].A
        behind = patches.shape[2] * patches.shape[3] + (grid.suffix if grid is not None else 0)
        return cls(tap, patches, ordered.shape[1] - behind if ordered.ndim == 3 else 0)


def seen_at(tower: Tower, sites: Sequence[Site], grid: Grid | None, run: Run, images: int) -> list[Seen]:
    """Capture the activations at each site during `run`, a forward pass of `images` images, without a graph.

    The pass ends once all sites have run, unless something waits for its end. Raises LayerError for a site that does
    not run or has no patches.
    """
    taps: dict[int, Tap] = {}
    axes = ChannelAxes() if any(site.may_be_4d for site in sites) else None

    def keep(position: int, value: Any, read: Any = None) -> None:
        first = value[0] if isinstance(value, tuple) else value
        axis = axes.axis_of(first, read) if axes is not None and first.ndim == 4 else None
        taps[position] = Tap(sites[position], first.detach(), axis)
        if ends and len(taps) == len(sites):
            raise PassEnds

    ends = not tower.modules_that(waits_for_end)
    with ExitStack() as stack:
        for position, site in enumerate(sites):
            stack.callback(_hook(site, lambda value, read=None, p=position: keep(p, value, read)).remove)
        stack.enter_context(frozen_for_explaining(tower.model, tower.structure))
        stack.enter_context(torch.no_grad())
        stack.enter_context(axes or nullcontext())
        with suppress(PassEnds):
            run()
    found = []
    for position, site in enumerate(sites):
        if position not in taps:
            raise LayerError(f"layer {site.name!r} does not run in the detector's forward pass: name another")
        tap = taps[position]
        found.append(Seen.of(tap, tap.in_order(tap.tokens, images), grid))
    return found


@dataclass(frozen=True, slots=True)
class Exchange:
    """B images whose patches at the `seen` site can be exchanged for `real` ones (B, C, h, w).

    `skipped`: the earlier blocks, which need not run again, each with its outputs next to the tokens.
    """

    seen: Seen
    real: Tensor
    skipped: Sequence[Skipped] = ()

    def tokens(self, images: Tensor, patches: Tensor) -> Tensor:
        """Return the tower's tokens of `images` (n,), with the real ones at `patches` (n, h, w) bool."""
        tap = self.seen.tap
        axis = 1 if tap.tokens.ndim == 3 and self.seen.tap.site.batch_axis == 1 else 0
        tokens = tap.tokens.index_select(axis, images).clone()
        real = self.real[images].to(tokens.dtype)
        if tokens.ndim == 4:
            on_image = tokens.permute(0, 3, 1, 2) if tap.channel_axis == LAST else tokens
            on_image.copy_(torch.where(patches.unsqueeze(1), real, on_image))
            return tokens
        by_image = tokens.transpose(0, 1) if axis == 1 else tokens
        count = real.shape[2] * real.shape[3]
        part = by_image[:, self.seen.before : self.seen.before + count]
        part.copy_(torch.where(patches.flatten(1).unsqueeze(2), real.flatten(2).transpose(1, 2), part))
        return tokens

    @contextmanager
    def made(self, images: Tensor, patches: Tensor) -> Iterator[None]:
        """Within this context, a forward pass of `images` (n,) in this thread uses the real tokens at `patches`."""
        tokens = self.tokens(images, patches)

        def exchange(value: Any, read: Any = None) -> Any:
            return (tokens, *value[1:]) if isinstance(value, tuple) else tokens

        with ExitStack() as stack:
            stack.callback(_hook(self.seen.tap.site, exchange).remove)
            for skipped in self.skipped:
                stack.enter_context(replaced_forward([skipped.module], _passed_over(skipped.beside)))
            yield


class Skipped(NamedTuple):
    """A block to skip: it returns its tokens unchanged, followed by `beside` in a tuple; None: the tokens alone."""

    module: nn.Module
    beside: tuple[Any, ...] | None


def skippable(tower: Tower, block: str, run: Run) -> list[Skipped]:
    """Watch `run`, a forward pass; return the blocks before `block`, or none if any returns more than its tokens."""
    returned: dict[str, Any] = {}
    before = tower.blocks[: tower.blocks.index(block)]

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        returned[name] = output

    watched = hooked([(name, tower.named[name]) for name in before], note)
    with watched, frozen_for_explaining(tower.model, tower.structure), torch.no_grad():
        run()
    found = []
    for name in before:
        output = returned.get(name)
        beside = output[1:] if isinstance(output, tuple) else None
        if output is None or any(value is not None for value in beside or ()):
            return []
        found.append(Skipped(tower.named[name], beside))
    return found


def _passed_over(beside: tuple[Any, ...] | None) -> Callable[..., Any]:
    """Return a forward for `replaced_forward` that returns its input in this thread."""
    thread = threading.get_ident()

    def run(module: nn.Module, usual: Callable[..., Any], tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return usual(tokens, *args, **kwargs)
        return tokens if beside is None else (tokens, *beside)

    return run


def _hook(site: Site, act: Callable[..., Any]) -> Any:
    """Hook `act` to the input of the site's module, or to its output and input."""
    if site.reads_input:
        return site.module.register_forward_pre_hook(in_this_thread(lambda module, inputs: act(inputs)))
    returned = in_this_thread(lambda module, inputs, output: act(output, inputs[0] if inputs else None))
    return site.module.register_forward_hook(returned)
