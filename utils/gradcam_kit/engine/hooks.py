"""Hooks for a forward pass: token taps, the class token's own path through the last block, CLIP's GELU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import LayerError, Site
from .towers.attention import AttentionModules, BlockAttention, Heads, same_value
from .towers.channel_axis import LAST, OFF, ChannelAxes
from .towers.tower import Tower

ALIKE = {torch.float64: 1e-9, torch.float32: 1e-3}  # largest difference between the two runs of a block; else 0.1
# What is too small for a second run of the block (tokens · channels², as its products go), or for code of ours in an
# activation's derivative (numbers): Python takes longer than what it saves.
PATH_WORTH, GELU_WORTH = 2**20, 2**15
QUICK_GELU = 1.702  # its slope (Hendrycks and Gimpel 2016, section 2)


class Tap(NamedTuple):
    """Tokens at a site, in the tower's own layout, and the channel axis if there are four axes."""

    site: Site
    tokens: Tensor
    channel_axis: int | None

    def in_order(self, tensor: Tensor, images: int) -> Tensor:
        """Return tokens or their gradient as (B, T, C) or (B, C, h, w). Raises LayerError if the axes are unknown."""
        layer, shape = self.site.name, tuple(tensor.shape)
        if tensor.ndim == 4:
            if self.channel_axis == OFF:
                raise LayerError(
                    f"layer {layer!r} gives a tensor of shape {shape}, split into attention heads, not image positions:"
                    " name the block around it, or a layer that returns maps"
                )
            if self.channel_axis is None:
                raise LayerError(
                    f"layer {layer!r} gives a tensor of shape {shape}, and it is unclear which of its axes holds the"
                    " channels: name a convolution, a norm or a linear layer next to it"
                )
            tensor = tensor.permute(0, 3, 1, 2) if self.channel_axis == LAST else tensor
        elif tensor.ndim == 3:
            axis = self.site.batch_axis
            if axis is None:  # the tower does not say, so the sizes must
                fits = [place for place in (0, 1) if tensor.shape[place] == images]
                if len(fits) != 1:
                    raise LayerError(
                        f"layer {layer!r} gives a tensor of shape {shape} for {images} images, which could be"
                        " (B, T, C) or (T, B, C): use another batch size, or write a tower family"
                    )
                (axis,) = fits
            tensor = tensor.transpose(0, 1) if axis else tensor
        if tensor.ndim in (3, 4) and tensor.shape[0] != images:
            raise LayerError(
                f"layer {layer!r} gives a tensor of shape {shape} for {images} images: it works on parts of an image"
                " (windows), or on several images at once; name a whole block"
            )
        return tensor


def in_order(taps: Sequence[Tap], gradients: Sequence[Tensor], images: int) -> list[tuple[Tensor, Tensor]]:
    """Return each tap's tokens and gradient, both detached and in order, see `Tap.in_order`."""
    return [
        (tap.in_order(tap.tokens.detach(), images), tap.in_order(G, images))
        for tap, G in zip(taps, gradients, strict=True)
    ]


@contextmanager
def tapped(sites: Sequence[Site], axes: ChannelAxes | None, path: ClassTokenPath | None) -> Iterator[dict[int, Tap]]:
    """Hook `sites` to fill the yielded dict, during the forward pass, with each site's tokens, by position.

    The graph starts at the first site that runs: its tokens become a leaf, and constant weights record nothing before
    it. The tower continues with a copy, so an in-place ReLU cannot overwrite them. A concurrent forward pass in another
    thread is not affected. `axes` follows the channels of a forward pass inside it. Modules that run while `path` is
    replaying do not count.
    """
    taps: dict[int, Tap] = {}
    runs = [0] * len(sites)
    thread = threading.get_ident()

    def tap(position: int, value: Any, read: Any = None) -> Any:
        if threading.get_ident() != thread or (path is not None and path.replaying):
            return None
        site = sites[position]
        name, run = site.name, site.run
        runs[position] += 1
        if runs[position] < run:
            return None
        if runs[position] > run:
            raise LayerError(f"layer {name!r} runs more than once in one forward pass: name one that runs once")
        if not torch.is_grad_enabled():
            raise LayerError(
                f"layer {name!r} runs under torch.no_grad() in the detector's forward pass, so the score has no"
                " gradient there: name one that runs outside, or take the no_grad out of the detector"
            )
        several = isinstance(value, (tuple, list)) and len(value) > 0  # a list: the pathways of a SlowFast network
        first = value[0] if several else value
        if not isinstance(first, Tensor):
            raise LayerError(f"layer {name!r} passes on {type(first).__name__}, not a tensor of tokens: name another")
        tokens = first if first.requires_grad else first.detach().requires_grad_()
        taps[position] = Tap(site, tokens, axes.axis_of(first, read) if axes is not None and first.ndim == 4 else None)
        passed_on = tokens.clone()
        if not several:
            return passed_on
        return [passed_on, *value[1:]] if isinstance(value, list) else (passed_on, *value[1:])

    def read_input(position: int, module: nn.Module, inputs: Any) -> Any:
        return tap(position, inputs)

    def read_output(position: int, module: nn.Module, inputs: Any, output: Any) -> Any:
        return tap(position, output, inputs[0] if inputs else None)

    with ExitStack() as hooks:
        for position, site in enumerate(sites):
            if site.reads_input:
                handle = site.module.register_forward_pre_hook(partial(read_input, position))
            else:
                handle = site.module.register_forward_hook(partial(read_output, position))
            hooks.callback(handle.remove)
        yield taps


