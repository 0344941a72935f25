"""The `gradcam_*` keys of a detector's config, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, NamedTuple

from utils.cam.backward import BACKWARDS
from utils.cam.layers import SITES
from utils.cam.methods import DEFAULT_EPSILON, METHOD_NAMES
from utils.cam.targets import TARGETS
from utils.cam.transplant import TRANSPLANT
from utils.errors import InputError, did_you_mean
from utils.model.config_values import Section

AUTO = "auto"
BACKWARD_CHOICES = (AUTO, *BACKWARDS)
COLORMAPS = ("jet", "turbo", "viridis", "magma")

GRADCAM_KEYS = (
    "gradcam_enabled", "gradcam_layers", "gradcam_save_dir", "gradcam_method", "gradcam_target", "gradcam_site",
    "gradcam_backward", "gradcam_samples", "gradcam_pp_epsilon", "gradcam_colormap", "gradcam_signed",
)  # fmt: skip


class GradCAMSettings(NamedTuple):
    """The `gradcam_*` keys of a config. `layers` None means the tower's last block."""

    enabled: bool
    layers: list[str] | None
    save_dir: Path
    method: str
    target: str
    site: str
    backward: str
    samples: int | None
    pp_epsilon: float
    colormap: str
    signed: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]


def gradcam_settings(config: Mapping[str, Any], where: str = "config") -> GradCAMSettings:
    """The Grad-CAM settings of a detector's config. Raises InputError, whose message begins with `where`."""
    for key in config:
        if str(key).startswith("gradcam_") and key not in GRADCAM_KEYS:
            raise InputError(
                f"{where}: the key {key} is unknown; {did_you_mean(str(key), GRADCAM_KEYS)}"
                f"allowed: {', '.join(GRADCAM_KEYS)}"
            )
    section = Section(config, where)
    backward = section.choice("gradcam_backward", BACKWARD_CHOICES, AUTO)
    signed = section.flag("gradcam_signed", False)
    target = section.choice("gradcam_target", TARGETS, "predicted")
    if signed and target not in ("predicted", "margin"):
        raise InputError(
            f"{where}: gradcam_signed shows the evidence for fake and for real at once, so gradcam_target {target!r}"
            " does not go with it; leave gradcam_target out, or set it to margin"
        )
    return GradCAMSettings(
        enabled=section.flag("gradcam_enabled", False),
        layers=section.strings("gradcam_layers") if section.has("gradcam_layers") else None,
        save_dir=Path(section.string("gradcam_save_dir", "./gradcam_visualizations")),
        method=section.choice("gradcam_method", (*METHOD_NAMES, TRANSPLANT), "gradcam"),
        target="margin" if signed else target,
        site=section.choice("gradcam_site", SITES, "layer_norm1"),
        backward=BACKWARDS[0] if backward == AUTO else backward,
        samples=section.count("gradcam_samples", least=1) if section.has("gradcam_samples") else None,
        pp_epsilon=section.number("gradcam_pp_epsilon", DEFAULT_EPSILON),
        colormap=section.choice("gradcam_colormap", COLORMAPS, "jet"),
        signed=signed,
        mean=section.channels("mean", (0.5, 0.5, 0.5)),
        std=section.channels("std", (0.5, 0.5, 0.5)),
    )
