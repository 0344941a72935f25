"""What a run has left on disk, for comparing runs byte by byte."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

# The only entries of a manifest that may differ between two runs of the same work.
OF_THE_MOMENT = ("started", "finished", "command", "options")


def outputs(folder: Path) -> dict[str, bytes]:
    """Every file below a run's folder but manifest and database: relative path → what another run of the work has too.

    That is its bytes; but the page also shows the command and the sizes of files that hold it, so of the page it is
    what its script works on.
    """
    own = ("manifest.json", "run.sqlite", "run.sqlite-journal")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in own)
    return {path.relative_to(folder).as_posix(): _of_the_work(path) for path in files}


def _of_the_work(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name == "index.html":
        return b"".join(re.findall(rb'<script type="application/json" id="data">.*?</script>', content))
    return content


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished run, without what belongs to the moment."""
    values = json.loads((folder / "manifest.json").read_text())
    values["config"].pop("gradcam_save_dir")
    return {key: value for key, value in values.items() if key not in OF_THE_MOMENT}


def assert_same_run(folder: Path, reference: Path) -> None:
    """Both are whole and hold the same files with the same bytes."""
    ours, theirs = outputs(folder), outputs(reference)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert manifest(folder) == manifest(reference)


def assert_only_whole_files(folder: Path, reference: Path) -> None:
    """What stands under a final name is what an uninterrupted run writes there, to the last byte."""
    theirs = outputs(reference)
    for name, content in outputs(folder).items():
        if "partial" not in name and ".sqlite" not in name:
            assert content == theirs[name], name
