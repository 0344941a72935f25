"""Which files belong to the extension, and what makes a folder a host's `training` folder."""

from __future__ import annotations

from pathlib import Path

from utils.errors import InputError

# The root of this repository or, in a host, its training folder.
EXTENSION_ROOT = Path(__file__).resolve().parent.parent

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
    found = {EXTENSION_ROOT / name for name in SINGLE_FILES if (EXTENSION_ROOT / name).is_file()}
    for pattern in PATTERNS:
        found.update(path for path in EXTENSION_ROOT.glob(pattern) if path.is_file() and not _is_by_product(path))
    names = {path.relative_to(EXTENSION_ROOT).as_posix(): path for path in sorted(found)}
    return {name: path.read_bytes() for name, path in names.items() if name not in STAND_INS}


def _is_by_product(path: Path) -> bool:
    return "__pycache__" in path.parts or path.suffix == ".pyc" or path.name.startswith(".")


def check_host(host: Path) -> None:
    """Raises InputError where `host` is no training folder of a host, with what is missing there."""
    if not host.is_dir():
        raise InputError(f"{host}: no such folder; give the training folder of DF40, DeepfakeBench or Effort")
    if host == EXTENSION_ROOT:
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
