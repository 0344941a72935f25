#!/usr/bin/env python3
"""Evaluate a detector on whole datasets and draw heatmaps. Use it instead of DeepfakeBench's test.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.gradcam_kit.base.command import run_command
from utils.gradcam_kit.base.errors import InputError, run_checks
from utils.gradcam_kit.settings.flags import OptionParser

# Modules that load torch are imported after the flags are checked, so that a misspelt flag fails at once.
if TYPE_CHECKING:
    from utils.gradcam_kit.settings.config import DetectorSettings, RunSettings

EXAMPLE = "python test_with_gradcam.py --detector_path config/detector/clip_gradcam_demo.yaml --test_dataset demo"
# The engine knows no flags. For an error about a setting, this flag helps:
HINTS = {
    "layers": "--list_layers prints every name",
    "precision": "--precision",
    "device": "--device",
    "compile": "leave --compile out",
    "weights": "--weights_path; --random_weights evaluates an untrained detector and marks every output",
}


def parser() -> OptionParser:
    """Return the parser of all flags."""
    return OptionParser("test_with_gradcam.py", f"{__doc__} For example: {EXAMPLE}")


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code. Raises InputError, RunError."""
    if "--bundle" in argv:
        argv = [one for one in argv if one != "--bundle"]
        print(
            "--bundle has no effect any more; --save_images none keeps the maps only in run.sqlite",
            file=sys.stderr,
        )
    flags_of = parser()
    flags = flags_of.parse_args(argv)
    check_together(flags)
    settings, _ = run_checks(lambda: run_settings(flags, flags_of), lambda: check_packages(flags))
    if flags.list_layers:
        list_layers(settings.detector)
        return 0
    from utils.gradcam_kit.run.evaluation import run
    from utils.gradcam_kit.settings.run_options import RunOptions

    command = [Path(sys.argv[0]).name, *argv]
    run(settings, RunOptions.of(flags, settings.detector.gradcam.save_dir, command))
    return 0


def check_together(flags: Any) -> None:
    """Raise InputError for flags that exclude each other, or if no detector is named."""
    if flags.random_weights and flags.weights_path:
        raise InputError("--random_weights and --weights_path exclude each other: give one of them")
    if flags.resume and flags.overwrite:
        raise InputError("--resume and --overwrite exclude each other: give one of them")
    if flags.random_weights and flags.detector:
        raise InputError("--random_weights and --detector exclude each other: your function decides the weights")
    if not flags.detector and not flags.detector_path:
        raise InputError("no detector: give --detector_path YAML, or --detector module:function for your own model")


def check_packages(flags: Any) -> None:
    """Raise InputError if the flags need a part or a package that is missing."""
    from utils.gradcam_kit.settings.run_options import ExportOptions

    views = ExportOptions.of(flags)
    if views != ExportOptions():  # its module loads torch, so only if needed
        from utils.gradcam_kit.run.exports import check_exports

        check_exports(views, flags.save_images)


def run_settings(flags: Any, flags_of: OptionParser) -> RunSettings:
    """Read and check YAML files and flags. Raises InputError."""
    from utils.gradcam_kit.model.load import import_module_of
    from utils.gradcam_kit.settings.config import find_path, run_settings
    from utils.gradcam_kit.settings.published import is_published

    keys = flags_of.config(flags)
    if flags.random_weights:
        keys["weights_path"] = ""
    if flags.detector and not is_published(flags.detector):
        import_module_of(flags.detector)  # first, because it may register names that the settings use
    detector_path = find_path(flags.detector_path, "detector YAML", "--detector_path") if flags.detector_path else None
    test_config = find_path(flags.test_config, "YAML", "--test_config") if flags.test_config else None
    needs_weights = not (flags.random_weights or flags.detector or flags.list_layers)
    names = flags_of.flag_names
    settings = run_settings(detector_path, test_config, keys, flags.detector or "", names, needs_weights)
    if flags.save_all and flags.gradcam_samples is None:  # the YAML's number limits mistakes only
        settings = settings._replace(detector=settings.detector.with_every_sample())
    return settings


def list_layers(settings: DetectorSettings) -> None:
    """Print the backbone's blocks, then its other modules. Needs no weights."""
    from utils.gradcam_kit.engine.layers import block_names
    from utils.gradcam_kit.model.host.registry import preimport_detector
    from utils.gradcam_kit.model.load import untrained_detector

    preimport_detector(settings)
    model = untrained_detector(settings, True)
    blocks = block_names(model.explained_tower)
    print(f"# layers explained with this configuration: {' '.join(model.gradcam_layers())}")
    print("# encoder blocks (naming a block selects its input, at gradcam_site)")
    print("\n".join(blocks))
    print("# other modules (naming one selects its output)")
    print("\n".join(name for name, _ in model.explained_tower.named_modules() if name and name not in blocks))


if __name__ == "__main__":
    run_command(main, HINTS)
