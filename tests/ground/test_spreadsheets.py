"""Cells that a spreadsheet would run, and tables that people wrote."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.base.files import read_table, write_table
from utils.gradcam_kit.base.spreadsheets import read_sheet
from utils.gradcam_kit.base.text import as_it_was, harmless

FORMULAS = [
    "=1+1", "=HYPERLINK(\"http://evil.example\",\"x\")", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1",
    " =1", "  @x", "-0G4eYh_x", "-rf", "＝1+1", "＠x", "＋1", "－a", "'=1", "''=1", "'-x", "'\t", "-", "=", "-1-1", "+", "-inf",
    "=\"a\",b\nc", "--1", "-1e", "-1.2.3", "+49 170",
]  # fmt: skip
HARMLESS = ["", "plain", "'", "'quoted'", "a=b", "x-1", "/data/-x.png", "3=3", "ß+", "''", "'a=1"]
NUMBERS = ["-1", "+1", "-1.5", "-1e-7", "-.5", "+2E+10", "0", "-0", "1e9"]


@pytest.mark.parametrize("cell", FORMULAS)
def test_a_formula_becomes_text_and_comes_back(cell: str) -> None:
    written = str(harmless(cell))
    assert written == f"'{cell}" and as_it_was(written) == cell


@pytest.mark.parametrize("cell", [*HARMLESS, *NUMBERS])
def test_everything_else_stays(cell: str) -> None:
    assert harmless(cell) == cell and as_it_was(cell) == cell


def test_numbers_stay_numbers() -> None:
    for number in (-1, -0.25, 3, None, True):
        assert harmless(number) is number


def test_no_table_holds_a_formula_and_all_come_back(tmp_path: Path) -> None:
    cells = [*FORMULAS, *HARMLESS, *NUMBERS]
    write_table(tmp_path / "t.csv", ("number", "cell"), enumerate(cells))
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        as_a_spreadsheet = [row["cell"] for row in csv.DictReader(file)]
    assert not [cell for cell in as_a_spreadsheet if cell.strip()[:1] in {*"=+-@＝＋－＠"} and cell not in NUMBERS]
    assert [row["cell"] for row in read_table(tmp_path / "t.csv")] == cells
    sheet = [line.cells["cell"] for line in read_sheet(tmp_path / "t.csv", ["number"], ["cell"])]
    assert sheet == [as_it_was(str(harmless(cell)).strip()) for cell in cells]  # people's blanks are no part of a cell


def test_a_name_in_a_table_that_a_person_wrote(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('NAME ;Value\n\n\'-abc;1\n"x;y" ; 2 \n;\n\u2028z;3\n', encoding="utf-8")
    found = [(line.number, line.cells) for line in read_sheet(tmp_path / "t.csv", ["name"], ["value"])]
    assert found == [
        (3, {"name": "-abc", "value": "1"}),
        (4, {"name": "x;y", "value": "2"}),
        (6, {"name": "z", "value": "3"}),
    ]
    with pytest.raises(InputError, match="has no column title or head; its columns are: NAME, Value"):
        list(read_sheet(tmp_path / "t.csv", ["title", "head"], ["name"]))
