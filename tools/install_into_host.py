#!/usr/bin/env python3
"""Put this library into a DF40, DeepfakeBench or Effort `training` folder, or take it out again, byte for byte."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a script: the folder above holds the packages, this one none
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools.host_tree import LINE, Installation, check_host, extension_files, listed
from utils.gradcam_kit.base.command import OneLineParser, run_command
from utils.gradcam_kit.parts import DEFAULT_PARTS, PARTS


def parser() -> OneLineParser:
    """Every flag."""
    p = OneLineParser(description=__doc__ or "")
    p.add_argument("training", metavar="TRAINING_FOLDER", help="the host's folder with detectors/, config/ and test.py")
    p.add_argument(
        "--parts", nargs="*", choices=PARTS, default=list(DEFAULT_PARTS), metavar="PART",
        help=f"the optional parts to install, of {', '.join(PARTS)}; none after a bare --parts",
    )  # fmt: skip
    p.add_argument("--check", action="store_true", help="say what would be done, and write nothing")
    p.add_argument("--uninstall", action="store_true", help="restore the folder as it was before")
    return p


def main(argv: Sequence[str]) -> int:
    """Flags → files in the host tree. Returns the exit code; raises InputError."""
    args = parser().parse_args(argv)
    host = Path(args.training).resolve()
    if args.uninstall:
        return uninstall(Installation(host), args.check)
    check_host(host)
    parts = {one for part in args.parts for one in (part, *PARTS[part])}
    return install(Installation(host), extension_files(parts), args.check)


def install(installation: Installation, files: dict[str, bytes], check: bool) -> int:
    """Write what is missing or outdated. Raises InputError, before anything is written, for files that are not ours."""
    plan = installation.plan(files)
    if plan.nothing_to_do:
        print(f"{installation.host}: already installed, nothing to do")
        return 0
    if not check:
        installation.carry_out(plan)
    would = "would be " if check else ""
    replaced = [name for name in plan.content if name not in plan.added]
    for what, names in (("added", plan.added), ("replaced", replaced), ("removed", plan.removed)):
        if names:
            print(f"{len(names)} files {would}{what}: {listed(names)}")
    if plan.line_missing:
        print(f"one line {would}added to detectors/__init__.py: {LINE}")
    if not check:
        print(f"installed into {installation.host}; try: python test_with_gradcam.py --help")
    return 0


def uninstall(installation: Installation, check: bool) -> int:
    """Undo an installation, also one that was interrupted. Raises InputError for files that were edited since."""
    files = f"{len(installation.files)} files and the line in detectors/__init__.py"
    if check:
        installation.check_undo()
        print(f"would remove {files} from {installation.host}")
        return 0
    installation.undo()
    print(f"removed {files}; {installation.host} is as it was before")
    return 0


if __name__ == "__main__":
    run_command(main)
