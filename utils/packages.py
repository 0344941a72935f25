"""Packages that only some features need."""

from __future__ import annotations

import importlib.util

from utils.errors import InputError


def require(module: str, feature: str) -> None:
    """Raises InputError where `module` is not installed, so that a run says so before it starts, not at its end."""
    if importlib.util.find_spec(module) is None:
        raise InputError(f"{feature} needs the package {module}, which is missing: pip install {module}")
