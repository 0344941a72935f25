"""What the command line says beside the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from ..measure.evaluate import ExplanationOptions
from ..run.exports import ExportOptions

FREE = {"output": False}  # no output depends on the option: a run may be resumed with another value


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
