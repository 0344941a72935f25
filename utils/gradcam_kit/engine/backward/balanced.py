"""What a backward pass takes for constant. The forward pass, and so every logit, stays bit for bit what it is.

A plain gradient says how the score changes when a token is moved a little; a token's share of the score is something
else, wherever the tower divides by what it has just computed. "balanced" therefore holds constant, for the gradient
alone, what only weighs or scales tokens (LibraGrad, Mehri et al. 2025; CP-LRP, Ali et al. 2022; Achtibat et al. 2024):

* queries and keys of every block, and with them the attention weights, whatever kernel computes these,
* the standard deviation in every LayerNorm and the root mean square in every RMS norm, also behind the tower,
* the length in an L2 normalisation, as in F.normalize before a head,
* in a convolutional network the gates of squeeze-and-excitation, one number for each channel of an image.

What is left between a block's tokens and the score is linear but for the activations f. Their secants, f(x) = x · r
with r = f(x) / x constant, make it linear altogether, for `engine/completeness.py`. Maps use the ordinary derivative
of f: with the secant they point worse on a pre-trained tower, and no better on small ones (docs/faithfulness.md).
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
RESTS = "rests"  # of a tower: whether nothing but norms is for the mode in its blocks
P_WORTH = 2**16  # attention weights: fewer are sooner differentiated by PyTorch's kernel, with what is not wanted
ACTIVATION = re.compile("gelu|silu|swish|mish|relu|elu", re.IGNORECASE)  # those with f(0) = 0


@dataclass
class Activations:
    """How activations are differentiated at this moment: ordinarily, or by their secants."""

    by_secant: bool = False


def check_backward(backward: str) -> None:
    """Raises InputError for a backward pass that is none of BACKWARDS."""
    if backward not in BACKWARDS:
        raise InputError(
            f"backward {backward!r} is unknown; {did_you_mean(backward, BACKWARDS)}allowed: {', '.join(BACKWARDS)}"
        )


def backward_rules(
    tower: Tower, backward: str, activations: Activations | None = None, held: Held | None = None, first: int = 0
) -> AbstractContextManager[AbstractContextManager[Any]]:
    """Hooks for a forward pass inside, so that its backward pass is `backward`, PLAIN or BALANCED.

    What is yielded is another context, to be entered around the forward pass alone: it slows every torch function down.

    Args:
        tower: whose attention and activations are meant; norms are those of all of its model.
        activations: lets the caller differentiate by secants later, which keeps more of the forward pass.
        held: lets the caller differentiate by the plain rule first, and by the balanced one later.
        first: the first block that the gradient reaches.

    Raises:
        InputError: an unknown name, or "balanced" for a tower whose queries and keys are not known.
        LayerError: as the context is left, "balanced" of a network without blocks, and no gate ran behind the layers.
    """
    check_backward(backward)
    if backward == PLAIN:
        return nullcontext(nullcontext())
    return _balanced(tower, attention_of(tower)[first:], activations, held or Held())


def can_balance(tower: Tower) -> bool:
    """Whether `tower` has blocks, and can be differentiated by the balanced rule."""
    try:
        return bool(attention_of(tower))
    except InputError:
        return False


def attention_of(tower: Tower) -> list[HeldAttention]:
    """The attention of every block; none without blocks. Raises InputError where it is not known."""
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
        """`rule` gets what the module has read and returned, in this thread alone."""
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
    """For a forward pass inside: norms by their modules, everything else by the mode.

    The mode is asked at every function of PyTorch's. Between the first block and the last it rests, once a pass has
    shown that nothing but the modules of norms is for it there.
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
    """How many gates of squeeze-and-excitation `run`, a forward pass, multiplies by."""
    with _Constants(Held()) as constants:
        run()
    return constants.gates


def is_rms_norm(module: nn.Module) -> bool:
    """Whether `module` is an RMS norm, by the name of its class."""
    return RMS_NORM.search(type(module).__name__) is not None


def is_layer_norm(module: nn.Module) -> bool:
    """Whether `module` is PyTorch's layer norm, or made from it."""
    return isinstance(module, nn.LayerNorm)


def activation_modules(tower: nn.Module) -> list[nn.Module]:
    """The modules of `tower` that are activation functions, known by the names of their classes."""
    leaves = (module for module in tower.modules() if not [*module.children(), *module.parameters()])
    return [module for module in leaves if ACTIVATION.search(type(module).__name__)]


class _Constants(TorchFunctionMode):
    """Norms and gates, wherever in the model and however they are called, of this thread alone."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        self.held = held
        self.gates = 0  # that maps were multiplied by; in a pass with gradients, those that depend on the layers
        self.seen_in_blocks = False  # whether anything between the first block and the last was for the mode
        self._thread = threading.get_ident()
        self._between = False  # whether a block runs, or code between them
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
        """As the first block begins; the mode rests where it `rests` and no other one lies above it."""
        if not self._between:
            self._between = True
            self._rests = rests and _get_current_function_mode() is self
            if self._rests:
                super().__exit__(None, None, None)

    def behind_blocks(self, *given: Any) -> None:
        """As the last block ends."""
        self._between = False
        if self._rests:
            self._rests = False
            self.__enter__()

    def norm(self, module: Any, forward: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
        """A layer norm, see `replaced_forward`."""
        if threading.get_ident() != self._thread:
            return forward(x, *rest)
        if not self._rests:  # the mode sees to it
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
        """What stands for PyTorch's attention while the mode rests."""
        if not self._rests or threading.get_ident() != self._thread:
            return usual(*args, **kwargs)
        return _attention(self.held, usual, *args, **kwargs)


def is_gate(x: Any, gate: Any) -> bool:
    """Whether `gate` has one number for each channel of each image of the maps `x` (B, C, H, W)."""
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
    """Without the gradients of queries and keys, where those are constant and the kernel would compute them."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return func(q, k, v, attn_mask, dropout_p, is_causal, **({} if scale is None else {"scale": scale}), **rest)

    constant = not query.requires_grad and not key.requires_grad
    plain = attn_mask is None and dropout_p == 0 and not is_causal and not any(rest.values())
    alike = query.ndim == 4 and query.shape[:2] == key.shape[:2] == value.shape[:2]  # nothing to be broadcast
    alike = alike and query.shape[:3].numel() * key.shape[2] >= P_WORTH
    if not (constant and plain and alike and value.requires_grad and value.device.type == "cpu"):
        return attend(query, key, value)
    return AttentionOfConstantWeights.apply(
        query, key, value, query.shape[-1] ** -0.5 if scale is None else scale, attend
    )


PRODUCTS = {torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__}
# torch's function → what is called in its place, with it and its arguments as the caller wrote them.
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
