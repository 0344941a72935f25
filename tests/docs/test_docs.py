"""What the documentation names is there: links, files, modules, tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from benchmarks.write_results import written
from tests.helpers.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
TESTS = {path.name: path for path in (ROOT / "tests").rglob("test_*.py") if "host_tree" not in path.parts}


def functions_of(path: Path) -> set[str]:
    return {
        node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:utils|detectors|tests|examples|benchmarks|docs|config|assets)/[\w./]+)`", text))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_guarantee_names_a_test_that_is_there() -> None:
    """A row of `docs/reliability.md` names tests as `test_file.py::test_name`, or by name alone below its table's head."""
    of_table = ""
    named = 0
    for line in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines():
        head = re.search(r"Tested by \(`(test_\w+\.py)`\)", line)
        of_table = head[1] if head else "" if line.startswith("## ") else of_table
        file = of_table
        for own, name in re.findall(r"`(?:(test_\w+\.py|…)::)?(test_\w+)`", line):
            file = file if own in ("", "…") else own
            assert name in functions_of(TESTS[file]), f"{file}::{name}"
            named += 1
    assert named > 60


def test_every_benchmark_of_make_bench_has_its_section() -> None:
    """And the writer puts tables there and nowhere else."""
    made = (ROOT / "Makefile").read_text(encoding="utf-8")
    names = re.findall(r"\$\(WRITE\) ([\w-]+)", made)
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    assert len(names) == 8
    for name in names:
        changed = written(text, name, "| a | b |\n|---|---|\n")
        assert changed.count("| a | b |") == 1 and f"<!-- end of {name} -->" in changed
        before = text.partition(f"<!-- {name} -->")[0]
        assert changed.startswith(before) and changed.endswith(text.partition(f"<!-- end of {name} -->")[2])
    with pytest.raises(ValueError, match="no section"):
        written(text, "other", "x")
