"""`manifest.json`: how a run came about and what it wrote, as a typed value that is written and read here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..base.allowed import COLORMAPS
from ..base.errors import InputError
from ..base.files import read_text
from ..base.text import shortened
from ..data.dataset_names import is_dataset_name
from ..judge.verdict import Choice
from .sample import LayerFacts
from .typed_values import check_depth

STARTED, FINISHED = "manifest.partial.json", "manifest.json"
METRICS = "metrics.json"
MOST_THREADS = 4096  # more than any machine has
CHECKED = (
    "settings",
    "weights",
    "datasets",
    "device",
    "threads",
    "versions",
    "top_files",
)  # by the manifest's checksum
# Config keys on which no output depends: a resumed run may have others, and the report leaves them out.
FREE_CONFIG = ("gradcam_save_dir", "workers")


class Weights(NamedTuple):
    """The checkpoint of a run."""

    path: str
    sha256: str


class DatasetRecord(NamedTuple):
    """Which frames a run was given of one dataset."""

    frames: int
    json_sha256: str
    frames_sha256: str


@dataclass
class HeatmapCounts:
    """What explaining one dataset gave."""

    heatmaps: int = 0
    empty_maps: dict[str, int] = field(default_factory=dict)  # layer → samples whose map is empty
    non_finite: list[int] = field(default_factory=list)  # samples without heatmaps, because a map was NaN or infinite
    vanished: list[tuple[int, str]] = field(default_factory=list)  # readable at first, but not when explained; reason
    checks: dict[str, int] = field(default_factory=dict)  # word of a map's check → maps

    def add_sample(self, layers: Iterable[LayerFacts]) -> None:
        """One more sample with heatmaps."""
        self.heatmaps += 1
        for layer in layers:
            self.empty_maps[layer.name] = self.empty_maps.get(layer.name, 0) + layer.empty
            if layer.check is not None:
                self.checks[layer.check.word] = self.checks.get(layer.check.word, 0) + 1

    @classmethod
    def merged(cls, parts: Iterable[HeatmapCounts]) -> HeatmapCounts:
        """The counts of several ranks as one."""
        total = cls()
        for part in parts:
            total.heatmaps += part.heatmaps
            for layer, count in part.empty_maps.items():
                total.empty_maps[layer] = total.empty_maps.get(layer, 0) + count
            for word, count in part.checks.items():
                total.checks[word] = total.checks.get(word, 0) + count
            total.non_finite = sorted(total.non_finite + part.non_finite)
            total.vanished = sorted(total.vanished + part.vanished)
        return total

    def to_json(self) -> dict[str, Any]:
        return {
            "heatmaps": self.heatmaps,
            "empty_maps": self.empty_maps,
            "checks": self.checks,
            "non_finite": self.non_finite,
            "vanished": [{"index": index, "reason": reason} for index, reason in self.vanished],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> HeatmapCounts:
        values = {"checks": {}, **values}  # runs before there were any
        fields: dict[str, type | Fits] = {
            "heatmaps": _count,
            "empty_maps": _counts,
            "checks": _counts,
            "non_finite": _whole_numbers,
            "vanished": list,
        }
        _check(values, where, fields)
        for entry in values["vanished"]:
            _check(entry, f"{where}.vanished", {"index": _count, "reason": str})
        vanished = [(entry["index"], entry["reason"]) for entry in values["vanished"]]
        return cls(values["heatmaps"], values["empty_maps"], values["non_finite"], vanished, values["checks"])


@dataclass(frozen=True)
class Manifest:
    """Everything by which a run can be told from another. `finished` and `heatmaps` are None until it has finished.

    `detector`: what its scores depend on and neither the weights nor the config show, in words, such as the activation.
    `choice` is how the map was chosen: None until then, for a plain evaluation, and for a run of an earlier version.
    `top_files` names the files that a run writes beside the manifest and the datasets' folders, so that --overwrite
    removes them. `free_options`, which is not written, names the options on which no output depends.
    """

    command: list[str]
    started: str
    config: dict[str, Any]
    batch_size: int
    seed: int
    weights: Weights | None  # None: random
    datasets: dict[str, DatasetRecord]
    options: dict[str, Any]
    device: str
    threads: int
    versions: dict[str, str]
    top_files: list[str]
    detector: dict[str, str] = field(default_factory=dict)
    finished: str | None = None
    heatmaps: dict[str, HeatmapCounts] | None = None
    choice: Choice | None = None
    free_options: Sequence[str] = field(default=(), compare=False)

    @property
    def colormap(self) -> str:
        """Of the run's overlays."""
        return str(self.config.get("gradcam_colormap", "jet"))

    def to_json(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "command": self.command,
            "started": self.started,
            "config": self.config,
            "settings": {"batch_size": self.batch_size, "seed": self.seed},
            "weights": self.weights._asdict() if self.weights else "random",
            "datasets": {name: dataset._asdict() for name, dataset in self.datasets.items()},
            "options": self.options,
            "device": self.device,
            "threads": self.threads,
            "versions": self.versions,
            "top_files": self.top_files,
            "detector": self.detector,
        }
        if self.heatmaps is not None:
            values["finished"] = self.finished
            values["heatmaps"] = {name: counts.to_json() for name, counts in self.heatmaps.items()}
        if self.choice is not None:
            values["choice"] = self.choice.to_json()
        return {**values, "checksum": _checksum(values)}

    @classmethod
    def from_json(cls, values: Any, where: str) -> Manifest:
        """The manifest that `to_json` gave. Raises InputError, whose message begins with `where` and names the field.

        `top_files`, `detector` and `checksum` may be missing: runs of earlier versions do not have them.
        """
        if isinstance(values, dict):
            values = {"top_files": [], "detector": {}, "checksum": "", **values}
        finished = isinstance(values, dict) and "finished" in values
        chosen = isinstance(values, dict) and "choice" in values
        fields = {**_FIELDS, **(_FINISHED_FIELDS if finished else {}), **({"choice": _is_choice} if chosen else {})}
        _check(values, where, fields)
        _check(values["settings"], f"{where}: settings", {"batch_size": _count, "seed": _count})
        if values["weights"] != "random":
            _check(values["weights"], f"{where}: weights", {"path": str, "sha256": str})
        colormap = values["config"].get("gradcam_colormap", "jet")
        if colormap not in COLORMAPS:
            raise InputError(f"{where}: config.gradcam_colormap is {shortened(repr(colormap))}, which no run writes")
        for name, dataset in values["datasets"].items():
            _check(dataset, f"{where}: datasets.{name}", {"frames": _count, "json_sha256": str, "frames_sha256": str})
        heatmaps = values.get("heatmaps")
        if heatmaps is not None:
            _check(heatmaps, f"{where}: heatmaps", dict.fromkeys(values["datasets"], dict))
            heatmaps = {name: HeatmapCounts.from_json(heatmaps[name], f"{where}: heatmaps.{name}") for name in heatmaps}
        return cls(
            command=values["command"],
            started=values["started"],
            config=values["config"],
            batch_size=values["settings"]["batch_size"],
            seed=values["settings"]["seed"],
            weights=None if values["weights"] == "random" else Weights(**values["weights"]),
            datasets={name: DatasetRecord(**dataset) for name, dataset in values["datasets"].items()},
            options=values["options"],
            device=values["device"],
            threads=values["threads"],
            versions=values["versions"],
            top_files=values["top_files"],
            detector=values["detector"],
            finished=values.get("finished"),
            heatmaps=heatmaps,
            choice=Choice.from_json(values["choice"]) if chosen else None,
        )

    def differences(self, earlier: Manifest) -> list[str]:
        """Every entry on which the outputs depend and that differs: `settings.seed was 1 and is 2`."""
        before, now = self._decisive(earlier), self._decisive(self)
        places = [place for place in dict.fromkeys((*before, *now)) if before.get(place) != now.get(place)]
        return [
            f"{place} was {shortened(repr(before.get(place)), 60)} and is {shortened(repr(now.get(place)), 60)}"
            for place in places
        ]

    def _decisive(self, manifest: Manifest) -> dict[str, Any]:
        """What the outputs depend on, flat: place in the JSON → value, as JSON gives it back."""
        values = json.loads(json.dumps(manifest.to_json(), default=str))
        decisive = ("config", "settings", "weights", "datasets", "options", "device", "versions")
        free = [f"config.{key}" for key in FREE_CONFIG] + [f"options.{key}" for key in self.free_options]
        flat: dict[str, Any] = {}

        def walk(value: Any, place: str) -> None:
            if place in free:
                return
            if isinstance(value, dict) and value:
                for key, inner in value.items():
                    walk(inner, f"{place}.{key}")
            else:
                flat[place] = value

        for key in decisive:
            walk(values[key], key)
        return flat


