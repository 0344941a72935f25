"""The output folder of one run: who may write where, and the manifest that says how it came about."""

from __future__ import annotations

import errno
import hashlib
import json
import platform
import shutil
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Mapping, NamedTuple, Sequence

import torch

from utils.data.dataset_json import dataset_file, is_dataset_name
from utils.data.frames import Frame
from utils.errors import InputError, RunError
from utils.files import own_folder, write_json
from utils.model.checkpoints import sha256_of
from utils.results.journal import journals

if TYPE_CHECKING:
    from utils.model.config import RunSettings
    from utils.run.evaluation import RunOptions

MOST_THREADS = 4096  # more than any machine's
STARTED, FINISHED = "manifest.partial.json", "manifest.json"
# What a run and the views of it leave beside the manifest and the folders of the data sets.
TOP_FILES = (
    "metrics.json", "index.html", "regions.csv", "map_similarity.csv", "fiftyone_samples.json", "explanations.csv",
    "explanations.json",
)  # fmt: skip
PACKAGES = ("torch", "transformers", "numpy", "cv2", "sklearn")
# What may differ between a run and its resumption, since no output depends on it.
FREE_CONFIG = ("gradcam_save_dir", "workers")
FREE_OPTIONS = ("output_dir", "overwrite", "resume", "max_unreadable", "device", "views")
_locks: list[IO[str]] = []  # held until this process ends


class RunFolder(NamedTuple):
    """An output folder that belongs to this run. `manifest.json` is written last: where it is, the run is whole."""

    path: Path
    manifest: dict[str, Any]
    finished: bool  # by an earlier call of the same command

    @classmethod
    def open(
        cls,
        path: Path,
        settings: RunSettings,
        options: RunOptions,
        device: torch.device,
        datasets: Mapping[str, Sequence[Frame]],
    ) -> RunFolder:
        """Take `path`: new or empty, with `overwrite` an earlier run's, with `resume` the same run's.

        Raises InputError otherwise, and where another process is at work there.
        """
        manifest = _manifest(settings, options, device, datasets)
        try:
            if options.resume and _earlier_manifest(path):
                return _resumed(path, manifest)
            _clear(path, options.overwrite)
            for name in datasets:
                own_folder(path / name)
            write_json(path / STARTED, manifest)
            _lock(path)
        except OSError as error:
            raise InputError(f"output folder {path}: cannot be written ({error.strerror}); give another one") from error
        return cls(path, manifest, finished=False)

    def dataset(self, name: str) -> Path:
        """The folder of one data set."""
        return self.path / name

    def finish(self, heatmaps: Mapping[str, Any]) -> None:
        """Write `manifest.json`: the run is whole. What only a resumption needs is removed.

        Raises RunError where the folder is no longer what this run made.
        """
        if not (self.path / STARTED).is_file() or not all(
            journals(self.path / name) for name in self.manifest["datasets"]
        ):
            raise RunError(
                f"{self.path}: was removed or emptied while the run was at work, so outputs are missing; begin again"
            )
        write_json(self.path / FINISHED, {**self.manifest, "finished": _now(), "heatmaps": heatmaps})
        _tidy(self.path, list(self.manifest["datasets"]))


def _tidy(path: Path, datasets: Sequence[str]) -> None:
    for name in datasets:
        for journal in journals(path / name):
            journal.unlink()
    (path / STARTED).unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------- an earlier run


def _earlier_manifest(path: Path) -> Path | None:
    return next((path / name for name in (FINISHED, STARTED) if (path / name).is_file()), None)


def _resumed(path: Path, manifest: Mapping[str, Any]) -> RunFolder:
    """The folder of the run that `manifest` describes, cleared of what was half written. Raises InputError."""
    found = _earlier_manifest(path)
    assert found is not None
    datasets = _earlier_datasets(found)
    earlier = json.loads(found.read_text(encoding="utf-8"))
    differences = _differences(_identity(earlier), _identity(json.loads(json.dumps(manifest, default=str))))
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise InputError(
            f"--resume: {found} is of another run: {'; '.join(differences[:3])}{more};"
            " give the first run's settings, or another --gradcam_output_dir, or --overwrite to begin again"
        )
    threads = earlier.get("threads")
    if not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
        raise InputError(
            f"{found}: threads is {threads!r}, which no run writes; give another --gradcam_output_dir, or --overwrite"
        )
    if found.name == FINISHED:
        _tidy(path, datasets)
        return RunFolder(path, earlier, finished=True)
    _lock(path)
    for name in datasets:
        own_folder(path / name)
        for partial in (path / name).glob(".*.partial"):
            shutil.rmtree(partial) if partial.is_dir() and not partial.is_symlink() else partial.unlink()
    return RunFolder(path, earlier, finished=False)


