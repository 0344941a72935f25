#!/usr/bin/env python3
"""Put this library into a DF40, DeepfakeBench or Effort `training` folder, or take it out again, byte for byte."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

if __name__ == "__main__" and not __package__:  # run as a script: the folder above holds the packages, this one none
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from utils.gradcam_kit.base.command import OneLineParser, run_command
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.base.files import alone_in
from utils.gradcam_kit.parts import DEFAULT_PARTS, PARTS

ROOT = Path(__file__).resolve().parents[1]
PATTERNS = (
    "test_with_gradcam.py", "README_gradcam.md", "detectors/gradcam_*.py", "detectors/*_detector_gradcam.py",
    "detectors/utils/gradcam_demo.py", "utils/*.py", "utils/gradcam_kit/**/*", "config/detector/clip_gradcam*.yaml",
    "docs/**/*.md", "assets/*.png", "benchmarks/*.md", "benchmarks/plots/*.png", "examples/heatmaps.ipynb",
    "assets/demo_detector/*",  # the embedded detector, so that utils/gradcam_demo.py works without weights
)  # fmt: skip
NEVER = ("utils/install_into_host.py",)  # it needs this repository
UTILS_INIT = "utils/__init__.py"  # a host may have its own, which serves as well

NEEDED = ("detectors/__init__.py", "config/detector", "config/test_config.yaml", "networks", "loss")
ONE_OF = (
    ("metrics/registry.py", "utils/registry.py"), ("detectors/clip_detector.py", "detectors/effort_detector.py"),
)  # fmt: skip

RECORD_FOLDER = ".gradcam_install"
INIT = "detectors/__init__.py"
LINE = "from . import gradcam_detectors  # <name>_gradcam: the detectors with heatmaps"
IMPORTED = "gradcam_detectors"


def extension_files(parts: Collection[str] = DEFAULT_PARTS) -> dict[str, bytes]:
    """What is copied into a host: path relative to its training folder, with `/` → content."""
    there = {path for pattern in PATTERNS for path in ROOT.glob(pattern) if path.is_file()}
    names = sorted(path.relative_to(ROOT).as_posix() for path in there if not _is_by_product(path))
    left = [start for part in {*PARTS} - {*parts} for start in (f"utils/{part}.py", f"utils/gradcam_kit/{part}/")]
    return {name: (ROOT / name).read_bytes() for name in names if not name.startswith((*NEVER, *left))}


def _is_by_product(path: Path) -> bool:
    return "__pycache__" in path.parts or path.suffix == ".pyc" or path.name.startswith(".")


def check_host(host: Path) -> None:
    """Raises InputError where `host` is no training folder of a host, with what is missing there."""
    if not host.is_dir() or host == ROOT:
        what = "is this library itself" if host == ROOT else "no such folder"
        raise InputError(f"{host}: {what}; give the training folder of DF40, DeepfakeBench or Effort")
    missing = [name for name in NEEDED if not (host / name).exists()]
    missing += [" or ".join(names) for names in ONE_OF if not any((host / name).is_file() for name in names)]
    if missing:
        inside = [path.parent for path in host.glob("*/detectors") if path.is_dir()]
        lacks = ", ".join(missing) + (f"; did you mean {inside[0]}?" if inside else "")
        raise InputError(f"{host}: no training folder of DF40, DeepfakeBench or Effort, it lacks {lacks}")


def read_record(path: Path) -> tuple[dict[str, list[str]], list[str], str]:
    """The record's files with their digests, the folders made, and what was put into detectors/__init__.py.

    Empty where there is none. Raises InputError for a damaged one, or one that names a file outside of the host.
    """
    if not path.exists():
        return {}, [], ""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        entries = {name: one["ours"] if isinstance(one, dict) else one for name, one in values["files"].items()}
        files = {name: [str(digest) for digest in digests] for name, digests in entries.items()}
        created, inserted = [str(name) for name in values["created"]], str(values["inserted"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: is not a record of this installer ({type(error).__name__}: {error}); if the folder came from"
            f" elsewhere, remove {path.parent} and install again"
        ) from error
    for name in (*files, *created):
        pure = PurePosixPath(name)
        if pure.is_absolute() or not pure.parts or ".." in pure.parts or any(one in name for one in "\\:\0"):
            raise InputError(f"{path}: names {name!r}, outside of the host's folder; remove {path.parent}")
    return files, created, inserted


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an installation would change."""

    content: Mapping[str, bytes]  # the files to be written
    added: list[str]  # those of them that are not there; the others are of an earlier version of ours
    removed: list[str]  # files of an earlier version, or of a part that is no longer wanted
    line_missing: bool
    files: dict[str, list[str]]  # the record's, afterwards
    nothing_to_do: bool


