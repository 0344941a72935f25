"""The installer on a minimal host: what it adds is all there, and taken away again byte for byte, also half-way."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.hosts import install, make_effort_host, make_host, run_python, snapshot
from tests.helpers.paths import ROOT
from tools import host_tree
from tools.host_tree import KEPT_FOLDER, LINE, RECORD_FOLDER, Installation, check_host, digest, extension_files
from utils.gradcam_kit.base.errors import InputError


class Killed(BaseException):
    """Stands for the end of the process."""


def put_in(training: Path, force: bool = False, wanted: dict[str, bytes] | None = None) -> None:
    installation = Installation(training)
    installation.carry_out(installation.plan(extension_files() if wanted is None else wanted, force))


def test_install_says_what_it_did_and_uninstall_restores_every_byte(tmp_path: Path) -> None:
    training = make_host(tmp_path)
    before = snapshot(training)
    checked = install(training, "--check")
    assert checked.returncode == 0 and "would be added" in checked.stdout and snapshot(training) == before
    done = install(training)
    assert done.returncode == 0, done.stderr
    assert "one line added to detectors/__init__.py" in done.stdout and LINE in done.stdout
    added = {name for name in snapshot(training) if name not in before and not name.startswith(RECORD_FOLDER)}
    for name in ("test_with_gradcam.py", "README_gradcam.md", "config/detector/clip_gradcam.yaml", "utils/gradcam.py",
                 "detectors/clip_detector_gradcam.py", "utils/gradcam_kit/explain/mixin.py", "utils/gradcam_demo.py"):  # fmt: skip
        assert name in added and (training / name).read_bytes() == (ROOT / name).read_bytes()
    assert not [name for name in added if "cache" in name]
    for stand_in in ("base_detector.py", "clip_detector.py"):
        assert (training / "detectors" / stand_in).read_bytes() == before[f"detectors/{stand_in}"]
    after = snapshot(training)
    again = install(training)
    assert again.returncode == 0 and "nothing to do" in again.stdout and snapshot(training) == after
    gone = install(training, "--uninstall")
    assert gone.returncode == 0, gone.stderr
    assert snapshot(training) == before
    assert install(training, "--uninstall").returncode == 2


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last_line_ends", [True, False])
def test_line_endings_are_kept(tmp_path: Path, end: str, last_line_ends: bool) -> None:
    training = make_host(tmp_path)
    init = training / "detectors" / "__init__.py"
    text = init.read_text(encoding="utf-8").rstrip("\n").replace("\n", end) + (end if last_line_ends else "")
    init.write_bytes(text.encode())
    put_in(training)
    with_line = init.read_bytes()
    assert with_line.startswith(text.encode()) and with_line.count(LINE.encode()) == 1
    assert with_line.count(b"\n") == with_line.count(end.encode()) == text.count(end) + 1
    Installation(training).undo()
    assert init.read_bytes() == text.encode()


def test_lines_that_the_user_added_later_stay(tmp_path: Path) -> None:
    training = make_host(tmp_path)
    init = training / "detectors" / "__init__.py"
    text = init.read_bytes()
    put_in(training)
    init.write_bytes(init.read_bytes() + b"from .my_detector import Mine\n")
    Installation(training).undo()
    assert init.read_bytes() == text + b"from .my_detector import Mine\n"


def test_a_file_of_the_host_that_differs_is_kept_unless_forced_and_comes_back(tmp_path: Path) -> None:
    training = make_host(tmp_path)
    (training / "utils").mkdir()
    (training / "utils" / "text.py").write_text("THEIRS = 1\r\n", newline="")
    (training / "utils" / "errors.py").write_bytes((ROOT / "utils" / "errors.py").read_bytes())  # the same by chance
    before = snapshot(training)
    refused = install(training)
    assert (
        refused.returncode == 2 and "utils/gradcam_kit/base/text.py" in refused.stderr and "--force" in refused.stderr
    )
    assert refused.stderr.count("\n") == 1 and snapshot(training) == before
    assert install(training, "--force").returncode == 0
    assert (training / "utils" / "text.py").read_bytes() == (ROOT / "utils" / "text.py").read_bytes()
    assert install(training, "--uninstall").returncode == 0
    assert snapshot(training) == before


def test_files_edited_since_are_not_dropped_unasked(tmp_path: Path) -> None:
    training = make_host(tmp_path)
    before = snapshot(training)
    put_in(training)
    edited = training / "config" / "detector" / "clip_gradcam.yaml"
    edited.write_text(edited.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    for flags in ((), ("--uninstall",)):
        refused = install(training, *flags)
        assert refused.returncode == 2 and "config/detector/clip_gradcam.yaml" in refused.stderr
    assert edited.read_text(encoding="utf-8").endswith("# mine\n")
    assert install(training, "--uninstall", "--force").returncode == 0
    assert snapshot(training) == before


def test_edits_that_force_replaces_are_kept_for_good(tmp_path: Path) -> None:
    training = make_host(tmp_path)
    before = snapshot(training)
    put_in(training)
    edited = training / "config" / "detector" / "clip_gradcam.yaml"
    kept = training / KEPT_FOLDER / "config" / "detector"
    for number, mine in enumerate(("# one\n", "# two\n")):
        edited.write_text(mine, encoding="utf-8")
        done = install(training, "--force")
        assert done.returncode == 0 and f"kept in {training / KEPT_FOLDER}" in done.stdout, done.stderr
        assert (kept / ("clip_gradcam.yaml" + ("", ".1")[number])).read_text(encoding="utf-8") == mine
        assert edited.read_bytes() == (ROOT / "config" / "detector" / "clip_gradcam.yaml").read_bytes()
    assert install(training, "--uninstall").returncode == 0
    shutil.rmtree(training / KEPT_FOLDER)
    assert snapshot(training) == before


def test_a_new_version_replaces_the_old_one(tmp_path: Path) -> None:
    """Changed files are renewed without force, files that the new version lacks go, and all of it can be undone."""
    training = make_host(tmp_path)
    before = snapshot(training)
    put_in(
        training,
        wanted={
            **extension_files(),
            "utils/gradcam_kit/base/errors.py": b"OLD = 1\n",
            "utils/dropped/old.py": b"OLD = 1\n",
        },
    )
    put_in(training)
    assert not (training / "utils" / "dropped" / "old.py").exists()
    assert (training / "utils" / "errors.py").read_bytes() == (ROOT / "utils" / "errors.py").read_bytes()
    Installation(training).undo()
    assert snapshot(training) == before


def test_an_edited_file_that_the_new_version_lacks_is_not_removed_unasked(tmp_path: Path) -> None:
    training = make_host(tmp_path)
    put_in(training, wanted={**extension_files(), "utils/colours.py": b"RED = 1\n"})
    (training / "utils" / "colours.py").write_text("RED = 2\n")
    refused = install(training)
    assert refused.returncode == 2 and "utils/colours.py" in refused.stderr and "--force" in refused.stderr
    assert (training / "utils" / "colours.py").read_text() == "RED = 2\n"
    assert install(training, "--force").returncode == 0
    assert not (training / "utils" / "colours.py").exists()
    assert (training / KEPT_FOLDER / "utils" / "colours.py").read_text() == "RED = 2\n"


def test_the_flat_layout_of_old_is_replaced_by_the_rooms(tmp_path: Path) -> None:
    """Modules become folders of the same name, folders go, nothing is left over, and all of it can be undone."""
    training = make_host(tmp_path)
    before = snapshot(training)
    flat = {"utils/__init__.py": b"", "utils/report.py": b"OLD = 1\n", "utils/results.py": b"OLD = 1\n",
            "utils/report_template/report.js": b"old", "utils/cam_methods.py": b"OLD = 1\n"}  # fmt: skip
    put_in(training, wanted=flat)
    (training / "utils" / "__pycache__").mkdir()
    (training / "utils" / "__pycache__" / "results.cpython-311.pyc").write_bytes(b"compiled")
    done = install(training)
    assert done.returncode == 0 and "4 files removed" in done.stdout, done.stderr
    for gone in ("report.py", "results.py", "cam_methods.py", "report_template", "__pycache__"):
        assert not (training / "utils" / gone).exists(), gone
    used = run_python("-c", "import utils.report, utils.gradcam_kit.store; print(utils.report.__file__)", cwd=training)
    assert Path(used.stdout.strip()) == training / "utils" / "report" / "__init__.py", used.stderr
    fresh = make_host(tmp_path / "fresh")
    assert install(fresh).returncode == 0
    ours = {name for name in snapshot(training) if "__pycache__" not in name}
    assert ours == set(snapshot(fresh))
    assert install(training, "--uninstall").returncode == 0
    assert snapshot(training) == before


def test_no_module_of_a_host_is_hidden(tmp_path: Path) -> None:
    """Python takes the package `data/` before the module `data.py`, and the package `text/` before `text.py`."""
    training = make_host(tmp_path)
    (training / "utils").mkdir()
    (training / "utils" / "data.py").write_text("THEIRS = 1\n")
    before = snapshot(training)
    for flags in ((), ("--force",), ("--check",)):
        refused = install(training, *flags)
        assert refused.returncode == 2 and str(training / "utils" / "data.py") in refused.stderr
        assert refused.stderr.count("\n") == 1 and snapshot(training) == before
    (training / "utils" / "data.py").unlink()
    (training / "utils" / "text").mkdir()
    (training / "utils" / "text" / "__init__.py").write_text("THEIRS = 1\n")
    refused = install(training)
    assert refused.returncode == 2 and str(training / "utils" / "text") in refused.stderr


HOSTILE_RECORDS: dict[str, dict[str, Any]] = {
    "outside": {"files": {"../thesis.tex": {"ours": [], "backup": False}}},
    "outside, as ours": {"files": {"../thesis.tex": {"ours": [digest(b"precious")], "backup": False}}},
    "absolute": {"files": {"/thesis.tex": {"ours": [], "backup": False}}},
    "a folder outside": {"created": ["../empty"]},
    "through a link": {"files": {"linked/thesis.tex": {"ours": [digest(b"precious")], "backup": False}}},
    "no record": {"files": [1, 2]},
    "half a record": {"inserted": ...},
}


@pytest.mark.parametrize("flags", [(), ("--force",), ("--uninstall",), ("--uninstall", "--force")])
@pytest.mark.parametrize("name", HOSTILE_RECORDS)
def test_a_record_from_elsewhere_touches_nothing_outside(tmp_path: Path, name: str, flags: tuple[str, ...]) -> None:
    training = make_host(tmp_path)
    (training.parent / "thesis.tex").write_bytes(b"precious")
    (training.parent / "empty").mkdir()
    (training / "linked").symlink_to(training.parent)
    (training / RECORD_FOLDER).mkdir()
    whole = {"finished": True, "files": {}, "created": [], "inserted": "", **HOSTILE_RECORDS[name]}
    record = {key: value for key, value in whole.items() if value is not ...}
    (training / RECORD_FOLDER / "record.json").write_text(json.dumps(record))
    done = install(training, *flags)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done
    assert (training.parent / "thesis.tex").read_bytes() == b"precious" and (training.parent / "empty").is_dir()


@pytest.mark.parametrize(
    ("edited", "refused"),
    [
        (f"try:\n    {LINE}\nexcept ImportError:\n    pass", True),
        (f"if True: {LINE}", True),
        ("from . import gradcam_detectors", False),
        ("from . import gradcam_detectors  # mine", False),
    ],
)
def test_an_edited_line_is_removed_or_refused(tmp_path: Path, edited: str, refused: bool) -> None:
    training = make_host(tmp_path)
    before = snapshot(training)
    put_in(training)
    init = training / "detectors" / "__init__.py"
    init.write_text(init.read_text(encoding="utf-8").replace(LINE, edited), encoding="utf-8")
    installed = snapshot(training)
    done = install(training, "--uninstall")
    if refused:
        assert done.returncode == 2 and "by hand" in done.stderr and snapshot(training) == installed
        init.write_text(init.read_text(encoding="utf-8").replace(edited + "\n", ""), encoding="utf-8")
        done = install(training, "--uninstall")
    assert done.returncode == 0, done.stderr
    assert snapshot(training) == before


@pytest.mark.parametrize("then", ["install", "uninstall"])
def test_killed_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """Every write is the last one once; a second run finishes the installation, or undoes it."""
    wanted = {name: data for i, (name, data) in enumerate(extension_files().items()) if i % 6 == 0}
    wanted["config/test_config.yaml"] = b"replaced: by force\n"
    reference = make_host(tmp_path / "reference")
    before = snapshot(reference)
    put_in(reference, force=True, wanted=wanted)
    complete = snapshot(reference)
    replace, writes = os.replace, len(wanted) + 4  # the backup, the record twice, the line
    for last in range(writes):
        training = make_host(tmp_path / str(last))
        left = [last]

        def killed(source: Path, target: Path, left: list[int] = left) -> None:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            replace(source, target)

        monkeypatch.setattr(host_tree.os, "replace", killed)
        with pytest.raises(Killed):
            put_in(training, force=True, wanted=wanted)
        monkeypatch.setattr(host_tree.os, "replace", replace)
        if then == "install":
            put_in(training, force=True, wanted=wanted)
            assert snapshot(training) == complete
        Installation(training).undo()
        assert snapshot(training) == before
        shutil.rmtree(tmp_path / str(last))


def test_an_uninstallation_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = make_host(tmp_path)
    before = snapshot(training)
    put_in(training)
    unlink, left = Path.unlink, [20]

    def killed(path: Path, missing_ok: bool = False) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(Killed):
        Installation(training).undo()
    monkeypatch.setattr(Path, "unlink", unlink)
    Installation(training).undo()
    assert snapshot(training) == before


@pytest.mark.parametrize("gone", ["detectors/clip_detector.py", "metrics/registry.py", "config/test_config.yaml"])
def test_a_folder_that_is_no_host_is_refused_with_what_it_lacks(tmp_path: Path, gone: str) -> None:
    training = make_host(tmp_path)
    (training / "detectors" / "effort_detector.py").unlink()
    (training / gone).unlink()
    with pytest.raises(InputError, match=f"lacks .*{gone}"):
        check_host(training)


def test_the_parent_of_a_host_is_refused_with_a_hint(tmp_path: Path) -> None:
    training = make_host(tmp_path)
    refused = install(training.parent)
    assert refused.returncode == 2 and f"did you mean {training}?" in refused.stderr
    assert install(tmp_path / "nowhere").returncode == 2
    assert install(ROOT).returncode == 2


def test_efforts_own_utils_folder_is_shared(tmp_path: Path) -> None:
    training = make_effort_host(tmp_path)
    before = snapshot(training)
    assert install(training).returncode == 0
    found = run_python("-c", "import utils.registry, utils.gradcam; print(utils.registry.__file__)", cwd=training)
    assert Path(found.stdout.strip()) == training / "utils" / "registry.py", found.stderr
    assert install(training, "--uninstall").returncode == 0
    assert snapshot(training) == before


def test_every_link_and_picture_of_the_installed_pages_is_there(tmp_path: Path) -> None:
    training = make_host(tmp_path)
    assert install(training).returncode == 0
    pages = [
        training / "README_gradcam.md",
        *(training / "docs").rglob("*.md"),
        *(training / "benchmarks").glob("*.md"),
    ]
    assert len(pages) > 10
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            if not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
