"""Files made to do harm: no code in them runs, nothing outside the output folder changes, no memory is filled."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.helpers.command_server import CommandServer, Finished
from tests.helpers.datasets import DataTree, data_settings
from tests.helpers.detectors import images, tiny_detector
from tests.helpers.paths import ROOT
from tests.helpers.png import beginning, chunk
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.base.files import read_table
from utils.gradcam_kit.base.text import printable
from utils.gradcam_kit.data.images import decode_image
from utils.gradcam_kit.data.readers import read_dataset
from utils.gradcam_kit.media.single_images import check_room
from utils.gradcam_kit.settings.config import read_yaml

pytestmark = pytest.mark.slow  # many processes

SCRIPT, DEMO = "test_with_gradcam.py", "utils/gradcam_demo.py"
MARK = "the_code_ran"


def refused(finished: Finished, *words: str) -> str:
    """The one line on stderr of a command that ended with exit code 2."""
    lines = [line for line in finished.err.splitlines() if line.startswith("error: ")]
    assert finished.code == 2 and len(lines) == 1 and "Traceback" not in finished.err, finished
    for word in words:
        assert word in lines[0]
    return lines[0]


def everything_below(folder: Path) -> dict[str, bytes | str]:
    """Every file with its bytes, every link with where it leads, every folder."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
    return found


def some_image() -> bytes:
    return cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))[1].tobytes()


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder with a file that no run has any business with."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "precious.txt").write_text("keep me")
    return folder


# ------------------------------------------------------------------------------------------------------ code in files


@pytest.mark.parametrize(
    "tagged",
    [
        f"!!python/object/apply:os.mkdir [{MARK}]",
        f"!!python/object/new:os.mkdir [{MARK}]",
        "!!python/name:os.system",
        "!!python/object:utils.gradcam_kit.base.errors.InputError {}",
    ],
)
@pytest.mark.parametrize("flag", ["--detector_path", "--test_config"])
def test_yaml_tags_make_no_objects(
    tagged: str, flag: str, commands: CommandServer, data_tree: DataTree, tmp_path: Path
) -> None:
    yaml_file = data_tree.detector_yaml if flag == "--detector_path" else data_tree.test_yaml
    yaml_file.write_text(yaml_file.read_text() + f"extra: {tagged}\n")
    finished = commands.run(SCRIPT, *data_tree.arguments("--gradcam_output_dir", tmp_path / "out"), cwd=tmp_path)
    refused(finished, str(yaml_file), "is not valid YAML", "python/")
    assert not (tmp_path / MARK).exists() and not (tmp_path / "out").exists()


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAUGHS, "more than 100,000 values"),  # 10**12 of them
        ("a: &a [*a]", "more than 100,000 values"),
        ("a: &a {b: *a}", "more than 100,000 values"),
        ("[" * 5000, "not valid YAML"),
        ("a: 0x" + "f" * 6000, "64 bits"),
        ("a: .nan", "holds nan"),
        ("2001-01-01: x", "the key"),
        ('a: !!int ""', "not valid YAML"),
        ("a: !!bool maybe", "not valid YAML"),
        ("a: !!timestamp soon", "not valid YAML"),
    ],
)
def test_yaml_bombs_are_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    start = time.process_time()
    with pytest.raises(InputError, match=says) as caught:
        read_yaml(tmp_path / "a.yaml")
    assert time.process_time() - start < 5
    assert len(str(caught.value)) < 500


# ---------------------------------------------------------------------------------------------- names in dataset JSONs

ODD_NAMES = [
    "../../up",
    "/absolute",
    "a\0b",
    "<script>alert(1)</script>",
    f"$(mkdir {MARK})",
    f"`mkdir {MARK}`; mkdir {MARK} | & ' \"",
    "=cmd|' /C calc'!A0",
    "line\nbreak: Correct: True",
    "carriage\rreturn",
    "\x1b]0;title\x07",
    "half \ud800 pair",
    "byte \udcff",
]
FILE_NAMES = [
    "<img src=x onerror=alert(1)>.png",
    f"$(mkdir {MARK}).png",
    f"; mkdir {MARK} #.png",
    "\r\n.png",
    "\udcff.png",
]
BAD_PATHS = [
    "../../../../etc/passwd",
    "/etc/shadow",
    "a\0b.png",
    "\ud800.png",
    "//host/share/a.png",
    "~/.ssh/id_rsa",
    "%s%n",
]


