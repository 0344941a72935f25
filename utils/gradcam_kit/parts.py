"""The optional parts. Nothing imports them; a host may lack them, and a pip installation their packages."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from .base.errors import InputError

# Part → the parts that it needs. Each is a folder beside this module; some have a command `utils/<part>.py`.
PARTS: dict[str, tuple[str, ...]] = {"report": (), "exports": (), "media": (), "app": ("media",)}
DEFAULT_PARTS = ("report", "exports", "media")  # what the installer copies into a host


def missing_part(part: str) -> str:
    """What to do about a part that is not installed here, in words; "" where it is."""
    if importlib.util.find_spec(f"{__package__}.{part}") is not None:
        return ""
    wanted = " ".join(dict.fromkeys((*DEFAULT_PARTS, part)))
    return (
        f"the part {part!r} is not installed here: in the library's repository, python -m utils.install_into_host"
        f" TRAINING_FOLDER --parts {wanted}; or pip install gradcam_kit[{part}]"
    )


def load_part(module: str, feature: str) -> Any:
    """The module of a part, as `"report.page"`. Raises InputError where the part, which `feature` needs, is missing."""
    lacking = missing_part(module.partition(".")[0])
    if lacking:
        raise InputError(f"{feature}: {lacking}")
    return importlib.import_module(f"{__package__}.{module}")
