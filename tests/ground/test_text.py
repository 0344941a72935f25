"""Strings from outside in messages and in files."""

from __future__ import annotations

import errno

import pytest

from utils.gradcam_kit.base.text import AS_IT_CAME, one_line, printable, shortened


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain", "plain"),
        (" two\n  lines\tand a tab ", "two lines and a tab"),
        ("\x1b[31mred\udcff größe", "?[31mred? größe"),
        ("x" * 500, "x" * 160),
        (ValueError("first\nsecond"), "first second"),
        (KeyError(), "KeyError"),
        (ValueError("  \n "), "ValueError"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), "No space left on device"),
        (OSError("broken header"), "broken header"),
    ],
)
def test_one_line(text: object, line: str) -> None:
    assert one_line(text) == line


def test_shortened_keeps_both_ends() -> None:
    assert shortened("x" * 80) == "x" * 80
    long = "/a/very/long/path" * 10 + "/best.pth"
    for longest in (18, 40, 80):
        short = shortened(long, longest)
        assert len(short) == longest and short.endswith("best.pth") and long.startswith(short.partition("...")[0])


def test_printable_escapes_what_a_terminal_would_obey() -> None:
    assert printable("größe 人\x1b[0m\n\udcff") == "größe 人\\x1b[0m\\n\\udcff"


def test_bytes_of_a_name_are_written_as_they_came() -> None:
    name = b"\xffgr\xc3\xb6\xc3\x9fe".decode("utf-8", AS_IT_CAME)
    assert name.encode("utf-8", AS_IT_CAME) == b"\xffgr\xc3\xb6\xc3\x9fe"
    assert "\ud800".encode("utf-8", AS_IT_CAME) == b"\\ud800"
