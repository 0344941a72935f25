"""What every command does with errors, streams and its place among other processes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers.paths import ROOT
from utils.gradcam_kit.base.command import run_command
from utils.gradcam_kit.base.errors import InputError


def ended(main: Callable[[Any], int]) -> int | str | None:
    with pytest.raises(SystemExit) as end:
        run_command(main)
    return end.value.code


def raising(error: BaseException) -> Callable[[Any], int]:
    def main(arguments: Any) -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/there/x.png"), "error: /there/x.png: Permission denied"),
        (OSError(28, "No space left on device"), "error: No space left on device"),
        (RuntimeError("can't start new thread"), "error: this machine or account allows no more threads"),
    ],
)
def test_what_the_machine_refuses_is_one_line(
    error: BaseException, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(raising(error)) == 1
    said = capsys.readouterr().err
    assert said.startswith(line) and said.count("\n") == 1


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="a mistake"):
        run_command(raising(RuntimeError("a mistake")))


@pytest.mark.parametrize(
    ("rank", "size", "told"),
    [("0", "2", True), ("1", "2", False), ("3", "1", True), ("5", "2", True), ("x", "2", True)],
)
def test_who_prints_what_all_processes_meet(
    rank: str, size: str, told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    assert ended(raising(InputError("unusable"))) == 2
    assert capsys.readouterr().err == ("error: unusable\n" if told else "")


TALKATIVE = """
import sys
from utils.gradcam_kit.base.command import run_command
def main(arguments):
    for number in range(20_000):
        print(number)
        print(number, file=sys.stderr)
    with open(sys.argv[1], "w") as file:
        file.write("done")
    return 0
run_command(main)
"""


@pytest.mark.parametrize("closed", ["reader gone", "before the start"])
def test_a_stream_that_is_closed_ends_no_run(closed: str, tmp_path: Any) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", TALKATIVE, str(tmp_path / "result")]
    if closed == "before the start":
        command = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=writing, check=False, timeout=60)
    os.close(writing)
    assert done.returncode == 0 and (tmp_path / "result").read_text() == "done"


def test_names_that_the_terminal_cannot_show_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))

    def main(arguments: Any) -> int:
        print("gr\u00f6\u00dfe")
        return 0

    assert ended(main) == 0 and shown.getvalue() == b"gr\\xf6\\xdfe\n"
