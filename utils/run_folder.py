"""The output folder of one run: who may write where, and the manifest that says how it came about."""

from __future__ import annotations

import json
import platform
import shutil
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, NamedTuple, Sequence

from utils.checkpoints import sha256_of
from utils.dataset_json import is_dataset_name
from utils.errors import InputError
from utils.frames import Frame, dataset_file
from utils.own_files import own_folder
from utils.results import write_json

if TYPE_CHECKING:
    from utils.config import RunSettings
    from utils.evaluation import RunOptions

STARTED, FINISHED = "manifest.partial.json", "manifest.json"
PACKAGES = ("torch", "transformers", "numpy", "cv2", "sklearn")


class RunFolder(NamedTuple):
    """An output folder that belongs to this run. `manifest.json` is written last: where it is, the run is whole."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(
        cls, path: Path, settings: RunSettings, options: RunOptions, datasets: Mapping[str, Sequence[Frame]]
    ) -> RunFolder:
        """Take `path`, new or empty or, with `overwrite`, an earlier run's. Raises InputError otherwise."""
        _clear(path, options.overwrite)
        manifest = _manifest(settings, options, datasets)
        try:
            for name in datasets:
                own_folder(path / name)
            write_json(path / STARTED, manifest)
        except OSError as error:
            raise InputError(f"output folder {path}: cannot be written ({error.strerror}); give another one") from error
        return cls(path, manifest)

    def dataset(self, name: str) -> Path:
        """The folder of one data set."""
        return self.path / name

    def finish(self, counts: Mapping[str, Any]) -> None:
        """Write `manifest.json`: the run is whole."""
        write_json(self.path / FINISHED, {**self.manifest, "finished": _now(), "heatmaps": counts})
        (self.path / STARTED).unlink()


def _clear(path: Path, overwrite: bool) -> None:
    """Remove what an earlier run left, and only that."""
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"output folder {path}: is a file; give a folder")
    if not any(path.iterdir()):
        return
    earlier = next((path / name for name in (FINISHED, STARTED) if (path / name).is_file()), None)
    if not overwrite:
        kind = "holds an earlier run" if earlier else "is not empty"
        raise InputError(f"output folder {path}: {kind}; give another --gradcam_output_dir, or --overwrite")
    if earlier is None:
        raise InputError(
            f"output folder {path}: holds other things than a run, --overwrite leaves them alone; give another"
        )
    for name in _earlier_datasets(earlier):
        own_folder(path / name)
        shutil.rmtree(path / name)
    for file in ("metrics.json", FINISHED, STARTED):
        (path / file).unlink() if (path / file).exists() else None


def _earlier_datasets(manifest: Path) -> list[str]:
    """The data sets that a manifest names. Their folders will be removed, so it is not trusted. Raises InputError."""
    try:
        names = json.loads(manifest.read_text(encoding="utf-8"))["datasets"]
        if isinstance(names, dict) and all(map(is_dataset_name, names)):
            return list(names)
    except (ValueError, RecursionError, KeyError, TypeError):
        pass  # the same end as a list of unusable names
    raise InputError(f"{manifest}: not as a run writes it, so nothing is removed; give another --gradcam_output_dir")


def _manifest(settings: RunSettings, options: RunOptions, datasets: Mapping[str, Sequence[Frame]]) -> dict[str, Any]:
    weights = settings.detector.weights_path
    return {
        "command": list(options.command),
        "started": _now(),
        "config": settings.detector.config,
        "weights": {"path": str(weights), "sha256": sha256_of(weights)} if weights else "random",
        "datasets": {
            name: {"frames": len(frames), "json_sha256": sha256_of(dataset_file(name, settings.data.json_folder))}
            for name, frames in datasets.items()
        },
        "options": {key: value for key, value in options._asdict().items() if key != "command"},
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    import importlib

    return {name: str(importlib.import_module(name).__version__) for name in PACKAGES}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
