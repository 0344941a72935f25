"""How a run's map was chosen, on disk: `calibration.json`, which the next run reads, and `calibration.csv`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..base.files import write_json, write_table
from ..judge.verdict import Choice

CALIBRATION_JSON, CALIBRATION_CSV = "calibration.json", "calibration.csv"
COLUMNS = (
    "method", "layer", "site", "backward", "named", "used", "fall", "fall_random", "beyond_random", "beyond_low",
    "beyond_high", "share_of_best", "share_by_second_fill",
)  # fmt: skip


class Calibration(NamedTuple):
    """A choice, with the hash of all it depends on."""

    key: str
    choice: Choice

    def write(self, folder: Path) -> None:
        """Both files, each whole or not at all."""
        write_json(folder / CALIBRATION_JSON, {"key": self.key, "choice": self.choice.to_json()})
        write_table(folder / CALIBRATION_CSV, COLUMNS, _table(self.choice))

    @classmethod
    def read(cls, path: Path) -> Calibration | None:
        """None where `path` is not a calibration that this version wrote: then the map is chosen anew."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(str(values["key"]), Choice.from_json(values["choice"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None


def _table(choice: Choice) -> Iterable[list[object]]:
    for row in choice.rows:
        numbers = (row.fall, row.random, *row.beyond, row.share, row.second)
        shown = ["" if math.isnan(number) else f"{number:.6g}" for number in numbers]
        yield [*row.candidate.facts().values(), row.named, row.candidate == choice.used, *shown]


def key_of(values: Any) -> str:
    """A hash of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def find_calibration(key: str, output: Path) -> Calibration | None:
    """The calibration of that key that was kept in the output folder, or in a run's folder beside it."""
    places = [output / CALIBRATION_JSON]
    if output.parent.is_dir():
        places += sorted(output.parent.glob(f"*/{CALIBRATION_JSON}"))
    for place in places:
        found = Calibration.read(place) if place.is_file() else None
        if found is not None and found.key == key:
            return found
    return None
