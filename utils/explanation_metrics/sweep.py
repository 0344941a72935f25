"""Maps of many methods, layers and sites for the same pictures, from one forward and one backward pass a batch."""

from __future__ import annotations

from typing import NamedTuple, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from utils.cam.layers import SITES, find_sites
from utils.cam.maps import FUSED, normalise, without_fused
from utils.cam.methods import ATTENTION_METHODS, METHODS
from utils.cam.targets import Target
from utils.explanation_metrics.localisation import Localisation, localise
from utils.explanation_metrics.samples import Samples
from utils.model.detector import LoadedDetector

CHUNK = 16  # maps judged at a time
ATTENTION = "attention"  # the site of the methods that read attention


class Spec(NamedTuple):
    """One kind of map."""

    method: str
    layer: str
    site: str

    def __str__(self) -> str:
        return f"{self.method} at {self.layer}, {self.site}"


class Swept(NamedTuple):
    """Maps and how well they find the masks, for the same N pictures. All on the CPU."""

    raw: dict[Spec, Tensor]  # (N, h, w) float32
    localisation: dict[Spec, Localisation]  # only the pictures whose mask can be judged against


class Plan(NamedTuple):
    """Which maps to make."""

    methods: list[str]
    sites: list[str]
    layers: list[str]

    def specs(self) -> list[Spec]:
        """Every map of the plan; the methods that read attention have one site of their own."""
        return [
            Spec(method, layer, site)
            for method in self.methods
            for site in ([ATTENTION] if method in ATTENTION_METHODS else self.sites)
            for layer in self.layers
        ]


def full_plan(detector: LoadedDetector, layers: Sequence[str]) -> Plan:
    """All methods at all sites of `layers`, which get `fused` beside them where there are two or more."""
    tower = detector.model.explained_tower
    named = without_fused(layers)
    points = [find_sites(tower, named, site) for site in SITES]
    sites = list(SITES) if any(a.module is not b.module for a, b in zip(*points)) else [SITES[0]]
    attends = all(point.reads_input and hasattr(point.module, "self_attn") for point in points[1])
    methods = [*METHODS, *(ATTENTION_METHODS if attends else ())]
    return Plan(methods, sites, [*named, FUSED] if len(named) > 1 else named)


def sweep(detector: LoadedDetector, plan: Plan, samples: Samples, target: Target, batch_size: int) -> Swept:
    """Make the plan's maps of all samples and judge them against the masks. Errors as `GradCAMMixin.explain`."""
    raw: dict[Spec, list[Tensor]] = {spec: [] for spec in plan.specs()}
    found: dict[Spec, list[Localisation]] = {spec: [] for spec in plan.specs()}
    count = len(samples.frames)
    with tqdm(total=count, unit="frame", desc=f"{samples.frames[0].dataset}, explanations") as bar:
        for start in range(0, count, batch_size):
            part = slice(start, min(start + batch_size, count))
            masked = samples.masked[part]
            masks = samples.masks[part][masked].to(detector.device)
            for spec, maps, judged in _batch(detector, plan, samples.pixels[part], masks, masked, target):
                raw[spec].append(maps)
                found[spec] += judged
            bar.update(part.stop - part.start)
    return Swept(
        {spec: torch.cat(parts) for spec, parts in raw.items()},
        {spec: Localisation(*map(torch.cat, zip(*parts))) for spec, parts in found.items() if parts},
    )


def _batch(
    detector: LoadedDetector, plan: Plan, pixels: Tensor, masks: Tensor, masked: Tensor, target: Target
) -> list[tuple[Spec, Tensor, list[Localisation]]]:
    """For each map of the plan: the batch's raw maps, and what `localise` says of those whose mask is `masked`."""
    side = detector.settings.resolution
    with detector.autocast():
        captured = detector.model.capture(
            {"image": detector.normalised(pixels)},
            layers=plan.layers,
            methods=plan.methods,
            sites=plan.sites,
            target=target,
            map_size=detector.model.patch_grid(side, side) or (side, side),  # the pictures' size comes in `_localised`
        )
    results = []
    for method in plan.methods:
        for site in [ATTENTION] if method in ATTENTION_METHODS else plan.sites:
            for layer, maps in captured.maps(method, site, detector.gradcam.pp_epsilon).items():
                judged = _localised(detector, maps.raw[masked.to(maps.raw.device)], masks)
                results.append((Spec(method, layer, site), maps.raw.float().cpu(), judged))
    return results


def _localised(detector: LoadedDetector, raw: Tensor, masks: Tensor) -> list[Localisation]:
    """What `localise` says, in parts small enough for the processor's cache; nothing where no picture has a mask."""
    parts = zip(raw.split(CHUNK), masks.split(CHUNK))
    return [localise(resized(detector, few), few_masks) for few, few_masks in parts if len(few)]


def resized(detector: LoadedDetector, raw: Tensor) -> Tensor:
    """Raw maps (N, h, w) → (N, H, W) in [0, 1] on the detector's device, as they are drawn."""
    side = detector.settings.resolution
    return normalise(raw.to(detector.device), (side, side))


def maps_of(
    detector: LoadedDetector,
    specs: Sequence[Spec],
    fused_layers: Sequence[str],
    pixels: Tensor,
    target: Target,
    batch_size: int,
) -> dict[Spec, Tensor]:
    """The raw maps (N, h, w) of some specs alone, on the CPU; `fused_layers` are those that `fused` is the mean of."""
    layers = list(dict.fromkeys(spec.layer for spec in specs))
    if FUSED in layers:
        layers = list(dict.fromkeys([*layers, *fused_layers]))
    plan = Plan(
        list(dict.fromkeys(spec.method for spec in specs)),
        [site for site in SITES if any(spec.site == site for spec in specs)],
        layers,
    )
    side = detector.settings.resolution
    no_masks = torch.zeros(0, side, side, dtype=torch.bool)
    raw: dict[Spec, list[Tensor]] = {spec: [] for spec in specs}
    for part in pixels.split(batch_size):
        for spec, maps, _ in _batch(detector, plan, part, no_masks, no_masks.new_zeros(len(part)), target):
            if spec in raw:
                raw[spec].append(maps)
    return {spec: torch.cat(parts) for spec, parts in raw.items()}
