"""Try a detector in a browser: drop an image or a video, see score and map, paint over a region to see its effect."""

from __future__ import annotations

from collections.abc import Sequence

from ..settings.flags import OptionParser

HINTS = {"device": "--device", "precision": "--precision", "weights": "--weights_path"}


def parser() -> OptionParser:
    return OptionParser("python -m utils.app", __doc__ or "")


def main(argv: Sequence[str]) -> int:
    """Run the server until it is interrupted. Return the exit code. Raises InputError."""
    flags_of = parser()
    args = flags_of.parse_args(argv)
    from ..base.packages import require

    require("gradio", "the live app")
    from ..media.single_images import SingleImages
    from ..model.load import load_named_detector, named_detector
    from .live_detector import LiveDetector
    from .page import serve

    flags = {"gradcam_enabled": True, **flags_of.config(args)}
    settings = named_detector(args.detector_path, flags, flags_of.flag_names)
    detector = load_named_detector(settings, args.device, args.precision)
    live = LiveDetector.of(detector)
    SingleImages(detector, live.photographs, None).use_bank(args.bank)
    serve(live, args.host, args.port, args.max_upload)
    return 0
