"""The installer on a minimal host: what it adds is all there, and taken away again byte for byte, also half-way."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.hosts import install, make_effort_host, make_host, run_python, snapshot
from tests.helpers.paths import ROOT
from tools.install_into_host import LINE, RECORD_FOLDER, Installation, check_host, digest, extension_files
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.parts import PARTS


class Killed(BaseException):
    """Stands for the end of the process."""


def put_in(training: Path, wanted: dict[str, bytes] | None = None) -> None:
    installation = Installation(training)
    installation.carry_out(installation.plan(extension_files() if wanted is None else wanted))


def old_installation(training: Path, files: dict[str, bytes], backups: dict[str, bytes]) -> None:
    """What version 1.1.0 leaves behind, whose record says of each file whether it replaced one of the host's."""
    created = {parent.as_posix() for name in files for parent in Path(name).parents if parent != Path()}
    new = sorted(folder for folder in created if not (training / folder).exists())
    entries = {name: {"ours": [digest(data)], "backup": name in backups} for name, data in files.items()}
    init = training / "detectors" / "__init__.py"
    inserted = LINE + "\n"
    init.write_bytes(init.read_bytes() + inserted.encode())
    record = {"finished": True, "files": entries, "created": new, "inserted": inserted}
    everything = {
        **files,
        **{f"{RECORD_FOLDER}/backup/{name}": data for name, data in backups.items()},
        f"{RECORD_FOLDER}/record.json": json.dumps(record).encode(),
    }
    for name, data in everything.items():
        (training / name).parent.mkdir(parents=True, exist_ok=True)
        (training / name).write_bytes(data)


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
                 "detectors/clip_detector_gradcam.py", "utils/gradcam_kit/explaining/mixin.py", "utils/gradcam_demo.py",
                 "utils/report.py"):  # fmt: skip
        assert name in added and (training / name).read_bytes() == (ROOT / name).read_bytes()
    assert not [name for name in added if "cache" in name or "install_into_host" in name or name.startswith("tools")]
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


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [((), {"report", "exports", "media"}), (("--parts",), set()), (("--parts", "report"), {"report"}),
     (("--parts", "app"), {"app", "media"})],
)  # fmt: skip
def test_the_parts_are_those_asked_for(tmp_path: Path, flags: tuple[str, ...], wanted: set[str]) -> None:
    training = make_host(tmp_path)
    before = snapshot(training)
    assert install(training, "--parts", *PARTS).returncode == 0
    done = install(training, *flags)
    assert done.returncode == 0 and "files removed" in done.stdout, done.stderr
    assert {part for part in PARTS if (training / "utils" / "gradcam_kit" / part).is_dir()} == wanted
    for part in ("report", "app"):
        assert (training / "utils" / f"{part}.py").is_file() == (part in wanted)
    assert install(training, "--uninstall").returncode == 0
    assert snapshot(training) == before


def test_a_part_that_is_none_is_refused(tmp_path: Path) -> None:
    refused = install(make_host(tmp_path), "--parts", "reports")
    assert refused.returncode == 2 and "did you mean 'report'?" in refused.stderr


@pytest.mark.parametrize("flags", [(), ("--check",)])
def test_a_file_of_the_host_that_differs_is_refused(tmp_path: Path, flags: tuple[str, ...]) -> None:
    training = make_host(tmp_path)
    (training / "utils").mkdir()
    (training / "utils" / "report.py").write_text("THEIRS = 1\r\n", newline="")
    (training / "utils" / "gradcam.py").write_bytes((ROOT / "utils" / "gradcam.py").read_bytes())  # the same by chance
    before = snapshot(training)
    refused = install(training, *flags)
    assert refused.returncode == 2 and "1 files there are not this library's" in refused.stderr
    assert "utils/report.py" in refused.stderr and refused.stderr.count("\n") == 1 and snapshot(training) == before
    assert install(training, "--parts").returncode == 0  # without the part that has a file of that name
    assert install(training, "--uninstall").returncode == 0
    assert snapshot(training) == before


