"""An installation in a host tree: planned, carried out and undone so that an interruption at any moment can be mended.

`.gradcam_install/record.json` in the host's training folder is written before the first file is, and removed after the
last one is gone. It lists what is ours; files of the host that were replaced lie beside it under `backup/`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Mapping, NamedTuple

from utils.errors import InputError
from utils.files import TRAINING_FOLDER

RECORD_FOLDER = ".gradcam_install"
LINE = "from . import gradcam_detectors  # <name>_gradcam: the detectors with heatmaps"


class Plan(NamedTuple):
    """What an installation would change."""

    content: Mapping[str, bytes]  # every file to be written
    new: list[str]
    replaced: list[str]  # files that are there with other content: an older version of ours, or by force the host's
    outdated: list[str]  # files of an older version that the new one does not have
    line_missing: bool
    unfinished: bool  # an earlier installation was interrupted

    @property
    def nothing_to_do(self) -> bool:
        """Whether everything is in place."""
        return not (self.content or self.outdated or self.line_missing or self.unfinished)


class Installation:
    """The extension in one host tree. `record` maps each installed file to its possible digests and its backup."""

    line = LINE

    def __init__(self, host: Path) -> None:
        self.host = host
        self.folder = host / RECORD_FOLDER
        self.record_path = self.folder / "record.json"
        self.init_path = host / "detectors" / "__init__.py"
        self.files: dict[str, dict[str, Any]] = {}
        self.created: list[str] = []  # folders that were not there before
        self.inserted = ""  # what was put into detectors/__init__.py
        self.finished = False
        if self.record_path.is_file():
            record = json.loads(self.record_path.read_text(encoding="utf-8"))
            self.files, self.created = record["files"], record["created"]
            self.inserted, self.finished = record["inserted"], record["finished"]

    # ------------------------------------------------------------------------------------------------------- install

    def plan(self, wanted: Mapping[str, bytes], force: bool) -> Plan:
        """Compare `wanted` with what is there. Raises InputError for files that differ, unless forced."""
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
        if differing and not force:
            raise InputError(
                f"{self.host}: {len(differing)} files there differ from the ones to be installed:"
                f" {', '.join(differing[:5])}; move them away, or --force to replace them (--uninstall restores the"
                " host's)"
            )
        outdated = [name for name in self.files if name not in wanted]
        line_missing = LINE.encode() not in self.init_path.read_bytes()
        unfinished = bool(self.files) and not self.finished
        return Plan(content, new, replaced, outdated, line_missing, unfinished)

    def carry_out(self, plan: Plan) -> None:
        """Write what is planned. Interrupted, it can be called again with a new plan, or undone."""
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
            self._place("detectors/__init__.py", before + self.inserted.encode())
        for name in plan.outdated:
            del self.files[name]
        for name, data in plan.content.items():
            self.files[name]["ours"] = [digest(data)]
        self._write_record(finished=True)

    def _missing_folders(self, names: Mapping[str, bytes]) -> list[str]:
        parents = {parent for name in names for parent in Path(name).parents if parent != Path()}
        return sorted(parent.as_posix() for parent in parents if not (self.host / parent).exists())

    def _write_record(self, finished: bool) -> None:
        record = {"finished": finished, "files": self.files, "created": self.created, "inserted": self.inserted}
        self._place(f"{RECORD_FOLDER}/record.json", json.dumps(record, indent=1).encode())
        self.finished = finished

    def _place(self, name: str, data: bytes) -> None:
        """Write a file of the host tree whole or not at all, keeping the permissions of the one it replaces."""
        path = (self.host / name).resolve()  # a link stays a link
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
        if not self.folder.is_dir():
            raise InputError(f"{self.host}: nothing is installed there")
        return list(self.files)

    def edited_files(self) -> list[str]:
        """Installed files that someone has changed since."""
        return [name for name in self.files if self._digest(name) not in (None, *self._known(name))]

    def undo(self) -> None:
        """Take everything out again. Interrupted, it can be called again."""
        data = self.init_path.read_bytes() if self.init_path.is_file() else b""
        if self.inserted and LINE.encode() in data:
            self._place("detectors/__init__.py", without_insertion(data, self.inserted))
        for name in self.files:
            self._take_away(name)
        for folder in sorted(self.created, key=len, reverse=True):  # the inner ones first
            remove_if_empty(self.host / folder)
        if (self.folder / "backup").is_dir():
            shutil.rmtree(self.folder / "backup")
        for file in (self.folder / "partial", self.record_path):
            file.unlink() if file.exists() else None
        self.folder.rmdir()

    def _take_away(self, name: str) -> None:
        """Remove an installed file with what Python made of it, or put the host's own back in its place."""
        path = self.host / name
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


def without_insertion(data: bytes, inserted: str) -> bytes:
    """The file without our line, also where it was edited or its line endings were changed since."""
    before, found, after = data.rpartition(inserted.encode())
    if found:
        return before + after
    return b"".join(line for line in data.splitlines(keepends=True) if LINE.encode() not in line)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that is there and holds nothing."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


# The stand-ins for the host's files of the same name never leave this repository.
STAND_INS = ("detectors/__init__.py", "detectors/base_detector.py", "detectors/clip_detector.py")
SINGLE_FILES = ("test_with_gradcam.py", "README_gradcam.md")
PATTERNS = (
    "detectors/gradcam_*.py",
    "detectors/*_detector_gradcam.py",
    "utils/**/*",
    "config/detector/clip_gradcam*.yaml",
    "assets/demo_detector/*",  # the embedded detector, so that utils/gradcam_demo.py works without weights
)

REGISTRIES = ("metrics/registry.py", "utils/registry.py")
NEEDED = ("detectors/__init__.py", "config/detector", "config/test_config.yaml", "networks", "loss")
DETECTORS = ("detectors/clip_detector.py", "detectors/effort_detector.py")


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
