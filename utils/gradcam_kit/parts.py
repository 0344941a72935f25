"""Optional parts. No other room imports them. A host may lack a part, a pip installation its packages."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from .base.errors import InputError

# Part → the parts that it needs. Each is a folder next to this module; some have a command `utils/<part>.py`.
PARTS: dict[str, tuple[str, ...]] = {"report": (), "exports": (), "media": (), "app": ("media",)}
DEFAULT_PARTS = ("report", "exports", "media")  # what the installer copies into a host


def missing_part(part: str) -> str:
    """Say how to install a missing part; return "" if it is installed."""
    if importlib.util.find_spec(f"{__package__}.{part}") is not None:
        return ""
    wanted = " ".join(dict.fromkeys((*DEFAULT_PARTS, part)))
    return (
        f"the part {part!r} is not installed here: in the library's repository, run python -m utils.install_into_host"
        f" TRAINING_FOLDER --parts {wanted}; or run pip install gradcam_kit[{part}]"
    )


def load_part(module: str, feature: str) -> Any:
    """Import a part's module, e.g. `"report.page"`, for `feature`. Raises InputError if the part is missing."""
    missing = missing_part(module.partition(".")[0])
    if missing:
        raise InputError(f"{feature}: {missing}")
    return importlib.import_module(f"{__package__}.{module}")
