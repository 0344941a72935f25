"""A folder of images, or a CSV (path, label and perhaps video, forgery, mask), as a dataset. No image is opened here.

A folder called as in LABEL_FOLDERS, at any depth, labels what lies below it, as CNNDetection, UniversalFakeDetect and
GenImage do it. A folder in there is a video; an image that lies in none is a video of its own.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..base.errors import InputError
from ..base.text import AS_IT_CAME, one_line, shortened
from .frame import Frame, Video, is_dataset_name

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif",
)  # fmt: skip
LABEL_FOLDERS = {"real": 0, "0_real": 0, "nature": 0, "fake": 1, "1_fake": 1, "ai": 1}
LABELS = {"0": 0, "real": 0, "1": 1, "fake": 1}  # in a CSV
BESIDE = ("masks", "landmarks")  # folders of files that belong to frames and are none
MAX_FIELD = 65_536  # letters in a field of a CSV


def is_path(entry: str, json_folder: Path) -> bool:
    """Whether an entry of `test_dataset` means a folder or a CSV, and not the name of a dataset JSON."""
    if "/" in entry or os.sep in entry or entry.endswith(".csv"):
        return True
    # Unlike Path's, these are False for a name that is longer than a name can be.
    return not os.path.isfile(json_folder / f"{entry}.json") and os.path.isdir(entry)  # noqa: PTH112, PTH113


def dataset_name(path: Path) -> str:
    """What a folder's or a CSV's outputs are called: its own name. Raises InputError where there is neither."""
    resolved = path.resolve()
    is_file, is_folder = os.path.isfile(resolved), os.path.isdir(resolved)  # noqa: PTH112, PTH113
    if is_file and path.suffix != ".csv":
        raise InputError(f"test_dataset: {str(path)!r} is a file; give a folder of images, or a .csv that lists them")
    if not is_folder and not is_file:
        given, looked = shortened(str(path), 300), shortened(str(resolved), 300)
        raise InputError(f"test_dataset: there is no folder and no CSV {given!r}; looked at {looked}")
    name = resolved.stem if is_file else resolved.name
    if not is_dataset_name(name):
        raise InputError(f"test_dataset: {str(path)!r} gives the outputs no usable name: rename it")
    return name


def read_labelled(path: Path) -> list[tuple[int, Video]]:
    """The videos of a folder or a CSV with their classes, in a fixed order. Raises InputError, naming what is wrong."""
    return _read_csv(path) if path.is_file() else _read_folder(path)


def named_masks(path: Path) -> dict[str, str]:
    """Frame → the mask that a CSV's column `mask` names for it, if any. Raises InputError where it is not there."""
    masks = {}
    for where, row in _rows(path) if path.is_file() else ():
        if row.get("mask"):
            mask = path.parent / str(row["mask"])
            if not os.path.isfile(mask):  # noqa: PTH113
                raise InputError(f"{where}: there is no mask {str(mask)!r}; paths are relative to the CSV's folder")
            masks[str(path.parent / (row["path"] or ""))] = str(mask)
    return masks


def counted(frames: Sequence[Frame]) -> str:
    """`"120 images in 12 videos: real 60 (real), 1_fake 60 (fake)"`, for the user to see what was taken for what."""
    images = Counter((frame.label, frame.forgery) for frame in frames)
    videos = {(frame.label, frame.forgery, frame.video) for frame in frames}
    groups = [f"{shortened(label)} {count} ({('real', 'fake')[n]})" for (n, label), count in sorted(images.items())]
    return f"{len(frames)} images in {len(videos)} videos: {', '.join(groups)}"


def _read_folder(root: Path) -> list[tuple[int, Video]]:
    found: list[tuple[int, Video]] = []
    unlabelled = 0
    for folder, images in _folders_with_images(root):
        inner = folder.relative_to(root).parts
        places = [i for i, part in enumerate(inner) if part.lower() in LABEL_FOLDERS]
        if len({LABEL_FOLDERS[inner[i].lower()] for i in places}) > 1:
            raise InputError(f"{folder}: lies in a folder for real images and in one for fakes: which is it?")
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
        seen = f"{unlabelled} images lie in other folders" if unlabelled else "no image is below it"
        raise InputError(
            f"{root}: no images with a label: put them into folders {named} (at any depth), or list them in a CSV with"
            f" the columns path,label; {seen}"
        )
    if unlabelled:
        raise InputError(f"{root}: {unlabelled} images lie in no folder {named}: move them into one, or away")
    return found


def _folders_with_images(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder below `root` that holds images, in the order of their names. A linked folder is entered once."""
    entered = set()
    for folder, inner, files in os.walk(root, followlinks=True):
        here = os.path.realpath(folder)
        if here in entered:
            inner.clear()
            continue
        entered.add(here)
        inner[:] = sorted(name for name in inner if name not in BESIDE and not name.startswith("."))
        images = sorted(name for name in files if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."))
        if images:
            yield Path(folder), images


def _read_csv(path: Path) -> list[tuple[int, Video]]:
    videos: dict[tuple[int, str, str], Video] = {}
    for where, row in _rows(path):
        label = LABELS.get((row["label"] or "").strip().lower())
        if label is None:
            raise InputError(f"{where}: label is {shortened(row['label'] or '')!r}; allowed: {', '.join(LABELS)}")
        image = path.parent / (row["path"] or "")
        if not os.path.isfile(image):  # noqa: PTH113 (Path's fails for a name of 300 letters)
            raise InputError(f"{where}: there is no file {str(image)!r}; paths are relative to the CSV's folder")
        forgery = row.get("forgery") or ("real", "fake")[label]
        name = row.get("video") or image.with_suffix("").as_posix()
        video = videos.setdefault((label, forgery, name), Video(forgery, name, []))
        video.frames.append(str(image))
    if not videos:
        raise InputError(f"{path}: lists no image")
    return [(label, video) for (label, _, _), video in videos.items()]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str | None]]]:
    """(place for an error, row) of a CSV. Raises InputError for anything else."""
    limit = csv.field_size_limit(MAX_FIELD)
    try:
        with path.open(newline="", encoding="utf-8-sig", errors=AS_IT_CAME) as file:
            table = csv.DictReader(file)
            missing = [name for name in ("path", "label") if name not in (table.fieldnames or [])]
            if missing:
                raise InputError(
                    f"{path}: has no column {', '.join(missing)}; its first line must name path,label and may name"
                    " video,forgery,mask"
                )
            for row in table:
                yield f"{path}, line {table.line_num}", row
    except (csv.Error, OSError) as error:
        raise InputError(f"{path}: cannot be read as a CSV ({one_line(error)})") from error
    finally:
        csv.field_size_limit(limit)
