"""The backward rules: what the backward pass treats as constant. Forward pass and logits stay bit for bit the same.

A plain gradient says how the score changes if a token moves a little. This differs from the token's share of the score
wherever the tower divides by something it has just computed. For the gradient only, "balanced" therefore holds constant
what only weighs or scales tokens (LibraGrad, Mehri et al. 2025; CP-LRP, Ali et al. 2022; Achtibat et al. 2024):

* queries and keys of every block, and so the attention weights, in any kernel,
* the standard deviation in every LayerNorm and the root mean square in every RMS norm, also after the tower,
* the length in an L2 normalisation, e.g. F.normalize before a head,
* in a convolutional network, the gates of squeeze-and-excitation, one number per channel of an image.

From a block's tokens to the score, everything is then linear except the activations f. Their secants, f(x) = x · r with
r = f(x) / x constant, make it fully linear for `engine/completeness.py`. Maps use the ordinary derivative of f: with
the secant, they point worse on a pre-trained tower and no better on small ones (benchmarks/WHICH_MAP.md).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from ...base.allowed import BACKWARDS
from ...base.errors import InputError, did_you_mean
from ...base.threads import in_this_thread
from ..frozen import patched, replaced_forward
from ..layers import LayerError
from ..towers.attention import Held, HeldAttention
from ..towers.tower import Tower
from .derivatives import (
    AttentionOfConstantWeights,
    EitherGradient,
    LayerNormOfConstantDeviation,
    by_factor,
)

PLAIN, BALANCED = BACKWARDS[:2]

RMS_NORM = re.compile("rms_?norm", re.IGNORECASE)  # by the class's name: most are written by hand
RESTS = "rests"  # key of a tower: whether only norms need the mode in its blocks
P_WORTH = 2**16  # attention weights: for fewer, PyTorch's kernel is faster, although it computes more
ACTIVATION = re.compile("gelu|silu|swish|mish|relu|elu", re.IGNORECASE)  # those with f(0) = 0


@dataclass
class Activations:
    """Says how to differentiate activations now: ordinarily, or by their secants."""

    by_secant: bool = False


def check_backward(backward: str) -> None:
    """Raise InputError if `backward` is not one of BACKWARDS."""
    if backward not in BACKWARDS:
        raise InputError(
            f"backward {backward!r} is unknown; {did_you_mean(backward, BACKWARDS)}allowed: {', '.join(BACKWARDS)}"
        )


def backward_rules(
    tower: Tower, backward: str, activations: Activations | None = None, held: Held | None = None, first: int = 0
) -> AbstractContextManager[AbstractContextManager[Any]]:
    """Hook a forward pass inside, so that its backward pass follows `backward`, PLAIN or BALANCED.

    It yields a second context. Enter that one only around the forward pass: it slows down every torch function.

    Args:
        tower: the tower with the attention and activations; norms are hooked in the whole model.
        activations: lets the caller differentiate by secants later, which keeps more of the forward pass in memory.
        held: lets the caller differentiate first by the plain rule, later by the balanced rule.
        first: the first block that the gradient reaches.

    Raises:
        InputError: the name is unknown, or "balanced" does not know the tower's queries and keys.
        LayerError: on exit, if "balanced" found neither blocks nor a gate after the layers.
    """
    check_backward(backward)
    if backward == PLAIN:
        return nullcontext(nullcontext())
    return _balanced(tower, attention_of(tower)[first:], activations, held or Held())


def can_balance(tower: Tower) -> bool:
    """True if `tower` has blocks and the balanced rule can differentiate it."""
    try:
        return bool(attention_of(tower))
    except InputError:
        return False


def attention_of(tower: Tower) -> list[HeldAttention]:
    """Return the attention of every block; none without blocks. Raises InputError if it is unknown."""
    found = []
    for block in tower.blocks:
        attention = tower.held_attention(block)
        if attention is None:
            raise InputError(
                "backward 'balanced' holds queries and keys constant, and those of"
                f" {type(tower.module).__name__}'s block {block!r} are not known: use backward 'plain', or write"
                " a tower family (docs/how_to/add_a_tower_family.md)",
                "backward",
            )
        found.append(attention)
    return found


@contextmanager
def _balanced(
    tower: Tower, attention: Sequence[HeldAttention], activations: Activations | None, held: Held
) -> Iterator[AbstractContextManager[Any]]:
    def hook(rule: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor | None]:
        """Hook `rule` to a module's input and output, only in this thread."""
        return in_this_thread(lambda module, inputs, output: rule(inputs[0], output))

    constants = _Constants(held)
    with ExitStack() as hooks:
        for block in attention:
            for handle in block.constant_queries_and_keys(held):
                hooks.callback(handle.remove)
        for module in tower.modules_that(is_rms_norm):
            hooks.callback(module.register_forward_hook(hook(lambda x, output: by_factor(x, output, held))).remove)
        if activations is not None:
            is_secant = lambda: activations.by_secant  # noqa: E731
            secant = hook(lambda x, output: EitherGradient.apply(output, by_factor(x, output), is_secant))
            for module in tower.once("activations", lambda: activation_modules(tower.module)):
                hooks.callback(module.register_forward_hook(secant).remove)
        yield _in_forward(tower, constants)
    if not tower.blocks and not constants.gates:
        raise LayerError(
            "backward 'balanced' holds attention, norms and the gates of squeeze-and-excitation constant, and between"
            f" the layers and the score {type(tower.model).__name__} has neither attention nor such gates:"
            " use backward 'plain'"
        )


