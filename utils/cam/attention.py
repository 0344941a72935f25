"""Maps from a block's attention: LeGrad, and attention rollout as a baseline that knows no class.

Fast attention kernels never form the probabilities P = softmax(q kᵀ / √d), and nothing here makes them: the forward
pass stays exactly what it is. P is computed once more from the recorded queries and keys. Its gradient needs no P at
all: a head's output is O = P V, so ∂score/∂P = (∂score/∂O) Vᵀ, and O is what the block's output projection reads.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from utils.cam.layers import LayerError, Site, block_names, find_sites
from utils.cam.maps import LayerMaps, NonFiniteMapError
from utils.cam.tokens import Tokens


class Attention(NamedTuple):
    """The attention of one encoder block. `name` is the layer's as the caller wrote it."""

    name: str
    block: str
    module: nn.Module

    @property
    def heads(self) -> int:
        return int(self.module.num_heads)  # type: ignore[arg-type]  # an attribute of CLIP's attention


class AttentionPair(NamedTuple):
    """The maps of B pictures of T tokens, both (B, T), prefix tokens included."""

    signed: Tensor
    raw: Tensor


def find_attention(tower: nn.Module, layers: Sequence[str]) -> list[Attention]:
    """The attention of the blocks that `layers` name. Raises LayerError for a layer that is no block with q, k, v."""
    names = {module: name for name, module in tower.named_modules()}
    found = []
    for site in find_sites(tower, layers, "residual"):
        attention = getattr(site.module, "self_attn", None) if site.reads_input else None
        if attention is None or not all(hasattr(attention, f"{one}_proj") for one in ("q", "k", "v", "out")):
            raise LayerError(
                f"layer {site.name!r} has no attention to read (q_proj, k_proj, v_proj, out_proj): legrad and rollout"
                " take encoder blocks of a CLIP tower; use gradcam or layercam for others"
            )
        found.append(Attention(site.name, names[site.module], attention))
    return found


def blocks_up_to(tower: nn.Module, attention: Sequence[Attention]) -> list[Attention]:
    """Every block from the first one to the last of `attention`: what rollout multiplies."""
    names = block_names(tower)
    last = max(names.index(one.block) for one in attention)
    return find_attention(tower, names[: last + 1])


def output_sites(attention: Sequence[Attention]) -> list[Site]:
    """Where the engine reads ∂score/∂O: the input of each block's output projection."""
    return [Site(f"{one.block}.out_proj", one.module.get_submodule("out_proj"), True) for one in attention]


@contextmanager
def recorded(attention: Sequence[Attention], projections: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What some projections ("q_proj", ...) of some blocks return, detached, under `<block>.<projection>`."""
    record: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            record[name] = output.detach()

        return hook

    with ExitStack() as hooks:
        for one in attention:
            for projection in projections:
                module = one.module.get_submodule(projection)
                hooks.callback(module.register_forward_hook(keep(f"{one.block}.{projection}")).remove)
        yield record


# ------------------------------------------------------------------------------------------------------------- methods


def by_head(tokens: Tensor, heads: int) -> Tensor:
    """(B, T, heads · d) → (B, heads, T, d), float32 (float64 for a float64 model)."""
    tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2)


def attention_gradient(V: Tensor, G: Tensor, heads: int) -> Tensor:
    """∂score/∂P (B, heads, T, T) from the values `V` and `G` = ∂score/∂O, both (B, T, heads · d)."""
    return by_head(G, heads) @ by_head(V, heads).transpose(2, 3)


def attention_probabilities(Q: Tensor, K: Tensor, heads: int) -> Tensor:
    """P (B, heads, T, T) from queries and keys (B, T, heads · d)."""
    q = by_head(Q, heads)
    return (q @ by_head(K, heads).transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1)


def legrad(V: Tensor, G: Tensor, heads: int) -> AttentionPair:
    """LeGrad: mean over heads and queries of ReLU(∂score/∂P), one value a key (Bousselham et al. 2024, eq. 6 to 8).

    The paper gives each layer a score of its own, by comparing that layer's tokens with a text. A detector's head is
    for its last block alone, so the score here is the detector's own. Signed: the same mean without the ReLU.
    """
    gradient = attention_gradient(V, G, heads)
    return AttentionPair(gradient.mean(dim=(1, 2)), gradient.relu().mean(dim=(1, 2)))


def rollout(probabilities: Sequence[Tensor]) -> AttentionPair:
    """Attention rollout: ∏ (P̄ + I) / 2 over the blocks, first to last; the CLS row (Abnar and Zuidema 2020, eq. 1).

    `probabilities`: (B, heads, T, T) each, P̄ their mean over heads. It knows no class, and nothing in it is negative.
    """
    joint = None
    for P in probabilities:
        step = (P.mean(dim=1) + torch.eye(P.shape[-1], dtype=P.dtype, device=P.device)) / 2
        joint = step if joint is None else step @ joint
    if joint is None:
        raise ValueError("rollout needs at least one block")
    return AttentionPair(joint[:, 0], joint[:, 0])


def attention_pairs(
    method: str,
    tower: nn.Module,
    attention: Sequence[Attention],
    record: Mapping[str, Tensor],
    captured: Mapping[str, Tokens],
) -> dict[str, AttentionPair]:
    """The maps of each layer of `attention` by `method`, "legrad" or "rollout", from what one pass has left."""
    with torch.autocast(next(iter(record.values())).device.type, enabled=False):
        if method == "legrad":
            return {
                one.name: legrad(record[f"{one.block}.v_proj"], captured[f"{one.block}.out_proj"].G, one.heads)
                for one in attention
            }
        blocks = blocks_up_to(tower, attention)
        steps = [
            attention_probabilities(record[f"{b.block}.q_proj"], record[f"{b.block}.k_proj"], b.heads) for b in blocks
        ]
        order = [b.block for b in blocks]
        return {one.name: rollout(steps[: order.index(one.block) + 1]) for one in attention}


def pair_maps(pairs: Mapping[str, AttentionPair], grid: tuple[int, int], size: tuple[int, int]) -> dict[str, LayerMaps]:
    """The prefix tokens dropped, the patches in rows, resized to `size`. Raises NonFiniteMapError."""
    maps = {}
    for name, pair in pairs.items():
        signed, raw = (one[:, one.shape[1] - grid[0] * grid[1] :].unflatten(1, grid) for one in pair)
        finite = torch.isfinite(raw).flatten(1).all(dim=1).cpu()
        if not finite.all():
            samples = (~finite).nonzero().flatten().tolist()
            raise NonFiniteMapError(
                f"layer {name!r}: the attention map of picture(s) {samples} of the batch is NaN or infinite;"
                " check those pictures and the weights, or use --precision fp32",
                samples,
            )
        maps[name] = LayerMaps.of(signed, raw, size)
    return maps
