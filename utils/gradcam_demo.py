#!/usr/bin/env python3
"""Heatmaps for loose images and videos: a file, a folder or a glob pattern."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Callable, Iterator, Sequence

if __name__ == "__main__":  # run as a script: the folder above holds the packages, this one holds none
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch

from utils.cam.targets import TARGETS
from utils.choice.choosing import DEFAULT_IMAGES, choose_map, in_batches, trial_images
from utils.choice.verdict import FEWEST_IMAGES, judgements, printed
from utils.command import OneLineParser, count, run_command
from utils.data.face_crop import NoFaceError, face_cropper
from utils.data.frames import Frame
from utils.data.images import IMAGE_SUFFIXES, UnreadableImage, decode_image, read_file
from utils.data.video_files import VIDEO_SUFFIXES, UnreadableVideo
from utils.errors import InputError, RunError
from utils.model.config import detector_settings, find_path
from utils.model.detector import LoadedDetector, find_device, load_detector, print_default_layer
from utils.model.gradcam_settings import BACKWARD_CHOICES, COLORMAPS, METHOD_CHOICES, SITE_CHOICES
from utils.model.map_trials import MapChecker, tried
from utils.packages import require
from utils.results.decision import UNKNOWN
from utils.results.sample_folder import Drawn, Sample, write_sample
from utils.run.explainer import explain_images
from utils.run.video import explain_video
from utils.text import one_line, printable

EMBEDDED_DETECTOR = "config/detector/clip_gradcam_demo.yaml"

MAX_NAME_BYTES = 200  # of a folder named after an image; file systems take 255, and a little is added
# The engine knows no flags: what helps where one of its errors is about that setting.
HINTS = {
    "layers": "test_with_gradcam.py --list_layers prints every name",
    "device": "--device",
    "weights": "--weights_path",
}

BATCH, POOL = 16, 8  # images at a time, and looked through for each that the trial wants
LABELLESS_TARGETS = [target for target in TARGETS if target != "label"]
Crop = Callable[[np.ndarray], np.ndarray]


def parser() -> OneLineParser:
    """Every flag."""
    p = OneLineParser(description=__doc__ or "")
    p.add_argument(
        "--input", required=True, help="image, video, folder of them, or a quoted pattern such as 'faces/*.png'"
    )
    p.add_argument("--output", required=True, help="folder for the heatmaps, one folder per image")
    p.add_argument(
        "--detector_path", help="detector YAML; without it and without weights: the embedded one, for trying out"
    )
    p.add_argument("--weights_path", help="checkpoint of the whole detector")
    p.add_argument("--layers", nargs="+", metavar="LAYER", help="e.g. encoder.layers.23 encoder.layers.20")
    p.add_argument("--method", choices=METHOD_CHOICES, help="how maps are made; auto: chosen by cause")
    p.add_argument("--target", metavar="TARGET", help=f"{', '.join(LABELLESS_TARGETS)}, or the name of a class")
    p.add_argument("--site", choices=SITE_CHOICES, help="where in a block; auto: as the method wants")
    p.add_argument("--backward", choices=BACKWARD_CHOICES, help="what the gradient takes for constant")
    p.add_argument(
        "--calibration_images",
        type=count,
        default=DEFAULT_IMAGES,
        metavar="N",
        help="images of the input on which the map is chosen, or a named one judged; 0: neither",
    )
    p.add_argument(
        "--check_maps", nargs="?", const="on", default="on", choices=("on", "off"), help="check every map by cause"
    )
    p.add_argument("--signed", action="store_true", default=None, help="evidence for fake red, for real blue")
    p.add_argument("--colormap", choices=COLORMAPS, help="of the overlays")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n>")
    p.add_argument("--save_raw", action="store_true", help="also keep the raw maps, one .npz per image")
    p.add_argument("--landmark_model", help="shape_predictor_81_face_landmarks.dat: crop the face first (needs dlib)")
    return p


def main(argv: Sequence[str]) -> int:
    """Flags → heatmaps on disk. Returns the exit code; raises InputError, RunError."""
    args = parser().parse_args(argv)
    if args.target == "label":
        raise InputError(
            f"--target label needs labels, which loose images do not have; use one of {', '.join(LABELLESS_TARGETS)}"
        )
    files = find_images(args.input)
    if any(is_video(file) for file in files):
        require("av", "a video")
    detector = _detector(args.detector_path, args.weights_path, args.device, {
        "gradcam_enabled": True, "gradcam_layers": args.layers, "gradcam_method": args.method,
        "gradcam_target": args.target, "gradcam_site": args.site, "gradcam_backward": args.backward,
        "gradcam_colormap": args.colormap, "gradcam_signed": args.signed,
    })  # fmt: skip
    crop = face_cropper(Path(args.landmark_model), detector.settings.resolution) if args.landmark_model else None
    detector.check_predictions()
    detector.dry_run()
    print_default_layer(detector)
    if args.calibration_images:
        images = [file for file in files if not is_video(file)]
        _choose(detector, images, crop, args.calibration_images)
    checker = MapChecker(detector, batch_size=1) if args.check_maps == "on" else None
    _make_output(Path(args.output))
    failed = 0
    words: Counter[str] = Counter()
    for index, (file, folder) in enumerate(zip(files, output_folders(files, Path(args.output)))):
        try:
            if is_video(file):
                summary = explain_video(detector, file, folder, crop)
                print(printable(f"{file}: {summary.line()}, video in {folder}"))
                for remark in summary.remarks:
                    print(printable(f"{file}: {remark}"), file=sys.stderr)
            else:
                image = load_image(file, detector.settings.resolution, crop)
                drawn = explain_image(detector, image, file, index, checker)
                write_sample(folder, drawn, save_raw=args.save_raw)
                words.update(layer.check.word for layer in drawn.sample.layers if layer.check)
                print(printable(f"{file}: fake probability {drawn.sample.prob_fake:.4f}, heatmaps in {folder}"))
                for name in drawn.sample.faint_layers:
                    print(printable(f"{file}: {name} is faint: a thousand times weaker than another layer"))
        except (UnreadableImage, UnreadableVideo, NoFaceError) as error:
            print(printable(f"{file}: left out: {error}"), file=sys.stderr)
            failed += 1
    if words:
        said = ", ".join(f"{count} {word}" for word, count in words.most_common())
        print(f"of {sum(words.values())} maps {said}: sample<i>.json says which", file=sys.stderr)
    if failed:
        raise RunError(f"{failed} of {len(files)} files were left out, see above")
    return 0


def _make_output(folder: Path) -> None:
    """Raises InputError where nothing can be written there, before anything is explained."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be made ({one_line(error)}); give another folder") from error


