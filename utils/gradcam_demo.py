#!/usr/bin/env python3
"""Draw heatmaps for single images and videos: a file, a folder or a quoted pattern."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a script: the packages are in the folder above
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from utils.gradcam_kit.base.allowed import TARGETS
from utils.gradcam_kit.base.command import run_command
from utils.gradcam_kit.base.errors import InputError, run_checks
from utils.gradcam_kit.parts import load_part
from utils.gradcam_kit.settings.flags import OptionParser

# The engine knows no flags. For an error about a setting, this flag helps:
HINTS = {
    "layers": "test_with_gradcam.py --list_layers prints every name",
    "device": "--device",
    "precision": "--precision",
    "weights": "--weights_path",
}


def parser() -> OptionParser:
    """Return the parser of all flags."""
    return OptionParser(
        "utils/gradcam_demo.py",
        f"{__doc__} Without --detector_path and --weights_path it uses the bundled toy detector.",
    )


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code. Raises InputError, RunError."""
    flags_of = parser()
    args = flags_of.parse_args(argv)
    if args.gradcam_target == "label":
        targets = ", ".join(target for target in TARGETS if target != "label")
        raise InputError(f"--target label needs labels, which single images do not have; use one of {targets}")
    # Modules that load torch are imported after the flags are checked, so that a misspelt flag fails at once.
    from dataclasses import replace

    from utils.gradcam_kit.base.packages import require
    from utils.gradcam_kit.explaining.checking import MapChecker
    from utils.gradcam_kit.model.detector import print_choices
    from utils.gradcam_kit.model.load import load_named_detector, named_detector

    media = load_part("media.single_images", "single images and videos")
    flags = {"gradcam_enabled": True, **flags_of.config(args)}

    def find_files() -> list[Path]:
        found = media.find_images(args.input)
        if any(map(media.is_video, found)):
            require("av", "a video")
        return list(found)

    settings, files, cropped = run_checks(
        lambda: named_detector(args.detector_path, flags, flags_of.flag_names),
        find_files,
        lambda: media.photographs(1, args.face_crop, args.landmark_model, args.face_confidence),
    )
    images = [file for file in files if not media.is_video(file)]
    detector = load_named_detector(settings, args.device, args.precision)
    cropped = replace(cropped, size=detector.settings.resolution)
    if images and detector.settings.clip_size is not None:
        raise InputError(f"--input: {images[0]} is an image, but the detector reads clips: give videos")
    detector.check_predictions()
    detector.dry_run()
    print_choices(detector)
    work = media.SingleImages(detector, cropped, None, args.image_format, args.save_raw)
    if detector.settings.clip_size is None:
        work.use_bank(args.bank)
        if args.calibration_images:
            work.choose_map(images, args.calibration_images)
        if args.check_maps != "off":
            work.checker = MapChecker(detector, batch_size=1)
    media.make_output(Path(args.output))
    work.explain(files, Path(args.output))
    return 0


if __name__ == "__main__":
    run_command(main, HINTS)
