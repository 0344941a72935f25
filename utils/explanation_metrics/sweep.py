"""Maps of many methods, layers, sites and backward rules for the same images: one pass a batch for each rule."""

from __future__ import annotations

from typing import Mapping, NamedTuple, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from utils.allowed import SITES
from utils.cam.attention import has_attention
from utils.cam.layers import FUSED, SUM, find_sites, named_layers, summed_blocks
from utils.cam.maps import Canvas, normalise
from utils.cam.methods import ATTENTION_METHODS, METHODS, sites_of
from utils.cam.targets import Target
from utils.choice.candidates import BALANCED, PLAIN, can_balance, site_of
from utils.explanation_metrics.localisation import Localisation, localise
from utils.model.detector import LoadedDetector

CHUNK = 16  # maps localised at a time: what the processor's cache holds


class MapSpec(NamedTuple):
    """One kind of map: method, layer, site, backward rule. A control has its name for the method, and no layer."""

    method: str
    layer: str = ""
    site: str = ""
    backward: str = PLAIN

    @property
    def is_control(self) -> bool:
        """Whether this is a baseline map that ignores the detector."""
        return not self.layer

    def __str__(self) -> str:
        return f"{self.method} at {self.layer}, {self.where}"

    @property
    def where(self) -> str:
        """The site, and the backward rule where it is not the plain one."""
        return self.site if self.backward == PLAIN else f"{self.site}, {self.backward}"


class SweepPlan(NamedTuple):
    """Which maps to make: every method at every site (of its own) of every layer, by every backward rule.

    With both rules the balanced one is for the sites alone at which it makes a method's products add up.
    """

    methods: list[str]
    sites: list[str]
    layers: list[str]
    backwards: Sequence[str] = (PLAIN,)

    def specs(self, backward: str = "") -> list[MapSpec]:
        """Every map of the plan; with `backward` those of that rule."""
        return [
            MapSpec(method, layer, site, rule)
            for rule in ([backward] if backward else self.backwards)
            for method in self.methods
            for site in sites_of(method, self.sites)
            if self._worth(method, site, rule)
            for layer in self.layers
        ]

    def _worth(self, method: str, site: str, rule: str) -> bool:
        if rule == PLAIN or len(self.backwards) == 1:
            return True
        return method != "rollout" and site == site_of(method, rule)  # rollout has no gradient


def full_plan(detector: LoadedDetector, layers: Sequence[str]) -> SweepPlan:
    """All methods at all sites of `layers`, with `fused` beside them where there are two or more.

    Where `sum` is among them, methods whose maps do not add are left out. By both backward rules, where the tower can
    be balanced.
    """
    tower = detector.model.explained_tower
    named, summed = named_layers(layers), summed_blocks(tower, layers)
    read = [*named, *summed]
    points = [find_sites(tower, read, site) for site in SITES]
    sites = list(SITES) if any(a.module is not b.module for a, b in zip(*points)) else [SITES[0]]
    attention = [name for name, method in ATTENTION_METHODS.items() if not summed or method.sum_of is not None]
    methods = [*METHODS, *(attention if has_attention(tower, read) else ())]
    every = [*named, *([FUSED] if len(named) > 1 else []), *([SUM] if summed else [])]
    return SweepPlan(methods, sites, every, (PLAIN, BALANCED) if can_balance(tower) else (PLAIN,))


def make_maps(
    detector: LoadedDetector, plan: SweepPlan, pixels: Tensor, target: Target, batch_size: int, title: str = ""
) -> dict[MapSpec, Tensor]:
    """The plan's raw maps of every image.

    Args:
        pixels: (N, 3, R, R) uint8.
        title: of the progress bar; without one there is none.

    Returns:
        (N, h, w) float32 ≥ 0 for each spec of the plan, on the CPU.

    Raises:
        InputError, NonFiniteMapError: as `GradCAMMixin.explain`.
    """
    found: dict[MapSpec, list[Tensor]] = {spec: [] for spec in plan.specs()}
    with tqdm(total=len(pixels), unit="frame", desc=title, disable=not title) as bar:
        for part in pixels.split(batch_size):
            for backward in plan.backwards:
                for spec, raw in _batch_maps(detector, plan, backward, part, target).items():
                    found[spec].append(raw)
            bar.update(len(part))
    return {spec: torch.cat(parts) for spec, parts in found.items()}


def _batch_maps(
    detector: LoadedDetector, plan: SweepPlan, backward: str, pixels: Tensor, target: Target
) -> dict[MapSpec, Tensor]:
    side, specs = detector.settings.resolution, plan.specs(backward)
    kinds = dict.fromkeys((spec.method, spec.site) for spec in specs)
    with detector.autocast():
        captured = detector.model.capture(
            {"image": detector.normalised(pixels)},
            layers=plan.layers,
            methods=list(dict.fromkeys(method for method, _ in kinds)),
            sites=[site for site in plan.sites if any(site == used for _, used in kinds)] or plan.sites[:1],
            target=target,
            backward=backward,
            map_size=detector.model.patch_grid(side, side) or (side, side),  # `resized` brings them to image size
        )
    return {
        MapSpec(method, layer, site, backward): torch.where(
            maps.empty[:, None, None], torch.zeros_like(maps.raw), maps.raw
        )
        .float()
        .cpu()
        for method, site in kinds
        for layer, maps in captured.maps(method, site, detector.gradcam.pp_epsilon).items()
    }


def maps_of(
    detector: LoadedDetector,
    specs: Sequence[MapSpec],
    fused_layers: Sequence[str],
    pixels: Tensor,
    target: Target,
    batch_size: int,
) -> dict[MapSpec, Tensor]:
    """As `make_maps`, of some specs alone; `fused_layers` are those that `fused` is the mean of."""
    layers = list(dict.fromkeys(spec.layer for spec in specs))
    if FUSED in layers:
        layers = list(dict.fromkeys([*layers, *fused_layers]))
    maps: dict[MapSpec, Tensor] = {}
    for backward in dict.fromkeys(spec.backward for spec in specs):
        of_rule = [spec for spec in specs if spec.backward == backward]
        methods = list(dict.fromkeys(spec.method for spec in of_rule))
        sites = [site for site in SITES if any(spec.site == site for spec in of_rule)]
        plan = SweepPlan(methods, sites, layers, (backward,))
        maps.update(make_maps(detector, plan, pixels, target, batch_size))
    return {spec: maps[spec] for spec in specs}


def resized(detector: LoadedDetector, raw: Tensor) -> Tensor:
    """Raw maps (N, h, w) → (N, R, R) in [0, 1] on the detector's device, as they are drawn."""
    side = detector.settings.resolution
    return normalise(raw.to(detector.device), Canvas.of((side, side), detector.model.token_grid(side, side)))


def localise_maps(
    detector: LoadedDetector, maps: Mapping[MapSpec, Tensor], masks: Tensor, masked: Tensor
) -> dict[MapSpec, Localisation]:
    """How well each kind of map finds the masks, of the M ≥ 1 images that are `masked`.

    Args:
        maps: raw, (N, h, w) each.
        masks: (N, R, R) bool.
        masked: (N,) bool.
    """
    parts = masked.nonzero().flatten().split(CHUNK)
    found = {}
    for spec, raw in tqdm(maps.items(), unit="map", desc="localisation"):
        scores = [localise(resized(detector, raw[part]), masks[part].to(detector.device)) for part in parts]
        found[spec] = Localisation(*map(torch.cat, zip(*scores)))
    return found
