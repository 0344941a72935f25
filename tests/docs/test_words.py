"""The pages stay plain: turns that do not come back, one term for one thing, short lines, links and anchors that lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "README_gradcam.md", "CHANGELOG.md")),
    *(ROOT / "benchmarks" / name for name in ("WHICH_MAP.md", "CLIPS.md", "HOSTS.md", "BY_HAND.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
LONGEST = 120  # letters of a line; rows of tables are exempt

# What a native reader stumbles over → what to write instead.
TURNS = {
    r"by cause|by its cause": "by a test; what the score depends on",
    r"bears? a word": "has a verdict",
    r"\bfalls? (of|by|late|beyond)\b": "drop",
    r"\bbeside\b": "next to, as well as",
    r"of one's own": "your own",
    r"\bin place of\b": "instead of",
    r"for trying out": "for testing",
    r"\b(takes?|taken|took) (\w+ )?for (constant|granted|the|a)\b": "hold constant, count as",
    r"\bby lot\b": "at random",
    r"\balone\b": "only",
    r"\b(is|are|was|were) (told|said)\b": "the program says, prints, reports",
    r"\bthe way of\b": "how",
    r"\bminds?\b": "note; depends on",
    r"\bwhat of\b": "which part of",
    r"\bsuch as (is|are|were)\b": "those that",
    r"(?<!there )(?<!where )\b(is|are) no (?!longer\b|better\b|more\b)": "is not a; has no",
    r"\bof (yours|ours|theirs)\b": "your, our, their",
    r"\bto begin with\b(?=[,.;])": "first",
    r"\bwherein|thereof|therein|thereby|whereby\b": "a plain clause",
    r"\bhesitates?\b": "a stumbling block",
    r"\bborne out\b|\bis had\b|\bto be had\b": "available",
    r"\bas it were\b|\bso to speak\b": "nothing",
}
# One term for one thing: what to avoid → the glossary's word.
TERMS = {
    r"\bsaliency maps?\b|\battribution maps?\b|\bheat maps\b": "map, heatmap",
    r"\btestset|\btest-set|\bdata set": "dataset",
    r"\bpatch-grid|\bsub-folder|\bfile-name": "patch grid, subfolder, file name",
    r"\bweights file|\bfile of weights": "checkpoint",
    r"\bnetwork's? (trunk|body)\b|\bfeature extractor\b": "backbone",
    r"\brefill|\binfill": "fill",
    r"\bartifact|\bnormaliz|\bcolor(?!map|s?\()": "artefact, normalise, colour: British spelling",
}
# Who adds to the library meets the code's own name for a backbone. These pages may use it, and so may quoted messages.
OF_TOWERS = (
    "development.md",
    "decisions.md",
    "add_a_tower_family.md",
    "architectures.md",
    "options.md",
    "CHANGELOG.md",
)


def text_of(page: Path) -> str:
    """Of the changes only those of the newest version: earlier ones were written before there were rules."""
    text = page.read_text(encoding="utf-8")
    return text.partition("\n## ")[2].partition("\n## ")[0] if page.name == "CHANGELOG.md" else text


def prose_of(page: Path) -> list[str]:
    """Lines without blocks of code, inline code, addresses and quotations; a block's lines are empty."""
    text = re.sub(
        r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), text_of(page), flags=re.DOTALL | re.MULTILINE
    )
    text = re.sub(r"`[^`]*`", lambda code: "`" + "\n" * code[0].count("\n") + "`", text)
    return re.sub(r"\]\([^)]*\)|https?://\S+|\*[^*\n]+\*(?!\*)", "", text).splitlines()


def of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def found(page: Path, patterns: dict[str, str]) -> list[str]:
    return [
        f"{of(page)}:{number}: {match[0]!r}; write: {better}"
        for number, line in enumerate(prose_of(page), 1)
        for pattern, better in patterns.items()
        for match in re.finditer(pattern, line, re.IGNORECASE)
    ]


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_turns_that_do_not_come_back(page: Path) -> None:
    assert found(page, TURNS) == []


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_one_term_for_one_thing(page: Path) -> None:
    assert found(page, TERMS) == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in OF_TOWERS], ids=of)
def test_users_read_of_backbones_and_benchmarks(page: Path) -> None:
    assert found(page, {r"\btowers?\b(?! famil)": "backbone", r"\bhosts?\b": "benchmark, DeepfakeBench, DF40"}) == []


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_lines_are_short(page: Path) -> None:
    lines = enumerate(text_of(page).splitlines(), 1)
    assert [f"{of(page)}:{number}" for number, line in lines if len(line) > LONGEST and not line.startswith("|")] == []


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_no_code_in_a_table_has_a_bar(page: Path) -> None:
    """GitHub takes the backslash before it away, Python-Markdown shows it."""
    assert re.findall(r"`[^`\n]*\\\|[^`\n]*`", text_of(page)) == []


def anchor(heading: str) -> str:
    """As GitHub makes it: links in headings count by their text, signs are dropped, blanks become hyphens."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")


def anchors_of(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "benchmarks").glob("*.md"))], ids=of)
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, part = target.partition("#")
        other = page.parent / name if name else page
        assert other.is_file(), f"{of(page)}: {target}"
        assert not part or part in anchors_of(other), f"{of(page)}: {target}"


def test_the_rules_find_what_they_are_for(tmp_path: Path) -> None:
    page = ROOT / "docs" / "unwritten.md"
    lines = [
        "The map is chosen by cause, beside others.",
        "`beside` and [beside](x.md) are code and address.",
        "```",
        "alone",
        "```",
    ]
    page = tmp_path / "page.md"
    page.write_text("\n".join(lines), encoding="utf-8")
    flagged = [
        (number, name) for number, line in enumerate(prose_of(page), 1) for name in TURNS if re.search(name, line)
    ]
    assert flagged == [(1, "by cause|by its cause"), (1, r"\bbeside\b"), (2, r"\bbeside\b")]
    assert anchor("Compared with *what*, [exactly](x.md)?") == "compared-with-what-exactly"
