"""This extension in a host tree: which files belong to it, and how they are put in and taken out again.

`.gradcam_install/record.json` in the host's training folder is written before the first file is, and removed after the
last one is gone, so that an interruption at any moment can be mended. It lists what is ours; files of the host that
were replaced lie beside it under `backup/`. A record may come from somebody else's tree, so it is checked when it is
read, and nothing is removed but files whose hash this installer has written.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.base.files import TRAINING_FOLDER

# The stand-ins for the host's files of the same name never leave this repository.
STAND_INS = ("detectors/__init__.py", "detectors/clip_detector.py")
SINGLE_FILES = ("test_with_gradcam.py", "README_gradcam.md")
PATTERNS = (
    "detectors/gradcam_*.py",
    "detectors/*_detector_gradcam.py",
    "utils/**/*",
    "config/detector/clip_gradcam*.yaml",
    "docs/**/*.md",
    "assets/*.png",  # of the README
    "benchmarks/*.md",
    "benchmarks/plots/*.png",
    "examples/heatmaps.ipynb",
    "assets/demo_detector/*",  # the embedded detector, so that utils/gradcam_demo.py works without weights
)

REGISTRIES = ("metrics/registry.py", "utils/registry.py")
NEEDED = ("detectors/__init__.py", "config/detector", "config/test_config.yaml", "networks", "loss")
DETECTORS = ("detectors/clip_detector.py", "detectors/effort_detector.py")

RECORD_FOLDER = ".gradcam_install"
KEPT_FOLDER = "gradcam_kept"  # edits that --force replaced: the user's, so never removed
INIT = "detectors/__init__.py"
LINE = "from . import gradcam_detectors  # <name>_gradcam: the detectors with heatmaps"
IMPORTED = "gradcam_detectors"


def extension_files() -> dict[str, bytes]:
    """What is copied into a host: path relative to its training folder, with `/` → content."""
    found = {TRAINING_FOLDER / name for name in SINGLE_FILES if (TRAINING_FOLDER / name).is_file()}
    for pattern in PATTERNS:
        found.update(path for path in TRAINING_FOLDER.glob(pattern) if path.is_file() and not _is_by_product(path))
    names = {path.relative_to(TRAINING_FOLDER).as_posix(): path for path in sorted(found)}
    return {name: path.read_bytes() for name, path in names.items() if name not in STAND_INS}


def _is_by_product(path: Path) -> bool:
    return "__pycache__" in path.parts or path.suffix == ".pyc" or path.name.startswith(".")


def check_host(host: Path) -> None:
    """Raises InputError where `host` is no training folder of a host, with what is missing there."""
    if not host.is_dir():
        raise InputError(f"{host}: no such folder; give the training folder of DF40, DeepfakeBench or Effort")
    if host == TRAINING_FOLDER:
        raise InputError(f"{host}: is this library itself; give the training folder of DF40, DeepfakeBench or Effort")
    missing = [name for name in NEEDED if not (host / name).exists()]
    if not any((host / name).is_file() for name in REGISTRIES):
        missing.append(" or ".join(REGISTRIES))
    if not any((host / name).is_file() for name in DETECTORS):
        missing.append(" or ".join(DETECTORS))
    if missing:
        inside = [path.parent for path in host.glob("*/detectors") if path.is_dir()]
        hint = f"; did you mean {inside[0]}?" if inside else ""
        raise InputError(
            f"{host}: no training folder of DF40, DeepfakeBench or Effort, it lacks {', '.join(missing)}{hint}"
        )


class Plan(NamedTuple):
    """What an installation would change."""

    content: Mapping[str, bytes]  # every file to be written
    new: list[str]
    replaced: list[str]  # files that are there with other content: an older version of ours, or by force the host's
    outdated: list[str]  # files of an older version that the new one does not have
    edited: list[str]  # by force: files of ours that the user has edited, kept under KEPT_FOLDER
    line_missing: bool
    unfinished: bool  # an earlier installation was interrupted

    @property
    def nothing_to_do(self) -> bool:
        """Whether everything is in place."""
        return not (self.content or self.outdated or self.line_missing or self.unfinished)


class Record(NamedTuple):
    """`record.json`. `files` maps each installed file to the digests it may have and whether it has a backup."""

    files: dict[str, dict[str, Any]]
    created: list[str]  # folders that were not there before
    inserted: str  # what was put into detectors/__init__.py
    finished: bool


def read_record(path: Path) -> Record:
    """The record at `path`, checked. Raises InputError for one that names a file outside of the host's folder."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        files = {str(name): {"ours": [str(one) for one in entry["ours"]], "backup": bool(entry["backup"])}
                 for name, entry in values["files"].items()}  # fmt: skip
        created = [str(name) for name in values["created"]]
        record = Record(files, created, str(values["inserted"]), bool(values["finished"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: is no record of this installer ({type(error).__name__}: {error}); if the folder came from"
            f" elsewhere, remove {path.parent} and install again"
        ) from error
    for name in (*record.files, *record.created):
        pure = PurePosixPath(name)
        if pure.is_absolute() or not pure.parts or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name:
            raise InputError(f"{path}: names {name!r}, which lies outside of the host's folder; remove {path.parent}")
    return record


class Installation:
    """The extension in one host tree."""

    line = LINE

    def __init__(self, host: Path) -> None:
        self.host = host
        self.folder = host / RECORD_FOLDER
        self.record_path = self.folder / "record.json"
        self.init_path = host / INIT
        installed = self.record_path.is_file()
        record = read_record(self.record_path) if installed else Record({}, [], "", False)
        self.files, self.created, self.inserted, self.finished = record

    # ------------------------------------------------------------------------------------------------------- install

    def plan(self, wanted: Mapping[str, bytes], force: bool) -> Plan:
        """Compare `wanted` with what is there.

        Raises InputError for files that differ, unless forced, and for modules of the host that a folder would hide.
        """
        outdated = [name for name in self.files if name not in wanted]
        self._refuse_hidden_modules(wanted, outdated)
        content: dict[str, bytes] = {}
        new, replaced, differing = [], [], []
        for name, data in wanted.items():
            there = self._digest(name)
            if there == digest(data):
                continue
            content[name] = data
            if there is None:
                new.append(name)
            else:
                replaced.append(name)
                if there not in self._known(name):
                    differing.append(name)
        differing += [name for name in outdated if self._digest(name) not in (None, *self._known(name))]
        if differing and not force:
            raise InputError(
                f"{self.host}: {len(differing)} files there differ from the ones to be installed:"
                f" {', '.join(differing[:5])}; move them away, or --force to replace them (--uninstall restores the"
                f" host's; your edits of installed files are kept in {KEPT_FOLDER}/)"
            )
        edited = [name for name in differing if name in self.files]
        line_missing = LINE.encode() not in self.init_path.read_bytes()
        unfinished = bool(self.files) and not self.finished
        return Plan(content, new, replaced, outdated, edited, line_missing, unfinished)

    def _refuse_hidden_modules(self, wanted: Iterable[str], outdated: Iterable[str]) -> None:
        """Python takes the package `name/` before the module `name.py`, so neither may meet the other."""
        folders = {parent.as_posix() for name in wanted for parent in PurePosixPath(name).parents if parent.name}
        modules = [f"{folder}.py" for folder in sorted(folders) if f"{folder}.py" not in outdated]
        hidden = [name for name in modules if (self.host / name).is_file()]
        hiding = [
            name[: -len(".py")] + "/"
            for name in wanted
            if name.endswith(".py") and any((self.host / name[: -len(".py")]).glob("*.py"))
        ]
        if hidden:
            raise InputError(
                f"{self.host / hidden[0]}: this library brings a folder of that name, and Python would import that in"
                " place of your module; rename your module, then install again"
            )
        if hiding:
            raise InputError(
                f"{self.host / hiding[0]}: this library brings a module of that name, and Python would import your"
                " folder in its place; rename your folder, then install again"
            )

    def carry_out(self, plan: Plan) -> None:
        """Write what is planned. Interrupted, it can be called again with a new plan, or undone."""
        for name in plan.edited:
            self._keep(name)
        for name in plan.replaced:
            if name not in self.files:
                self._place(f"{RECORD_FOLDER}/backup/{name}", (self.host / name).read_bytes())
        for name, data in plan.content.items():
            entry = self.files.setdefault(name, {"ours": [], "backup": name in plan.replaced})
            entry["ours"].append(digest(data))
        self.created += [folder for folder in self._missing_folders(plan.content) if folder not in self.created]
        before = self.init_path.read_bytes()
        if LINE.encode() not in before:
            self.inserted = insertion(before)
        self._write_record(finished=False)
        for name, data in plan.content.items():
            self._place(name, data)
        for name in plan.outdated:
            self._take_away(name)
        if LINE.encode() not in before:
            self._place(INIT, before + self.inserted.encode())
        for name in plan.outdated:
            del self.files[name]
        for name, data in plan.content.items():
            self.files[name]["ours"] = [digest(data)]
        self._remove_empty_folders()
        self._write_record(finished=True)

    def _keep(self, name: str) -> None:
        """Copy a file that the user has edited to KEPT_FOLDER, beside what was kept there before; then it is ours."""
        data = (self.host / name).read_bytes()
        number, kept = 0, f"{KEPT_FOLDER}/{name}"
        while self._digest(kept) not in (None, digest(data)):
            number += 1
            kept = f"{KEPT_FOLDER}/{name}.{number}"
        self._place(kept, data)
        self.files[name]["ours"].append(digest(data))

    def _missing_folders(self, names: Mapping[str, bytes]) -> list[str]:
        parents = {parent for name in names for parent in Path(name).parents if parent != Path()}
        return sorted(parent.as_posix() for parent in parents if not (self.host / parent).exists())

    def _remove_empty_folders(self) -> None:
        """Of the folders that an installation made, those that hold nothing now; the inner ones first."""
        for folder in sorted(self.created, key=len, reverse=True):
            remove_if_empty(self._inside(folder))
        self.created = [folder for folder in self.created if (self.host / folder).is_dir()]

    def _write_record(self, finished: bool) -> None:
        record = {"finished": finished, "files": self.files, "created": self.created, "inserted": self.inserted}
        self._place(f"{RECORD_FOLDER}/record.json", json.dumps(record, indent=1).encode())
        self.finished = finished

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
            os.replace(partial, path)  # noqa: PTH105
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); nothing was lost, run again") from error

    # ----------------------------------------------------------------------------------------------------- uninstall

    def installed_files(self) -> list[str]:
        """The files on record. Raises InputError where nothing is installed."""
        if not self.record_path.is_file():
            raise InputError(f"{self.host}: nothing is installed there")
        return list(self.files)

    def edited_files(self) -> list[str]:
        """Installed files that someone has changed since."""
        return [name for name in self.files if self._digest(name) not in (None, *self._known(name))]

    def undo(self) -> None:
        """Take everything out again. Interrupted, it can be called again.

        Raises InputError, before anything is changed, where our line in detectors/__init__.py was edited.
        """
        before = self.init_path.read_bytes() if self.init_path.is_file() else b""
        after = without_line(before, self.inserted, self.init_path) if self.inserted else before
        for name in (*self.files, *self.created):
            self._inside(name)
        if after != before:
            self._place(INIT, after)
        for name in self.files:
            self._take_away(name)
        self._remove_empty_folders()
        if (self.folder / "backup").is_dir():
            shutil.rmtree(self.folder / "backup")
        for file in (self.folder / "partial", self.record_path):
            file.unlink() if file.exists() else None
        self.folder.rmdir()

    def _take_away(self, name: str) -> None:
        """Remove an installed file with what Python made of it, or put the host's own back in its place."""
        path = self._inside(name)
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()
        remove_if_empty(path.parent / "__pycache__")
        backup = self.folder / "backup" / name
        if backup.is_file():
            self._place(name, backup.read_bytes())
        elif path.exists():
            path.unlink()

    def _known(self, name: str) -> tuple[str, ...]:
        """The digests that a file on record may have: ours, or that of the host's file which it replaces."""
        entry = self.files.get(name)
        if entry is None:
            return ()
        return (*entry["ours"], *([str(self._digest(f"{RECORD_FOLDER}/backup/{name}"))] if entry["backup"] else []))

    def _digest(self, name: str) -> str | None:
        path = self.host / name
        if path.is_dir():
            raise InputError(f"{path}: a folder is where a file of this library belongs; move it away")
        return digest(path.read_bytes()) if path.exists() else None


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def insertion(data: bytes) -> str:
    """What to append to `detectors/__init__.py` so that our line stands there, in the line endings of the file."""
    end = "\r\n" if b"\r\n" in data else "\n"
    if data and not data.endswith(b"\n"):
        return end + LINE
    return LINE + end


def without_line(data: bytes, inserted: str, path: Path) -> bytes:
    """`detectors/__init__.py` without our line, also where its comment or line endings were changed since.

    Raises InputError where the line stands inside other code, which would not compile without it.
    """
    before, found, after = data.rpartition(inserted.encode())
    if found and (not before or before.endswith(b"\n") or inserted.startswith(("\r", "\n"))):
        left = before + after
    else:
        left = b"".join(line for line in data.splitlines(keepends=True) if not _is_our_import(line))
    for number, line in enumerate(left.decode("utf-8", "replace").splitlines(), 1):
        code = line.split("#")[0]
        if IMPORTED in code:
            raise InputError(
                f"{path}: line {number} was edited since ({code.strip()!r}): remove the import of {IMPORTED} there by"
                " hand, then uninstall again; nothing was changed"
            )
    return left


def _is_our_import(line: bytes) -> bool:
    """Whether a line, which is not indented, imports our detectors and nothing else."""
    try:
        (statement,) = ast.parse(line.decode("utf-8")).body
    except (SyntaxError, ValueError):
        return False
    return isinstance(statement, ast.ImportFrom) and [one.name for one in statement.names] == [IMPORTED]


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that is there and holds nothing."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