def hostile_tree(data_tree: DataTree) -> list[dict[str, Any]]:
    """Rewrites dataset `toy` with odd names for labels, videos and files; returns what the readable frames are."""
    labels: dict[str, Any] = {}
    expected = []
    for i, name in enumerate(ODD_NAMES):
        file_name = FILE_NAMES[i % len(FILE_NAMES)]
        folder = data_tree.folder / f"odd/{i}"
        folder.mkdir(parents=True)
        Path(folder / file_name).write_bytes(some_image())
        # No base can be found from a path that is nowhere: the readable frame comes first.
        paths = [f"odd/{i}/{file_name}", *([BAD_PATHS[i]] if i < len(BAD_PATHS) else [])]
        labels[name] = {"test": {name: {"label": name, "frames": paths}}}
        expected.append({"name": name, "path": str(folder / file_name)})
    (data_tree.folder / "dataset_json" / "toy.json").write_text(json.dumps({"toy": labels}))
    config = {
        "dataset_json_folder": str(data_tree.folder / "dataset_json"),
        "dataset_root_rgb": str(data_tree.folder),
        "label_dict": {name: i % 2 for i, name in enumerate(ODD_NAMES)},
    }
    data_tree.test_yaml.write_text(json.dumps(config))  # JSON is YAML, and says every character
    return expected


def as_written(name: str) -> str:
    """What a UTF-8 table says of a name: bytes of file names stand as they came, other half pairs written out."""
    return name.replace("\ud800", "\\ud800")


def test_names_from_outside_stay_in_the_tables(commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    expected = hostile_tree(data_tree)
    before = everything_below(tmp_path)
    out = tmp_path / "out"
    finished = commands.run(
        SCRIPT,
        *data_tree.arguments("--gradcam_enabled", "--save_all_predictions", "--gradcam_output_dir", out),
        *("--max_unreadable", "100"),
        cwd=tmp_path,
    )
    assert finished.code == 0, finished.err
    assert "\x1b]" not in finished.out + finished.err
    after = everything_below(tmp_path)
    assert {name: value for name, value in after.items() if not (name + "/").startswith("out/")} == before
    written = {name for name in after if name.startswith("out/")}
    assert all(re.fullmatch(r"out(/[\w.+-]+)+", name) for name in written), written

    with (out / "toy" / "predictions.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        texts = [row[name] for row in csv.DictReader(file) for name in ("forgery", "video", "path")]
    assert not [text for text in texts if text.lstrip()[:1] in {*"=+-@"}]  # which a spreadsheet would run
    rows = list(read_table(out / "toy" / "predictions.csv"))
    assert [(row["forgery"], row["video"], row["path"]) for row in rows] == [
        (as_written(one["name"]), as_written(one["name"]), one["path"]) for one in expected
    ]
    for row, one in zip(rows, expected, strict=True):
        folder, i = out / "toy" / f"sample{row['index']}", row["index"]
        told = json.loads((folder / f"sample{i}.json").read_text(encoding="utf-8"))
        assert (told["forgery"], told["video"], told["path"]) == (one["name"], one["name"], one["path"])
        lines = (folder / f"sample{i}_metadata.txt").read_text(encoding="utf-8").split("\n")
        assert lines[5:8] == [
            f"Image: {printable(one['path'])}",
            *(f"{k}: {printable(one['name'])}" for k in ("Forgery", "Video")),
        ]
        assert sum(line.startswith("Correct: ") for line in lines) == 1
    unreadable = list(read_table(out / "toy" / "unreadable.csv"))
    assert len(unreadable) == len(BAD_PATHS) and all(row["reason"] for row in unreadable)
    assert json.loads((out / "metrics.json").read_text())["toy"]["unreadable"] == len(BAD_PATHS)
    page = (out / "index.html").read_text(encoding="utf-8", errors="replace")
    assert "alert(1)" in page  # it is told, as text
    assert "<script>alert(1)" not in page and "<img src=x" not in page


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "../toy", "a/../../toy", "..\\toy", "/etc/toy", "a\0b", "\x1b[31m", "a\nb", "\udcff"],
)
def test_data_set_names_that_lead_elsewhere_or_hide(name: str, tmp_path: Path) -> None:
    if "/" not in name and "\0" not in name:
        (tmp_path / f"{name}.json").write_text(json.dumps({name: {}}))
    with pytest.raises(InputError, match="not a dataset name") as caught:
        read_dataset(name, data_settings(tmp_path))
    assert str(caught.value).isprintable()