def is_video(file: Path) -> bool:
    """By its name, as a folder's contents are chosen."""
    return file.suffix.lower() in VIDEO_SUFFIXES


def find_images(pattern: str) -> list[Path]:
    """The images and videos that a file, folder or pattern names, sorted. Raises InputError where there are none."""
    path = Path(pattern)
    if os.path.isfile(path):  # noqa: PTH113 (Path's fails for a name of 300 letters)
        return [path]
    if os.path.isdir(path):  # noqa: PTH112
        suffixes = IMAGE_SUFFIXES + VIDEO_SUFFIXES
        found = [file for file in path.iterdir() if file.suffix.lower() in suffixes and file.is_file()]
        kind = f"no image or video ({', '.join(suffixes)}) in this folder"
    else:
        found = [Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]  # noqa: PTH207
        special = os.path.exists(path)  # noqa: PTH110
        kind = "a pipe, socket or device" if special else "no such file, folder, or file that the pattern matches"
    if not found:
        raise InputError(f"--input {pattern!r}: {kind}")
    return sorted(found)


def output_folders(files: Sequence[Path], output: Path) -> Iterator[Path]:
    """One folder per image, by its name; images of one name in several folders get a number."""
    taken: set[str] = set()
    last: dict[str, int] = {}
    for file in files:
        stem = file.stem if file.stem.strip(".") else f"_{file.name}"  # the stem of "...png" is the folder above
        while len(os.fsencode(stem)) > MAX_NAME_BYTES:
            stem = stem[:-1]
        name = stem
        while name in taken:  # also by an image whose own name ends in such a number
            last[stem] = last.get(stem, 1) + 1
            name = f"{stem}_{last[stem]}"
        taken.add(name)
        yield output / name


