"""Maps of any small network from plain autograd: hooks, the scores and the backward rules are of this file alone.

One image at a time. Attention is computed by its formula, so that autograd itself gives the gradient with respect to
its probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.fuzz.random_towers import RandomTower
from tests.helpers.references.method_references import TOKEN_REFERENCES


@dataclass
class Recorded:
    """What one forward pass of one image has shown, all in the graph of its logits."""

    inputs: dict[str, Tensor] = field(default_factory=dict)  # by module
    outputs: dict[str, Tensor] = field(default_factory=dict)
    attention: list[dict[str, Tensor]] = field(default_factory=list)  # "q", "k", "v", "P", "O" (heads, T, ·), by block
    logits: Tensor = field(default_factory=lambda: torch.zeros(0))


def record(tower: RandomTower, image: Tensor, backward: str) -> Recorded:
    """`image` (1, 3, H, W). The tower's attention has to run by `F.scaled_dot_product_attention`."""
    seen, handles = Recorded(), []

    def hook(name: str) -> Any:
        def note(module: Any, inputs: Any, output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                seen.inputs[name] = inputs[0]
            if isinstance(output, Tensor):
                seen.outputs[name] = output

        return note

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Any = None, *rest: Any, **keywords: Any) -> Tensor:
        assert mask is None and keywords.get("attn_mask") is None
        q, k, v = (part.view(-1, *part.shape[-2:]) for part in (q, k, v))
        P = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
        if backward == "balanced":
            P = P.detach().requires_grad_()
        seen.attention.append({"q": q, "k": k, "v": v, "P": P, "O": P @ v})
        return seen.attention[-1]["O"][None]

    for name, module in tower.model.backbone.named_modules():
        handles.append(module.register_forward_hook(hook(name)))
    with patch.object(F, "scaled_dot_product_attention", attend), _norms(backward):
        output: Any = tower.model(image)
    for handle in handles:
        handle.remove()
    logits = output if isinstance(output, Tensor) else next(iter(output.values()))
    seen.logits = logits.flatten()
    return seen