@pytest.mark.parametrize("name", ["docs", "utils/gradcam_kit"])
def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    training = make_host(tmp_path)
    (training / "utils").mkdir()
    (training / name).write_text("theirs")
    before = snapshot(training)
    refused = install(training)
    assert refused.returncode == 2 and f"{training / name}: is in the way of a folder of this library" in refused.stderr
    assert refused.stderr.count("\n") == 1 and snapshot(training) == before


def test_files_edited_since_are_not_dropped(tmp_path: Path) -> None:
    training = make_host(tmp_path)
    before = snapshot(training)
    put_in(training, {**extension_files(), "config/detector/clip_gradcam.yaml": b"# an earlier version\n"})
    edited = training / "config" / "detector" / "clip_gradcam.yaml"
    edited.write_text(edited.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    for flags in ((), ("--uninstall",), ("--uninstall", "--check")):
        installed = snapshot(training)
        refused = install(training, *flags)
        assert refused.returncode == 2 and "config/detector/clip_gradcam.yaml" in refused.stderr
        assert refused.stderr.count("\n") == 1 and snapshot(training) == installed
    edited.unlink()
    assert install(training, "--uninstall").returncode == 0
    assert snapshot(training) == before


def test_a_new_version_replaces_the_old_one(tmp_path: Path) -> None:
    """Changed files are renewed, files that the new version lacks go, and all of it can be undone."""
    training = make_host(tmp_path)
    before = snapshot(training)
    changed = {"utils/gradcam_kit/base/errors.py": b"OLD = 1\n", "utils/dropped/old.py": b"OLD = 1\n"}
    put_in(training, {**extension_files(), **changed})
    put_in(training)
    assert not (training / "utils" / "dropped" / "old.py").exists()
    errors = Path("utils") / "gradcam_kit" / "base" / "errors.py"
    assert (training / errors).read_bytes() == (ROOT / errors).read_bytes()
    Installation(training).undo()
    assert snapshot(training) == before


def test_an_edited_file_that_the_new_version_lacks_is_not_removed(tmp_path: Path) -> None:
    training = make_host(tmp_path)
    put_in(training, {**extension_files(), "utils/colours.py": b"RED = 1\n"})
    (training / "utils" / "colours.py").write_text("RED = 2\n")
    refused = install(training)
    assert refused.returncode == 2 and "utils/colours.py" in refused.stderr
    assert (training / "utils" / "colours.py").read_text() == "RED = 2\n"


FLAT = ("utils/__init__.py", "utils/report.py", "utils/results.py", "utils/report_template/report.js",
        "utils/cam_methods.py", "utils/gradcam.py", "test_with_gradcam.py", "detectors/gradcam_detectors.py")  # fmt: skip
ROOMS = ("utils/__init__.py", "utils/errors.py", "utils/files.py", "utils/text.py", "utils/host_tree.py",
         "utils/install_into_host.py", "utils/training_log.py", "utils/gradcam.py", "utils/gradcam_demo.py",
         "utils/app/__init__.py", "utils/app/__main__.py", "utils/app/page.py", "utils/cam/__init__.py",
         "utils/cam/methods.py", "utils/cam/towers/__init__.py", "utils/cam/towers/hf_clip.py", "utils/data/__init__.py",
         "utils/data/readers.py", "utils/model/__init__.py", "utils/model/load.py", "utils/report/__init__.py",
         "utils/report/__main__.py", "utils/report/template/index.html.j2", "utils/report/template/js/cards.js",
         "utils/results/__init__.py", "utils/results/sample.py", "detectors/gradcam_base.py",
         "detectors/gradcam_mixin.py", "detectors/gradcam_detectors.py", "detectors/clip_detector_gradcam.py",
         "config/detector/clip_gradcam.yaml", "docs/api.md", "docs/how_to/add_a_method.md", "assets/report_gallery.png",
         "README_gradcam.md", "test_with_gradcam.py")  # fmt: skip


@pytest.mark.parametrize("names", [FLAT, ROOMS], ids=["flat", "rooms"])
@pytest.mark.parametrize("theirs", [{}, {"utils/text.py": b"THEIRS = 1\n", "utils/__init__.py": b"THEIRS = 2\n"}],
                         ids=["alone", "backups"])  # fmt: skip
def test_both_earlier_layouts_are_replaced(tmp_path: Path, names: tuple[str, ...], theirs: dict[str, bytes]) -> None:
    """Folders become modules of the same name, the rest goes, files of the host that were replaced come back."""
    training, fresh = make_host(tmp_path), make_host(tmp_path / "fresh")
    for host in (training, fresh):
        for name, data in theirs.items():
            (host / name).parent.mkdir(exist_ok=True)
            (host / name).write_bytes(data)
    before = snapshot(training)
    backups = {name: data for name, data in theirs.items() if name in names}
    old_installation(training, {name: f"OLD = {name!r}\n".encode() for name in names}, backups)
    compiled = [training / Path(name).parent / "__pycache__" / f"{Path(name).stem}.cpython-311.pyc"
                for name in names if name.endswith(".py") and name not in {**theirs, **extension_files()}]  # fmt: skip
    for path in compiled:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"compiled")
    done = install(training)
    assert done.returncode == 0 and "files removed" in done.stdout, done.stderr
    assert install(fresh).returncode == 0
    assert not [path for path in compiled if path.exists()]
    wanted = snapshot(fresh)
    no_part = (f"{RECORD_FOLDER}/", "__pycache__")
    left, right = (
        {name for name in tree if not any(one in name for one in no_part)} for tree in (snapshot(training), wanted)
    )
    assert left == right
    for name, data in theirs.items():
        assert (training / name).read_bytes() == data
    used = run_python("-c", "import utils.report, utils.gradcam; print(utils.report.__file__)", cwd=training)
    assert Path(used.stdout.strip()) == training / "utils" / "report.py", used.stderr
    assert "nothing to do" in install(training).stdout
    assert install(training, "--uninstall").returncode == 0
    assert snapshot(training) == before


