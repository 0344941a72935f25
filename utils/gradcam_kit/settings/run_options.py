"""What the command line says beside the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

from ..base.allowed import DEFAULT_SAMPLES

FREE = {"output": False}  # no output depends on the option: a run may be resumed with another value


class ExportOptions(NamedTuple):
    """What is made of a finished run beside its report."""

    tensorboard: Path | None = None
    fiftyone: bool = False
    video_strips: bool = False
    bundle: bool = False


class ExplanationOptions(NamedTuple):
    """How maps are measured. `layers` None: a sweep takes every block."""

    samples: int = DEFAULT_SAMPLES
    sweep: bool = False
    layers: Sequence[str] | None = None
    write_config: Path | None = None
    masks: Path | None = None  # a folder of masks instead of those beside the frames
    clicks: Path | None = None  # a CSV of where people saw the forgery
    leave_out: Sequence[str] = ()  # of MEASUREMENTS


@dataclass(frozen=True)
class RunOptions:
    """Options of a run without a config key of their own. Defaults are the command's."""

    output_dir: Path = field(metadata=FREE)
    device: str = field(metadata=FREE)
    precision: str
    compile: bool
    save_all: bool
    select: str
    random_weights: bool
    max_unreadable: float = field(metadata=FREE)
    image_format: str
    save_raw: bool
    save_features: bool
    overwrite: bool = field(metadata=FREE)
    resume: bool = field(metadata=FREE)
    views: ExportOptions = field(metadata=FREE)
    calibration_images: int  # 0: the map is neither chosen nor judged
    check_maps: str  # CHECK_MAPS
    explanations: ExplanationOptions | None  # None: not evaluated
    command: Sequence[str] = field(metadata=FREE)

    @property
    def checks_maps(self) -> bool:
        """Whether every map is checked, at two forward passes each and the maps that it is compared with."""
        return self.check_maps == "on" or (self.check_maps == "auto" and not self.save_all)

    def free(self) -> list[str]:
        """Names of the options on which no output depends."""
        return [option.name for option in fields(self) if not option.metadata.get("output", True)]
