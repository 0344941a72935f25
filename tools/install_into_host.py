#!/usr/bin/env python3
"""Put this library into a DF40, DeepfakeBench or Effort `training` folder, or take it out again, byte for byte."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a script: the folder above holds the packages, this one none
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools.host_tree import KEPT_FOLDER, RECORD_FOLDER, Installation, check_host, extension_files
from utils.gradcam_kit.base.command import OneLineParser, run_command
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.base.files import TRAINING_FOLDER


def parser() -> OneLineParser:
    """Every flag."""
    p = OneLineParser(description=__doc__ or "")
    p.add_argument("training", metavar="TRAINING_FOLDER", help="the host's folder with detectors/, config/ and test.py")
    p.add_argument("--check", action="store_true", help="say what would be done, and write nothing")
    p.add_argument("--uninstall", action="store_true", help="restore the folder as it was before")
    p.add_argument(
        "--force", action="store_true", help="replace files of the host that differ (kept, and restored by --uninstall)"
    )
    return p


def main(argv: Sequence[str]) -> int:
    """Flags → files in the host tree. Returns the exit code; raises InputError."""
    args = parser().parse_args(argv)
    host = Path(args.training).resolve()
    installation = Installation(host)
    if args.uninstall:
        return uninstall(installation, args.check, args.force)
    check_host(host)
    if (TRAINING_FOLDER / RECORD_FOLDER).is_dir():
        raise InputError(f"{TRAINING_FOLDER} is itself an installation: install from the library's own repository")
    return install(installation, args.check, args.force)


def install(installation: Installation, check: bool, force: bool) -> int:
    """Copy what is missing or outdated. Raises InputError, before anything is written, for files that differ."""
    plan = installation.plan(extension_files(), force)
    if plan.nothing_to_do:
        print(f"{installation.host}: already installed, nothing to do")
        return 0
    if not check:
        installation.carry_out(plan)
    would = "would be " if check else ""
    for what, names in (("added", plan.new), ("replaced", plan.replaced), ("removed", plan.outdated)):
        if names:
            print(f"{len(names)} files {would}{what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}")
    if plan.edited and not check:
        print(f"{len(plan.edited)} files that you had edited are kept in {installation.host / KEPT_FOLDER}")
    if plan.line_missing:
        print(f"one line {would}added to detectors/__init__.py: {installation.line}")
    if not check:
        print(f"installed into {installation.host}; try: python test_with_gradcam.py --help")
    return 0


def uninstall(installation: Installation, check: bool, force: bool) -> int:
    """Undo an installation, also one that was interrupted. Raises InputError for files edited since, unless forced."""
    names = installation.installed_files()
    edited = installation.edited_files()
    if edited and not force:
        raise InputError(
            f"{installation.host}: {len(edited)} installed files were edited since: {', '.join(edited[:5])}; move your"
            " changes elsewhere, or --force to drop them"
        )
    if check:
        print(f"would remove {len(names)} files and the line in detectors/__init__.py from {installation.host}")
        return 0
    installation.undo()
    print(f"removed {len(names)} files and the line in detectors/__init__.py; {installation.host} is as it was before")
    return 0


if __name__ == "__main__":
    run_command(main)