def test_what_was_edited_in_an_earlier_layout_is_refused(tmp_path: Path) -> None:
    training = make_host(tmp_path)
    old_installation(training, dict.fromkeys(ROOMS, b"OLD = 1\n"), {})
    (training / "utils" / "cam" / "methods.py").write_text("MINE = 1\n")
    before = snapshot(training)
    refused = install(training)
    assert refused.returncode == 2 and "utils/cam/methods.py" in refused.stderr and snapshot(training) == before


HOSTILE_RECORDS: dict[str, dict[str, Any]] = {
    "outside": {"files": {"../thesis.tex": {"ours": [], "backup": False}}},
    "outside, as ours": {"files": {"../thesis.tex": {"ours": [digest(b"precious")], "backup": False}}},
    "absolute": {"files": {"/thesis.tex": {"ours": [], "backup": False}}},
    "a folder outside": {"created": ["../empty"]},
    "through a link": {"files": {"linked/thesis.tex": {"ours": [digest(b"precious")], "backup": False}}},
    "no record": {"files": [1, 2]},
    "half a record": {"inserted": ...},
}


@pytest.mark.parametrize("flags", [(), ("--check",), ("--uninstall",)])
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
        ("from . import gradcam_detectors", True),
        (f"{LINE}\nMINE = 1", False),
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
    init.write_text(init.read_text(encoding="utf-8").replace("MINE = 1\n", ""), encoding="utf-8")
    assert snapshot(training) == before


