"""The pages that show Python, executed: the blocks of each page, one after the other, in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers.paths import ROOT

PAGES = [*sorted((ROOT / "docs" / "how_to").glob("*.md")), ROOT / "docs" / "api.md", ROOT / "docs" / "clips.md"]


def test_there_is_a_page_for_everything_that_can_be_added() -> None:
    names = {page.stem for page in PAGES}
    assert names >= {
        "explain_your_own_model",
        "add_a_method",
        "add_a_tower_family",
        "add_a_checkpoint_family",
        "add_a_dataset_reader",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_as_written(page: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    program = "\n".join(blocks)
    assert "assert " in program, "a page checks what it shows"
    for image in re.findall(r'"(data/demo/.*?\.png)"', program):  # which `make demo` renders
        (tmp_path / image).parent.mkdir(parents=True)
        cv2.imwrite(str(tmp_path / image), np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8))
    (tmp_path / "page.py").write_text(program, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
