"""Frames of the overlay video: the images side by side, the faces in their places, the score curve below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from ..base.decision import predicted
from ..drawing.overlays import LayerImage, comparison, panels, paste, text_line
from .faces.align import View
from .video_files import VideoFrame

CURVE = 112  # height of the score curve in pixels
PLOT = (36, 12, 10, 12)  # pixels left, right, above and below its axes
FAKE_INK, REAL_INK = (178, 24, 43), (33, 102, 172)
OTHER_INKS = ((230, 145, 0), (0, 135, 90), (120, 70, 170), (90, 90, 90))  # of the second person, and so on
EMPTY = (225, 225, 225)
PHOTOGRAPH = 360  # height of a whole frame in the video


class ExplainedFace(NamedTuple):
    """A face of one frame, as the detector saw it. `track`: the person's number, 0 for a whole frame."""

    track: int
    view: View
    prob_fake: float
    layers: list[LayerImage]


def drawn_frame(
    frame: VideoFrame, faces: Sequence[ExplainedFace], curve: ScoreCurve, names: Sequence[str], size: int | None
) -> np.ndarray:
    """The images of a frame side by side, and below them the scores so far; of one size for all frames of a video.

    `size`: of the crop, whose overlays are shown; None shows the whole frame, with the overlays in their places.
    """
    scores = {face.track: face.prob_fake for face in faces}
    table = comparison(_crop(faces, names, size) if size else _photographs(frame, faces, names), _title(frame, scores))
    return np.vstack([table, curve.add(scores, table.shape[1])])


def _crop(faces: Sequence[ExplainedFace], names: Sequence[str], size: int) -> list[tuple[str, np.ndarray]]:
    if faces:
        return panels(faces[0].view.image, faces[0].layers)
    grey = np.full((size, size, 3), EMPTY, np.uint8)
    return [("no face", grey), *((name, grey) for name in names)]


def _photographs(
    frame: VideoFrame, faces: Sequence[ExplainedFace], names: Sequence[str]
) -> list[tuple[str, np.ndarray]]:
    """The whole frame, and again with each layer's overlays of all faces in their places."""
    scale = PHOTOGRAPH / frame.image.shape[0]
    small = cv2.resize(frame.image, (round(frame.image.shape[1] * scale), PHOTOGRAPH), interpolation=cv2.INTER_AREA)
    drawn = [("original", _framed(small.copy(), faces, scale))]
    for i, name in enumerate(names):
        photo = small.copy()
        for face in faces:
            if face.view.matrix is not None:
                paste(photo, face.layers[i].overlay, face.view.matrix @ np.diag([1 / scale, 1 / scale, 1.0]))
        drawn.append((name, _framed(photo, faces, scale)))
    return drawn


def _framed(photo: np.ndarray, faces: Sequence[ExplainedFace], scale: float) -> np.ndarray:
    """A box around each face in the colour of its curve, with its number."""
    for face in faces:
        if face.view.face is None:
            continue
        left, top, right, bottom = (round(scale * edge) for edge in face.view.face.box)
        ink = ink_of(face.track, face.prob_fake)
        cv2.rectangle(photo, (left, top), (right, bottom), ink, 2)
        cv2.putText(photo, str(face.track), (left + 3, top + 18), cv2.FONT_HERSHEY_SIMPLEX, 0.6, ink, 2, cv2.LINE_AA)
    return photo


def _title(frame: VideoFrame, scores: Mapping[int, float]) -> str:
    text = "   ".join(f"face {track}: {score:.3f}" for track, score in scores.items()) or "no face"
    if len(scores) == 1:
        text = f"fake probability {next(iter(scores.values())):.3f}"
    return f"frame {frame.number}   {frame.seconds:.2f} s   {text}"


def ink_of(track: int, score: float) -> tuple[int, int, int]:
    """Of a person's curve: the first is red where it is called fake and blue where not, others have a colour each."""
    if track <= 1:
        return FAKE_INK if predicted(score) else REAL_INK
    return OTHER_INKS[(track - 2) % len(OTHER_INKS)]


class ScoreCurve:
    """Fake probability over the frames so far, a line for each person; a gap where a face is not there."""

    def __init__(self, length: int) -> None:
        self._length = length  # frames that are expected, for the scale
        self._frames = 0
        self._before: dict[int, tuple[int, int]] = {}
        self._canvas: np.ndarray | None = None

    def add(self, scores: Mapping[int, float], width: int) -> np.ndarray:
        """The next frame's scores by track; returns the curve (CURVE, width, 3) uint8 RGB with a dot at each."""
        if self._canvas is None:
            self._canvas = _axes(width)
        left, right, top, bottom = PLOT[0], width - PLOT[1], PLOT[2], CURVE - PLOT[3]
        x = left + min(1.0, self._frames / max(1, self._length - 1)) * (right - left)
        points = {track: (round(x), round(bottom - score * (bottom - top))) for track, score in scores.items()}
        for track, point in points.items():
            ink = ink_of(track, scores[track])
            cv2.line(self._canvas, self._before.get(track, point), point, ink, 2, cv2.LINE_AA)
        self._before = points
        self._frames += 1
        shown = self._canvas.copy()
        for point in points.values():
            cv2.circle(shown, point, 4, (20, 20, 20), -1, cv2.LINE_AA)
        return shown


def _axes(width: int) -> np.ndarray:
    canvas = np.full((CURVE, width, 3), 255, np.uint8)
    for value in (0.0, 0.5, 1.0):
        y = round(CURVE - PLOT[3] - value * (CURVE - PLOT[3] - PLOT[2]))
        cv2.line(canvas, (PLOT[0], y), (width - PLOT[1], y), (215, 215, 215), 1)
        canvas[y - 8 if y > 8 else 0 :][:16, : PLOT[0] - 4] = text_line(f"{value:g}", PLOT[0] - 4, 16, 11, centred=True)
    return canvas
