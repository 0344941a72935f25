"""Reading of CSV files from people or spreadsheets: any separator, encoding, capitals and blanks."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .errors import InputError
from .files import check_ordinary
from .text import AS_IT_CAME, as_it_was, one_line, shortened

MOST_BYTES = 2 * 1024**3
LONGEST_CELL = 2**24  # characters
SEPARATORS = ",;\t|"
# Tried if a file is not UTF-8: spreadsheets in Western Europe, China, Japan, Korea, Eastern Europe, Russia.
ENCODINGS = ("cp1252", "gb18030", "cp932", "cp949", "cp1250", "cp1251")
_MARKS = {  # longer marks first: one of UTF-32 begins with one of UTF-16
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF8: "utf-8-sig",
}  # fmt: skip


class Line(NamedTuple):
    """A row by its column names in lower case; a missing cell is "". `number` is the line in the file."""

    number: int
    cells: dict[str, str]


def read_sheet(path: Path, *columns: Sequence[str], encoding: str = "") -> Iterator[Line]:
    """Yield the rows of a CSV from people or spreadsheets, without the empty ones.

    The separator is the one that yields the most known columns in the first line. Capitals, blanks, a byte-order mark
    and a line `sep=;` do not matter. Each of `columns` lists the spellings of a required column; the first is its key
    in `Line.cells`. `encoding`: one of `encodings_of`; "" takes the first. Raises InputError that lists the columns.
    """
    text = _text(path, encoding).lstrip("\ufeff")  # concatenated files have a second mark
    lines = list(io.StringIO(text, newline=""))  # splitlines() would also split at U+2028, which a name may contain
    skipped = 0
    declared = re.fullmatch(r'"?sep=(.)"?', lines[0].strip("\r\n")) if lines else None
    if declared:  # a line from Excel
        skipped = 1
    first = next((line for line in lines[skipped:] if line.strip()), "")
    separator = (
        declared[1] if declared else max(SEPARATORS, key=lambda s: len(_known_columns(_header(first, s), columns)))
    )
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        rows = csv.reader(lines[skipped:], delimiter=separator, skipinitialspace=True)
        header: list[str] = []
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue  # spreadsheets leave such rows below a table
            if not header:
                header = _names(row, path, columns)
                continue
            cells = [as_it_was(cell.strip()) for cell in row]
            if any(cells[len(header) :]):
                raise InputError(
                    f"{path}, line {rows.line_num + skipped}: has {len(row)} fields, the first line has {len(header)}:"
                    f" put names that contain {separator!r} into quotes"
                )
            cells += [""] * (len(header) - len(cells))
            yield Line(rows.line_num + skipped, dict(zip(header, cells, strict=False)))
        if not header:
            _names([], path, columns)
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as a CSV ({one_line(error)})") from error
    finally:
        csv.field_size_limit(limit)


def encodings_of(path: Path) -> list[str]:
    """Return the file's possible encodings: the one its byte-order mark or zeros show, else UTF-8.

    For a file that is not valid UTF-8, all of `ENCODINGS` that can read it follow.
    """
    data = _bytes(path)
    marked = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "")
    if marked:
        return [marked]
    if b"\0" in data[:64]:  # UTF-16 without a mark: every second byte of the column names is zero
        return ["utf-16-be" if data[:1] == b"\0" else "utf-16-le"]
    possible = ["utf-8"]
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:  # raw bytes of file names, or a spreadsheet's own encoding
        for name in ENCODINGS:
            try:
                data.decode(name)
            except UnicodeDecodeError:
                continue
            possible.append(name)
    return possible


def _text(path: Path, encoding: str) -> str:
    data = _bytes(path)
    name = encoding or encodings_of(path)[0]
    try:
        return data.decode(name, AS_IT_CAME if name.startswith("utf-8") else "strict")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as {name} ({one_line(error)}); save it as CSV UTF-8") from error


def _bytes(path: Path) -> bytes:
    try:
        check_ordinary(path, MOST_BYTES)
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a CSV ({one_line(error)})") from error


def _header(line: str, separator: str) -> list[str]:
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        row = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:
        row = []
    finally:
        csv.field_size_limit(limit)
    return [name.strip().lower() for name in row]


def _known_columns(header: Sequence[str], columns: Sequence[Sequence[str]]) -> list[str]:
    return [spellings[0] for spellings in columns if any(name in header for name in spellings)]


def _names(row: Sequence[str], path: Path, columns: Sequence[Sequence[str]]) -> list[str]:
    """Return the columns' keys. Raises InputError if a column is missing or there twice."""
    header = [name.strip().lower() for name in row]
    missing = [" or ".join(spellings) for spellings in columns if not any(name in header for name in spellings)]
    if missing:
        held = ", ".join(shortened(name.strip()) for name in row) or "nothing"
        raise InputError(f"{path}: has no column {', '.join(missing)}; its columns are: {shortened(held, 200)}")
    for spellings in columns:
        name = next(name for name in spellings if name in header)
        if header.count(name) > 1:
            raise InputError(f"{path}: has the column {name} twice; remove one")
        header[header.index(name)] = spellings[0]
    return header
