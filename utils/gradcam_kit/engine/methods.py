"""Class activation maps, one function per method, beside its paper's formula.

Every function takes

* `A`: activations, (B, C, h, w): patch tokens on their grid, or a convolution's feature maps,
* `G`: gradients of the score with respect to `A`, same shape, dtype and device,

and returns the weighted sum over channels, (B, h, w), **before** the final ReLU: positive where the patch speaks for
the score, negative where it speaks against it. The engine takes the ReLU, so that the signed map costs nothing extra.
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
    """Grad-CAM: w_c = mean_hw G_c, map = Σ_c w_c A_c (Selvaraju et al. 2017, eq. 1 and 2)."""
    return weighted_sum(G.mean(dim=(2, 3)), A)


def grad_cam_pp(A: Tensor, G: Tensor, epsilon: float = DEFAULT_EPSILON) -> Tensor:
    """Grad-CAM++: α = G² / (2 G² + G³ Σ_hw A), w_c = Σ_hw α ReLU(G), map = Σ_c w_c A_c.

    Chattopadhay et al. 2018, eq. 10 and 19.

    The paper has post-ReLU maps, for which the denominator is positive wherever α counts. Tokens are signed, so it can
    cross zero: ε · max_chw G² of the same image keeps it away from there at any scale of the gradient, and α is 0
    where the whole is not positive. ε = 0 is the paper's formula.

    Computed with g = G / max_chw |G|: α is the same, and G³ can neither vanish nor overflow.
    """
    peak = G.abs().amax(dim=(1, 2, 3), keepdim=True)
    g = G / torch.where(peak > 0, peak, torch.ones_like(peak))
    g2 = g.square()
    denominator = 2 * g2 + g2 * g * (peak * A.sum(dim=(2, 3), keepdim=True)) + epsilon
    alpha = torch.where(denominator > 0, g2 / denominator, torch.zeros_like(G))
    return weighted_sum((alpha * G.relu()).sum(dim=(2, 3)), A)


def hires_cam(A: Tensor, G: Tensor) -> Tensor:
    """HiResCAM: map = Σ_c G_c A_c, each patch weighted by its own gradient (Draelos and Carin 2020, eq. 7)."""
    return (G * A).sum(dim=1)


def layer_cam(A: Tensor, G: Tensor) -> Tensor:
    """LayerCAM: map = Σ_c ReLU(G_c) A_c (Jiang et al. 2021, eq. 4 and 5)."""
    return (G.relu() * A).sum(dim=1)


def x_grad_cam(A: Tensor, G: Tensor) -> Tensor:
    """XGradCAM: w_c = Σ_hw G_c A_c / Σ_hw A_c, map = Σ_c w_c A_c (Fu et al. 2020, eq. 7).

    The paper has post-ReLU maps, whose sum is positive. Tokens are signed: a channel whose sum comes close to zero gets
    a large weight, and one whose sum is zero gets none.
    """
    total = A.sum(dim=(2, 3))
    w = torch.where(total != 0, (G * A).sum(dim=(2, 3)) / total, torch.zeros_like(total))
    return weighted_sum(w, A)


def weighted_sum(w: Tensor, A: Tensor) -> Tensor:
    """Σ_c w_c A_c, (B, h, w), of weights (B, C)."""
    return torch.bmm(w.unsqueeze(1), A.flatten(2)).view(len(A), *A.shape[2:])


METHODS: dict[str, Method] = {
    "gradcam": grad_cam,
    "gradcam++": grad_cam_pp,
    "hirescam": hires_cam,
    "layercam": layer_cam,
    "xgradcam": x_grad_cam,
}


def method_names() -> list[str]:
    """Every method's name: those above, `contrast`, those that read attention, and registered ones."""
    return [*METHODS, *CONTRASTS, *ATTENTION_METHODS]


def register_method(name: str, method: Method | AttentionMethod) -> None:
    """Make a method known to every call, flag and YAML, under a name that no other has.

    Args:
        method: a function of activations A and gradients G, both (B, C, h, w), that returns the signed map (B, h, w);
            or an `AttentionMethod`.

    Raises:
        InputError: a name that is taken or no plain word, or something that is no method.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9+_.-]*", name):
        raise InputError(f"method name {name!r}: give lower-case letters, digits and + _ . -, as in 'hirescam'")
    known = {**METHODS, **ATTENTION_METHODS}
    if name in (AUTO, TRANSPLANT, *CONTRASTS, *CLIP_METHODS) or (name in known and known[name] is not method):
        raise InputError(f"method {name!r} exists already: give yours another name")
    if isinstance(method, AttentionMethod):
        ATTENTION_METHODS[name] = method
    elif callable(method):
        METHODS[name] = method
    else:
        raise InputError(f"method {name!r} is {method!r}: give a function (A, G) -> (B, h, w), or an AttentionMethod")


def check_method(name: str) -> None:
    """Raises InputError for a name that no method has."""
    names = method_names()
    if name in CLIP_METHODS:
        raise InputError(
            f"method {name!r} is of clips of frames, and this detector reads images: use gradcam", "method"
        )
    if name not in names:
        raise InputError(f"method {name!r} is unknown; {did_you_mean(name, names)}allowed: {', '.join(names)}")


def cam_method(name: str, pp_epsilon: float = DEFAULT_EPSILON) -> Method:
    """The (A, G) function of a method of METHODS; `pp_epsilon` is Grad-CAM++'s ε."""
    if name == "gradcam++":
        return partial(grad_cam_pp, epsilon=pp_epsilon)
    return METHODS[name]


def leftover(A: Tensor, G: Tensor, norm_epsilon: float) -> Tensor:
    """What a sum Σ_c G_c A_c that is 0 may come to, (B, h, w); `norm_epsilon` is that of the LayerNorm that reads A.

    Two things keep it from 0. Each term is known to the precision of A and of G alone, and G to that in which the
    LayerNorm's backward pass subtracts means, which is float32 at least. And a LayerNorm
    y = (x - μ) / √(σ² + ε) does not change when x is scaled, so that Σ_c x_c ∂s/∂x_c = ε / (σ² + ε) Σ_c y_c ∂s/∂y_c:
    where a score reads x through a LayerNorm alone, as the patches of the last block, ε is all there is. Its terms
    Σ |y ∂s/∂y| are not those of the sum, but of their size: they are allowed four times as much.
    """
    precision = max(torch.finfo(A.dtype).eps, torch.finfo(G.dtype).eps)
    dtype = torch.promote_types(A.dtype, torch.float32)
    with torch.autocast(A.device.type, enabled=False):
        A, G = A.to(dtype), G.to(dtype)
        terms, variance = torch.linalg.vector_norm(G * A, 1, dim=1), A.var(dim=1, unbiased=False)
        share = 4 * norm_epsilon / (variance + norm_epsilon) if norm_epsilon else torch.zeros_like(variance)
        return terms * (share + 2 * precision + 4 * torch.finfo(dtype).eps)


def signed_maps(name: str, patches: Mapping[K, Tokens], pp_epsilon: float = DEFAULT_EPSILON) -> dict[K, Tensor]:
    """The map before ReLU of each layer, or of those that are stacked, by a method of METHODS; `patches` on their grid.

    Computed in float32 (float64 for a float64 model), whatever the precision of the model or of an autocast around.
    """
    method = cam_method(name, pp_epsilon)
    maps = {}
    for layer, (A, G) in patches.items():
        dtype = torch.promote_types(A.dtype, torch.float32)
        with torch.autocast(A.device.type, enabled=False):
            maps[layer] = method(A.to(dtype), G.to(dtype))
    return maps
