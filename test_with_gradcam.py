#!/usr/bin/env python3
"""Evaluate a detector over whole data sets and render heatmaps: a drop-in for the host's test.py."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Sequence

from utils.cam.layers import SITES, block_names
from utils.cam.methods import METHOD_NAMES
from utils.cam.targets import TARGETS
from utils.command import OneLineParser, percent, positive, run_command
from utils.errors import InputError, did_you_mean
from utils.explanation_metrics.evaluate import DEFAULT_SAMPLES, ExplanationOptions
from utils.model.backbone_config import without_pretrained
from utils.model.config import SELECTIONS, find_path, run_settings
from utils.model.detector import PRECISIONS, detector_class
from utils.model.gradcam_settings import COLORMAPS
from utils.report.exports import ViewOptions
from utils.results.overlays import IMAGE_FORMATS
from utils.run.evaluation import RunOptions, run

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
    p.add_argument("--detector_path", required=True, help="detector YAML, e.g. config/detector/clip_gradcam.yaml")
    p.add_argument("--weights_path", help="checkpoint (.pth, .safetensors); overrides the YAML")
    p.add_argument("--test_dataset", nargs="+", metavar="NAME", help="data sets, by the names of their JSON files")
    p.add_argument("--test_config", help="YAML read second; default: config/test_config.yaml beside this script")
    p.add_argument(
        "--random_weights", action="store_true", help="evaluate an untrained detector, and mark every output"
    )
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n>")
    p.add_argument("--precision", default="fp32", help=", ".join(PRECISIONS))
    p.add_argument("--compile", action="store_true", help="predict through torch.compile (heatmaps never are)")
    p.add_argument("--batch_size", type=positive, help="pictures a batch; overrides test_batchSize")
    p.add_argument("--workers", type=int, help="processes that decode pictures; overrides workers")
    p.add_argument("--seed", type=int, help="for --gradcam_select random; overrides manualSeed")
    p.add_argument("--max_unreadable", type=percent, default="5%", help="share of unreadable frames that fails the run")
    p.add_argument("--list_layers", action="store_true", help="print every layer name of the detector and leave")
    maps = p.add_argument_group("heatmaps")
    maps.add_argument("--gradcam_enabled", action="store_true", help="render heatmaps; without it a plain evaluation")
    maps.add_argument("--gradcam_samples", type=positive, metavar="N", help="samples a data set (50 wrong predictions)")
    maps.add_argument("--gradcam_output_dir", help="where everything is written; overrides gradcam_save_dir")
    maps.add_argument("--save_all_predictions", action="store_true", help="explain all samples, not only wrong ones")
    maps.add_argument("--gradcam_layers", nargs="+", metavar="LAYER", help="e.g. encoder.layers.23 encoder.layers.20")
    maps.add_argument("--gradcam_method", help=", ".join(METHOD_NAMES))
    maps.add_argument("--gradcam_target", help=", ".join(TARGETS))
    maps.add_argument("--gradcam_site", help=", ".join(SITES))
    maps.add_argument(
        "--gradcam_signed", action="store_true", help="evidence for fake red, for real blue (of the margin fake - real)"
    )
    maps.add_argument("--gradcam_colormap", help=", ".join(COLORMAPS))
    maps.add_argument("--gradcam_select", default="confident", help=", ".join(SELECTIONS))
    maps.add_argument("--image_format", default="png", help=", ".join(IMAGE_FORMATS))
    maps.add_argument("--save_raw", action="store_true", help="also keep the raw maps, one .npz a sample")
    maps.add_argument("--video_strips", action="store_true", help="also one picture a video: its explained frames")
    maps.add_argument("--fiftyone", action="store_true", help="also fiftyone_samples.json, for FiftyOne to open")
    maps.add_argument("--tensorboard", metavar="DIR", help="also metrics, curves and overlays for TensorBoard")
    maps.add_argument("--overwrite", action="store_true", help="replace an earlier run in the output folder")
    maps.add_argument("--resume", action="store_true", help="go on with this run where it was interrupted")
    truth = p.add_argument_group("are the heatmaps true?")
    truth.add_argument(
        "--evaluate_explanations", action="store_true", help="measure the maps of detected fakes against controls"
    )
    truth.add_argument(
        "--explanation_samples", type=positive, metavar="N", help=f"fakes a data set ({DEFAULT_SAMPLES})"
    )
    truth.add_argument(
        "--sweep", action="store_true", help="try all methods and sites on all blocks or --gradcam_layers"
    )
    truth.add_argument("--write_config", metavar="YAML", help="write the best map of the sweep as a config that runs")
    return p


def main(argv: Sequence[str]) -> int:
    """Flags → run. Returns the exit code; raises InputError, RunError."""
    args = parser().parse_args(argv)
    for flag, allowed in (
        ("precision", list(PRECISIONS)), ("gradcam_select", SELECTIONS), ("image_format", IMAGE_FORMATS),
    ):  # fmt: skip
        value = getattr(args, flag)
        if value not in allowed:
            raise InputError(f"--{flag} is {value!r}; {did_you_mean(value, allowed)}allowed: {', '.join(allowed)}")
    if args.random_weights and args.weights_path:
        raise InputError("--random_weights and --weights_path exclude each other: give one of them")
    if args.resume and args.overwrite:
        raise InputError("--resume and --overwrite exclude each other: give one of them")
    detector_path = find_path(args.detector_path, "detector YAML", "--detector_path")
    test_config = find_path(args.test_config, "YAML", "--test_config") if args.test_config else None
    flags = {
        "weights_path": "" if args.random_weights else args.weights_path,
        "test_dataset": args.test_dataset,
        "test_batchSize": args.batch_size,
        "workers": args.workers,
        "manualSeed": args.seed,
        "gradcam_enabled": args.gradcam_enabled or None,
        "gradcam_samples": args.gradcam_samples,
        "gradcam_save_dir": args.gradcam_output_dir,
        "gradcam_layers": args.gradcam_layers,
        "gradcam_method": args.gradcam_method,
        "gradcam_target": args.gradcam_target,
        "gradcam_site": args.gradcam_site,
        "gradcam_colormap": args.gradcam_colormap,
        "gradcam_signed": args.gradcam_signed or None,
    }
    settings = run_settings(detector_path, test_config, flags)
    if args.list_layers:
        return list_layers(settings.detector.config, settings.detector.model_name)
    return run(
        settings,
        RunOptions(
            output_dir=settings.detector.gradcam.save_dir,
            device=args.device,
            precision=args.precision,
            compile=args.compile,
            save_all=args.save_all_predictions,
            select=args.gradcam_select,
            random_weights=args.random_weights,
            max_unreadable=args.max_unreadable,
            image_format=args.image_format,
            save_raw=args.save_raw,
            overwrite=args.overwrite,
            resume=args.resume,
            views=ViewOptions(Path(args.tensorboard) if args.tensorboard else None, args.fiftyone, args.video_strips),
            explanations=explanation_options(args),
            command=[Path(sys.argv[0]).name, *argv],
        ),
    )


def explanation_options(args: argparse.Namespace) -> ExplanationOptions | None:
    """None where explanations are not to be evaluated. Raises InputError for flags that need it."""
    if not args.evaluate_explanations:
        for flag in ("explanation_samples", "sweep", "write_config"):
            if getattr(args, flag):
                raise InputError(f"--{flag} needs --evaluate_explanations: give both")
        return None
    path = Path(args.write_config) if args.write_config else None
    if path is not None and (path.suffix not in (".yaml", ".yml") or not path.absolute().parent.is_dir()):
        raise InputError(f"--write_config {args.write_config!r}: give a .yaml file in a folder that is there")
    return ExplanationOptions(args.explanation_samples or DEFAULT_SAMPLES, args.sweep, args.gradcam_layers, path)


def list_layers(config: dict[str, object], model_name: str) -> int:
    """Print the tower's blocks, then every module inside; needs no weights."""
    model = detector_class(model_name, True, config)(without_pretrained(config))
    blocks = block_names(model.explained_tower)
    print("# encoder blocks (a block's name means what it reads, at gradcam_site)")
    print("\n".join(blocks))
    print("# every other module (its name means its output)")
    print("\n".join(name for name, _ in model.explained_tower.named_modules() if name and name not in blocks))
    return 0


if __name__ == "__main__":
    run_command(main, HINTS)
