"""Class activation maps: one function per method, with its paper's formula.

Every function takes

* `A`: activations (B, C, h, w): patch tokens on their grid, or the feature maps of a convolution,
* `G`: gradients of the score with respect to `A`, with the same shape, dtype and device,

and returns the weighted sum over channels (B, h, w) **before** the final ReLU. A positive value means that the patch
raises the score, a negative one that it lowers it. The engine applies the ReLU, so the signed map costs nothing extra.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from ..base.allowed import AUTO, CLIP_METHODS, TRANSPLANT
from ..base.errors import InputError, did_you_mean
from .attention_methods import ATTENTION_METHODS, AttentionMethod
from .real.contrast import CONTRASTS
from .tokens import K, Tokens

Method = Callable[[Tensor, Tensor], Tensor]

DEFAULT_EPSILON = 0.1


def grad_cam(A: Tensor, G: Tensor) -> Tensor:
    """Compute Grad-CAM: w_c = mean_hw G_c, map = Σ_c w_c A_c (Selvaraju et al. 2017, eq. 1 and 2)."""
    return weighted_sum(G.mean(dim=(2, 3)), A)


def grad_cam_pp(A: Tensor, G: Tensor, epsilon: float = DEFAULT_EPSILON) -> Tensor:
    """Compute Grad-CAM++: α = G² / (2 G² + G³ Σ_hw A), w_c = Σ_hw α ReLU(G), map = Σ_c w_c A_c.

    Chattopadhay et al. 2018, eq. 10 and 19.

    In the paper, A is post-ReLU, so the denominator is positive wherever α matters. Tokens are signed, so the
    denominator can cross zero. Adding ε · max_chw G² of the same image keeps it away from zero at any scale of the
    gradient; α is 0 where the sum is still not positive. ε = 0 is the paper's formula.

    The code uses g = G / max_chw |G|: α stays the same, and G³ can neither vanish nor overflow.
    """
    peak = G.abs().amax(dim=(1, 2, 3), keepdim=True)
    g = G / torch.where(peak > 0, peak, torch.ones_like(peak))
    g2 = g.square()
    denominator = 2 * g2 + g2 * g * (peak * A.sum(dim=(2, 3), keepdim=True)) + epsilon
    alpha = torch.where(denominator > 0, g2 / denominator, torch.zeros_like(G))
    return weighted_sum((alpha * G.relu()).sum(dim=(2, 3)), A)


def hires_cam(A: Tensor, G: Tensor) -> Tensor:
    """Compute HiResCAM: map = Σ_c G_c A_c, each patch weighted by its own gradient (Draelos and Carin 2020, eq. 7)."""
    return (G * A).sum(dim=1)


def layer_cam(A: Tensor, G: Tensor) -> Tensor:
    """Compute LayerCAM: map = Σ_c ReLU(G_c) A_c (Jiang et al. 2021, eq. 4 and 5)."""
    return (G.relu() * A).sum(dim=1)


def x_grad_cam(A: Tensor, G: Tensor) -> Tensor:
    """Compute XGradCAM: w_c = Σ_hw G_c A_c / Σ_hw A_c, map = Σ_c w_c A_c (Fu et al. 2020, eq. 7).

    In the paper, A is post-ReLU, so Σ_hw A_c is positive. Tokens are signed: a channel with a sum near zero gets a
    large weight, and one with a sum of exactly zero gets weight 0.
    """
    total = A.sum(dim=(2, 3))
    w = torch.where(total != 0, (G * A).sum(dim=(2, 3)) / total, torch.zeros_like(total))
    return weighted_sum(w, A)


def weighted_sum(w: Tensor, A: Tensor) -> Tensor:
    """Return Σ_c w_c A_c (B, h, w) for weights `w` (B, C) and activations `A` (B, C, h, w)."""
    return torch.bmm(w.unsqueeze(1), A.flatten(2)).view(len(A), *A.shape[2:])


METHODS: dict[str, Method] = {
    "gradcam": grad_cam,
    "gradcam++": grad_cam_pp,
    "hirescam": hires_cam,
    "layercam": layer_cam,
    "xgradcam": x_grad_cam,
}


def method_names() -> list[str]:
    """Return the names of all methods: the built-in ones, contrasts, attention methods and registered ones."""
    return [*METHODS, *CONTRASTS, *ATTENTION_METHODS]


def register_method(name: str, method: Method | AttentionMethod) -> None:
    """Register a method under a new name, for every call, flag and YAML file.

    Args:
        method: a function that takes activations A and gradients G, both (B, C, h, w), and returns the signed map
            (B, h, w); or an `AttentionMethod`.

    Raises:
        InputError: the name is taken or not a plain word, or `method` is not a method.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9+_.-]*", name):
        raise InputError(f"method name {name!r}: give lower-case letters, digits and + _ . -, as in 'hirescam'")
    known = {**METHODS, **ATTENTION_METHODS}
    if name in (AUTO, TRANSPLANT, *CONTRASTS, *CLIP_METHODS) or (name in known and known[name] is not method):
        raise InputError(f"method {name!r} exists already: choose another name")
    if isinstance(method, AttentionMethod):
        ATTENTION_METHODS[name] = method
    elif callable(method):
        METHODS[name] = method
    else:
        raise InputError(f"method {name!r} is {method!r}: give a function (A, G) -> (B, h, w), or an AttentionMethod")


