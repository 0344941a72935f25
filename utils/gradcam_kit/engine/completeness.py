"""Test whether a map's shares add up to the score. They do if the rest of the tower is linear, as in "balanced".

A linear function is gradient times input, plus a constant. The constant is the sum over biases of bias times gradient
(Srinivas and Fleuret 2019, FullGrad; Mehri et al. 2025, LibraGrad):

    score = Σ_tokens Σ_c G_c A_c + Σ_biases Σ_c (∂score/∂b)_c b_c

Autograd computes the two sums independently, so the test detects nonlinear parts: a head with a hidden layer, gated
MLPs, a norm that the balanced rules do not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..base.threads import hooked
from .backward import Activations
from .layers import Site


class SelfTest(NamedTuple):
    """The test's input: the score depends only on the tokens at each of `sites` (`engine.tokens.token_gradients`).

    `activations`: the activations that the balanced rules differentiate by secants in this pass.
    """

    sites: Sequence[Site]
    activations: Activations


class Completeness(NamedTuple):
    """How far the shares of one block's tokens, with prefix tokens, explain each image's score; both (B,) float64.

    `error`: |score - shares - biases| as a share of the largest of the three; 0 is complete. `bias_share`: |biases| /
    (|shares| + |biases|), in [0, 1]: the part that belongs to no token. If it is large, a map shows the smaller part
    of the decision.
    """

    error: Tensor
    bias_share: Tensor

    @classmethod
    def of(cls, shares: Tensor, biases: Tensor, score: Tensor) -> Completeness:
        """Compare the two sums with the score, each (B,). If all are 0, the error is 0."""
        shares, biases, score = shares.double(), biases.double(), score.double()
        scale = torch.stack([shares.abs(), biases.abs(), score.abs()]).amax(dim=0)
        total = shares.abs() + biases.abs()
        ones = torch.ones_like(scale)
        return cls(
            (shares + biases - score).abs() / torch.where(scale > 0, scale, ones),
            biases.abs() / torch.where(total > 0, total, ones),
        )

    @classmethod
    def worst(cls, blocks: Sequence[Completeness]) -> Completeness:
        """Return each image's largest values over several blocks."""
        return cls(*(torch.stack(values).amax(dim=0) for values in zip(*blocks, strict=True)))


@contextmanager
def scaled_biases(modules: Iterable[nn.Module], read: Mapping[int, object]) -> Iterator[dict[int, Tensor]]:
    """Hook `modules` (`has_bias`) to multiply each image's biases by a leaf of ones, which changes no value.

    ∂score/∂leaf is Σ (∂score/∂b) b per image. All biases between two sites share a leaf (B,) float64; the yielded dict
    holds it under the number of sites `read` before.
    """
    scales: dict[int, Tensor] = {}

    def scale_bias(key: str, module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        # The score does not depend linearly on tensors without gradient: queries, keys, all before the first site.
        if not isinstance(output, Tensor) or not output.requires_grad:
            return None
        if len(read) not in scales:
            ones = torch.ones(len(output), dtype=torch.float64, device=output.device)
            scales[len(read)] = ones.requires_grad_()
        scale = scales[len(read)]
        if len(output) != len(scale):  # the first axis is not the images': the sum misses these biases
            return None
        added = (scale - scale.detach()).view(-1, *[1] * (output.ndim - 1)) * _bias(module, output)
        return output + added.to(output.dtype)

    with hooked((("", module) for module in modules), scale_bias):
        yield scales


def has_bias(module: nn.Module) -> bool:
    """True if `module` adds a bias of its own."""
    return isinstance(module._parameters.get("bias"), Tensor)


def _bias(module: Any, output: Tensor) -> Tensor:
    """Return the bias of `module`, in a shape that broadcasts over `output`."""
    bias = module.bias.detach().double()
    batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    if batch_norm and module.running_mean is not None:
        bias = (
            bias - (module.running_mean * (module.running_var + module.eps).rsqrt() * module.weight.detach()).double()
        )
    of_maps = (nn.modules.conv._ConvNd, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
    # A layer norm of maps, like ConvNeXt's, permutes the axes itself.
    turned = output.ndim == 4 and output.shape[1] == bias.numel() != output.shape[3]
    if batch_norm or turned or isinstance(module, of_maps):
        bias = bias.view(-1, *[1] * (output.ndim - 2))
    return bias


def completeness_of(
    A: Tensor, G: Tensor, read_before: int, bias_terms: Mapping[int, Tensor], score: Tensor
) -> Completeness:
    """At one site: tokens and gradients (B, T, C), after how many other sites they were read, and the `score` (B,).

    `bias_terms`: ∂score/∂leaf of each leaf of `scaled_biases`.
    """
    later = [term for read, term in bias_terms.items() if read > read_before and len(term) == len(score)]
    biases = torch.stack(later).sum(dim=0) if later else torch.zeros_like(score)
    return Completeness.of((A.double() * G.double()).flatten(1).sum(dim=1), biases, score)
