"""The engine's face: one forward and one backward pass, from which the maps of all layers, methods and sites follow.

`utils/cam/tokens.py` reads tokens and gradients, `utils/cam/methods.py` turns them into maps, and
`utils/cam/attention.py` does so from a block's attention. The model is left exactly as it was found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Mapping, Sequence

from torch import Tensor, nn

from utils.cam.attention import (
    Attention,
    attention_pairs,
    blocks_up_to,
    find_attention,
    output_sites,
    pair_maps,
    recorded,
)
from utils.cam.layers import LayerError, Site, find_sites
from utils.cam.maps import FUSED, LayerMaps, fused, layer_maps, without_fused
from utils.cam.methods import ATTENTION_METHODS, DEFAULT_EPSILON, cam_method
from utils.cam.targets import Target
from utils.cam.tokens import Prediction, Tokens, token_gradients


@dataclass(frozen=True)
class Explanation:
    """A batch explained: `prediction` is the detector's own output of the same forward pass, detached.

    `target` names what each picture's map explains ("fake", "real" or "margin"); `layers` maps the layer's name, as it
    was given, to its maps, in the order asked for.
    """

    prediction: Prediction
    target: list[str]
    layers: dict[str, LayerMaps]

    @property
    def logits(self) -> Tensor:
        """(B, 2): real, fake."""
        return self.prediction["cls"]


# -------------------------------------------------------------------------------------------- one forward, one backward


# --------------------------------------------------------------------------------------------------- tokens to pictures


def both_classes(fake: Explanation, real: Explanation) -> Explanation:
    """Two explanations of the same batch as one, with the layers `<layer>_fake` and `<layer>_real` side by side."""
    layers = {}
    for name in fake.layers:
        layers[f"{name}_fake"] = fake.layers[name]
        layers[f"{name}_real"] = real.layers[name]
    return Explanation(fake.prediction, ["both"] * len(fake.target), layers)


PROJECTIONS = {"legrad": ("v_proj",), "rollout": ("q_proj", "k_proj")}


@dataclass(frozen=True)
class OnePass:
    """What one pass has left. `prediction` and `target` as in `utils.gradcam.Explanation`; ask `maps` for the rest."""

    prediction: Prediction
    target: list[str]
    layers: Sequence[str]
    tower: nn.Module
    attention: list[Attention]
    record: Mapping[str, Tensor]  # projections of the attention, as `recorded` names them
    captured: Mapping[str, Tokens]  # by `_key`, and the output projections' as `output_sites` names them
    keys: Mapping[tuple[str, str], str]  # (layer, site) → key of `captured`
    grid: tuple[int, int] | None
    size: tuple[int, int]

    def maps(self, method: str, site: str, pp_epsilon: float = DEFAULT_EPSILON) -> dict[str, LayerMaps]:
        """The maps of every layer by one method at one site, both among those that the pass was made for.

        Raises LayerError where a gradient is structurally zero, NonFiniteMapError where a map is not finite.
        """
        named = without_fused(self.layers)
        if method in ATTENTION_METHODS:
            if self.grid is None:
                raise LayerError(f"method {method!r} needs patch tokens, which this detector's network has not")
            pairs = attention_pairs(method, self.tower, self.attention, self.record, self.captured)
            found = pair_maps(pairs, self.grid, self.size)
        else:
            tokens = {layer: self.captured[self.keys[layer, site]] for layer in named}
            found = layer_maps(tokens, cam_method(method, pp_epsilon), self.grid, self.size)
        if FUSED in self.layers:
            found[FUSED] = fused(list(found.values()), self.size)
        return {layer: found[layer] for layer in dict.fromkeys(self.layers)}


def run_once(
    model: nn.Module,
    tower: nn.Module,
    forward: Callable[[], Prediction],
    layers: Sequence[str],
    methods: Sequence[str],
    sites: Sequence[str],
    target: Target,
    label: Tensor | None,
    grid: tuple[int, int] | None,
    size: tuple[int, int],
) -> OnePass:
    """Run `forward` once and differentiate once, for all `methods` at all `sites` of all `layers`.

    `grid`: rows and columns of patches, None for a convolutional network. `size`: (H, W) of the maps.
    Raises InputError for unknown methods and sites, LayerError for layers that cannot be explained.
    """
    named = without_fused(layers)
    for method in methods:
        if method not in ATTENTION_METHODS:
            cam_method(method)
    token_sites, keys = _token_sites(tower, named, sites)
    by_attention = [method for method in methods if method in ATTENTION_METHODS]
    attention = find_attention(tower, named) if by_attention else []
    needed = blocks_up_to(tower, attention) if "rollout" in by_attention else attention
    projections = [projection for method in by_attention for projection in PROJECTIONS[method]]
    tapped_sites = token_sites if set(methods) - set(ATTENTION_METHODS) else []
    if "legrad" in by_attention:
        tapped_sites = [*tapped_sites, *output_sites(attention)]
    with recorded(needed, projections) as record:
        prediction, names, captured = token_gradients(model, tapped_sites, forward, target, label)
    return OnePass(prediction, names, layers, tower, attention, record, captured, keys, grid, size)


def _token_sites(
    tower: nn.Module, layers: Sequence[str], sites: Sequence[str]
) -> tuple[list[Site], dict[tuple[str, str], str]]:
    """The points to tap, each under a name of its own, and those names by (layer, site)."""
    found: list[Site] = []
    keys = {}
    for site in sites:
        for point in find_sites(tower, layers, site):
            key = point.name if len(sites) == 1 else f"{point.name} at {site}"
            keys[point.name, site] = key
            found.append(point._replace(name=key))
    return found, keys