def _detector(
    detector_path: str | None, weights_path: str | None, device: str, flags: dict[str, object]
) -> LoadedDetector:
    if detector_path is None and weights_path is None:
        detector_path = EMBEDDED_DETECTOR
        print(
            "NOTE: no weights named, so this is the small embedded detector, trained on drawn faces. It is for trying"
            " out only and says nothing about real images. Give --detector_path and --weights_path for yours."
        )
    yaml_path = find_path(detector_path or "config/detector/clip_gradcam.yaml", "detector YAML", "--detector_path")
    return load_detector(detector_settings(yaml_path, {**flags, "weights_path": weights_path}), find_device(device))


def _choose(detector: LoadedDetector, files: Sequence[Path], crop: Crop | None, images: int) -> None:
    """Choose the map on the first `images` of `files` that are called fake, or judge the named one, and say so.

    Each file counts as a video of its own. Fewer than FEWEST_IMAGES choose nothing, and are not tried.
    """
    if len(files) < FEWEST_IMAGES:
        return
    model, target = detector.model, detector.gradcam.target
    asked = tried(detector, in_batches(BATCH))
    batches = ({"image": batch} for batch in _batches(detector, files[: POOL * images], crop))
    try:
        given = trial_images(asked.margins, batches, images, target if target in ("margin", "real") else "fake")
    except InputError:  # none of them can be read, which is said of each where it is explained
        return
    choice = choose_map(asked, given, model.gradcam_candidates(), model.gradcam_named())
    model.set_gradcam_choice(choice)
    print("\n".join([*printed(choice), *judgements(choice)]), file=sys.stderr)  # stdout has one line per image


def _batches(detector: LoadedDetector, files: Sequence[Path], crop: Crop | None) -> Iterator[torch.Tensor]:
    """The files that can be read, BATCH at a time, as the detector takes them."""
    for start in range(0, len(files), BATCH):
        found = []
        for file in files[start : start + BATCH]:
            try:
                found.append(to_pixels(load_image(file, detector.settings.resolution, crop)))
            except (UnreadableImage, NoFaceError):
                continue  # said where it is explained
        if found:
            yield detector.normalised(torch.cat(found))


def to_pixels(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) → (1, 3, H, W), both uint8."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).unsqueeze(0)


def load_image(file: Path, resolution: int, crop: Crop | None) -> np.ndarray:
    """(resolution, resolution, 3) uint8 RGB. Raises UnreadableImage, NoFaceError."""
    data = read_file(str(file))
    if crop is None:
        return decode_image(data, resolution)
    return crop(decode_image(data, None))


def explain_image(
    detector: LoadedDetector, image: np.ndarray, file: Path, index: int, checker: MapChecker | None = None
) -> Drawn:
    """One image (H, W, 3) uint8 RGB explained, checked where there is a checker, and drawn."""
    pixels = to_pixels(image)
    explanation, drawn, found = explain_images(detector, pixels, checker, [index])
    checks = {layer: of_image for layer, (of_image,) in found.items()}
    frame = Frame(str(file), "loose images", "unknown", "none", UNKNOWN, index)
    choice = detector.model.gradcam_choice
    return Drawn(Sample.of(frame, explanation, 0, drawn[0], detector.settings, choice, checks), image, drawn[0])


if __name__ == "__main__":
    run_command(main, HINTS)
