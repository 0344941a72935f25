"""The site of `make docs`: every page has its place in the navigation, and the reference has every public name."""

from __future__ import annotations

import ast
import re
from typing import Any

import yaml

from tests.helpers.paths import ROOT
from utils import gradcam_kit
from utils.gradcam_kit.base.allowed import CLIP_METHODS
from utils.gradcam_kit.settings.options import OPTIONS


def pages_of(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(entry)]


def test_every_page_is_in_the_navigation_once() -> None:
    listed = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    files = [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
        *ROOT.glob("[RC]*_*.md"),
        ROOT / "CHANGELOG.md",
    ]
    there = {path.relative_to(ROOT).as_posix() for path in files}
    assert sorted(listed) == sorted({*there, "docs/reference.md"})  # which tools/docs_site.py writes


def test_the_index_leads_to_every_page() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([\w/]+\.md)", text))
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} - {"index.md"}
    assert there <= linked


def test_the_reference_has_every_name_of_the_public_face() -> None:
    """As the tool reads them: from the text, since a site is built without torch."""
    source = ast.parse((ROOT / "tools" / "docs_site.py").read_text(encoding="utf-8"))
    function = next(node for node in source.body if isinstance(node, ast.FunctionDef) and node.name == "public_names")
    scope: dict[str, Any] = {"ast": ast, "ROOT": ROOT}
    exec(compile(ast.Module([function], []), "docs_site", "exec"), scope)
    assert scope["public_names"]() == list(gradcam_kit.PLACES)


def test_every_method_has_its_paper() -> None:
    text = (ROOT / "docs" / "citations.md").read_text(encoding="utf-8")
    entries = re.findall(r"^@\w+\{(\w+),", text, re.MULTILINE)
    table = "\n".join(line for line in text.splitlines() if line.startswith("| `"))
    rows = {
        name: row.split(" | ")[1]
        for row in table.splitlines()
        for name in re.findall(r"`([^` ]+)`", row.split(" | ")[0])
    }
    methods = {*OPTIONS["gradcam_method"].choices, *CLIP_METHODS} - {"auto"}
    assert methods <= set(rows)
    for method in methods:
        keys = re.findall(r"`(\w+)`", rows[method].split(" (")[0])
        assert keys or rows[method].startswith("this software"), method
    assert len(entries) == len(set(entries))
    assert set(re.findall(r"`([a-z]+\d{4}\w+|caap)`", table)) <= set(entries)
