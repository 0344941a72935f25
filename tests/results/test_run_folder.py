"""The output folder of a run: what its manifest records and what not, and a folder that cannot be written."""

from __future__ import annotations

import hashlib
import json
import platform
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from tests.helpers.command_server import CommandServer
from tests.helpers.datasets import DataTree
from tests.helpers.paths import SCRIPT
from tests.helpers.watch import PRIVATE_MOUNTS

READ_ONLY = (
    PRIVATE_MOUNTS
    + """
check(libc.mount(b"none", {path!r}.encode(), b"tmpfs", 1, None))  # MS_RDONLY, which binds root too
"""
)


def test_the_manifest_says_how_the_run_came_about_and_nothing_of_the_environment(
    commands: CommandServer, data_tree: DataTree, tiny_weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = data_tree.arguments("--gradcam_output_dir", out, "--seed", "11")
    secret = {"GRADCAM_TEST_TOKEN": "never-to-be-written", "HF_TOKEN": "nor-is-this"}
    done = commands.start(SCRIPT, *arguments, cwd=tmp_path, environment=secret).wait()
    assert done.code == 0, done.err
    text = (out / "manifest.json").read_text()
    manifest = json.loads(text)
    json_file = data_tree.folder / "dataset_json" / "toy.json"
    assert manifest["command"] == [SCRIPT, *arguments]
    assert manifest["weights"]["sha256"] == hashlib.sha256(tiny_weights.read_bytes()).hexdigest()
    assert manifest["datasets"]["toy"]["json_sha256"] == hashlib.sha256(json_file.read_bytes()).hexdigest()
    assert manifest["settings"] == {"batch_size": 5, "seed": 11} and manifest["device"] == "cpu"
    given = yaml.safe_load(data_tree.detector_yaml.read_text())
    assert {key: manifest["config"][key] for key in ("backbone_config", "test_dataset", "resolution")} == {
        key: given[key] for key in ("backbone_config", "test_dataset", "resolution")
    }
    assert manifest["versions"]["python"] == platform.python_version()
    for package in ("torch", "transformers", "numpy"):
        assert manifest["versions"][package] == version(package)
    assert datetime.fromisoformat(manifest["started"]) <= datetime.fromisoformat(manifest["finished"])
    assert set(manifest) == {
        "command", "started", "finished", "config", "settings", "weights", "datasets", "options", "device", "threads",
        "versions", "heatmaps", "top_files",
    }  # fmt: skip
    written = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file()).decode(errors="replace")
    assert not any(part in written for pair in secret.items() for part in pair)


def test_a_read_only_output_folder(commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run = commands.start(
        SCRIPT,
        *data_tree.arguments("--gradcam_output_dir", out),
        cwd=tmp_path,
        first=READ_ONLY.format(path=str(out)),
    )
    done = run.wait()
    if done.code == 77:
        pytest.skip("mounting a file system is not permitted here")
    assert done.code == 2 and len(done.err.splitlines()) == 1, done.err
    assert f"output folder {out}: cannot be written (Read-only file system)" in done.err


@pytest.mark.parametrize("threads", ["many", 0, 10**9, None])
def test_a_manifest_that_someone_edited(
    threads: object, commands: CommandServer, data_tree: DataTree, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = data_tree.arguments("--gradcam_output_dir", out)
    assert commands.run(SCRIPT, *arguments, cwd=tmp_path).code == 0
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "threads": threads}))
    done = commands.run(SCRIPT, *arguments, "--resume", cwd=tmp_path)
    assert done.code == 2 and f"threads is {threads!r}, which no run writes" in done.err.splitlines()[-1], done.err
    assert "Traceback" not in done.err