# --------------------------------------------------------------------------------------- the last block, for one token


class NotOneToken(Exception):
    """Raised if the class token of the last block has no path of its own, or the score depends on other tokens too."""


class Joined(NamedTuple):
    """The block's output, with the class token's own run at the front."""

    rest: Tensor  # the other tokens, a leaf
    differs: Tensor  # bool: whether the second run gave another value than the first


class LastBlock(NamedTuple):
    """A tower's last block, with the modules that `ClassTokenPath` hooks."""

    block: nn.Module
    first_norm: nn.Module
    attention: BlockAttention
    output: tuple[nn.Module, bool]  # as `BlockAttention.output`
    projections: tuple[nn.Module, ...]
    tokens_axis: int  # 1 for tokens (B, T, C), 0 for (T, B, C)


class ClassTokenPath:
    """Hooks on the last block of a tower whose first token is the class token.

    If a head reads the class token, it depends on the last block's other tokens only through their keys and values. The
    ordinary forward pass gives the block's output, to the last bit, and records only the first norm, keys and values.
    The block then runs again for the class token, whose attention reads these; the gradient takes this path. The code
    does not assume that the head reads this token only: it checks the gradient at the others.

    `constant`: whether queries and keys are constant for the gradient. `replaying` is True while the block runs for the
    class token only; counts of runs must ignore it. `joined` holds the result after the pass; it is None if the block
    got a mask or is small, and its graph is then the ordinary one.
    """

    def __init__(self, last: LastBlock, constant: bool) -> None:
        self.block, self.first_norm, self.attention = last.block, last.first_norm, last.attention
        self.output, self.projections = last.output, last.projections
        self.constant = constant
        self.replaying = False
        self.joined: Joined | None = None
        self._tokens_axis = last.tokens_axis
        self._hooked = False  # whether the block's parts are
        self._active = False  # between start and end of the ordinary run
        self._given: Any = None  # the arguments of the ordinary run
        self._graph: dict[nn.Module, Tensor] = {}  # what these modules read or returned then, with its graph
        self._cut: dict[nn.Module, Tensor] = {}  # the same as the ordinary run has it, without
        self._mixed: Tensor | None = None  # the attention output for the class token, for the second run

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hook a forward pass inside, in this thread. Enter it after everything that reads or replaces tokens."""
        thread = threading.get_ident()
        with ExitStack() as hooks:

            def enter(*given: Any) -> Any:
                if threading.get_ident() != thread:
                    return None
                entered = self._enter(*given)
                if entered is not None and not self._hooked:  # else the block is not worth its hooks
                    self._hook_parts(hooks, thread)
                return entered

            hooks.callback(self.block.register_forward_pre_hook(enter, with_kwargs=True).remove)
            yield

    def _hook_parts(self, hooks: ExitStack, thread: int) -> None:
        def inside(hook: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *given: hook(*given) if self._active and threading.get_ident() == thread else None

        def replaced(*given: Any) -> Any:
            return self._replaced(*given) if self.replaying and threading.get_ident() == thread else None

        self._hooked = True
        out, by_input = self.output
        for handle in (
            self.first_norm.register_forward_pre_hook(inside(self._with_graph_of(self.block))),
            self.first_norm.register_forward_hook(inside(self._keep)),
            *(each.register_forward_pre_hook(inside(self._with_graph_of(self.first_norm)))
              for each in self.projections),
            *(each.register_forward_hook(inside(self._keep)) for each in self.projections),
            out.register_forward_pre_hook(replaced) if by_input else out.register_forward_hook(replaced),
            self.block.register_forward_hook(inside(self._leave)),
        ):  # fmt: skip
            hooks.callback(handle.remove)

    def _enter(self, module: nn.Module, inputs: Any, keywords: dict[str, Any]) -> Any:
        if any(isinstance(value, Tensor) for value in (*inputs[1:], *keywords.values())) or not inputs:
            return None
        if inputs[0].numel() * inputs[0].shape[-1] < PATH_WORTH:
            return None
        self._active, self._given = True, (inputs[1:], keywords)
        return (self._keep(module, (), inputs[0]), *inputs[1:]), keywords

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Continue the ordinary run without a graph."""
        self._graph[module], self._cut[module] = output, output.detach()
        return self._cut[module]

    def _with_graph_of(self, source: nn.Module) -> Callable[..., Any]:
        """Return a hook that gives a module the output of `source` with its graph."""

        def hook(module: nn.Module, inputs: Any) -> Any:
            if not inputs or inputs[0] is not self._cut[source]:
                raise NotOneToken
            return (self._graph[source], *inputs[1:])

        return hook

    def _replaced(self, module: nn.Module, inputs: Any, output: Any = None) -> Any:
        """In the second run, replace the single token's attention by the class token's attention to all tokens."""
        assert self._mixed is not None, "a second run"
        if output is None:
            return (self._mixed, *inputs[1:])
        return (self.attention.project(self._mixed).transpose(0, 1 - self._tokens_axis), *output[1:])

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Return the block's output with the gradient of the class token's own run."""
        tokens = output[0] if isinstance(output, tuple) else output
        arguments, keywords = self._given
        self._active, self.replaying = False, True
        try:
            self._mixed = self._attended()
            again = module.forward(self._graph[module].narrow(self._tokens_axis, 0, 1), *arguments, **keywords)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a block's own code says of a single token: a bias for all, a grid
            raise NotOneToken from error
        finally:
            self.replaying, self._mixed, self._given, self._graph, self._cut = False, None, None, {}, {}
        own = again[0] if isinstance(again, tuple) else again
        first = tokens.narrow(self._tokens_axis, 0, 1).detach()
        if own.shape != first.shape:  # another hook has changed the block's output
            raise NotOneToken
        allowed = ALIKE.get(first.dtype, 0.1) * first.abs().flatten().amax(0)
        differs = (own.detach() - first).abs().flatten().amax(0) > allowed
        rest = tokens.narrow(self._tokens_axis, 1, tokens.shape[self._tokens_axis] - 1).detach().requires_grad_()
        self.joined = Joined(rest, differs)
        passed_on = torch.cat([same_value(first, own), rest], dim=self._tokens_axis)
        return (passed_on, *output[1:]) if isinstance(output, tuple) else passed_on

    def _attended(self) -> Tensor:
        """Return the attention output for the class token, (B, 1, heads · d)."""
        if any(each not in self._graph for each in (self.first_norm, *self.projections)):
            raise NotOneToken
        tokens = self._graph[self.first_norm].transpose(0, 1 - self._tokens_axis)
        parts = self.attention.of_first_token(tokens, [self._graph[each] for each in self.projections])
        if self.constant:
            parts = {name: part if name == "v" else part.detach() for name, part in parts.items()}
        return _mixed(parts, self.attention.heads)


def _mixed(parts: Heads, heads: int) -> Tensor:
    """Compute softmax(q kᵀ / √d) v for the class token's queries, both (B, 1, heads · d)."""
    q, k, v = (parts[name].unflatten(2, (heads, -1)).transpose(1, 2) for name in "qkv")
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def class_token_path(tower: Tower, last: LastBlock | None, constant: bool) -> ClassTokenPath | None:
    """Return the path for a pass; `constant`: whether it treats queries and keys as constant. None: there is none."""
    return None if last is None or tower.reads_more_tokens else ClassTokenPath(last, constant)


