"""CSV files that people or spreadsheets wrote: any separator, any encoding, capitals and blanks as they come."""

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
LONGEST_CELL = 2**24  # letters
SEPARATORS = ",;\t|"
# Of a file that is not UTF-8: what spreadsheets write in Western Europe, China, Japan, Korea, Eastern Europe, Russia.
ENCODINGS = ("cp1252", "gb18030", "cp932", "cp949", "cp1250", "cp1251")
_MARKS = {  # the longer first: a mark of UTF-32 begins with one of UTF-16
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF8: "utf-8-sig",
}  # fmt: skip


class Line(NamedTuple):
    """A row of a table by its columns, lower case; `number` is the line in the file. A cell that lacks is empty."""

    number: int
    cells: dict[str, str]


def read_sheet(path: Path, *columns: Sequence[str], encoding: str = "") -> Iterator[Line]:
    """The rows of a CSV that people or spreadsheets wrote, without the empty ones.

    The separator is the one by which the first line names the columns; capitals, blanks, a byte-order mark and `sep=;`
    do not matter. Each of `columns` lists the spellings of one that has to be there, its key in `Line.cells` is the
    first. `encoding`: of `encodings_of`; "" takes the first. Raises InputError, naming the columns that were found.
    """
    text = _text(path, encoding).lstrip("\ufeff")  # files put together have a second mark
    lines = list(io.StringIO(text, newline=""))  # not at U+2028, which may stand in a name
    skipped = 0
    told = re.fullmatch(r'"?sep=(.)"?', lines[0].strip("\r\n")) if lines else None
    if told:  # Excel's own line
        skipped = 1
    first = next((line for line in lines[skipped:] if line.strip()), "")
    separator = told[1] if told else max(SEPARATORS, key=lambda one: len(_found(_header(first, one), columns)))
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        rows = csv.reader(lines[skipped:], delimiter=separator, skipinitialspace=True)
        header: list[str] = []
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue  # as spreadsheets leave them below a table
            if not header:
                header = _names(row, path, columns)
                continue
            cells = [as_it_was(cell.strip()) for cell in row]
            if any(cells[len(header) :]):
                raise InputError(
                    f"{path}, line {rows.line_num + skipped}: has {len(row)} fields, its first line {len(header)}:"
                    f" put names that hold {separator!r} into quotes"
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
    """In which the file may be: one by its mark or its zeros, or UTF-8; of anything else all that it can be read in."""
    data = _bytes(path)
    marked = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "")
    if marked:
        return [marked]
    if b"\0" in data[:64]:  # UTF-16 without a mark: every second byte of the column names is zero
        return ["utf-16-be" if data[:1] == b"\0" else "utf-16-le"]
    found = ["utf-8"]
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:  # bytes as a file system has them, or a spreadsheet's own
        for name in ENCODINGS:
            try:
                data.decode(name)
            except UnicodeDecodeError:
                continue
            found.append(name)
    return found


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


def _found(header: Sequence[str], columns: Sequence[Sequence[str]]) -> list[str]:
    return [spellings[0] for spellings in columns if any(name in header for name in spellings)]


def _names(row: Sequence[str], path: Path, columns: Sequence[Sequence[str]]) -> list[str]:
    """The columns' keys. Raises InputError where one lacks or stands there twice."""
    header = [name.strip().lower() for name in row]
    lacks = [" or ".join(spellings) for spellings in columns if not any(name in header for name in spellings)]
    if lacks:
        held = ", ".join(shortened(name.strip()) for name in row) or "nothing"
        raise InputError(f"{path}: has no column {', '.join(lacks)}; its columns are: {shortened(held, 200)}")
    for spellings in columns:
        name = next(name for name in spellings if name in header)
        if header.count(name) > 1:
            raise InputError(f"{path}: has the column {name} twice; remove one")
        header[header.index(name)] = spellings[0]
    return header
