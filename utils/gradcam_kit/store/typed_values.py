"""Values of a run's JSON files, which may be somebody else's or damaged: of the right type, or a ValueError."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DEEPEST = 40  # levels of a JSON file that a run writes: it has fewer than ten


def number(values: Mapping[str, Any], key: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from `low` to `high`."""
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise ValueError(f"{key} is no number")
    if not low <= value <= high:
        raise ValueError(f"{key} is out of range")
    return float(value)


def count(values: Mapping[str, Any], key: str, high: int = 2**63 - 1) -> int:
    """A whole number from 0 to `high`."""
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high:
        raise ValueError(f"{key} is no whole number")
    return value


def string(values: Mapping[str, Any], key: str) -> str:
    """Any string."""
    if not isinstance(values[key], str):
        raise ValueError(f"{key} is no string")
    return str(values[key])


def plain_name(values: Mapping[str, Any], key: str) -> str:
    """The name of a file in a folder: it leads nowhere else."""
    name = string(values, key)
    if not name.isprintable() or "/" in name or "\\" in name or name in ("", ".", ".."):
        raise ValueError(f"{key} is no plain name")
    return name


def flag(values: Mapping[str, Any], key: str) -> bool:
    """True or false."""
    if not isinstance(values[key], bool):
        raise ValueError(f"{key} is neither true nor false")
    return bool(values[key])


def check_depth(values: Any, left: int = DEEPEST) -> None:
    """Raises ValueError for JSON that is nested deeper than any that a run writes: others would fail on it."""
    if left == 0:
        raise ValueError(f"nested more than {DEEPEST} levels deep")
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        check_depth(value, left - 1)