@pytest.mark.slow
@pytest.mark.parametrize("then", ["install", "uninstall"])
def test_killed_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """Every write and every removal is the last one once; a second run finishes the upgrade, or undoes everything."""
    wanted = {name: data for i, (name, data) in enumerate(extension_files().items()) if i % 8 == 0}
    old = dict.fromkeys(
        ("utils/text.py", "utils/cam/methods.py", "utils/cam/__init__.py", *list(wanted)[:4]), b"OLD = 1\n"
    )
    theirs = {"utils/text.py": b"THEIRS = 1\n"}

    def upgraded(folder: Path) -> Path:
        training = make_host(folder)
        old_installation(training, old, theirs)
        return training

    before = snapshot(make_host(tmp_path / "before"))
    reference = upgraded(tmp_path / "reference")
    put_in(reference, wanted)
    complete = snapshot(reference)
    replace, unlink = Path.replace, Path.unlink
    for last in range(len(wanted) + 6):  # the record twice, two removals, their file
        training = upgraded(tmp_path / str(last))
        left = [last]

        def count(left: list[int] = left) -> None:
            if left[0] == 0:
                raise Killed
            left[0] -= 1

        def counted_replace(path: Path, target: Path) -> Path:
            count()
            return replace(path, target)

        def counted_unlink(path: Path, missing_ok: bool = False) -> None:
            count()
            unlink(path, missing_ok)

        monkeypatch.setattr(Path, "replace", counted_replace)
        monkeypatch.setattr(Path, "unlink", counted_unlink)
        try:
            put_in(training, wanted)
            assert last == len(wanted) + 5
        except Killed:
            assert last < len(wanted) + 5
        monkeypatch.undo()
        if then == "install":
            put_in(training, wanted)
            assert snapshot(training) == complete
            assert Installation(training).plan(wanted).nothing_to_do
        Installation(training).undo()
        left_over = snapshot(training)
        assert left_over.pop("utils/text.py") == b"THEIRS = 1\n"
        assert {name for name in left_over if name != "utils"} == set(before)
        assert all(left_over[name] == data for name, data in before.items())
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


@pytest.mark.parametrize("package", [True, False])
def test_a_hosts_own_utils_is_left_alone(tmp_path: Path, package: bool) -> None:
    """It may be a package by an `__init__.py` of its own, or by none; its `data.py` goes on being its own."""
    training = make_host(tmp_path)
    (training / "utils").mkdir()
    (training / "utils" / "data.py").write_text("THEIRS = 1\n")
    if package:
        (training / "utils" / "__init__.py").write_text("from .data import THEIRS\n")
    before = snapshot(training)
    assert install(training).returncode == 0
    assert {
        name: data for name, data in snapshot(training).items() if name in before and name != "detectors/__init__.py"
    } == {name: data for name, data in before.items() if name != "detectors/__init__.py"}
    code = "import utils, utils.data, utils.gradcam, utils.gradcam_kit.explaining.mixin; print(utils.data.THEIRS)"
    found = run_python("-c", code, cwd=training)
    assert found.stdout == "1\n", found.stderr
    assert "nothing to do" in install(training).stdout
    assert install(training, "--uninstall").returncode == 0
    assert snapshot(training) == before


def test_two_installations_at_once(tmp_path: Path) -> None:
    """One installs, the others are refused or find nothing to do; then all of it can be undone."""
    training = make_host(tmp_path)
    before = snapshot(training)
    command = [sys.executable, "-m", "utils.install_into_host", str(training)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    several = [subprocess.Popen(command, **pipes) for _ in range(4)]  # type: ignore[call-overload]  # of a dict
    ended = [(*one.communicate(), one.returncode) for one in several]
    for out, err, code in ended:
        assert (code == 0 and not err) or (code == 2 and "another process is changing it" in err), (out, err)
    assert sum("installed into" in out for out, *_ in ended) == 1
    assert (training / "detectors" / "__init__.py").read_text().count(LINE) == 1
    assert install(training, "--check").stdout.endswith("already installed, nothing to do\n")
    assert install(training, "--uninstall").returncode == 0
    assert snapshot(training) == before


def test_no_package_is_needed(tmp_path: Path) -> None:
    """A Python without site-packages installs and uninstalls."""
    training = make_host(tmp_path)
    before = snapshot(training)
    for flags in ((), ("--uninstall",)):
        done = run_python("-S", "-m", "utils.install_into_host", training, *flags, cwd=ROOT)
        assert done.returncode == 0, done.stderr
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
