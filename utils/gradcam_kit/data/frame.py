"""A frame, a video, and the settings that say which of them a dataset has."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from ..base.text import is_plain_name

T = TypeVar("T")

# The FaceForensics++ family: their JSON has the compression level (c23, c40, raw) between split and videos.
COMPRESSED = ("FaceForensics++", "FF-DF", "FF-F2F", "FF-FS", "FF-NT", "FaceShifter", "DeepFakeDetection")
MAX_DATASET_NAME_BYTES = 200  # file systems take 255, and a little is added


class Frame(NamedTuple):
    """One image of a dataset and everything known about it."""

    path: str  # on disk
    dataset: str  # as named in test_dataset, e.g. "FF-DF_c40"
    forgery: str  # label name in the dataset JSON, e.g. "FF-DF", "simswap_Fake"
    video: str  # video name in the dataset JSON
    label: int  # 0 real, 1 fake
    index: int  # type: ignore[assignment]  # position in the dataset after sampling; hides tuple.index, which nobody calls

    @property
    def whole_video(self) -> tuple[str, str, str]:
        """What tells this frame's video from all others."""
        return self.dataset, self.forgery, self.video


class Video(NamedTuple):
    label: str
    name: str
    frames: list[str]  # paths, in the order of what lists them


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """The configuration of the data."""

    json_folder: Path
    root: Path | None = None  # dataset_root_rgb (DeepfakeBench: rgb_dir), where it is there
    named_root: str = ""  # as it was given
    label_dict: Mapping[str, int] = field(default_factory=dict)  # label name → 0 real, anything else fake
    compression: str = "c23"
    frame_num: int | None = None  # frames taken of each video; None takes all
    # "even": spread over the video; "host": the first ones in the order of the JSON, as DF40 does; "host_sorted": the
    # first ones by number, as DeepfakeBench and Effort do.
    sampling: str = "even"
    resolution: int = 224
    lmdb_dir: Path | None = None  # where the LMDBs lie, if the images are in them
    clip_size: int | None = None  # frames of a clip, of a detector that reads clips; None of one that reads images
    clips_per_video: int | None = None  # at most; None: as many as the host takes
    folders: Mapping[str, Path] = field(default_factory=dict)  # datasets that are a folder or a CSV, by name


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of n items: the middles of `count` equal parts, items floor((k + 1/2) n / count).

    Of frames in the order of a dataset, every video and forgery method keeps its share.
    """
    count = min(count, len(items))
    return [items[(2 * k + 1) * len(items) // (2 * count)] for k in range(count)]


def is_dataset_name(name: str) -> bool:
    """Whether `name` can be a dataset's, which is the name of its JSON file and of its folder below the outputs."""
    return is_plain_name(name) and len(os.fsencode(name)) <= MAX_DATASET_NAME_BYTES
