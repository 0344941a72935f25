"""Every message that `docs/errors.md` quotes is one that the code raises."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.helpers.paths import ROOT

QUOTED = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)


def strings() -> Iterator[str]:
    """Every string of the code, what is put into it at run time as `…`."""
    for folder in ("utils", "detectors", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(one.value) if isinstance(one, ast.Constant) else "…" for one in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value.replace("{}", "…")


SAID = "\n".join(strings())


def test_enough_is_quoted() -> None:
    assert len(QUOTED) > 35


@pytest.mark.parametrize("message", QUOTED)
def test_the_message_is_one_of_the_codes(message: str) -> None:
    pattern = "[^\n]*".join(re.escape(part) for part in message.split("…"))
    assert re.search(pattern, SAID), message