def check_method(name: str) -> None:
    """Raise InputError if no method has this name."""
    names = method_names()
    if name in CLIP_METHODS:
        raise InputError(
            f"method {name!r} is for clips of frames, and this detector reads images: use gradcam", "method"
        )
    if name not in names:
        raise InputError(f"method {name!r} is unknown; {did_you_mean(name, names)}allowed: {', '.join(names)}")


def cam_method(name: str, pp_epsilon: float = DEFAULT_EPSILON) -> Method:
    """Return the function (A, G) → map of a method of METHODS. `pp_epsilon`: ε of Grad-CAM++."""
    if name == "gradcam++":
        return partial(grad_cam_pp, epsilon=pp_epsilon)
    return METHODS[name]


def leftover(A: Tensor, G: Tensor, norm_epsilon: float) -> Tensor:
    """Return a bound (B, h, w) on the rounding error of a sum Σ_c G_c A_c that should be 0.

    `norm_epsilon`: ε of A's LayerNorm.

    Two things keep the sum from 0. First, each term is only as precise as A and G, and G only as precise as the
    LayerNorm's backward pass, which subtracts means in float32 or finer. Second, a LayerNorm y = (x - μ) / √(σ² + ε)
    does not change when x is scaled, so Σ_c x_c ∂s/∂x_c = ε / (σ² + ε) Σ_c y_c ∂s/∂y_c. If the score reads x only
    through a LayerNorm, as it does for the patches of the last block, only this term with ε remains. The code computes
    |x ∂s/∂x| instead of |y ∂s/∂y|. Both are of similar size, so the bound allows four times as much.
    """
    precision = max(torch.finfo(A.dtype).eps, torch.finfo(G.dtype).eps)
    dtype = torch.promote_types(A.dtype, torch.float32)
    with torch.autocast(A.device.type, enabled=False):
        A, G = A.to(dtype), G.to(dtype)
        terms, variance = torch.linalg.vector_norm(G * A, 1, dim=1), A.var(dim=1, unbiased=False)
        share = 4 * norm_epsilon / (variance + norm_epsilon) if norm_epsilon else torch.zeros_like(variance)
        return terms * (share + 2 * precision + 4 * torch.finfo(dtype).eps)


def signed_maps(name: str, patches: Mapping[K, Tokens], pp_epsilon: float = DEFAULT_EPSILON) -> dict[K, Tensor]:
    """Return each layer's map (B, h, w) before ReLU, by a method of METHODS. `patches`: A and G, (B, C, h, w) each.

    Computes in float32 (float64 for a float64 model), regardless of the model's precision and of autocast.
    """
    method = cam_method(name, pp_epsilon)
    maps = {}
    for layer, (A, G) in patches.items():
        dtype = torch.promote_types(A.dtype, torch.float32)
        with torch.autocast(A.device.type, enabled=False):
            maps[layer] = method(A.to(dtype), G.to(dtype))
    return maps
