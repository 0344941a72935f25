"""What other programs and files say, made fit for one line of a message."""

from __future__ import annotations

import codecs
import csv
from typing import IO, Sequence

# How text from outside goes into UTF-8 files: bytes of a file name that are no UTF-8 are written back as they came,
# other halves of surrogate pairs, which a JSON file may hold, as `\ud800`. Used as open(..., errors=AS_IT_CAME).
AS_IT_CAME = "as_it_came"


def _as_it_came(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error(AS_IT_CAME, _as_it_came)


def printable(text: str) -> str:
    """`text` for a terminal: line breaks, control characters and what is no Unicode are written out (`\\x1b`)."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def write_row(table: IO[str], fields: Sequence[object]) -> None:
    """One line of a CSV file that every reader takes for one row, also where a field holds a carriage return.

    Older versions of Python leave such a field unquoted.
    """
    split = any("\r" in str(field) for field in fields)
    csv.writer(table, lineterminator="\n", quoting=csv.QUOTE_ALL if split else csv.QUOTE_MINIMAL).writerow(fields)


def plain_words(error: BaseException) -> str:
    """The reason that an exception of another library gives, on one line, printable, at most 160 characters."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = " ".join(text.split()) or type(error).__name__
    return "".join(character if character.isprintable() else "?" for character in line[:160])


def quoted(text: str) -> str:
    """`text` in quotes and on one line, whatever is in it, and not endless."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