def manifest_path(folder: Path) -> Path | None:
    """The manifest of the run in `folder`, finished or not; None where there is no run."""
    return next((folder / name for name in (FINISHED, STARTED) if (folder / name).is_file()), None)


def read_manifest(path: Path, as_written: bool = False) -> Manifest:
    """Raises InputError, in one line, for anything but a manifest, and with `as_written` for one that was edited."""
    values = read_json(path)
    manifest = Manifest.from_json(values, str(path))
    if as_written and not _agrees(values):
        raise InputError(
            f"{path}: was changed since the run wrote it; give another --gradcam_output_dir, or --overwrite"
        )
    return manifest


def is_as_written(path: Path) -> bool:
    """Whether a manifest says of itself what it holds. Raises InputError where it is no JSON."""
    values = read_json(path)
    return isinstance(values, dict) and _agrees(values)


def _agrees(values: Mapping[str, Any]) -> bool:
    return "checksum" not in values or values["checksum"] == _checksum(values)


def _checksum(values: Mapping[str, Any]) -> str:
    """SHA-256 of what a run of the same work has too. (On config and options --resume looks itself, `differences`.)"""
    same = {key: values.get(key) for key in CHECKED}
    return hashlib.sha256(json.dumps(same, sort_keys=True, default=str).encode()).hexdigest()


