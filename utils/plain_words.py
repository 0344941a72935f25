"""What other programs and files say, made fit for one line of a message."""

from __future__ import annotations


def plain_words(error: BaseException) -> str:
    """The reason that an exception of another library gives, on one line, printable, at most 160 characters."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = " ".join(text.split()) or type(error).__name__
    return "".join(character if character.isprintable() else "?" for character in line[:160])


def quoted(text: str) -> str:
    """`text` in quotes and on one line, whatever is in it, and not endless."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
