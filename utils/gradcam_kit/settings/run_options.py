"""Options of the command line that are not in the configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from ..base.allowed import DEFAULT_SAMPLES
from ..base.errors import InputError
from .options import MEASURE, OPTIONS


class ExportOptions(NamedTuple):
    """Exports of a finished run, apart from its report."""

    tensorboard: Path | None = None
    fiftyone: bool = False
    video_strips: bool = False

    @classmethod
    def of(cls, flags: Any) -> ExportOptions:
        """Read the parsed flags."""
        return cls(*(getattr(flags, name) for name in cls._fields))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplanationOptions:
    """Options for measuring maps. `layers` None: a sweep takes every block."""

    samples: int = DEFAULT_SAMPLES
    sweep: bool = False
    layers: Sequence[str] | None = None
    write_config: Path | None = None
    masks: Path | None = None  # a folder of masks, instead of those next to the frames
    clicks: Path | None = None  # a CSV of the places where people saw the forgery
    leave_out: Sequence[str] = ()  # of MEASUREMENTS

    @classmethod
    def of(cls, flags: Any) -> ExplanationOptions | None:
        """Read the parsed flags; None without --evaluate_explanations. Raises InputError."""
        if not flags.evaluate_explanations:
            return None
        path = flags.write_config
        if path is not None and (path.suffix not in (".yaml", ".yml") or not path.absolute().parent.is_dir()):
            raise InputError(f"--write_config {str(path)!r}: give a .yaml file in an existing folder")
        given = {field.name: getattr(flags, field.name, None) for field in fields(cls)}
        given["layers"] = flags.gradcam_layers
        return cls(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Options of a run that have no config key, by their names in the table of options."""

    output_dir: Path
    device: str
    precision: str
    compile: bool
    save_all: bool
    select: str
    random_weights: bool
    max_unreadable: float
    image_format: str
    save_raw: bool
    save_features: bool
    overwrite: bool
    resume: bool
    save_images: str
    shard: Sequence[int] | None  # number and count
    run_database: Path | None
    views: ExportOptions
    calibration_images: int  # 0: the map is not chosen and not judged
    check_maps: str
    paired_reals: str
    explanations: ExplanationOptions | None  # None: not evaluated
    command: Sequence[str]

    @classmethod
    def of(cls, flags: Any, output_dir: Path, command: Sequence[str]) -> RunOptions:
        """Read the parsed flags of test_with_gradcam.py. Raises InputError."""
        values = {field.name: getattr(flags, field.name) for field in fields(cls) if hasattr(flags, field.name)}
        views, explanations = ExportOptions.of(flags), ExplanationOptions.of(flags)
        return cls(**values, output_dir=output_dir, views=views, explanations=explanations, command=command)

    def checks_maps(self, verdicts: bool) -> bool:
        """True if every map is checked, at two forward passes each; `verdicts`: maps get a verdict without it."""
        return self.check_maps == "on" or (self.check_maps == "auto" and not self.save_all and not verdicts)

    def for_manifest(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "command"}
        return {**values, "explanations": astuple(self.explanations) if self.explanations else None}


def free_options(names: Iterable[str]) -> list[str]:
    """Return the names of those options of a manifest that no output depends on."""
    of = {"output_dir": ("gradcam_save_dir",), "views": ExportOptions._fields, "explanations": (MEASURE.lstrip("-"),)}
    options = {name: [OPTIONS[one] for one in of.get(name, (name,)) if one in OPTIONS] for name in names}
    return [name for name, found in options.items() if found and not any(option.outputs for option in found)]


def without_flags(command: Sequence[str], *flags: str) -> list[str]:
    """Return a command's words without --overwrite, --resume, and the `flags`, each with its value."""
    kept, words = [], iter(command)
    for word in words:
        if word in flags:
            next(words, None)
        elif word not in ("--overwrite", "--resume") and word.partition("=")[0] not in flags:
            kept.append(word)
    return kept
