"""Finished batches on disk while a run is under way, so that a killed run need not begin again.

Each rank appends to a file of its own, `predictions.<n>.partial`: rows as in predictions.csv, and one more column, the
reason why a frame could not be read. A truncated last row is ignored.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from types import TracebackType
from typing import Iterable, Iterator, Sequence

from utils.files import new_file, write_row
from utils.text import AS_IT_CAME

COLUMNS = (
    "index", "path", "dataset", "forgery", "video", "label", "prob_fake", "logit_real", "logit_fake", "predicted",
    "correct",
)  # fmt: skip
REASON = "unreadable"
PREDICTIONS, UNREADABLE = "predictions.csv", "unreadable.csv"  # what the journals become when the dataset is done
GAPS = "gaps.csv"  # the same, summed up per forgery, where anything is missing


def journals(folder: Path) -> list[Path]:
    """The journals in a dataset's folder, oldest first."""
    numbered = [(path.name.split(".")[1], path) for path in folder.glob("predictions.*.partial")]
    return [path for number, path in sorted((int(n), path) for n, path in numbered if n.isdigit())]


def next_number(folder: Path) -> int:
    """The first number that no journal has. A truncated file is never appended to."""
    return 1 + max((int(path.name.split(".")[1]) for path in journals(folder)), default=-1)


class Journal:
    """The journal `number` of a dataset, open for appending; use it in a `with` block."""

    def __init__(self, folder: Path, number: int) -> None:
        file = new_file(folder / f"predictions.{number}.partial")
        self._file = io.TextIOWrapper(file, encoding="utf-8", errors=AS_IT_CAME, newline="")
        write_row(self._file, (*COLUMNS, REASON))

    def append(self, rows: Iterable[Sequence[object]]) -> None:
        """One batch. Flushed to the OS: survives a crash of this process."""
        for row in rows:
            write_row(self._file, row)
        self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_rows(folder: Path) -> Iterator[dict[str, str]]:
    """The complete rows of all journals, by column; a frame may come twice, with the same values."""
    for path in journals(folder):
        for row in _whole_rows(path):
            yield dict(zip((*COLUMNS, REASON), row))


def _whole_rows(path: Path) -> Iterator[list[str]]:
    """Up to the first damaged row: a crash of the machine may leave a tail of anything."""
    with path.open("rb") as raw:
        raw.seek(0, 2)
        raw.seek(max(raw.tell() - 1, 0))
        ends_whole = raw.read() == b"\n"
    with path.open(newline="", encoding="utf-8", errors=AS_IT_CAME) as file:
        table = csv.reader(file)
        previous: list[str] | None = None
        try:
            next(table, None)  # the header
            for row in table:
                if previous is not None:
                    yield previous
                if not _is_whole(row):
                    return
                previous = row
        except csv.Error:  # NUL bytes, before Python 3.11
            return
        if previous is not None and ends_whole:
            yield previous


def _is_whole(row: Sequence[str]) -> bool:
    return len(row) == len(COLUMNS) + 1 and row[0].isdigit() and (row[10] in ("True", "False")) != bool(row[11])
