"""Packages that only some features need."""

from __future__ import annotations

import importlib.util
import re
import sys

from utils.errors import InputError


def require(module: str, feature: str) -> None:
    """Raises InputError where `module` is not installed, so that a run says so before it starts, not at its end."""
    if importlib.util.find_spec(module) is None:
        raise InputError(f"{feature} needs the package {module}, which is missing: pip install {module}")


PYTHON = (3, 8)
PACKAGES = {
    "torch": (1, 13),
    "transformers": (4, 26),
    "numpy": (1, 21),
    "opencv-python": (4, 0),
    "opencv-python-headless": (4, 0),
}


def complaint() -> str:
    """One line naming what is too old here, or an empty text. A missing package is said by whoever needs it."""
    if sys.version_info[:2] < PYTHON:
        return f"this library needs Python {_text(PYTHON)} or newer, here is {_text(sys.version_info[:2])}"
    from importlib.metadata import PackageNotFoundError, version

    lacking = []
    for package, least in PACKAGES.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        if tuple(int(number) for number in re.findall(r"\d+", found)[:2]) < least:
            lacking.append(f"{package} {_text(least)} (here is {found})")
    return f"this library needs {', '.join(lacking)} or newer" if lacking else ""


def _text(version: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in version)
