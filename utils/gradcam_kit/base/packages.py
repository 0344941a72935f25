"""Missing and outdated packages."""

from __future__ import annotations

import importlib.util
import re
import sys

from .errors import InputError

PYTHON = (3, 10)
PACKAGES = {
    "torch": (2, 1), "transformers": (4, 46), "numpy": (1, 21),
    "opencv-python": (4, 6), "opencv-python-headless": (4, 6),
}  # fmt: skip


def require(module: str, feature: str) -> None:
    """Raise InputError if `module`, which `feature` needs, is not installed."""
    if importlib.util.find_spec(module) is None:
        raise InputError(f"{feature} needs the package {module}, which is missing: pip install {module}")


def outdated_packages() -> str:
    """Return a message that lists outdated packages, or "". A missing package fails at its import."""
    if sys.version_info[:2] < PYTHON:
        return f"this library needs Python {_text(PYTHON)} or newer, here is {_text(sys.version_info[:2])}"
    from importlib.metadata import PackageNotFoundError, version

    outdated = []
    for package, least in PACKAGES.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        if tuple(int(number) for number in re.findall(r"\d+", found)[:2]) < least:
            outdated.append(f"{package} {_text(least)} (here is {found})")
    return f"this library needs {', '.join(outdated)} or newer" if outdated else ""


def _text(version: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in version)