@contextmanager
def _norms(backward: str) -> Iterator[None]:
    """Norms by their formulas; "balanced" takes the deviation in every LayerNorm for a constant.

    PyTorch's own gradient of a batch norm is wrong on the CPU for a single image whose channels stand last.
    """

    def batch_norm(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        training, _, eps = rest
        assert not training
        mean, scale, bias = (of[:, None, None] for of in (mean, weight / (variance + eps).sqrt(), bias))
        return (x - mean) * scale + bias

    def layer_norm(x: Tensor, shape: Any, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        deviation = (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt().detach()
        return centred / deviation * weight + bias

    with ExitStack() as undo:
        undo.enter_context(patch.object(F, "batch_norm", batch_norm))
        if backward == "balanced":
            undo.enter_context(patch.object(F, "layer_norm", layer_norm))
        yield


# ---------------------------------------------------------------------------------------------------------------- score


def score_of(logits: Tensor, target: Any, label: int) -> Tensor:
    """What a target means, of the logits (K,) of one image; the first of several is real."""
    if len(logits) == 1:
        fake, real, margin = logits[0], -logits[0], logits[0]
    else:
        real, fake = logits[0], logits[1:].logsumexp(dim=0)
        margin = fake - real
    if target == "predicted":
        return fake if margin > 0 else real
    if target == "label":
        return fake if label else real
    if target in ("fake", "real", "margin"):
        return {"fake": fake, "real": real, "margin": margin}[target]
    if isinstance(target, str):  # "class 3"
        return logits[int(target.split()[1])]
    return fake if target else real


# ----------------------------------------------------------------------------------------------------------------- maps


class Blank(Exception):
    """No patch of the layer has a gradient."""


class Maps(NamedTuple):
    """Of one image (rows, columns). `terms`: the largest sum of the sizes of what each value is the sum of."""

    signed: np.ndarray
    raw: np.ndarray
    terms: float = 0.0


def token_map(
    tower: RandomTower, seen: Recorded, score: Tensor, method: str, layer: str, site: str
) -> tuple[np.ndarray, float]:
    """The signed map (rows, columns) of one layer, and `Maps.terms`. Raises Blank."""
    if layer not in tower.blocks:
        A = seen.outputs[layer]
    else:
        A = seen.inputs[layer] if site == "residual" else seen.outputs[f"{layer}.{tower.norm}"]
    (found,) = torch.autograd.grad(score, [A], retain_graph=True, allow_unused=True)
    G = torch.zeros_like(A) if found is None else found
    of_A, of_G = (_on_grid(tower, tensor.detach()[0]) for tensor in (A, G))
    if not of_G.any():
        raise Blank
    terms = np.abs(of_A * of_G).sum(axis=0).max() if method == "hirescam" else 0.0
    return TOKEN_REFERENCES[method](of_A, of_G), float(terms)


def _on_grid(tower: RandomTower, tokens: Tensor) -> np.ndarray:
    """(C, rows, columns) of maps, or of tokens (T, C)."""
    if tokens.ndim == 3:
        return tokens.numpy()
    return tokens[tower.prefix :].T.reshape(-1, *tower.grid).numpy()


def attention_map(
    tower: RandomTower, seen: Recorded, score: Tensor, method: str, layer: str
) -> tuple[np.ndarray, np.ndarray]:
    """The signed and the raw map (rows, columns) of one block."""
    number = tower.blocks.index(layer)
    block = seen.attention[number]
    P, O = block["P"], block["O"]  # noqa: E741
    if method == "rollout":
        joint = torch.eye(P.shape[-1], dtype=P.dtype)
        for one in seen.attention[: number + 1]:
            joint = (one["P"].detach().mean(dim=0) + torch.eye(P.shape[-1], dtype=P.dtype)) / 2 @ joint
        signed = raw = joint[0]
    else:
        found = torch.autograd.grad(score, [P, O], retain_graph=True, allow_unused=True)
        of_P, of_O = (torch.zeros_like(of) if G is None else G for of, G in zip((P, O), found, strict=True))
        if method == "legrad":
            signed, raw = of_P.mean(dim=(0, 1)), of_P.relu().mean(dim=(0, 1))
        elif method == "attngrad":
            signed = (P * of_P)[:, 0].mean(dim=0)
            raw = signed.relu()
        else:
            signed = _grad_eclip(block, of_O)
            raw = signed.relu()
    return tuple(of.detach()[tower.prefix :].reshape(tower.grid).numpy() for of in (signed, raw))  # type: ignore[return-value]  # two


def _grad_eclip(block: dict[str, Tensor], of_O: Tensor) -> Tensor:
    """Over all heads' channels side by side: how like the class token's query each key is, times what it gives."""
    query, w = block["q"][:, 0].flatten(), of_O[:, 0].flatten()
    keys, values = (block[name].transpose(0, 1).flatten(1) for name in "kv")
    cosine = keys @ query / keys.norm(dim=1) / query.norm()
    low, high = cosine[1:].min(), cosine[1:].max()
    return (cosine - low) / (high - low) * (values @ w)


def recipe_maps(
    tower: RandomTower, seen: Recorded, score: Tensor, how: tuple[str, str], layers: Sequence[str]
) -> list[Maps]:
    """Those of each layer, "sum" among them; `how`: the method and the site. Raises Blank."""
    method, site = how
    found = []
    for layer in layers:
        parts = tower.blocks if layer == "sum" else [layer]
        if method in TOKEN_REFERENCES:
            of_tokens = [token_map(tower, seen, score, method, part, site) for part in parts]
            signed = np.sum([one for one, _ in of_tokens], axis=0)
            found.append(Maps(signed, np.maximum(signed, 0), sum(terms for _, terms in of_tokens)))
            continue
        pairs = [attention_map(tower, seen, score, method, part) for part in parts]
        signed, raw = (np.sum(of, axis=0) for of in zip(*pairs, strict=True))
        found.append(Maps(signed, raw if method == "legrad" or len(parts) == 1 else np.maximum(signed, 0)))
    return found
