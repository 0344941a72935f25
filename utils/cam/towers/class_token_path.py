"""The last block for the class token alone: what the score cannot depend on is neither kept nor differentiated.

A head that reads the class token depends on the other tokens of the last block through their keys and values alone. The
ordinary forward pass gives the block's output, to the last bit, and records nothing but the first norm, keys and
values. The block then runs once more for the class token, whose attention reads these, and the gradient goes that way.
Whether the head does read that token alone is not assumed: the gradient at the other tokens is looked at.
"""

from __future__ import annotations

import inspect
import threading
from contextlib import ExitStack, contextmanager
from typing import Any, Iterable, Iterator, NamedTuple
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.cam.towers import family_of
from utils.cam.towers.attention import AttentionModules, same_value

reads_more_tokens: WeakSet[nn.Module] = WeakSet()  # towers of which more than the class token was seen to be read
HOOKS_SEE_KEYWORDS = "with_kwargs" in inspect.signature(nn.Module.register_forward_pre_hook).parameters  # torch 2.0

ALIKE = {torch.float64: 1e-9, torch.float32: 1e-3}  # how far apart the two runs of a block may be; else 0.1


class Joined(NamedTuple):
    """The block's output, with the class token's own run in front."""

    rest: Tensor  # the other tokens, a leaf
    differs: Tensor  # bool: whether the second run gave another value than the first


class ClassTokenPath:
    """Hooks on the last block of a tower whose tokens are (B, T, C) and begin with the class token.

    `replaying` is True while the block runs for the class token alone: whatever counts its runs has to look away.
    After the pass `joined` is what it came to; None where the block got a mask, and the graph is the ordinary one.
    """

    def __init__(self, block: nn.Module, first_norm: nn.Module, attention: AttentionModules) -> None:
        self.block, self.first_norm, self.attention = block, first_norm, attention
        self.replaying = False
        self.joined: Joined | None = None
        self._active = False  # between the ordinary run's beginning and end
        self._read: dict[str, Any] = {}  # of the ordinary run: "x", "h", "k" and "v", with graph, and the arguments
        self._mixed: Tensor | None = None  # what the class token's attention gives, for the second run

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """For a forward pass inside, of this thread. To be entered after all that reads or replaces tokens."""
        thread = threading.get_ident()

        def inside(hook: Any) -> Any:
            return lambda *given: hook(*given) if self._active and threading.get_ident() == thread else None

        def enter(*given: Any) -> Any:
            return self._enter(*given) if threading.get_ident() == thread else None

        def replace_mixed(module: nn.Module, inputs: Any) -> Any:
            return (self._mixed,) if self.replaying and threading.get_ident() == thread else None

        modules = self.attention
        with ExitStack() as hooks:
            for handle in (
                self.block.register_forward_pre_hook(enter, with_kwargs=True),
                self.first_norm.register_forward_pre_hook(inside(lambda module, inputs: (self._read["x"],))),
                self.first_norm.register_forward_hook(inside(self._after_norm)),
                modules.k.register_forward_pre_hook(inside(lambda module, inputs: (self._read["h"],))),
                modules.k.register_forward_hook(inside(lambda module, inputs, output: self._keep("k", output))),
                modules.v.register_forward_pre_hook(inside(lambda module, inputs: (self._read["h"],))),
                modules.v.register_forward_hook(inside(lambda module, inputs, output: self._keep("v", output))),
                modules.out.register_forward_pre_hook(replace_mixed),
                self.block.register_forward_hook(inside(self._leave)),
            ):
                hooks.callback(handle.remove)
            yield

    def _enter(self, module: nn.Module, inputs: Any, keywords: dict[str, Any]) -> Any:
        if any(isinstance(value, Tensor) for value in (*inputs[1:], *keywords.values())) or not inputs:
            return None
        self._active = True
        self._read = {"x": inputs[0], "arguments": inputs[1:], "keywords": keywords}
        return (inputs[0].detach(), *inputs[1:]), keywords

    def _after_norm(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        self._read["h"] = output
        return output.detach()

    def _keep(self, name: str, output: Tensor) -> Tensor:
        self._read[name] = output
        return output.detach()

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """The block's output with the gradient of the class token's own run."""
        read, tokens = self._read, output[0] if isinstance(output, tuple) else output
        self._active, self.replaying = False, True
        try:
            q = self.attention.q(read["h"][:, :1])
            self._mixed = _mixed(q, read["k"], read["v"], self.attention.heads)
            again = module.forward(read["x"][:, :1], *read["arguments"], **read["keywords"])
        finally:
            self.replaying, self._mixed, self._read = False, None, {}
        own = again[0] if isinstance(again, tuple) else again
        first = tokens[:, :1].detach()
        differs = (own.detach() - first).abs().amax() > ALIKE.get(first.dtype, 0.1) * first.abs().amax()
        self.joined = Joined(tokens[:, 1:].detach().requires_grad_(), differs)
        passed_on = torch.cat([same_value(first, own), self.joined.rest], dim=1)
        return (passed_on, *output[1:]) if isinstance(output, tuple) else passed_on


def _mixed(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q kᵀ / √d) v for the queries (B, 1, heads · d) alone: (B, 1, heads · d)."""
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def class_token_path(tower: nn.Module, read: Iterable[tuple[nn.Module, bool]]) -> ClassTokenPath | None:
    """The path for a pass that reads these modules, each by its input or not.

    None for a tower without a class token in front, or whose projections are no modules of their own, and where the
    last block is read further in than its first norm.
    """
    family = family_of(tower)
    blocks = family.block_names(tower)
    if not HOOKS_SEE_KEYWORDS or not blocks or tower in reads_more_tokens or not family.prefix(tower):
        return None
    block = tower.get_submodule(blocks[-1])
    norm, attention = family.first_norm(block), family.attention(block)
    if not isinstance(attention, AttentionModules) or attention.rotary is not None:
        return None
    inside, allowed = set(block.modules()), {(block, True), (norm, False)}
    if any(module in inside and (module, by_input) not in allowed for module, by_input in read):
        return None
    return ClassTokenPath(block, norm, attention)
