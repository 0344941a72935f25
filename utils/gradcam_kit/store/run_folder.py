"""The output folder of one run: who may write there, and what of an earlier run is kept or removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..base.errors import InputError, RunError
from ..base.files import LIST, OPEN_LIST, own_folder, start_list, write_json
from ..judge.verdict import Choice
from .earlier_run import remove_half_written, remove_run
from .journal import journals
from .manifest import FINISHED, STARTED, HeatmapCounts, Manifest, check_names, manifest_path, read_manifest
from .run_lock import LOCK, FolderLock


class RunFolder:
    """An output folder that belongs to this run, locked until the end of the `with` block.

    `manifest.json` is written last: where it is, the run is whole. `finished`: by an earlier call of the same command.
    """

    def __init__(self, path: Path, manifest: Manifest, finished: bool, lock: FolderLock | None = None) -> None:
        self.path, self.manifest, self.finished, self._lock = path, manifest, finished, lock

    @classmethod
    def open(cls, path: Path, manifest: Manifest, overwrite: bool = False, resume: bool = False) -> RunFolder:
        """Take `path`: new or empty, with `overwrite` an earlier run's, with `resume` the same run's; or InputError."""
        check_names(manifest.datasets, (*manifest.top_files, LIST, OPEN_LIST))
        try:
            if not (resume and manifest_path(path)):
                _run_to_replace(path, overwrite)  # before anything is written into a folder that is not ours
            path.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(path)
            try:
                if resume and manifest_path(path):
                    return cls._resumed(path, manifest, lock)
                return cls._begun(path, manifest, overwrite, lock)
            except BaseException:
                lock.release()
                raise
        except OSError as error:
            raise InputError(f"output folder {path}: cannot be written ({error.strerror}); give another one") from error

    @classmethod
    def _begun(cls, path: Path, manifest: Manifest, overwrite: bool, lock: FolderLock) -> RunFolder:
        """The folder, emptied of an earlier run's files."""
        earlier = _run_to_replace(path, overwrite)  # as it is now that others are kept out
        if earlier is not None:
            remove_run(path, earlier, manifest.top_files)
        for name in manifest.datasets:
            own_folder(path / name)
        start_list(path)
        write_json(path / STARTED, manifest.to_json(), listed=False)
        return cls(path, manifest, finished=False, lock=lock)

    @classmethod
    def _resumed(cls, path: Path, manifest: Manifest, lock: FolderLock) -> RunFolder:
        """The folder of the run that `manifest` describes, cleared of what was half written."""
        found = manifest_path(path)
        assert found is not None  # as `open` has seen
        earlier = read_manifest(found, as_written=True)
        differences = manifest.differences(earlier)
        if differences:
            more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise InputError(
                f"--resume: {found} is of another run: {'; '.join(differences[:3])}{more};"
                " give the first run's settings, or another --gradcam_output_dir, or --overwrite to begin again"
            )
        earlier = replace(earlier, top_files=list(dict.fromkeys((*earlier.top_files, *manifest.top_files))))
        if found.name == FINISHED:
            _tidy(path, earlier.datasets)
            return cls(path, earlier, True, lock)
        for name in earlier.datasets:
            own_folder(path / name)
            remove_half_written(path / name)
        return cls(path, earlier, False, lock)

    def finish(self, heatmaps: Mapping[str, HeatmapCounts], choice: Choice | None = None) -> None:
        """Write `manifest.json`: the run is whole. RunError where the folder is no longer what this run made."""
        if not (self.path / STARTED).is_file() or not all(
            journals(self.path / name) for name in self.manifest.datasets
        ):
            raise RunError(
                f"{self.path}: was removed or emptied while the run was at work, so outputs are missing; begin again"
            )
        self.manifest = replace(self.manifest, finished=now(), heatmaps=dict(heatmaps), choice=choice)
        write_json(self.path / FINISHED, self.manifest.to_json(), listed=False)
        _tidy(self.path, self.manifest.datasets)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._lock is not None:
            self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, it leaves the lock with the process that holds it."""
        return RunFolder, (self.path, self.manifest, self.finished)


def now() -> str:
    """The time as a manifest has it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _tidy(path: Path, datasets: Iterable[str]) -> None:
    for name in datasets:
        for journal in journals(path / name):
            journal.unlink()
    (path / STARTED).unlink(missing_ok=True)


def _run_to_replace(path: Path, overwrite: bool) -> Path | None:
    """The manifest of the run to be removed, None where there is nothing. Raises InputError where it is to be kept."""
    if not path.exists():
        return None
    if not path.is_dir():
        raise InputError(f"output folder {path}: is a file; give a folder")
    if all(inside.name == LOCK for inside in path.iterdir()):
        return None
    earlier = manifest_path(path)
    if not overwrite:
        kind = "holds an earlier run" if earlier else "is not empty"
        way_on = ", --resume or --overwrite" if earlier else ""
        raise InputError(f"output folder {path}: {kind}; give another --gradcam_output_dir{way_on}")
    if earlier is None:
        raise InputError(
            f"output folder {path}: holds other things than a run, --overwrite leaves them alone; give another"
        )
    return earlier
