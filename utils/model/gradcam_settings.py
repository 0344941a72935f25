"""The `gradcam_*` keys of a detector's config, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, NamedTuple

from utils.allowed import (
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
from utils.cam.heads import named_classes
from utils.cam.methods import DEFAULT_EPSILON
from utils.choice.candidates import Candidate, Named, site_of
from utils.errors import InputError, did_you_mean
from utils.model.config_values import Section

GRADCAM_KEYS = (
    "gradcam_enabled", "gradcam_layers", "gradcam_save_dir", "gradcam_method", "gradcam_target", "gradcam_site",
    "gradcam_backward", "gradcam_samples", "gradcam_pp_epsilon", "gradcam_colormap", "gradcam_signed",
    "gradcam_classes", "gradcam_backward_precision",
)  # fmt: skip


class GradCAMSettings(NamedTuple):
    """The `gradcam_*` keys of a config.

    `layers` None means the tower's last block; `[AUTO]`, and `method` AUTO, that they are to be chosen (`chooses`), and
    only then `site` and `backward` may be AUTO, too. `classes` and `labels` as in `utils.cam.heads.HeadReader`.
    """

    enabled: bool
    layers: list[str] | None
    save_dir: Path
    method: str
    target: str
    site: str
    backward: str
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
        return AUTO in (self.method, *(self.layers or ()))

    @property
    def named(self) -> Named:
        """What of the map is named."""
        layers = None if self.layers is None or AUTO in self.layers else tuple(self.layers)
        method, site, backward = (None if name == AUTO else name for name in (self.method, self.site, self.backward))
        return Named(method, layers, site, backward)

    def plainly(self) -> GradCAMSettings:
        """The same with nothing left to be chosen: Grad-CAM, the last block, where no other method, layer is named."""
        named = self.named
        return self._replace(
            layers=None if named.layers is None else list(named.layers),
            method=named.method or "gradcam",
            site=named.site or SITES[0],
            backward=named.backward or BACKWARDS[0],
        )

    def using(self, chosen: Candidate) -> GradCAMSettings:
        """The same with that kind of map, at all layers where they are named."""
        return self._replace(
            method=chosen.method,
            layers=list(self.named.layers or (chosen.layer,)),
            site=chosen.site if chosen.site in SITES else SITES[0],
            backward=chosen.backward,
        )


def gradcam_settings(
    config: Mapping[str, Any], where: str = "config", flags: Mapping[str, str] | None = None
) -> GradCAMSettings:
    """The Grad-CAM settings of a detector's config. Raises InputError, whose message begins with `where`.

    `flags` as for `utils.model.config_values.Section`.
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
    site = section.choice("gradcam_site", SITE_CHOICES, AUTO if AUTO in (method, *(layers or ())) else SITES[0])
    backward = section.choice("gradcam_backward", BACKWARD_CHOICES, AUTO)
    if AUTO not in (method, *(layers or ())):  # what is named is drawn as named
        backward = BACKWARDS[0] if backward == AUTO else backward
        site = site_of(method, backward) if site == AUTO else site
        site = site if site in SITES else SITES[0]  # of a method that reads attention, which has none
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
        layers=layers,
        save_dir=Path(section.string("gradcam_save_dir", "./gradcam_visualizations")),
        method=method,
        target="margin" if signed else target,
        site=site,
        backward=backward,
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
