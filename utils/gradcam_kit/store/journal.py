"""Finished batches on disk while a run is under way, so that a killed run need not begin again.

Each rank appends to a file of its own, `predictions.<n>.partial`: rows as in predictions.csv, and three more columns:
why a frame could not be read, what its file was (`data.frame_paths`), and a checksum of the row. A row that does not
agree with its checksum is as if it were not there.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..base.files import LONGEST_FIELD, new_file, write_row
from ..base.text import AS_IT_CAME

COLUMNS = (
    "index", "path", "dataset", "forgery", "video", "label", "prob_fake", "logit_real", "logit_fake", "predicted",
    "correct",
)  # fmt: skip
REASON, STAMP, CHECKSUM = "unreadable", "file", "checksum"
ALL_COLUMNS = (*COLUMNS, REASON, STAMP, CHECKSUM)
PREDICTIONS, UNREADABLE = "predictions.csv", "unreadable.csv"  # what the journals become when the dataset is done
GAPS = "gaps.csv"  # the same, summed up per forgery, where anything is missing


def journals(folder: Path) -> list[Path]:
    """The journals in a dataset's folder, oldest first."""
    numbered = [(path.name.split(".")[1], path) for path in folder.glob("predictions.*.partial")]
    return [path for number, path in sorted((int(n), path) for n, path in numbered if n.isdigit())]


def next_number(folder: Path) -> int:
    """The first number that no journal has. A truncated file is never appended to."""
    return 1 + max((int(path.name.split(".")[1]) for path in journals(folder)), default=-1)


def is_journal(path: Path) -> bool:
    """Whether a file begins as a journal does."""
    with path.open("rb") as file:
        first = file.readline(1000)
    return not path.is_symlink() and first.rstrip(b"\n") == ",".join(ALL_COLUMNS).encode()


class Journal:
    """The journal `number` of a dataset, open for appending; use it in a `with` block."""

    def __init__(self, folder: Path, number: int) -> None:
        file = new_file(folder / f"predictions.{number}.partial")
        self._file = io.TextIOWrapper(file, encoding="utf-8", errors=AS_IT_CAME, newline="")
        write_row(self._file, ALL_COLUMNS)

    def append(self, rows: Iterable[Sequence[object]]) -> None:
        """One batch: rows without the checksum. Flushed to the OS: survives a crash of this process."""
        for row in rows:
            write_row(self._file, (*row, checksum(row)))
        self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()


def checksum(row: Sequence[object]) -> str:
    """Of the fields of a row, as they come back from a file: the first 16 digits of a SHA-256."""
    fields = "\0".join(map(str, row)).encode("utf-8", AS_IT_CAME)
    return hashlib.sha256(fields).hexdigest()[:16]


def read_rows(folder: Path, damaged: list[Path] | None = None) -> Iterator[dict[str, str]]:
    """The journals' rows that are as they were written; a frame's last one counts. `damaged` gets the others' files."""
    for path in journals(folder):
        for row in _rows(path):
            if len(row) == len(ALL_COLUMNS) and row[-1] == checksum(row[:-1]):
                yield dict(zip(ALL_COLUMNS, row, strict=True))
            elif damaged is not None and row != list(ALL_COLUMNS):
                damaged.append(path)


def _rows(path: Path) -> Iterator[list[str]]:
    """Whatever can be read as a row: a crash of the machine may leave a tail of anything."""
    csv.field_size_limit(LONGEST_FIELD)
    with path.open(newline="", encoding="utf-8", errors=AS_IT_CAME) as file:
        table = csv.reader(file)
        while True:
            try:
                row = next(table, None)
            except csv.Error:  # a field without end; NUL bytes, before Python 3.11
                continue
            if row is None:
                return
            yield row