def test_json_that_is_deep_or_vast_or_no_file(commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    path = data_tree.folder / "dataset_json" / "toy.json"
    for deep in ('{"toy":' * 1_000_000, '{"toy": ' + "[" * 1_000_000):
        path.write_text(deep)
        finished = commands.run(SCRIPT, *data_tree.arguments("--gradcam_output_dir", tmp_path / "out"), cwd=tmp_path)
        refused(finished, "toy.json", "nested too deeply")
    os.truncate(path, 3 * 1024**3)
    os.mkfifo(path.parent / "pipe.json")
    for name in ("toy", "pipe"):
        start = time.process_time()
        with pytest.raises(InputError, match="a pipe, not a file|more than the 2,147,483,648 allowed"):
            read_dataset(name, data_settings(path.parent))
        assert time.process_time() - start < 1
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------- links and earlier outputs


def run_into(out: Path, commands: CommandServer, data_tree: DataTree, *more: str) -> Finished:
    arguments = data_tree.arguments("--gradcam_enabled", "--gradcam_samples", "2", "--gradcam_output_dir", out, *more)
    return commands.run(SCRIPT, *arguments, cwd=out.parent)


def test_links_in_the_output_folder_are_not_followed(
    commands: CommandServer, data_tree: DataTree, tmp_path: Path, victim: Path
) -> None:
    out = tmp_path / "out"
    assert run_into(out, commands, data_tree).code == 0
    before = everything_below(victim)
    # Files: the names under which files stand before they are whole, and one that is gone.
    (out / "manifest.json").unlink()
    for name in (".metrics.json.partial", ".manifest.json.partial", "metrics.json"):
        (out / name).unlink(missing_ok=True)
        (out / name).symlink_to(victim / "precious.txt")
    assert run_into(out, commands, data_tree, "--resume").code == 0
    assert everything_below(victim) == before
    assert not (out / "metrics.json").is_symlink() and json.loads((out / "metrics.json").read_text())["toy"]
    (out / "toy_fake").symlink_to(victim)
    (out / "metrics.json").unlink()
    (out / "metrics.json").symlink_to(victim / "precious.txt")
    assert run_into(out, commands, data_tree, "--overwrite", "--test_dataset", "toy_fake").code == 0
    assert everything_below(victim) == before and not (out / "toy_fake").is_symlink()


def test_a_link_in_place_of_the_earlier_data_set(
    commands: CommandServer, data_tree: DataTree, tmp_path: Path, victim: Path
) -> None:
    out = tmp_path / "out"
    assert run_into(out, commands, data_tree).code == 0
    (out / "toy").rename(tmp_path / "moved")
    (out / "toy").symlink_to(victim)
    refused(run_into(out, commands, data_tree, "--resume"), "symbolic link")
    assert run_into(out, commands, data_tree, "--overwrite").code == 0
    assert everything_below(victim) == {"precious.txt": b"keep me"}


@pytest.mark.parametrize(
    "datasets", [{"..": {}}, {"": {}}, {".": {}}, {"../victim": {}}, {"/tmp": {}}, ["victim"], 7, None]
)
def test_a_manifest_from_elsewhere_removes_nothing(
    datasets: Any, commands: CommandServer, data_tree: DataTree, tmp_path: Path, victim: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text(json.dumps({"datasets": datasets}))
    before = everything_below(tmp_path)
    refused(run_into(out, commands, data_tree, "--overwrite"), "without run.sqlite")
    assert everything_below(tmp_path) == before


def test_a_sample_never_replaces_what_is_no_sample(
    commands: CommandServer, data_tree: DataTree, tmp_path: Path, victim: Path
) -> None:
    (tmp_path / "victim.png").write_bytes(some_image())
    flags: list[str | Path] = [
        "--detector_path",
        data_tree.detector_yaml,
        "--device",
        "cpu",
        "--input",
        "victim.png",
        "--output",
    ]
    before = everything_below(tmp_path)
    refused(commands.run(DEMO, *flags, ".", cwd=tmp_path), "victim", "not a sample's folder")
    assert everything_below(tmp_path) == before
    out = tmp_path / "out"
    out.mkdir()
    (out / "victim").symlink_to(victim)
    refused(commands.run(DEMO, *flags, out, cwd=tmp_path), "not a sample's folder")
    (out / "victim").unlink()
    (out / ".victim.partial").symlink_to(victim)
    for _ in range(2):  # the second renames the first one's sample
        assert commands.run(DEMO, *flags, out, cwd=tmp_path).code == 0
    assert (out / "victim" / "gradcam_comparison.png").is_file() and not (out / "victim").is_symlink()
    assert everything_below(victim) == {"precious.txt": b"keep me"}


def test_images_with_names_of_any_kind(
    commands: CommandServer, data_tree: DataTree, tmp_path: Path, victim: Path
) -> None:
    names = [
        "...png", "..png", "....png", "a.png", "a.bmp", "a_2.png", "a_3.png", "-rf.png", f"$(mkdir {MARK}).png", "\udcff.png",
        "<b onload=x>.png", "\x1b[31mred.png", "two\nlines.png", "x" * 251 + ".png", "ü" * 125 + ".png",
    ]  # fmt: skip
    faces = tmp_path / "faces"
    faces.mkdir()
    for name in names:
        (faces / name).write_bytes(some_image())
    before = everything_below(tmp_path)
    flags: list[str | Path] = [
        "--detector_path",
        data_tree.detector_yaml,
        "--device",
        "cpu",
        "--input",
        faces,
        "--output",
        "deep/out",
    ]
    finished = commands.run(DEMO, *flags, cwd=tmp_path)
    assert finished.code == 0, finished.err
    told = [line for line in finished.out.splitlines() if "fake probability" in line]
    assert len(told) == len(names) and "\x1b" not in finished.out
    after = everything_below(tmp_path)
    assert {name: after[name] for name in before} == before
    assert all(name in before or (name + "/").startswith("deep/out/") or name == "deep" for name in after)
    folders = list((tmp_path / "deep" / "out").iterdir())
    assert len(folders) == len(names)
    explained = {json.loads(next(folder.glob("sample*.json")).read_text())["path"] for folder in folders}
    assert explained == {str(faces / name) for name in names}


@pytest.mark.parametrize("prefix", ["../up", "/tmp/x", "a/b", "a\\b", "a\0b"])
def test_prefix_of_saved_maps_is_a_name(prefix: str, tmp_path: Path) -> None:
    model = tiny_detector(gradcam_save_dir=str(tmp_path / "maps"))
    with pytest.raises(InputError, match="filename_prefix"):
        model.generate_gradcam({"image": images(1)}, save_visualizations=True, filename_prefix=prefix)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- images that swell


def png(width: int, height: int, data: bytes, *before: bytes) -> bytes:
    return beginning(width, height) + b"".join(before) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def patched(file_format: str, *changes: tuple[bytes, bytes]) -> bytes:
    """A small image of 257 x 258 pixels in which the bytes that say so are replaced."""
    data = io.BytesIO()
    Image.fromarray(np.zeros((258, 257, 3), np.uint8)).save(data, file_format)
    encoded = data.getvalue()
    for old, new in changes:
        assert old in encoded, (file_format, old)
        encoded = encoded.replace(old, new)
    return encoded


def tag(number: int, kind: int, value: int) -> bytes:
    """An entry of a TIFF directory: one number, of 16 (kind 3) or 32 bits (kind 4)."""
    return struct.pack("<HHII", number, kind, 1, value)


def bombs() -> dict[str, bytes]:
    """Files of less than a megabyte that say they are, or become, gigabytes."""
    flood = zlib.compress(b"\0" * 300_000_000, 9)
    return {
        "png": png(100_000, 100_000, flood),
        "png, one row": png(100_000, 1, zlib.compress(b"\0" * 300_001)),
        "jpg": patched("JPEG", (struct.pack(">HH", 258, 257), struct.pack(">HH", 65_000, 65_000))),
        "bmp": patched("BMP", (struct.pack("<ii", 257, 258), struct.pack("<ii", 100_000, 100_000))),
        "gif": patched("GIF", (struct.pack("<HH", 257, 258), struct.pack("<HH", 65_535, 65_535))),
        "tif": patched("TIFF", (tag(256, 4, 257), tag(256, 4, 100_000)), (tag(257, 4, 258), tag(257, 4, 100_000))),
        "ppm": b"P6 100000 100000 255\n" + b"\0" * 1000,
        "jp2": patched("JPEG2000", (struct.pack(">II", 258, 257), struct.pack(">II", 100_000, 100_000)),
                       (struct.pack(">II", 257, 258), struct.pack(">II", 100_000, 100_000))),
        "webp": patched("WEBP", (struct.pack("<HH", 257, 258), struct.pack("<HH", 16_383, 16_383))),
    }  # fmt: skip


MEASURE = """
import resource, sys
from pathlib import Path
from utils.gradcam_kit.data.images import UnreadableImage, decode_image, read_file
from PIL import Image
Image.init()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
for path in sys.argv[1:]:
    before, reason = peak(), ""
    try:
        decode_image(read_file(path), 224)
    except UnreadableImage as error:
        reason = str(error)
    print(peak() - before, reason)
"""


def measured(files: list[Path]) -> list[tuple[int, str]]:
    """For each file the MiB by which reading it raised the peak memory of a fresh process, and the refusal or ''."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, files)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [(int(line.partition(" ")[0]), line.partition(" ")[2]) for line in done.stdout.splitlines()]


def test_bombs_are_refused_by_their_header(tmp_path: Path) -> None:
    files = []
    for name, data in bombs().items():
        assert len(data) < 1_000_000
        files.append(tmp_path / f"bomb.{name}")
        files[-1].write_bytes(data)
    results = measured(files)
    assert len(results) == len(files)
    for file, (grown, reason) in zip(files, results, strict=True):
        assert "by its header" in reason, (file, reason)
        assert grown < 30, (file, grown)


def test_bombs_beside_the_pixels_fill_no_memory(tmp_path: Path) -> None:
    """Comments and colour profiles that unpack to 300 MB: with the image or without, the memory stays small."""
    flood = zlib.compress(b"\0" * 300_000_000, 9)
    pixels = zlib.compress(b"\0" * (3 * 8 + 1) * 8)
    files = [tmp_path / name for name in ("text.png", "profile.png", "late.png")]
    files[0].write_bytes(png(8, 8, pixels, chunk(b"zTXt", b"Comment\0\0" + flood)))
    files[1].write_bytes(png(8, 8, pixels, chunk(b"iCCP", b"profile\0\0" + flood)))
    files[2].write_bytes(png(8, 8, flood))
    for file, (grown, _) in zip(files, measured(files), strict=True):
        assert grown < 120, (file, grown)


def test_parts_that_claim_gigabytes(tmp_path: Path) -> None:
    """103 bytes, found by fuzzing, for which OpenCV alone allocates 4 GB before it sees that they are not there."""
    pixels = zlib.compress(b"\0" * (3 * 8 + 1) * 8)
    whole = png(8, 8, pixels)
    assert decode_image(whole, None).shape == (8, 8, 3)
    files = []
    for name, kind in (("header", b"IHDR"), ("data", b"IDAT"), ("other", b"tEXt"), ("end", b"IEND")):
        data = png(8, 8, pixels, chunk(b"tEXt", b"a\0b"))
        place = data.index(kind) - 4
        files.append(tmp_path / f"{name}.png")
        files[-1].write_bytes(data[:place] + b"\xfd\xff\x00\x2d" + data[place + 4 :])
    for file, (grown, reason) in zip(files, measured(files), strict=True):
        assert reason and grown < 30, (file, grown, reason)


def test_two_headers_in_one_file(tmp_path: Path) -> None:
    """The size that is judged is the size that is decoded."""
    vast = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    small = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    flood = chunk(b"IDAT", zlib.compress(b"\0" * 300_000_000, 9))
    end, start = chunk(b"IEND", b""), b"\x89PNG\r\n\x1a\n"
    jpeg = patched("JPEG")
    frame = jpeg.index(b"\xff\xc0")
    header = jpeg[frame : frame + 2 + struct.unpack(">H", jpeg[frame + 2 : frame + 4])[0]]
    vast_header = header[:5] + struct.pack(">HH", 20_000, 20_000) + header[9:]
    files = [tmp_path / name for name in ("vast_first.png", "small_first.png", "vast_first.jpg", "small_first.jpg")]
    files[0].write_bytes(start + vast + small + flood + end)
    files[1].write_bytes(start + small + vast + flood + end)
    files[2].write_bytes(jpeg[:frame] + vast_header + jpeg[frame:])
    files[3].write_bytes(jpeg[:frame] + header + vast_header + jpeg[frame + len(header) :])
    for file, (grown, _) in zip(files, measured(files), strict=True):
        assert grown < 120, (file, grown)


def test_a_folder_that_is_no_samples_is_left_alone(tmp_path: Path, victim: Path) -> None:
    with pytest.raises(InputError, match="not a sample's folder"):
        check_room(victim)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["victim"]
