#!/usr/bin/env python3
"""Evaluate a detector over whole datasets and render heatmaps: a drop-in for the host's test.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.gradcam_kit.base.allowed import DEFAULT_SAMPLES, MEASUREMENTS, MOST_MISTAKES, SELECTIONS, TARGETS
from utils.gradcam_kit.base.command import OneLineParser, percent, positive, run_command
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.settings.flags import add_detector_flags, add_map_flags, read_as, unless_configured

# Whatever loads torch is imported once the flags are known to be right: a misspelt one is said at once.
if TYPE_CHECKING:
    from utils.gradcam_kit.settings.config import DetectorSettings
    from utils.gradcam_kit.settings.run_options import ExplanationOptions, RunOptions

# Config keys that have a flag: `dest` below. A flag that is not given is None, and the YAML's value counts.
CONFIG_KEYS = (
    "weights_path", "test_dataset", "test_batchSize", "workers", "manualSeed", "gradcam_enabled", "gradcam_samples",
    "gradcam_save_dir", "gradcam_layers", "gradcam_method", "gradcam_target", "gradcam_site", "gradcam_backward",
    "gradcam_colormap", "gradcam_signed", "mean", "std", "resolution", "gradcam_backward_precision",
)  # fmt: skip

# The engine knows no flags: what helps where one of its errors is about that setting.
HINTS = {
    "layers": "--list_layers prints every name",
    "precision": "--precision",
    "device": "--device",
    "compile": "leave --compile out",
    "weights": "--weights_path; --random_weights evaluates an untrained detector and marks every output so",
}


def parser() -> OneLineParser:
    """Every flag; those with a config key of their own override it when given."""
    p = OneLineParser(description=__doc__ or "")
    add_detector_flags(p)
    p.add_argument(
        "--detector", metavar="MODULE:FUNCTION", help="a function of yours that returns the model; needs no YAML"
    )
    p.add_argument(
        "--random_weights", action="store_true", help="evaluate an untrained detector, and mark every output"
    )
    p.add_argument("--list_layers", action="store_true", help="print every layer name of the detector and exit")
    p.add_argument("--compile", action="store_true", help="predict through torch.compile (heatmaps never are)")
    _add_data_flags(p.add_argument_group("data"))
    maps = p.add_argument_group("heatmaps")
    _add_selection_flags(maps)
    add_map_flags(maps, TARGETS, check_maps="auto")
    _add_output_flags(p.add_argument_group("outputs"))
    _add_measurement_flags(p.add_argument_group("are the heatmaps faithful?"))
    return p


def _add_data_flags(p: argparse._ArgumentGroup) -> None:
    p.add_argument(
        "--test_dataset", nargs="+", metavar="NAME", help="names of dataset JSON files; or folders, or CSV files"
    )
    p.add_argument(
        "--test_config",
        metavar="YAML",
        help="read after the detector's YAML, and wins (default: config/test_config.yaml beside this script)",
    )
    normalisation = unless_configured("0.5 0.5 0.5")
    p.add_argument("--mean", nargs=3, type=float, metavar="M", help=f"of the images' normalisation {normalisation}")
    p.add_argument("--std", nargs=3, type=float, metavar="S", help=f"of the images' normalisation {normalisation}")
    p.add_argument(
        "--resolution", type=positive, metavar="N", help=f"to which images are resized {unless_configured(224)}"
    )
    p.add_argument(
        "--batch_size",
        dest="test_batchSize",
        type=positive,
        metavar="N",
        help=f"images per batch {unless_configured(32)}",
    )
    p.add_argument("--workers", type=int, metavar="N", help=f"processes that decode images {unless_configured(2)}")
    p.add_argument(
        "--seed",
        dest="manualSeed",
        type=int,
        metavar="N",
        help=f"for --gradcam_select random {unless_configured(1024)}",
    )
    p.add_argument("--max_unreadable", type=percent, default="5%", help="share of unreadable frames that fails the run")


def _add_selection_flags(p: argparse._ArgumentGroup) -> None:
    p.add_argument(
        "--gradcam_enabled",
        action="store_true",
        default=None,
        help=f"render heatmaps {unless_configured('off')}",
    )
    p.add_argument(
        "--no-gradcam_enabled",
        "--no_gradcam",
        dest="gradcam_enabled",
        action="store_false",
        default=None,
        help="a plain evaluation",
    )
    p.add_argument(
        "--gradcam_samples",
        type=positive,
        metavar="N",
        help=f"maximum samples per dataset {unless_configured(f'{MOST_MISTAKES} wrong predictions')}",
    )
    p.add_argument("--save_all_predictions", action="store_true", help="explain all samples, or --gradcam_samples")
    p.add_argument("--gradcam_select", default="confident", choices=SELECTIONS, help="where there are more than N")


def _add_output_flags(p: argparse._ArgumentGroup) -> None:
    p.add_argument(
        "--gradcam_output_dir",
        "--output",
        dest="gradcam_save_dir",
        metavar="DIR",
        help=f"where everything is written {unless_configured('./gradcam_visualizations')}",
    )
    p.add_argument("--overwrite", action="store_true", help="replace an earlier run in the output folder")
    p.add_argument("--resume", action="store_true", help="continue this run where it was interrupted")
    p.add_argument("--save_features", action="store_true", help="also what the head reads of every frame, features.npz")
    p.add_argument("--video_strips", action="store_true", help="also one image per video: its explained frames")
    p.add_argument("--bundle", action="store_true", help="at the end, pack the samples' files a thousand to a .zip")
    p.add_argument("--fiftyone", action="store_true", help="also fiftyone_samples.json, for FiftyOne to open")
    p.add_argument("--tensorboard", type=Path, metavar="DIR", help="also metrics, curves, overlays for TensorBoard")


def _add_measurement_flags(p: argparse._ArgumentGroup) -> None:
    p.add_argument(
        "--evaluate_explanations", action="store_true", help="measure the maps of detected fakes against controls"
    )
    p.add_argument(
        "--explanation_samples",
        type=positive,
        metavar="N",
        help=f"maximum fakes per dataset (default: {DEFAULT_SAMPLES})",
    )
    p.add_argument("--sweep", action="store_true", help="try all methods and sites on all blocks or --gradcam_layers")
    p.add_argument("--leave_out", nargs="+", choices=MEASUREMENTS, metavar="NAME", help=", ".join(MEASUREMENTS))
    p.add_argument("--write_config", metavar="YAML", help="write the best map of the sweep as a config that runs")
    p.add_argument("--masks", type=Path, metavar="FOLDER", help="masks in a folder of any layout")
    p.add_argument("--clicks", type=Path, metavar="CSV", help="where people saw the forgery, as in ExDDV")


def main(argv: Sequence[str]) -> int:
    """Flags → run. Returns the exit code; raises InputError, RunError."""
    flags_of = parser()
    args = flags_of.parse_args(argv)
    if args.random_weights and args.weights_path:
        raise InputError("--random_weights and --weights_path exclude each other: give one of them")
    if args.resume and args.overwrite:
        raise InputError("--resume and --overwrite exclude each other: give one of them")
    flags = {key: getattr(args, key) for key in CONFIG_KEYS}
    if args.random_weights:
        flags["weights_path"] = ""
    if args.random_weights and args.detector:
        raise InputError("--random_weights and --detector exclude each other: your function decides the weights")
    if not args.detector and not args.detector_path:
        raise InputError(
            "no detector: give --detector_path YAML, or --detector module:function for a model of your own"
        )
    from utils.gradcam_kit.run.evaluation import run
    from utils.gradcam_kit.settings.config import find_path, run_settings

    detector_path = find_path(args.detector_path, "detector YAML", "--detector_path") if args.detector_path else None
    test_config = find_path(args.test_config, "YAML", "--test_config") if args.test_config else None
    settings = run_settings(detector_path, test_config, flags, args.detector or "", read_as(flags_of))
    if args.save_all_predictions and args.gradcam_samples is None:  # a YAML's number is one of mistakes
        settings = settings._replace(detector=settings.detector.with_every_sample())
    if args.list_layers:
        list_layers(settings.detector)
    else:
        run(settings, run_options(args, settings.detector.gradcam.save_dir, [Path(sys.argv[0]).name, *argv]))
    return 0


def run_options(args: argparse.Namespace, output_dir: Path, command: list[str]) -> RunOptions:
    """What the flags say beside the configuration. Raises InputError for flags that need another."""
    from utils.gradcam_kit.settings.run_options import ExportOptions, RunOptions

    return RunOptions(
        output_dir=output_dir,
        device=args.device,
        precision=args.precision,
        compile=args.compile,
        save_all=args.save_all_predictions,
        select=args.gradcam_select,
        random_weights=args.random_weights,
        max_unreadable=args.max_unreadable,
        image_format=args.image_format,
        save_raw=args.save_raw,
        save_features=args.save_features,
        overwrite=args.overwrite,
        resume=args.resume,
        views=ExportOptions(args.tensorboard, args.fiftyone, args.video_strips, args.bundle),
        calibration_images=args.calibration_images,
        check_maps=args.check_maps,
        explanations=explanation_options(args),
        command=command,
    )


def explanation_options(args: argparse.Namespace) -> ExplanationOptions | None:
    """None without --evaluate_explanations. Raises InputError for flags that need it."""
    if not args.evaluate_explanations:
        for flag in ("explanation_samples", "sweep", "write_config", "masks", "clicks", "leave_out"):
            if getattr(args, flag):
                raise InputError(f"--{flag} needs --evaluate_explanations: give both")
        return None
    from utils.gradcam_kit.settings.run_options import ExplanationOptions

    path = Path(args.write_config) if args.write_config else None
    if path is not None and (path.suffix not in (".yaml", ".yml") or not path.absolute().parent.is_dir()):
        raise InputError(f"--write_config {args.write_config!r}: give a .yaml file in a folder that is there")
    return ExplanationOptions(
        args.explanation_samples or DEFAULT_SAMPLES,
        args.sweep,
        args.gradcam_layers,
        path,
        args.masks,
        args.clicks,
        args.leave_out or (),
    )


def list_layers(settings: DetectorSettings) -> None:
    """Print the tower's blocks, then every module inside; needs no weights."""
    from utils.gradcam_kit.engine.layers import block_names
    from utils.gradcam_kit.model.load import import_sooner, untrained_detector

    import_sooner(settings)
    model = untrained_detector(settings, True)
    blocks = block_names(model.explained_tower)
    print(f"# explained as it is configured: {' '.join(model.gradcam_layers())}")
    print("# encoder blocks (a block's name means what it reads, at gradcam_site)")
    print("\n".join(blocks))
    print("# every other module (its name means its output)")
    print("\n".join(name for name, _ in model.explained_tower.named_modules() if name and name not in blocks))


if __name__ == "__main__":
    run_command(main, HINTS)
