"""Strings from outside (file names, other libraries' errors), made safe for messages and files."""

from __future__ import annotations

import codecs
import re

# How strings from outside are written to UTF-8 files, as open(..., errors=AS_IT_CAME): bytes of a file name that are
# not UTF-8 stay unchanged; other lone surrogates, which a JSON file may contain, become `\ud800`.
AS_IT_CAME = "as_it_came"


def _as_it_came(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error(AS_IT_CAME, _as_it_came)


# A spreadsheet runs a cell that begins with one of these, even after blanks. A leading apostrophe makes it text.
_FORMULA = re.compile(r"'*(?:[\t\r\n]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def harmless(cell: object) -> object:
    """Put an apostrophe before a cell that a spreadsheet would run as a formula. Numbers stay numbers."""
    text = str(cell)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else cell


def as_it_was(cell: str) -> str:
    """Undo `harmless`: return the original cell as a string."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def in_number_order(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return the sort key of a path: the numbers in its last part (9.png before 10.png), then the whole path."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    pieces = re.split("([0-9]+)", last)  # text, digits, text, digits, ...
    numbers = [piece.lstrip("0") if i % 2 else piece for i, piece in enumerate(pieces)]
    # A number with more digits is larger; other strings compare as usual.
    return [(len(piece) if i % 2 else 0, piece) for i, piece in enumerate(numbers)], name


def printable(text: str) -> str:
    """Escape line breaks, control characters and lone surrogates for a terminal (`\\x1b`)."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def one_line(text: object) -> str:
    """Return a string, or an exception's reason, as one line of at most 160 printable characters."""
    if isinstance(text, BaseException):
        text = (isinstance(text, OSError) and text.strerror) or str(text).strip() or type(text).__name__
    line = " ".join(str(text).split())
    return "".join(letter if letter.isprintable() else "?" for letter in line[:160])


def is_plain_name(name: str) -> bool:
    """Tell whether `name` can name a file inside a folder and cannot lead out of it."""
    return name.isprintable() and not {"/", "\\"} & set(name) and name not in ("", ".", "..")


def shortened(text: str, longest: int = 80) -> str:
    """Shorten `text` to `longest` characters. The middle is cut, because names often differ at their ends."""
    return text if len(text) <= longest else f"{text[: longest - 11]}...{text[-8:]}"


def size_text(size: int) -> str:
    """Return a number of bytes as text: `512 B`, `1.4 MB`."""
    amount, units = float(size), ("B", "kB", "MB", "GB", "TB")
    for unit in units:
        if amount < 1000 or unit == units[-1]:
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