@contextmanager
def _in_forward(tower: Tower, constants: _Constants) -> Iterator[None]:
    """Hook a forward pass inside: norms by their modules, everything else by the mode.

    The mode runs at every PyTorch function. It rests between the first and the last block, once a pass has shown that
    only norm modules need it there.
    """
    with ExitStack() as undo:
        undo.enter_context(replaced_forward(tower.modules_that(is_layer_norm), constants.norm))
        if tower.blocks:
            first, last = (tower.named[tower.blocks[i]] for i in (0, -1))
            rests = tower.known(RESTS)
            undo.callback(
                first.register_forward_pre_hook(in_this_thread(partial(constants.in_blocks, bool(rests)))).remove
            )
            end = in_this_thread(constants.behind_blocks)
            undo.callback(last.register_forward_hook(end).remove)
            if rests:
                usual = F.scaled_dot_product_attention
                undo.enter_context(patched(F, "scaled_dot_product_attention", partial(constants.attention, usual)))
        with constants:
            yield
        if tower.blocks:
            tower.once(RESTS, lambda: not constants.seen_in_blocks)


def gates_in(run: Callable[[], object]) -> int:
    """Count the squeeze-and-excitation gates in `run`, a forward pass."""
    with _Constants(Held()) as constants:
        run()
    return constants.gates


def is_rms_norm(module: nn.Module) -> bool:
    """True if `module` is an RMS norm, by the name of its class."""
    return RMS_NORM.search(type(module).__name__) is not None


def is_layer_norm(module: nn.Module) -> bool:
    """True if `module` is PyTorch's layer norm or a subclass."""
    return isinstance(module, nn.LayerNorm)


def activation_modules(tower: nn.Module) -> list[nn.Module]:
    """Return the activation modules of `tower`, known by the names of their classes."""
    leaves = (module for module in tower.modules() if not [*module.children(), *module.parameters()])
    return [module for module in leaves if ACTIVATION.search(type(module).__name__)]