def last_block(tower: Tower, read: Sequence[Site]) -> LastBlock | None:
    """Return the tower's last block, for a pass that reads these sites.

    Returns None if the tower has no class token in front, if its attention is unknown or rotates tokens, or if the pass
    reads the last block beyond its first norm.
    """
    if not tower.blocks or not tower.prefix:
        return None
    last = tower.blocks[-1]
    block, norm = tower.named[last], tower.first_norm(last)
    attention, axis = tower.attention(last), tower.batch_axis(last)
    turned = isinstance(attention, AttentionModules) and attention.rotary is not None
    if attention is None or axis is None or norm is None or turned:
        return None
    inside, allowed = set(block.modules()), {(block, True), (norm, False)}
    if any(site.module in inside and (site.module, site.reads_input) not in allowed for site in read):
        return None
    return LastBlock(block, norm, attention, attention.output, attention.projections, 1 - axis)


# ---------------------------------------------------------------------------------------------------------- QuickGELU


class QuickGELU(torch.autograd.Function):
    """x · sigmoid(1.702 x), as `activate` computes it, that keeps only x.

    With y = 1.702 x, it is silu(y) / 1.702, so its derivative is silu'(y): one pass over memory. Autograd would keep
    two tensors and take five passes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, activate: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        return activate(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient, QUICK_GELU * x), None


def quick_gelu(module: nn.Module, activate: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the result of `activate`, the forward of `module`, and keep only its input; see `replaced_forward`."""
    pays = x.requires_grad and torch.is_grad_enabled() and x.numel() >= GELU_WORTH
    return QuickGELU.apply(x, activate) if pays else activate(x)


def is_quick_gelu(module: nn.Module) -> bool:
    """True if `module` computes x · sigmoid(1.702 x), by its class name and five of its values."""
    if "quickgelu" not in type(module).__name__.lower() or [*module.children(), *module.parameters()]:
        return False
    probe = torch.linspace(-3, 3, 5, dtype=torch.float64)
    with torch.no_grad():
        return torch.allclose(module.forward(probe), probe * torch.sigmoid(QUICK_GELU * probe))
