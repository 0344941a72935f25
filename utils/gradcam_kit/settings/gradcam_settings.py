"""The `gradcam_*` keys of a detector's config, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.allowed import (
    AUTO,
    BACKWARD_CHOICES,
    BACKWARD_PRECISIONS,
    BACKWARDS,
    COLORMAPS,
    METHOD_CHOICES,
    SITE_CHOICES,
    SITES,
    TARGETS,
)
from ..base.errors import InputError, did_you_mean
from ..engine.heads import named_classes
from ..engine.methods import DEFAULT_EPSILON
from ..engine.recipe import Recipe, site_of
from .config_values import Section

GRADCAM_KEYS = (
    "gradcam_enabled", "gradcam_layers", "gradcam_save_dir", "gradcam_method", "gradcam_target", "gradcam_site",
    "gradcam_backward", "gradcam_samples", "gradcam_pp_epsilon", "gradcam_colormap", "gradcam_signed",
    "gradcam_classes", "gradcam_backward_precision",
)  # fmt: skip


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
    for key in config:
        if str(key).startswith("gradcam_") and key not in GRADCAM_KEYS:
            raise InputError(
                f"{where}: the key {key} is unknown; {did_you_mean(str(key), GRADCAM_KEYS)}"
                f"allowed: {', '.join(GRADCAM_KEYS)}"
            )
    named = config.get("gradcam_layers")
    if type(named) is int or (isinstance(named, (list, tuple)) and any(type(one) is int for one in named)):
        numbers = named if isinstance(named, (list, tuple)) else [named]
        config = {**config, "gradcam_layers": [str(one) if type(one) is int else one for one in numbers]}
    section = Section(config, where, flags)
    layers = section.strings("gradcam_layers") if section.has("gradcam_layers") else None
    method = section.choice("gradcam_method", METHOD_CHOICES, "gradcam" if layers and AUTO not in layers else AUTO)
    if layers and AUTO in layers and len(layers) > 1:
        raise InputError(
            f"{section.name('gradcam_layers')} names {AUTO!r} beside others; give {AUTO} alone, or the layers"
        )
    if method == AUTO and layers is None:
        layers = [AUTO]
    is_open = AUTO in (method, *(layers or ()))
    site = section.choice("gradcam_site", SITE_CHOICES, AUTO if is_open else SITES[0])
    backward = section.choice("gradcam_backward", BACKWARD_CHOICES, AUTO)
    if not is_open:  # what is named is drawn as named
        backward = BACKWARDS[0] if backward == AUTO else backward
        site = site_of(method, backward) if site == AUTO else site
    signed = section.flag("gradcam_signed", False)
    classes = (
        named_classes(config["gradcam_classes"], f"{where}: gradcam_classes")
        if section.has("gradcam_classes")
        else None
    )
    labels = {str(name): number for name, number in section.mapping("label_dict", {}).items() if type(number) is int}
    target = section.choice("gradcam_target", list(dict.fromkeys((*TARGETS, *(classes or labels)))), "predicted")
    if signed and target not in ("predicted", "margin"):
        raise InputError(
            f"{section.name('gradcam_signed')} shows the evidence for fake and for real at once, so gradcam_target"
            f" {target!r} does not go with it; leave gradcam_target out, or set it to margin"
        )
    return GradCAMSettings(
        enabled=section.flag("gradcam_enabled", False),
        recipe=Recipe(method, layers, site, backward),
        save_dir=Path(section.string("gradcam_save_dir", "./gradcam_visualizations")),
        target="margin" if signed else target,
        backward_precision=section.choice("gradcam_backward_precision", BACKWARD_PRECISIONS, "fp32"),
        samples=section.count("gradcam_samples", least=1) if section.has("gradcam_samples") else None,
        pp_epsilon=section.number("gradcam_pp_epsilon", DEFAULT_EPSILON),
        colormap=section.choice("gradcam_colormap", COLORMAPS, "jet"),
        signed=signed,
        mean=section.channels("mean", (0.5, 0.5, 0.5)),
        std=section.channels("std", (0.5, 0.5, 0.5)),
        classes=classes,
        labels=labels,
        says_nothing=not (section.has("gradcam_method") or section.has("gradcam_layers")),
    )