def _identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the outputs depend on, flat: place in the manifest → value."""
    kept = {
        key: manifest.get(key) for key in ("config", "settings", "weights", "datasets", "options", "device", "versions")
    }
    flat: dict[str, Any] = {}

    def walk(value: Any, place: tuple[str, ...]) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(inner, (*place, str(key)))
        else:
            flat[".".join(place)] = value

    walk(kept, ())
    free = [f"config.{key}" for key in FREE_CONFIG] + [f"options.{key}" for key in FREE_OPTIONS]
    return {place: value for place, value in flat.items() if place not in free}


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    places = [place for place in dict.fromkeys((*earlier, *now)) if earlier.get(place) != now.get(place)]
    return [f"{place} was {_short(earlier.get(place))} and is {_short(now.get(place))}" for place in places]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:40] + "..." + text[-8:]


def _lock(path: Path) -> None:
    """Keep other processes out until this one ends, however it ends. Raises InputError where one is in already."""
    import fcntl

    file = (path / STARTED).open("r+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock not inherited by decoding processes
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise InputError(
                f"output folder {path}: another process is at work there; wait for it or end it"
            ) from error
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):  # a file system without locks
            raise
    _locks.append(file)


def _clear(path: Path, overwrite: bool) -> None:
    """Remove what an earlier run left, and only that."""
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"output folder {path}: is a file; give a folder")
    if not any(path.iterdir()):
        return
    earlier = _earlier_manifest(path)
    if not overwrite:
        kind = "holds an earlier run" if earlier else "is not empty"
        way_on = ", --resume or --overwrite" if earlier else ""
        raise InputError(f"output folder {path}: {kind}; give another --gradcam_output_dir{way_on}")
    if earlier is None:
        raise InputError(
            f"output folder {path}: holds other things than a run, --overwrite leaves them alone; give another"
        )
    names = _earlier_datasets(earlier)
    earlier.replace(path / STARTED)  # first of all: from here on the run there is not whole
    _lock(path)
    for name in names:
        own_folder(path / name)
        shutil.rmtree(path / name)
    for name in TOP_FILES:
        (path / name).unlink(missing_ok=True)


def _earlier_datasets(manifest: Path) -> list[str]:
    """The data sets that a manifest names. Files in their folders will be removed, so it is not trusted.

    Raises InputError.
    """
    try:
        names = json.loads(manifest.read_text(encoding="utf-8"))["datasets"]
        if isinstance(names, dict) and all(map(is_dataset_name, names)):
            return list(names)
    except (ValueError, RecursionError, KeyError, TypeError):
        pass  # the same end as a list of unusable names
    raise InputError(f"{manifest}: not as a run writes it, so nothing is removed; give another --gradcam_output_dir")


# ------------------------------------------------------------------------------------------------------ the manifest


def _manifest(
    settings: RunSettings, options: RunOptions, device: torch.device, datasets: Mapping[str, Sequence[Frame]]
) -> dict[str, Any]:
    weights = settings.detector.weights_path
    return {
        "command": list(options.command),
        "started": _now(),
        "config": settings.detector.config,
        "settings": {"batch_size": settings.batch_size, "seed": settings.seed},
        "weights": {"path": str(weights), "sha256": sha256_of(weights)} if weights else "random",
        "datasets": {
            name: {
                "frames": len(frames),
                "json_sha256": sha256_of(dataset_file(name, settings.data.json_folder)),
                "frames_sha256": _frames_sha256(frames),
            }
            for name, frames in datasets.items()
        },
        "options": {key: value for key, value in options._asdict().items() if key != "command"},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _frames_sha256(frames: Sequence[Frame]) -> str:
    """Of all that identifies the frames, in order."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(repr(tuple(frame)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    import importlib

    return {name: str(importlib.import_module(name).__version__) for name in PACKAGES}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
