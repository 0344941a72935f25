"""The `gradcam_*` keys of a detector's config, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.allowed import AUTO, BACKWARDS, SITES, TARGETS
from ..base.errors import InputError, did_you_mean
from ..engine.heads import named_classes
from ..engine.recipe import Recipe, site_of
from .config_values import Section
from .options import OPTIONS, method_names

GRADCAM_KEYS = [key for key in OPTIONS if key.startswith("gradcam_")]


@dataclass(frozen=True, slots=True, kw_only=True)
class GradCAMSettings:
    """The `gradcam_*` keys of a config. `classes` and `labels` as in `engine.heads.HeadReader`."""

    enabled: bool
    recipe: Recipe  # which map; a field "auto" is left to a trial
    save_dir: Path
    target: str
    backward_precision: str
    samples: int | None
    pp_epsilon: float
    colormap: str
    signed: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: dict[str, bool] | None
    labels: dict[str, int]
    says_nothing: bool  # neither method nor layers are in the config, so that only a command chooses by itself

    @property
    def chooses(self) -> bool:
        """Whether the map is still to be chosen."""
        return self.recipe.is_open


def gradcam_settings(
    config: Mapping[str, Any], where: str = "config", flags: Mapping[str, str] | None = None
) -> GradCAMSettings:
    """The Grad-CAM settings of a detector's config. Raises InputError, whose message begins with `where`.

    `flags` as for `settings.config_values.Section`.
    """
    for key in map(str, config):
        if key.startswith("gradcam_") and key not in GRADCAM_KEYS:
            close = did_you_mean(key, GRADCAM_KEYS)
            raise InputError(f"{where}: the key {key} is unknown; {close}allowed: {', '.join(GRADCAM_KEYS)}")
    section = Section(config, where, flags)
    classes = section["gradcam_classes"]
    classes = None if classes is None else named_classes(classes, f"{where}: gradcam_classes")
    labels = {str(name): number for name, number in section.get("label_dict", {}).items() if type(number) is int}
    target = section.get("gradcam_target", "predicted", list(dict.fromkeys((*TARGETS, *(classes or labels)))))
    signed = section["gradcam_signed"]
    if signed and target not in ("predicted", "margin"):
        raise InputError(
            f"{section.name('gradcam_signed')} shows the evidence for fake and for real at once, so gradcam_target"
            f" {target!r} does not go with it; leave gradcam_target out, or set it to margin"
        )
    return GradCAMSettings(
        enabled=section["gradcam_enabled"],
        recipe=_recipe(section),
        save_dir=Path(section["gradcam_save_dir"]),
        target="margin" if signed else target,
        backward_precision=section["gradcam_backward_precision"],
        samples=section["gradcam_samples"],
        pp_epsilon=section["gradcam_pp_epsilon"],
        colormap=section["gradcam_colormap"],
        signed=signed,
        mean=section["mean"],
        std=section["std"],
        classes=classes,
        labels=labels,
        says_nothing=not (section.has("gradcam_method") or section.has("gradcam_layers")),
    )


def _recipe(section: Section) -> Recipe:
    """Which map: what is named is drawn as named, anything else is left to a trial."""
    layers = section["gradcam_layers"]
    if layers and AUTO in layers and len(layers) > 1:
        raise InputError(
            f"{section.name('gradcam_layers')} names {AUTO!r} beside others; give {AUTO} alone, or the layers"
        )
    method = section.get("gradcam_method", "gradcam" if layers and AUTO not in layers else AUTO, method_names())
    if method == AUTO and layers is None:
        layers = [AUTO]
    is_open = AUTO in (method, *(layers or ()))
    site = section.get("gradcam_site", AUTO if is_open else SITES[0])
    backward = section.get("gradcam_backward", AUTO)
    if not is_open:
        backward = BACKWARDS[0] if backward == AUTO else backward
        site = site_of(method, backward) if site == AUTO else site
    return Recipe(method, layers, site, backward)
