"""--compile: predictions through torch.compile, heatmaps beside it, and plain refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.command_server import CommandServer
from tests.helpers.compare_runs import outputs
from tests.helpers.datasets import DataTree
from tests.helpers.paths import SCRIPT

# Traced and guarded as ever, but not handed to a C++ compiler, which takes minutes.
TRACED_ONLY = """
import functools, torch
torch.compile = functools.partial(torch.compile, backend="eager")
"""
SOME = ["--gradcam_enabled", "--gradcam_samples", "5"]


@pytest.mark.slow
def test_compiled_predictions_and_heatmaps_are_the_plain_ones(
    commands: CommandServer, data_tree: DataTree, tmp_path: Path
) -> None:
    """24 frames in batches of 5, so that the last batch has another size; explaining comes after predicting."""
    for name, flags, first in (("plain", [], ""), ("compiled", ["--compile"], TRACED_ONLY)):
        arguments = data_tree.arguments("--gradcam_output_dir", tmp_path / name, *SOME, *flags)
        done = commands.start(SCRIPT, *arguments, cwd=tmp_path, first=first).wait()
        assert done.code == 0, done.err
    ours, theirs = outputs(tmp_path / "compiled"), outputs(tmp_path / "plain")
    assert ours == theirs


REFUSED = {
    "every sample": (
        ["--gradcam_enabled", "--save_all_predictions"],
        "",
        ["needs hooks", "--gradcam_samples"],
    ),
    "no compiler": (
        [],
        "import torch\ndef broken(model):\n    def call(*args, **kwargs): raise RuntimeError('no C++ compiler')\n    return call\ntorch.compile = broken",
        ["does not work here (no C++ compiler)"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_where_it_cannot_be_it_says_so(case: str, commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    flags, first, says = REFUSED[case]
    arguments = data_tree.arguments("--compile", "--gradcam_output_dir", tmp_path / "out", *flags)
    done = commands.start(SCRIPT, *arguments, cwd=tmp_path, first=first).wait()
    assert done.code == 2 and len(done.err.splitlines()) == 1, done.err
    assert all(part in done.err for part in says) and not (tmp_path / "out").exists()