class Installation:
    """This library in one host tree: which files belong to it, and how they are put in and taken out again.

    `.gradcam_install/record.json` is written before the first file is, and removed after the last one is gone: after an
    interruption a second run mends all. It says by SHA-256 which files are ours; no other is ever replaced or removed.
    Versions before 1.2 replaced files of the host by force: they lie in `backup/` beside it, and come back.
    """

    def __init__(self, host: Path) -> None:
        self.host = host
        self.folder = host / RECORD_FOLDER
        self.record_path = self.folder / "record.json"
        self.init_path = host / INIT
        self.files, self.created, self.inserted = read_record(self.record_path)

    def plan(self, files: Mapping[str, bytes]) -> Plan:
        """Compare `files` with what is there. Raises InputError for a file of that name that is not ours."""
        wanted = {name: data for name, data in files.items() if name != UTILS_INIT or not self._has_utils_init(data)}
        removed = [name for name in self.files if name not in wanted]
        there = {name: self._digest(name) for name in (*wanted, *removed)}
        content = {name: data for name, data in wanted.items() if there[name] != digest(data)}
        self._refuse([name for name in (*content, *removed) if there[name] not in (None, *self._known(name))])
        after = {name: [digest(data)] for name, data in wanted.items() if name in self.files or name in content}
        line_missing = LINE.encode() not in self.init_path.read_bytes()
        return Plan(
            content=content,
            added=[name for name in content if there[name] is None],
            removed=removed,
            line_missing=line_missing,
            files=after,
            nothing_to_do=not content and not line_missing and self.files == after,
        )

    def _has_utils_init(self, ours: bytes) -> bool:
        """Whether the host's `utils` is a package by a file of its own, which an earlier version may have replaced."""
        replaced = (self.folder / "backup" / UTILS_INIT).is_file()
        return replaced or (UTILS_INIT not in self.files and self._digest(UTILS_INIT) not in (None, digest(ours)))

    def _refuse(self, names: list[str]) -> None:
        if names:
            raise InputError(
                f"{self.host}: {len(names)} files there are not this library's, or were edited since it was installed:"
                f" {listed(names)}; move them away, then run again (nothing was changed)"
            )

    def carry_out(self, plan: Plan) -> None:
        """Write what is planned. Interrupted, it can be called again with a new plan, or undone."""
        for name, data in plan.content.items():
            self.files.setdefault(name, []).append(digest(data))
        parents = {parent for name in plan.content for parent in PurePosixPath(name).parents if parent.name}
        missing = sorted(parent.as_posix() for parent in parents if not (self.host / parent).exists())
        self.created += [folder for folder in missing if folder not in self.created]
        before = self.init_path.read_bytes()
        if plan.line_missing:
            self.inserted = insertion(before)
        self._write_record()
        for name, data in plan.content.items():
            self._place(name, data)
        for name in plan.removed:
            self._take_away(name)
        if plan.line_missing:
            self._place(INIT, before + self.inserted.encode())
        self._remove_empty_folders()
        self.files = plan.files
        self._write_record()

    def _remove_empty_folders(self) -> None:
        """Of the folders that an installation made, those that hold nothing now; the inner ones first."""
        for folder in sorted(self.created, key=len, reverse=True):
            remove_if_empty(self._inside(folder))
        self.created = [folder for folder in self.created if (self.host / folder).is_dir()]

    def _write_record(self) -> None:
        record = {"files": self.files, "created": self.created, "inserted": self.inserted}
        self._place(f"{RECORD_FOLDER}/record.json", json.dumps(record, indent=1).encode())

    def _inside(self, name: str) -> Path:
        """The file or folder `name` in the host, links followed. Raises InputError where they lead out of it."""
        path = (self.host / name).resolve()
        if self.host.resolve() not in path.parents:
            raise InputError(f"{self.host / name}: is a link that leads to {path}, outside of the host's folder")
        return path

    def _place(self, name: str, data: bytes) -> None:
        """Write a file of the host tree whole or not at all, keeping the permissions of the one it replaces."""
        path = self._inside(name)  # a link stays a link
        partial = self.folder / "partial"
        try:
            for folder in (self.folder, path.parent):
                folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            if path.exists():
                shutil.copymode(path, partial)
            partial.replace(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); nothing was lost, run again") from error

    def check_undo(self) -> None:
        """Raises InputError, before anything is changed, where nothing is installed, or something was edited since."""
        if not self.record_path.is_file():
            raise InputError(f"{self.host}: nothing is installed there")
        for folder in self.created:
            self._inside(folder)
        self._refuse([name for name in self.files if self._digest(name) not in (None, *self._known(name))])
        self._init_without_line()

    def undo(self) -> None:
        """Take everything out again. Interrupted, it can be called again. Raises InputError as `check_undo`."""
        self.check_undo()
        if self.init_path.is_file() and self._init_without_line() != self.init_path.read_bytes():
            self._place(INIT, self._init_without_line())
        for name in self.files:
            self._take_away(name)
        self._remove_empty_folders()
        shutil.rmtree(self.folder / "backup", ignore_errors=True)
        (self.folder / "partial").unlink(missing_ok=True)
        self.record_path.unlink()
        self.folder.rmdir()

    def _init_without_line(self) -> bytes:
        before = self.init_path.read_bytes() if self.init_path.is_file() else b""
        return without_line(before, self.inserted, self.init_path) if self.inserted else before

    def _take_away(self, name: str) -> None:
        """Remove an installed file with what Python made of it, or put the host's own back in its place."""
        path = self._inside(name)
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()
        remove_if_empty(path.parent / "__pycache__")
        backup = self.folder / "backup" / name
        if backup.is_file():
            self._place(name, backup.read_bytes())
        else:
            path.unlink(missing_ok=True)

    def _known(self, name: str) -> list[str]:
        """The digests that a file on record may have: ours, or that of the host's file which it once replaced."""
        backup = self.folder / "backup" / name
        return [*self.files.get(name, ()), *([digest(backup.read_bytes())] if backup.is_file() else [])]

    def _digest(self, name: str) -> str | None:
        """Of the file there, None where there is none. Raises InputError where the name leads out, or is a folder's."""
        path = self._inside(name)
        blocking = path if path.is_dir() else next((one for one in path.parents if one.is_file()), None)
        if blocking is not None:
            kind = "file" if blocking == path else "folder"
            raise InputError(f"{blocking}: is in the way of a {kind} of this library; move it away, then run again")
        return digest(path.read_bytes()) if path.exists() else None


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def insertion(data: bytes) -> str:
    """What to append to `detectors/__init__.py` so that our line stands there, in the line endings of the file."""
    end = "\r\n" if b"\r\n" in data else "\n"
    return end + LINE if data and not data.endswith(b"\n") else LINE + end


