"""The manifest as a typed value: a run's inputs, settings and counts. It is written to `manifest.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from ..base.allowed import COLORMAPS
from ..base.errors import InputError
from ..base.text import shortened
from ..base.typed import MISSING, UNKNOWN, VALUE, Count, Meta, Misfit, builtins, fit
from ..data.frame import is_dataset_name
from ..judge.verdict import Choice
from ..settings.options import FREE_KEYS
from ..settings.run_options import free_options
from .sample import LayerFacts

MANIFEST = "manifest.json"
METRICS = "metrics.json"
DEEPEST = 40  # levels of JSON that are accepted; a run writes fewer than ten
# The end of the message about a field that does not fit.
ADVICE = {
    VALUE: "which no run writes; give another --gradcam_output_dir, or --overwrite",
    MISSING: "is it from another version? run again",
    UNKNOWN: "is it from a newer version?",
}


@dataclass(frozen=True, slots=True)
class Weights:
    """The checkpoint of a run."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    """A run's frames of one dataset."""

    frames: Count
    json_sha256: str
    frames_sha256: str


@dataclass(frozen=True, slots=True)
class Numbers:
    """Settings of a run that are not in its config."""

    batch_size: Count
    seed: Count


@dataclass(frozen=True, slots=True, order=True)
class Vanished:
    """A sample that was readable for prediction, but not later for explanation."""

    index: Count
    reason: str


@dataclass(slots=True, kw_only=True)
class HeatmapCounts:
    """Counts of one dataset's heatmaps."""

    heatmaps: Count = 0
    empty_maps: dict[str, Count] = field(default_factory=dict)  # layer → samples whose map is empty
    checks: dict[str, Count] = field(default_factory=dict)  # verdict → number of maps
    non_finite: list[Count] = field(default_factory=list)  # samples without heatmaps, because a map was NaN or infinite
    vanished: list[Vanished] = field(default_factory=list)

    def add_sample(self, layers: Iterable[LayerFacts]) -> None:
        """Count one more sample with heatmaps."""
        self.heatmaps += 1
        for layer in layers:
            self.empty_maps[layer.name] = self.empty_maps.get(layer.name, 0) + layer.empty
            if layer.check is not None:
                self.checks[layer.check.word] = self.checks.get(layer.check.word, 0) + 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All facts that tell one run from another, in the order of the file.

    `detector` describes what scores depend on but neither weights nor config show, such as the activation. `finished`
    and `heatmaps` are None until the run has finished. `choice` tells how the map was chosen: None until then, for a
    plain evaluation, and for a run of an earlier version. `top_files` names the run's files next to the manifest.
    """

    command: list[str]
    started: str
    config: dict[str, Any]
    settings: Numbers
    weights: Weights | None  # None: random
    datasets: dict[str, DatasetRecord]
    options: dict[str, Any]
    device: str
    threads: Annotated[int, Meta(ge=1, le=4096)]  # no machine has more
    versions: dict[str, str]
    top_files: list[str] = field(default_factory=list)  # empty in runs of earlier versions, as is `detector`
    detector: dict[str, str] = field(default_factory=dict)
    finished: str | None = None
    heatmaps: dict[str, HeatmapCounts] | None = None
    choice: Choice | None = None

    @property
    def colormap(self) -> str:
        return str(self.config.get("gradcam_colormap", "jet"))

    def to_json(self) -> dict[str, Any]:
        values = {**builtins(replace(self, choice=None)), "choice": self.choice and self.choice.to_json()}
        values["weights"] = values["weights"] or "random"
        later = ("finished", "heatmaps", "choice")
        return {name: value for name, value in values.items() if name not in later or value is not None}

    @classmethod
    def from_json(cls, values: Any, where: str) -> Manifest:
        """Read the result of `to_json`. Raises InputError that begins with `where` and names the field."""
        try:
            read = fit(values, dict[str, Any])
            if read.get("weights") == "random":
                read["weights"] = None
            if "choice" in read:
                try:
                    read["choice"] = Choice.from_json(read["choice"])
                except ValueError as error:
                    raise Misfit(VALUE, ("choice",), read["choice"], "") from error
            manifest = fit(read, cls, closed=True)
            manifest._check_names()
        except Misfit as misfit:
            raise InputError(misfit.text(where, ADVICE[misfit.problem])) from None
        return manifest

    def _check_names(self) -> None:
        """Raise Misfit for an invalid name, and for a dataset without heatmap counts or the reverse."""
        for name in ("datasets", "top_files"):
            if not all(map(is_dataset_name, getattr(self, name))):
                raise Misfit(VALUE, (name,), getattr(self, name), "")
        if self.config.get("gradcam_colormap", "jet") not in COLORMAPS:
            raise Misfit(VALUE, ("config.gradcam_colormap",), self.config["gradcam_colormap"], "")
        if self.finished is not None and self.heatmaps is None:
            raise Misfit(MISSING, ("heatmaps",), None, "")
        if self.heatmaps is not None and self.heatmaps.keys() != self.datasets.keys():
            missing = sorted(self.datasets.keys() - self.heatmaps)
            problem, name = (MISSING, missing[0]) if missing else (UNKNOWN, min(self.heatmaps.keys() - self.datasets))
            raise Misfit(problem, ("heatmaps", name), None, "")

    def differences(self, earlier: Manifest) -> list[str]:
        """List the entries that differ and that outputs depend on: `settings.seed was 1 and is 2`."""
        before, now = earlier._decisive(), self._decisive()
        places = [place for place in dict.fromkeys((*before, *now)) if before.get(place) != now.get(place)]
        return [
            f"{place} was {shortened(repr(before.get(place)), 60)} and is {shortened(repr(now.get(place)), 60)}"
            for place in places
        ]

    def key(self, *more: object) -> str:
        """Return a hash of everything that predictions depend on, and of `more`."""
        values = [self._decisive(), self.detector, *more]
        return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:32]

    def _decisive(self) -> dict[str, Any]:
        """Return all values that outputs depend on: path in the JSON → value, as JSON returns it."""
        values = json.loads(json.dumps(self.to_json(), default=str))
        decisive = ("config", "settings", "weights", "datasets", "options", "device", "versions")
        free = [f"config.{key}" for key in FREE_KEYS] + [f"options.{key}" for key in free_options(self.options)]
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


def check_names(datasets: Iterable[str], files: Iterable[str]) -> None:
    """Raise InputError if a dataset's folder would have the name of one of the run's `files` or of a database."""
    own = {name.casefold() for name in (MANIFEST, METRICS, *files)}  # some file systems ignore case
    for name in datasets:
        if name.casefold() in own or name.startswith(".") or ".sqlite" in name.casefold():
            raise InputError(
                f"dataset {name!r}: this name is reserved for the run's own files;"
                " rename its JSON file, and the name inside it"
            )


def parse_json(text: str, path: Path) -> Any:
    """Parse JSON from a run's database. Raises InputError if it is invalid."""
    try:
        values = json.loads(text)
        _check_depth(values)
        return values
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())}); run again") from error


def _check_depth(values: Any, left: int = DEEPEST) -> None:
    """Raise ValueError for JSON that is nested too deeply; later code would fail on it."""
    if left == 0:
        raise ValueError(f"nested more than {DEEPEST} levels deep")
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        _check_depth(value, left - 1)