class _Constants(TorchFunctionMode):
    """Handles norms and gates anywhere in the model, however they are called, only in this thread."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        self.held = held
        self.gates = 0  # that maps were multiplied by; in a pass with gradients, those that depend on the layers
        self.seen_in_blocks = False  # whether anything between the first and the last block needed the mode
        self._thread = threading.get_ident()
        self._between = False  # whether a block runs, or code between blocks
        self._rests = False
        self._in_norm = False

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in REPLACED:
            self._notice(func is not F.scaled_dot_product_attention)  # which is for the mode for its cost alone
            return REPLACED[func](self.held, func, *args, **kwargs)
        if func in PRODUCTS and len(args) == 2:
            for x, gate in (args, args[::-1]):
                if is_gate(x, gate):
                    self._notice(True)
                    self.gates += gate.requires_grad or not torch.is_grad_enabled()
                    return func(*(self.held.constant(one) if one is gate else one for one in args), **kwargs)
        return func(*args, **kwargs)

    def _notice(self, counts: bool) -> None:
        self.seen_in_blocks |= counts and self._between and not self._in_norm

    def __exit__(self, *error: Any) -> None:
        if not self._rests:
            super().__exit__(*error)
        self._rests = False

    def in_blocks(self, rests: bool, *given: Any) -> None:
        """Run at the start of the first block; the mode rests if `rests` and no other mode is above it."""
        if not self._between:
            self._between = True
            self._rests = rests and _get_current_function_mode() is self
            if self._rests:
                super().__exit__(None, None, None)

    def behind_blocks(self, *given: Any) -> None:
        """Run at the end of the last block."""
        self._between = False
        if self._rests:
            self._rests = False
            self.__enter__()

    def norm(self, module: Any, forward: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
        """Compute a layer norm; see `replaced_forward`."""
        if threading.get_ident() != self._thread:
            return forward(x, *rest)
        if not self._rests:  # the mode handles it
            self._in_norm = True
            try:
                return forward(x, *rest)
            finally:
                self._in_norm = False
        if type(module).forward is nn.LayerNorm.forward:
            given = module.normalized_shape, module.weight, module.bias, module.eps
            return _layer_norm(self.held, F.layer_norm, x, *given)
        self._rests = False
        try:
            with self:
                return forward(x, *rest)
        finally:
            self._rests = True

    def attention(self, usual: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Replace PyTorch's attention while the mode rests."""
        if not self._rests or threading.get_ident() != self._thread:
            return usual(*args, **kwargs)
        return _attention(self.held, usual, *args, **kwargs)


def is_gate(x: Any, gate: Any) -> bool:
    """True if `gate` has one number per channel and image for the maps `x` (B, C, H, W)."""
    if not (isinstance(x, Tensor) and isinstance(gate, Tensor) and x.ndim == gate.ndim == 4):
        return False
    of_channels = gate.shape[2:] == (1, 1) or (gate.shape == x.shape and gate.stride()[2:] == (0, 0))  # expanded
    return of_channels and gate.shape[:2] == x.shape[:2] and x.shape[2] * x.shape[3] > 1


def _layer_norm(
    held: Held,
    func: Any,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *rest: Any,
) -> Tensor:
    if not input.requires_grad:  # before the layers
        return func(input, normalized_shape, weight, bias, eps)
    constant = LayerNormOfConstantDeviation.apply(input, tuple(normalized_shape), weight, bias, eps)
    return held.instead(lambda: func(input, normalized_shape, weight, bias, eps), constant)


def _normalize(held: Held, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return by_factor(input, func(input, *args, **kwargs), held)


def _length(held: Held, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    return held.constant(func(*args, **kwargs))


def _attention(
    held: Held,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **rest: Any,
) -> Tensor:
    """Compute attention without gradients for constant queries and keys, which the kernel would compute."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return func(q, k, v, attn_mask, dropout_p, is_causal, **({} if scale is None else {"scale": scale}), **rest)

    constant = not query.requires_grad and not key.requires_grad
    plain = attn_mask is None and dropout_p == 0 and not is_causal and not any(rest.values())
    alike = query.ndim == 4 and query.shape[:2] == key.shape[:2] == value.shape[:2]  # nothing to broadcast
    alike = alike and query.shape[:3].numel() * key.shape[2] >= P_WORTH
    if not (constant and plain and alike and value.requires_grad and value.device.type == "cpu"):
        return attend(query, key, value)
    return AttentionOfConstantWeights.apply(
        query, key, value, query.shape[-1] ** -0.5 if scale is None else scale, attend
    )


PRODUCTS = {torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__}
# torch's function → its replacement, called with it and the caller's arguments.
REPLACED: dict[Any, Callable[..., Tensor]] = {
    F.scaled_dot_product_attention: _attention,
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.normalize: _normalize,
    torch.norm: _length,
    Tensor.norm: _length,
    torch.linalg.norm: _length,
    torch.linalg.vector_norm: _length,
}
