"""Drop an image or a video into a browser: score, map, and what the score becomes where a region is brushed out."""

from __future__ import annotations

from collections.abc import Sequence

from ..base.command import OneLineParser, positive
from ..settings.flags import add_detector_flags, read_as

HINTS = {"device": "--device", "precision": "--precision", "weights": "--weights_path"}


def parser() -> OneLineParser:
    """Every flag."""
    p = OneLineParser(description=__doc__ or "")
    add_detector_flags(p)
    p.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in")
    p.add_argument("--port", type=positive, default=7860, metavar="N", help="port to listen on")
    p.add_argument("--max_upload", type=positive, default=50, metavar="MB", help="largest file that is taken")
    return p


def main(argv: Sequence[str]) -> int:
    """Flags → a server, until it is interrupted. Returns the exit code; raises InputError."""
    flags_of = parser()
    args = flags_of.parse_args(argv)
    from ..base.packages import require

    require("gradio", "the live app")
    from ..model.load import load_named_detector
    from .live_detector import LiveDetector
    from .page import serve

    flags = {"gradcam_enabled": True, "weights_path": args.weights_path}
    detector = load_named_detector(args.detector_path, args.device, args.precision, flags, read_as(flags_of))
    serve(LiveDetector.of(detector), args.host, args.port, args.max_upload)
    return 0
