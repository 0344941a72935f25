"""What a dataset may be called, and the videos that any reader lists. Standard library only."""

from __future__ import annotations

import os
from typing import NamedTuple

from ..base.text import is_plain_name

# The FaceForensics++ family: their JSON has the compression level (c23, c40, raw) between split and videos.
COMPRESSED = ("FaceForensics++", "FF-DF", "FF-F2F", "FF-FS", "FF-NT", "FaceShifter", "DeepFakeDetection")
MAX_DATASET_NAME_BYTES = 200  # file systems take 255, and a little is added


class Video(NamedTuple):
    label: str
    name: str
    frames: list[str]  # paths, in the order of what lists them


def is_dataset_name(name: str) -> bool:
    """Whether `name` can be a dataset's, which is the name of its JSON file and of its folder below the outputs."""
    return is_plain_name(name) and len(os.fsencode(name)) <= MAX_DATASET_NAME_BYTES
