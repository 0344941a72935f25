"""A folder of images, or a CSV (path, label; optional video, forgery, mask), as a dataset. No image is opened here.

A folder with a name in LABEL_FOLDERS, at any depth, labels all images below it, as in CNNDetection,
UniversalFakeDetect and GenImage. Each folder inside it is a video; an image outside these is its own video.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..base.errors import InputError
from ..base.spreadsheets import encodings_of, read_sheet
from ..base.text import in_number_order, shortened
from .frame import Frame, Video, is_dataset_name

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif",
)  # fmt: skip
TABLES = (".csv", ".tsv", ".txt")  # a spreadsheet's Unicode text is a .txt
LABEL_FOLDERS = {"real": 0, "0_real": 0, "nature": 0, "fake": 1, "1_fake": 1, "ai": 1}
LABELS = {"real": 0, "false": 0, "fake": 1, "true": 1}  # in a CSV, as well as numbers
SIBLING_FOLDERS = ("masks", "landmarks")  # they hold files of frames, not frames


def is_path(entry: str, json_folder: Path) -> bool:
    """Tell whether an entry of `test_dataset` is a folder or a CSV, not the name of a dataset JSON."""
    if "/" in entry or os.sep in entry or entry.lower().endswith(TABLES):
        return True
    # Path's methods would raise for a name that is too long.
    return not os.path.isfile(json_folder / f"{entry}.json") and os.path.isdir(entry)  # noqa: PTH112, PTH113


def dataset_name(path: Path) -> str:
    """Return the name of a folder or CSV, which its outputs carry too. Raises InputError if it is missing."""
    resolved = path.resolve()
    is_file, is_folder = os.path.isfile(resolved), os.path.isdir(resolved)  # noqa: PTH112, PTH113
    if is_file and not path.name.lower().endswith(TABLES):
        raise InputError(f"test_dataset: {str(path)!r} is a file; give a folder of images, or a .csv that lists them")
    if not is_folder and not is_file:
        given, looked = shortened(str(path), 300), shortened(str(resolved), 300)
        raise InputError(f"test_dataset: no folder or CSV {given!r}; looked at {looked}")
    name = resolved.stem if is_file else resolved.name
    if not is_dataset_name(name):
        raise InputError(f"test_dataset: {str(path)!r} has a name that outputs cannot carry: rename it")
    return name


def read_labelled(path: Path) -> list[tuple[int, Video]]:
    """Read the videos of a folder or a CSV with their classes (0 real, 1 fake), in a fixed order. Raises InputError."""
    return _read_csv(path) if path.is_file() else _read_folder(path)


def named_masks(path: Path) -> dict[str, str]:
    """Map each frame of a CSV to its mask in the column `mask`, if any. Raises InputError if a mask is missing."""
    masks = {}
    for where, row in _rows(path) if path.is_file() else ():
        if row.get("mask"):
            mask = _listed_path(path, row["mask"])
            if not os.path.isfile(mask):  # noqa: PTH113
                raise InputError(f"{where}: no mask {_quoted(mask)}; paths are relative to the CSV's folder")
            masks[_listed_path(path, row["path"])] = mask
    return masks


def label_number(text: str) -> int | None:
    """Parse a label as 0 (real) or 1 (fake): `0`, `1.0`, `1,0`, `TRUE`, ` Real`, a name of LABEL_FOLDERS; else None.

    A smoothed label such as 0.05 gives None, because rounding it would be a guess.
    """
    text = text.strip().lower()
    named = {**LABEL_FOLDERS, **LABELS}.get(text)
    if named is not None:
        return named
    try:
        number = float(text.replace(",", "."))
    except ValueError:
        return None
    return int(number) if number in (0, 1) else None


def describe_images(frames: Sequence[Frame]) -> str:
    """Return `"120 images in 12 videos: real 60 (real), 1_fake 60 (fake)"`, so that the user sees each folder's class.

    The text also counts the images that are listed more than once.
    """
    repeats = len(frames) - len({frame.path for frame in frames})
    images = Counter((frame.label, frame.forgery) for frame in frames)
    videos = {(frame.label, frame.forgery, frame.video) for frame in frames}
    groups = [f"{shortened(label)} {count} ({('real', 'fake')[n]})" for (n, label), count in sorted(images.items())]
    twice = f"; {repeats} are repeats, and count again" if repeats else ""
    return f"{len(frames)} images in {len(videos)} videos: {', '.join(groups)}{twice}"


def _read_folder(root: Path) -> list[tuple[int, Video]]:
    found: list[tuple[int, Video]] = []
    unlabelled = 0
    for folder, images in _folders_with_images(root):
        inner = folder.relative_to(root).parts
        places = [i for i, part in enumerate(inner) if part.lower() in LABEL_FOLDERS]
        if len({LABEL_FOLDERS[inner[i].lower()] for i in places}) > 1:
            raise InputError(f"{folder}: is inside a folder for real images and inside one for fakes: which is it?")
        if not places:
            unlabelled += len(images)
            continue
        label = "/".join(inner[: places[0] + 1])
        number = LABEL_FOLDERS[inner[places[0]].lower()]
        video = "/".join(inner[places[0] + 1 :])
        paths = [str(folder / image) for image in images]
        videos = [Video(label, video, paths)] if video else [Video(label, Path(path).stem, [path]) for path in paths]
        found += [(number, video) for video in videos]
    named = f"called {', '.join(LABEL_FOLDERS)}"
    if not found:
        seen = f"{unlabelled} images are in other folders" if unlabelled else "it holds no image"
        raise InputError(
            f"{root}: no images with a label: put them into folders {named} (at any depth), or list them in a CSV with"
            f" the columns path,label; {seen}"
        )
    if unlabelled:
        raise InputError(f"{root}: {unlabelled} images are in no folder {named}: move them into one, or away")
    return found


def _folders_with_images(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder below `root` that holds images, sorted by number (9.png before 10.png).

    A linked folder is entered once.
    """
    entered = set()
    for folder, inner, files in os.walk(root, followlinks=True):
        here = os.path.realpath(folder)
        if here in entered:
            inner.clear()
            continue
        entered.add(here)
        names = (name for name in inner if name not in SIBLING_FOLDERS and not name.startswith("."))
        inner[:] = sorted(names, key=in_number_order)
        names = (name for name in files if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."))
        images = sorted(names, key=in_number_order)
        if images:
            yield Path(folder), images


def _read_csv(path: Path) -> list[tuple[int, Video]]:
    videos: dict[tuple[int, str, str], Video] = {}
    seen: dict[tuple[int, int], tuple[int, str]] = {}  # (device, inode) → label and line; a file may have two names
    for where, row in _rows(path):
        label = label_number(row["label"])
        if label is None:
            found = shortened(row["label"])
            raise InputError(f"{where}: label is {found!r}; allowed: 0, real, 1, fake, also as 0.0, 1.0, True, False")
        image = _listed_path(path, row["path"])
        info = os.stat(image) if os.path.isfile(image) else None  # noqa: PTH113, PTH116 (Path's methods raise for a long name)
        if info is None:
            raise InputError(f"{where}: no file {_quoted(image)}; paths are relative to the CSV's folder")
        earlier, line = seen.setdefault((info.st_dev, info.st_ino), (label, where))
        if earlier != label:
            raise InputError(
                f"{where}: {_quoted(image)} is {('real', 'fake')[label]} here and {('real', 'fake')[earlier]} in"
                f" {line.rpartition(', ')[2]}: which is it?"
            )
        forgery = row.get("forgery") or ("real", "fake")[label]
        name = row.get("video") or Path(image).with_suffix("").as_posix()
        video = videos.setdefault((label, forgery, name), Video(forgery, name, []))
        video.frames.append(image)
    if not videos:
        raise InputError(f"{path}: lists no image")
    return [(label, video) for (label, _, _), video in videos.items()]


def _rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return (place for errors, row) of a CSV, in the encoding with which its images exist. Raises InputError."""
    first: list[tuple[str, dict[str, str]]] = []
    for encoding in encodings_of(path):
        lines = read_sheet(path, ["path"], ["label"], encoding=encoding)
        rows = [(f"{path}, line {number}", cells) for number, cells in lines]
        first = first or rows
        if all(os.path.isfile(_listed_path(path, row["path"])) for _, row in rows if not row["path"].isascii()):  # noqa: PTH113
            return rows
    return first


def _listed_path(table: Path, listed: str) -> str:
    """Return the path of a file that a CSV lists; `\\` means `/` unless a file has exactly this name."""
    literal = str(table.parent / listed)
    return literal if "\\" not in listed or os.path.isfile(literal) else str(table.parent / listed.replace("\\", "/"))  # noqa: PTH113


def _quoted(path: str) -> str:
    return repr(shortened(path, 300))
