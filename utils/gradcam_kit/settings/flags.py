"""The flags that all commands share: one name, one meaning and one help text for the same thing everywhere.

Where a flag has two names, the first is that of its config key, or nearest to it, and the second its short form. A flag
with a config key is None where it is not given: then the YAML's value counts, and only without one the default.
"""

from __future__ import annotations

from argparse import _ActionsContainer
from collections.abc import Sequence

from ..base.allowed import (
    BACKWARD_CHOICES,
    BACKWARD_PRECISIONS,
    CHECK_MAPS,
    COLORMAPS,
    DEFAULT_IMAGES,
    IMAGE_FORMATS,
    METHOD_CHOICES,
    PRECISIONS,
    SITE_CHOICES,
)
from ..base.command import count


def unless_configured(default: object) -> str:
    """How a help text gives the default of a flag that has a config key."""
    return f"(default: as the YAML says, else {default})"


def add_detector_flags(p: _ActionsContainer) -> None:
    """Which detector, with which weights, on which device, in which precision."""
    p.add_argument(
        "--detector_path", metavar="YAML", help="the detector's YAML, e.g. config/detector/clip_gradcam.yaml"
    )
    p.add_argument("--weights_path", metavar="FILE", help="checkpoint of the whole detector: .pth or .safetensors")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n>")
    p.add_argument("--precision", default="fp32", choices=PRECISIONS, help="of the detector; maps are always float32")


def add_map_flags(p: _ActionsContainer, targets: Sequence[str], check_maps: str) -> None:
    """Which maps are made, how they are checked and drawn. `check_maps`: the default of that flag."""
    p.add_argument(
        "--gradcam_layers",
        "--layers",
        nargs="+",
        metavar="LAYER",
        help="auto, or e.g. encoder.layers.23 encoder.layers.20, or 23 20, or -1 " + unless_configured("auto"),
    )
    p.add_argument(
        "--gradcam_method",
        "--method",
        choices=METHOD_CHOICES,
        help="how maps are made; auto: chosen by cause, for these weights and images " + unless_configured("auto"),
    )
    p.add_argument(
        "--gradcam_target",
        "--target",
        metavar="TARGET",
        help=f"what maps explain: {', '.join(targets)}, or the name of a class " + unless_configured("predicted"),
    )
    p.add_argument(
        "--gradcam_site",
        "--site",
        choices=SITE_CHOICES,
        help="where in a block; auto: where the method's formula holds " + unless_configured("auto"),
    )
    p.add_argument(
        "--gradcam_backward",
        "--backward",
        choices=BACKWARD_CHOICES,
        help="what the gradient takes for constant " + unless_configured("auto"),
    )
    p.add_argument(
        "--backward_precision",
        dest="gradcam_backward_precision",
        choices=BACKWARD_PRECISIONS,
        help="of the backward pass's matrix products; auto: the fastest on the device " + unless_configured("fp32"),
    )
    p.add_argument(
        "--gradcam_signed",
        "--signed",
        action="store_true",
        default=None,
        help="evidence for fake red, for real blue, of the margin fake - real " + unless_configured("off"),
    )
    p.add_argument(
        "--gradcam_colormap",
        "--colormap",
        choices=COLORMAPS,
        help="of the overlays " + unless_configured(COLORMAPS[0]),
    )
    p.add_argument(
        "--calibration_images",
        type=count,
        default=DEFAULT_IMAGES,
        metavar="N",
        help="images on which the map is chosen, or a named one judged; 0: neither",
    )
    p.add_argument(
        "--check_maps",
        nargs="?",
        const="on",
        default=check_maps,
        choices=CHECK_MAPS,
        help="check every map by cause; auto: not where all samples are explained",
    )
    p.add_argument("--image_format", default="png", choices=IMAGE_FORMATS, help="of overlays and comparisons")
    p.add_argument("--save_raw", action="store_true", help="also keep the raw maps, one .npz per sample")


def read_as(p: _ActionsContainer) -> dict[str, str]:
    """Config key or attribute → the flag that sets it, for messages."""
    return {action.dest: action.option_strings[0] for action in p._actions if action.option_strings}
