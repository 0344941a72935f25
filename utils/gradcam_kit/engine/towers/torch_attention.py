"""PyTorch's own attention within a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...base.errors import InputError
from .attention import (
    MIXED,
    BlockAttention,
    Handle,
    Heads,
    Keep,
    in_this_thread,
    mixed_by_constant,
    same_value,
)


@dataclass(frozen=True)
class TorchAttention(BlockAttention):
    """`nn.MultiheadAttention`, whose q, k and v are one parameter and whose output projection never runs as a module.

    So q, k and v are computed once more from what it reads, and ∂score/∂O is the gradient of its output through the
    weight of the output projection.
    """

    module: nn.MultiheadAttention

    @property
    def heads(self) -> int:  # type: ignore[override]  # read from the module
        return self.module.num_heads

    @property
    def tokens_first(self) -> bool:  # type: ignore[override]  # read from the module
        return not self.module.batch_first

    def queries_keys_values(self, x: Tensor) -> Heads:
        """`x` (B, T, C)."""
        return dict(
            zip("qkv", F.linear(x, self.module.in_proj_weight, self.module.in_proj_bias).chunk(3, dim=-1), strict=True)
        )

    def watch(self, names: tuple[str, ...], keep: Keep) -> list[Handle]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            with torch.no_grad():
                found = self.queries_keys_values(self._tokens(inputs))
                found[MIXED] = self._batch_first(output[0])
            for name in names:
                keep(name, found[name])

        return [self.module.register_forward_hook(hook)]

    def _tokens(self, inputs: Any) -> Tensor:
        """What attends to itself, (B, T, C)."""
        if len(inputs) < 3 or not inputs[0] is inputs[1] is inputs[2]:
            raise InputError(
                "nn.MultiheadAttention is read where query, key and value are one tensor, given in this order"
            )
        return self._batch_first(inputs[0])

    def _batch_first(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(0, 1) if self.tokens_first else tokens

    @property
    def output(self) -> tuple[nn.Module, bool]:
        return self.module, False

    def output_gradient(self, gradient: Tensor) -> Tensor:
        return gradient @ self.module.out_proj.weight.detach().to(gradient.dtype)

    def project(self, mixed: Tensor) -> Tensor:
        weight, bias = self.module.out_proj.weight, self.module.out_proj.bias
        return F.linear(mixed, weight.to(mixed.dtype), None if bias is None else bias.to(mixed.dtype))

    projections = ()  # none is a module

    def of_first_token(self, tokens: Tensor, projected: Sequence[Tensor]) -> Heads:
        weight, bias, width = self.module.in_proj_weight, self.module.in_proj_bias, tokens.shape[2]
        of_q, of_rest = (None, None) if bias is None else (bias[:width], bias[width:])
        k, v = F.linear(tokens, weight[width:], of_rest).chunk(2, dim=-1)
        return {"q": F.linear(tokens[:, :1], weight[:width], of_q), "k": k, "v": v}

    def constant_queries_and_keys(self) -> list[Handle]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            if not inputs[0].requires_grad:
                return None
            linear = self.project(mixed_by_constant(self.queries_keys_values(self._tokens(inputs)), self.heads))
            return (same_value(output[0], self._batch_first(linear)), *output[1:])

        return [self.module.register_forward_hook(in_this_thread(hook))]


def multihead_attention(block: nn.Module) -> nn.MultiheadAttention | None:
    """The one `nn.MultiheadAttention` among the parts of `block`, None where there is none or more than one."""
    found = [part for part in block.children() if isinstance(part, nn.MultiheadAttention)]
    return found[0] if len(found) == 1 else None


def torch_attention(block: nn.Module) -> TorchAttention | None:
    """Its attention, None where q, k and v are not one projection of the tokens alone."""
    module = multihead_attention(block)
    if module is None or module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn:
        return None
    return TorchAttention(module)
