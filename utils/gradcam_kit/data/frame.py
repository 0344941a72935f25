"""A frame, a video, and the settings of a dataset."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from ..base.text import is_plain_name

T = TypeVar("T")

# The FaceForensics++ family. Their JSON has a compression level (c23, c40, raw) between split and videos.
COMPRESSED = ("FaceForensics++", "FF-DF", "FF-F2F", "FF-FS", "FF-NT", "FaceShifter", "DeepFakeDetection")
MAX_DATASET_NAME_BYTES = 200  # file systems allow 255, and outputs add a suffix


class Frame(NamedTuple):
    """One image of a dataset, with its label and origin."""

    path: str  # on disk
    dataset: str  # as named in test_dataset, e.g. "FF-DF_c40"
    forgery: str  # label name in the dataset JSON, e.g. "FF-DF", "simswap_Fake"
    video: str  # video name in the dataset JSON
    label: int  # 0 real, 1 fake
    index: int  # type: ignore[assignment]  # position in the dataset after sampling; hides the unused tuple.index

    @property
    def whole_video(self) -> tuple[str, str, str]:
        """The key of this frame's video, unique across datasets."""
        return self.dataset, self.forgery, self.video


class Video(NamedTuple):
    label: str
    name: str
    frames: list[str]  # paths, in the order of the JSON, folder or CSV


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """The settings of the data."""

    json_folder: Path
    root: Path | None = None  # dataset_root_rgb (DeepfakeBench: rgb_dir), if it exists
    named_root: str = ""  # dataset_root_rgb as given
    label_dict: Mapping[str, int] = field(default_factory=dict)  # label name → 0 real, anything else fake
    compression: str = "c23"
    frame_num: int | None = None  # frames per video; None: all
    # "even": spread over the video; "host": the first ones in the order of the JSON, as in DF40; "host_sorted": the
    # first ones by number, as in DeepfakeBench and Effort.
    sampling: str = "even"
    resolution: int = 224
    lmdb_dir: Path | None = None  # folder of the LMDBs, if images are read from them
    clip_size: int | None = None  # frames per clip; None for an image detector
    clips_per_video: int | None = None  # maximum; None: as many as the host takes
    folders: Mapping[str, Path] = field(default_factory=dict)  # datasets that are a folder or a CSV, by name


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """Select at most `count` of n items: the middles of `count` equal parts, items floor((k + 1/2) n / count).

    If the items are frames in the order of a dataset, every video and forgery method keeps its share.
    """
    count = min(count, len(items))
    return [items[(2 * k + 1) * len(items) // (2 * count)] for k in range(count)]


def is_dataset_name(name: str) -> bool:
    """Tell whether `name` can name a dataset, and so its JSON file and its output folder."""
    return is_plain_name(name) and len(os.fsencode(name)) <= MAX_DATASET_NAME_BYTES
