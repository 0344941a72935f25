"""Files that appear whole, and CSV files that any reader takes as they were meant."""

from __future__ import annotations

import csv
import json
import os
import socket
from pathlib import Path

import pytest

import detectors
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.base.files import (
    TRAINING_FOLDER,
    check_ordinary,
    create_output_folder,
    new_folder,
    read_table,
    read_text,
    whole_file,
    write_json,
    write_table,
)

ROWS = [
    ["0", "plain", ""],
    ["1", 'with "quotes", commas', "a\nb"],
    ["2", "carriage\rreturn", "größe\udcff"],
    ["3", " spaces ", "\u2028"],
]


def test_a_table_comes_back_and_is_what_the_csv_module_reads(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_table(path, ("index", "name", "more"), iter(ROWS))
    assert [list(row.values()) for row in read_table(path)] == ROWS
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert list(csv.reader(file)) == [["index", "name", "more"], *ROWS]
    assert b"gr\xc3\xb6\xc3\x9fe\xff" in path.read_bytes() and path.read_bytes().startswith(
        b"index,name,more\n0,plain,\n"
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]


def test_a_file_that_fails_half_way_does_not_appear(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("the earlier one")

    def rows() -> object:
        yield ["1"]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_table(path, ("index",), rows())  # type: ignore[arg-type]  # a generator that fails
    assert path.read_text() == "the earlier one"
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"value": float("nan")})
    assert path.read_text() == "the earlier one"
    write_json(path, {"path": tmp_path})
    assert json.loads(path.read_text()) == {"path": str(tmp_path)}


def test_links_are_never_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious.txt").write_text("keep me")
    for name in ("file", "folder", "own"):
        (tmp_path / name).symlink_to(victim / "precious.txt" if name == "file" else victim)
    with whole_file(tmp_path / "file") as file:
        file.write(b"new")
    new_folder(tmp_path / "folder")
    with pytest.raises(InputError, match="symbolic link"):
        create_output_folder(tmp_path / "own")
    assert (tmp_path / "file").read_text() == "new" and not (tmp_path / "folder").is_symlink()
    assert {path.name: path.read_text() for path in victim.iterdir()} == {"precious.txt": "keep me"}


def test_the_training_folder_is_the_one_that_holds_the_rooms() -> None:
    assert detectors.__file__ is not None and Path(detectors.__file__).parent.parent == TRAINING_FOLDER
    assert (TRAINING_FOLDER / "test_with_gradcam.py").is_file()


def test_only_ordinary_files_are_opened(tmp_path: Path) -> None:
    """Opening the pipe would wait for ever: that the test ends is part of it."""
    (tmp_path / "file").write_text("größe", encoding="utf-8")
    assert read_text(tmp_path / "file") == "größe"
    with pytest.raises(OSError, match="7 bytes, more than the 6 allowed"):
        read_text(tmp_path / "file", most_bytes=6)
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        for path, kind in ((tmp_path / "pipe", "pipe"), (tmp_path / "s", "socket"), (Path("/dev/zero"), "device")):
            with pytest.raises(OSError, match=f"it is a {kind}, not a file"):
                check_ordinary(path)
            link = tmp_path / f"link to a {kind}"
            link.symlink_to(path)
            with pytest.raises(OSError, match=f"it is a {kind}, not a file"):
                read_text(link)
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        check_ordinary(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_ordinary(tmp_path / "gone")