def datasets_of(path: Path) -> list[str]:
    """The datasets that a manifest of any version names. Raises InputError where they are no plain names.

    Files in these folders will be removed, so nothing else is looked at.
    """
    values = read_json(path)
    datasets = values.get("datasets") if isinstance(values, dict) else None
    if isinstance(datasets, dict) and all(map(_is_plain_name, datasets)):
        return list(datasets)
    raise InputError(f"{path}: not as a run writes it, so nothing is removed; give another --gradcam_output_dir")


def check_names(datasets: Iterable[str], files: Iterable[str]) -> None:
    """Raises InputError where the folder of a dataset would have the name of one of the run's own `files`."""
    own = {name.casefold() for name in (STARTED, FINISHED, METRICS, *files)}  # some file systems know one case only
    for name in datasets:
        if name.casefold() in own or name.startswith("."):
            raise InputError(
                f"dataset {name!r}: its folder would have the name of a file that a run writes, or hides, beside it;"
                " rename its JSON file, and the name inside it"
            )


def read_json(path: Path) -> Any:
    """Whatever JSON a file of a run holds. Raises InputError, in one line, where it holds none."""
    try:
        values = json.loads(read_text(path))
        check_depth(values)
        return values
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())}); run again") from error


# ------------------------------------------------------------------------------------------- what each field may hold

Fits = Callable[[Any], bool]


def _check(values: Any, where: str, fields: Mapping[str, type | Fits]) -> None:
    """Raises InputError unless `values` is a mapping of exactly these fields, each of that type or accepted."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: is {shortened(repr(values))}, which no run writes; run again")
    for name in fields:
        if name not in values:
            raise InputError(f"{where}: the field {name} is missing; is it of another version? run again")
    for name, value in values.items():
        if name not in fields:
            raise InputError(f"{where}: the field {shortened(repr(name))} is unknown; is it of a newer version?")
        fits = fields[name]
        if not (isinstance(value, fits) if isinstance(fits, type) else fits(value)):
            raise InputError(
                f"{where}: {name} is {shortened(repr(value))}, which no run writes;"
                " give another --gradcam_output_dir, or --overwrite"
            )


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_count, value.values()))


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_count, value))


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_choice(value: Any) -> bool:
    try:
        Choice.from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    return True


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and is_dataset_name(name)


_FIELDS: dict[str, type | Fits] = {
    "command": _strings,
    "started": str,
    "config": dict,
    "settings": dict,
    "weights": lambda value: value == "random" or isinstance(value, dict),
    "detector": lambda value: isinstance(value, dict) and all(isinstance(one, str) for one in value.values()),
    "datasets": lambda value: isinstance(value, dict) and all(map(_is_plain_name, value)),
    "options": dict,
    "device": str,
    "threads": lambda value: _count(value) and 1 <= value <= MOST_THREADS,
    "versions": dict,
    "checksum": str,
    "top_files": lambda value: isinstance(value, list) and all(map(_is_plain_name, value)),
}
_FINISHED_FIELDS: dict[str, type | Fits] = {"finished": str, "heatmaps": dict}
