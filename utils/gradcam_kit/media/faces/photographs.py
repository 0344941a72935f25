"""A photograph as it comes → what the detector sees of it: face crops, or all of it where it is a crop already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .align import Face, View, aligned, is_squarish, whole
from .find import INSTALL, FaceFinder, NoFaceError

LEAST_FACE = 0.35  # of a square image's side: where the largest face is smaller, the image is no face crop


@dataclass(frozen=True)
class Photographs:
    """How photographs become face crops of `size` pixels.

    `mode`: one of `base.allowed.FACE_CROPS`. `find`: None where no faces can be found, only with "auto" and "off".
    """

    size: int
    mode: str = "auto"
    find: FaceFinder | None = None

    def views(self, photo: np.ndarray) -> tuple[list[View], str]:
        """Photograph (H, W, 3) uint8 RGB → its crops, and a remark for the user or "". Raises NoFaceError."""
        return self.views_of(photo, self.faces(photo))

    def faces(self, photo: np.ndarray) -> Sequence[Face]:
        """The faces that are looked for, the largest first."""
        return self.find(photo) if self.find and self.mode != "off" else []

    def views_of(self, photo: np.ndarray, faces: Sequence[Face]) -> tuple[list[View], str]:
        """As `views`, of a photograph whose faces are known."""
        if self.mode in ("largest", "all") and not faces:
            raise NoFaceError("dlib finds no face in it")
        if self.mode in ("auto", "off") and (not faces or self.is_crop(photo, faces)):
            return [whole(photo, self.size)], self.said_of_whole(photo)
        wanted, remark = (faces if self.mode == "all" else faces[:1]), ""
        if len(faces) > 1 and self.mode == "auto":
            remark = f"{len(faces)} faces found, the largest is explained; --face_crop all explains each"
        return [aligned(photo, face, self.size) for face in wanted], remark

    def is_crop(self, photo: np.ndarray, faces: Sequence[Face]) -> bool:
        """Whether a photograph is a face crop already, by its shape and the size of its largest face."""
        return is_squarish(photo) and (not faces or faces[0].size >= LEAST_FACE * min(photo.shape[:2]))

    def said_of_whole(self, photo: np.ndarray) -> str:
        """What the user has to know where all of a photograph is explained, "" for nothing."""
        if is_squarish(photo):
            return ""
        why = "no face was found in it" if self.find else f"to crop faces: {INSTALL}, or --landmark_model"
        why = "--face_crop off" if self.mode == "off" else why
        height, width = photo.shape[:2]
        return f"{width}x{height} pixels, not square: padded; the detector expects face crops ({why})"
