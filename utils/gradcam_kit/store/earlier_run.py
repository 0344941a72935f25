"""What an earlier run has left in a folder, and its removal: of that run's own files, and of nothing else.

A file is the run's own if the run has said so with its SHA-256: in the folder's list (`base.files`), in the JSON of a
sample, in the manifest about itself. Journals are known by their first line.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from ..base.errors import InputError
from ..base.files import LIST, OPEN_LIST, keeps_list, own_files, read_list, sha256_of
from .journal import is_journal
from .manifest import FINISHED, STARTED, datasets_of, is_as_written
from .sample_folder import sample_folders


def remove_run(folder: Path, manifest: Path, new_names: Iterable[str]) -> None:
    """Remove the run whose `manifest` this is from `folder`. Its manifest goes last.

    Raises InputError, and removes nothing, where the folder keeps no list, a file of the run was changed since, or
    something else lies among its datasets or has one of `new_names`, which the next run will write beside them.
    """
    if not keeps_list(folder):
        raise InputError(
            f"output folder {folder}: has a {manifest.name}, but no {LIST}, in which a run lists its files: nothing"
            " is removed (another program's folder, or an earlier version's run?); give another --gradcam_output_dir,"
            " or remove it yourself"
        )
    datasets = [folder / name for name in datasets_of(manifest)]
    own = set(_listed_files(folder))
    for dataset in datasets:
        if dataset.is_symlink():
            raise InputError(
                f"{dataset}: is a symbolic link, which is not followed: remove it, or give another output folder"
            )
        for index, sample in sample_folders(dataset):
            own |= own_files(sample / f"sample{index}.json")
        own |= {path for path in dataset.glob("predictions.*.partial") if is_journal(path)}
    foreign = [path for dataset in datasets for path in _files_below(dataset) if path not in own]
    beside = [folder / name for name in new_names]  # a link there will be replaced, what it leads to stays
    foreign += [path for path in beside if path.exists() and not path.is_symlink() and path not in own]
    if foreign:
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise InputError(
            f"{foreign[0]}{more}: the run did not write this, or it was changed since, so nothing is removed: move it,"
            " or give another --gradcam_output_dir"
        )
    if not is_as_written(manifest):
        shutil.copyfile(manifest, manifest.with_name(f"{manifest.name}.edited"))
    manifest.replace(folder / STARTED)  # first of all: from here on the run there is not whole
    for path in own:
        path.unlink()
    for place in (folder, *datasets):
        remove_half_written(place)
    for dataset in datasets:
        _remove_empty(dataset)
    for name in (LIST, OPEN_LIST, STARTED):
        (folder / name).unlink(missing_ok=True)


def remove_half_written(folder: Path) -> None:
    """Remove what a killed run has left under names that no finished output has: `.<name>.partial`."""
    for path in folder.glob(".*.partial"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _listed_files(folder: Path) -> Iterator[Path]:
    """The files on the folder's list that are as they were written. Paths that lead out of it count for nothing."""
    for name, hashes in read_list(folder).items():
        parts = PurePosixPath(name).parts
        path = folder.joinpath(*parts)
        inside = parts and ".." not in parts and not PurePosixPath(name).is_absolute()
        links = inside and any(folder.joinpath(*parts[:i]).is_symlink() for i in range(1, len(parts) + 1))
        own = inside and not links and path.is_file() and path.name not in (FINISHED, STARTED)
        if own and sha256_of(path) in hashes:
            yield path


def _files_below(folder: Path) -> Iterator[Path]:
    """Whatever lies below a dataset's folder, but for half-written files and those that systems hide (`.DS_Store`)."""
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and (path.is_symlink() or not path.is_dir()):
            yield path


def _remove_empty(folder: Path) -> None:
    """Remove a folder and those below it, as far as nothing is left in them."""
    if not folder.is_dir():
        return
    below = sorted((path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()), reverse=True)
    for path in (*below, folder):
        if not any(path.iterdir()):
            path.rmdir()