def without_line(data: bytes, inserted: str, path: Path) -> bytes:
    """`detectors/__init__.py` without what was inserted. Raises InputError where our line was edited since."""
    before, found, after = data.rpartition(inserted.encode())
    whole = found and (not before or before.endswith(b"\n") or inserted.startswith(("\r", "\n")))
    left = before + after if whole else data
    for number, line in enumerate(left.decode("utf-8", "replace").splitlines(), 1):
        code = line.split("#")[0]
        if IMPORTED in code:
            raise InputError(
                f"{path}: line {number} was edited since ({code.strip()!r}): remove the import of {IMPORTED} there by"
                " hand, then uninstall again; nothing was changed"
            )
    return left


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that is there and holds nothing."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def listed(names: Sequence[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def parser() -> OneLineParser:
    """Every flag."""
    p = OneLineParser("python -m utils.install_into_host FOLDER", __doc__ or "")
    p.add_argument("training", type=Path, metavar="TRAINING_FOLDER", help="with detectors/, config/ and test.py")
    p.add_argument(
        "--parts", nargs="*", choices=PARTS, default=list(DEFAULT_PARTS), metavar="PART",
        help=f"optional parts to install: {', '.join(PARTS)}; --parts alone installs none",
    )  # fmt: skip
    p.add_argument("--check", action="store_true", help="say what would be done, and write nothing")
    p.add_argument("--uninstall", action="store_true", help="restore the folder as it was before")
    return p


def main(argv: Sequence[str]) -> int:
    """Flags → files in the host tree. Returns the exit code; raises InputError."""
    args = parser().parse_args(argv)
    host = args.training.resolve()
    with alone_in(host):
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
