"""Explaining a video frame by frame, separately for each person: overlay video, scores, consistency of the maps."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from ..base.decision import CLASS_NAMES, predicted_class
from ..base.files import new_folder, second_name, take_place, write_json, write_table
from ..drawing.overlays import Ink, LayerImage, Panels, comparison, panels, paste, text_line
from ..judge.localisation import TemporalConsistency
from ..model.detector import LoadedDetector
from ..run.explainer import explain_images
from ..store.sample import SIGNED_TARGET, evidence_for
from .faces import NoFaceError, View
from .tracks import FrameViews
from .video_files import UnreadableVideo, VideoFrame, VideoReader, check_video_folder, video_writer

BATCH = 16  # faces explained at a time
CURVE = 112  # height of the score curve in pixels
PLOT = (36, 12, 10, 12)  # margins of its axes in pixels: left, right, top, bottom
FAKE_INK, REAL_INK = (178, 24, 43), (33, 102, 172)
OTHER_INKS = ((230, 145, 0), (0, 135, 90), (120, 70, 170), (90, 90, 90))  # for the second person and further ones
PHOTOGRAPH = 360  # height of a whole frame in the video


class ExplainedFace(NamedTuple):
    """An explained face in one frame. `track`: the person's number, 0 for a whole frame; `words`: layer → verdict."""

    track: int
    view: View
    prob_fake: float
    layers: list[LayerImage]
    words: Mapping[str, str]


@dataclass
class Track:
    """One person in a video: numbers and scores of their frames, and the consistency of their maps."""

    frames: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    steadiness: TemporalConsistency = field(default_factory=TemporalConsistency)

    def add(self, frame: int, face: ExplainedFace) -> None:
        """Add the person's face in the next frame that shows it."""
        if self.frames and frame > self.frames[-1] + 1:
            self.steadiness.add({})  # frames with a gap between them are not neighbours
        self.frames.append(frame)
        self.scores.append(face.prob_fake)
        self.steadiness.add({layer.name: layer.raw for layer in face.layers if not layer.empty})

    def summary(self, number: int, names: Sequence[str]) -> TrackSummary:
        """Summarise the track; layers are in the order of `names`."""
        steady = self.steadiness.consistency()
        steady = {name: steady[name] for name in names if name in steady}
        frames = self.frames
        return TrackSummary(number, frames[0], frames[-1], len(frames), float(np.mean(self.scores)), steady)


class TrackSummary(NamedTuple):
    """One person's mean P(fake), and per layer the mean correlation between maps of neighbouring frames."""

    track: int
    first_frame: int
    last_frame: int
    frames: int
    prob_fake: float
    consistency: dict[str, float]

    def line(self) -> str:
        steady = ", ".join(f"{layer} {value:.3f}" for layer, value in self.consistency.items() if math.isfinite(value))
        score = f"fake probability {self.prob_fake:.4f} (mean of {self.frames} frames)"
        return f"{score}, consistency of the maps: {steady or 'none'}"


class VideoSummary(NamedTuple):
    """The result for a video, with a separate score for each person."""

    frames: int
    faceless: int
    tracks: list[TrackSummary]
    remarks: list[str]

    def line(self) -> str:
        if len(self.tracks) == 1:
            return self.tracks[0].line()
        return "; ".join(
            f"face {one.track} (frames {one.first_frame} to {one.last_frame}): {one.line()}" for one in self.tracks
        )

    def to_json(self) -> dict[str, Any]:
        """Return the entries of `video.json`; with several people, `prob_fake` and `consistency` hold null."""
        tracks = []
        for one in self.tracks:
            steady = {layer: value if math.isfinite(value) else None for layer, value in one.consistency.items()}
            tracks.append({**one._asdict(), "consistency": steady})
        nothing = {layer: None for one in self.tracks for layer in one.consistency}
        only = tracks[0] if len(tracks) == 1 else {"prob_fake": None, "consistency": nothing}
        return {
            "frames": self.frames, "faceless": self.faceless,
            "prob_fake": only["prob_fake"], "consistency": only["consistency"],
            "tracks": tracks, "remarks": self.remarks,
        }  # fmt: skip


def explain_video(
    detector: LoadedDetector, file: Path, folder: Path, views: FrameViews, judges: bool = True
) -> VideoSummary:
    """Write `overlay.mp4`, `scores.csv` and `video.json` into `folder`, which appears complete.

    The video has a second name, after the folder. `judges`: captions say the verdict that follows from the contrast
    with real images, if there is one.

    Raises UnreadableVideo if nothing can be decoded, NoFaceError if no frame shows a face, and InputError if `folder`
    exists and is not a video's output folder.
    """
    reader = VideoReader(file)
    check_video_folder(folder)
    final, folder = folder, folder.with_name(f".{folder.name}.partial")
    new_folder(folder)
    frames: list[VideoFrame] = []
    tracks: dict[int, Track] = {}
    curve = ScoreCurve(reader.length)
    names = detector.model.map_names()
    with video_writer(folder / "overlay.mp4", reader.rate) as write:
        for frame, faces in explained_frames(detector, reader, views, judges):
            write(drawn_frame(frame, faces, curve, names, _evidence(detector, faces)), frame.seconds)
            frames.append(frame._replace(image=np.empty((*frame.image.shape[:2], 0))))
            for face in faces:
                tracks.setdefault(face.track, Track()).add(frame.number, face)
    if not tracks:
        shutil.rmtree(folder)
        if not frames:
            raise UnreadableVideo("; ".join(["no frame of the video can be decoded", *reader.faults]))
        raise NoFaceError(f"dlib finds no face in any of its {len(frames)} frames")
    remarks = [*reader.faults, *filter(None, [reader.remark, views.remark])]
    if views.several and views.photographs.mode != "all":
        remarks.append("several faces in a frame; only one person is followed; --face_crop all explains each")
    summary = _summary(frames, tracks, names, remarks)
    write_scores(folder / "scores.csv", frames, tracks)
    write_json(folder / "video.json", {"path": str(file), **summary.to_json()})
    second_name(folder / "overlay.mp4", f"{final.name}_heatmap.mp4")
    take_place(folder, final)
    return summary


def _summary(
    frames: Sequence[VideoFrame], tracks: Mapping[int, Track], names: Sequence[str], remarks: Sequence[str]
) -> VideoSummary:
    faceless = len(frames) - len({number for track in tracks.values() for number in track.frames})
    # If one person is followed at a time, the next track starts after the last one ends.
    ordered = sorted(tracks.values(), key=lambda track: track.frames[0])
    starts = [after.frames[0] for before, after in pairwise(ordered) if after.frames[0] > before.frames[-1]]
    remarks = [*remarks, *(f"a different face from frame {start}; scored separately" for start in starts)]
    if faceless:
        remarks.append(f"no face in {faceless} of {len(frames)} frames, which have no map")
    sizes: dict[tuple[int, ...], int] = {}
    for frame in frames:
        sizes.setdefault(frame.image.shape[:2], frame.number)
    if len(sizes) > 1:
        changes = [f"{width}x{height} from frame {number}" for (height, width), number in sizes.items()]
        remarks.append(f"the image's size changes: {', '.join(changes)}; each frame was resized separately")
    found = [one.summary(number, names) for number, one in sorted(tracks.items())]
    return VideoSummary(len(frames), faceless, found, remarks)


def explained_frames(
    detector: LoadedDetector, frames: VideoReader, views: FrameViews, judges: bool
) -> Iterator[tuple[VideoFrame, list[ExplainedFace]]]:
    """Yield the frames in order, each with its explained faces. Faces are explained BATCH at a time."""
    source = iter(frames)
    while batch := list(islice(source, BATCH)):
        seen = [views.add(frame.image) for frame in batch]
        explained = iter(_explain(detector, [face.view.image for faces in seen for face in faces], judges))
        for frame, faces in zip(batch, seen, strict=True):
            yield frame, [ExplainedFace(face.track, face.view, *next(explained)) for face in faces]


def _explain(
    detector: LoadedDetector, images: Sequence[np.ndarray], judges: bool
) -> Iterator[tuple[float, list[LayerImage], Mapping[str, str]]]:
    """Yield P(fake), the drawn layers and their verdicts for each image, (R, R, 3) uint8 RGB."""
    for start in range(0, len(images), BATCH):
        pixels = torch.from_numpy(np.stack(images[start : start + BATCH])).permute(0, 3, 1, 2).contiguous()
        explanation, drawn, checks = explain_images(detector, pixels, judges=judges)
        words = [{name: of[i].word for name, of in checks.items()} for i in range(len(pixels))]
        yield from zip(explanation.prediction["prob"].tolist(), drawn, words, strict=True)


def write_scores(path: Path, frames: Sequence[VideoFrame], tracks: Mapping[int, Track]) -> None:
    """Write `scores.csv`: frame, seconds, prob_fake (empty without a face), face; one row per face."""
    scores: dict[int, list[tuple[int, float]]] = {}
    for number, track in sorted(tracks.items()):
        for frame, score in zip(track.frames, track.scores, strict=True):
            scores.setdefault(frame, []).append((number, score))
    rows = [
        (frame.number, f"{frame.seconds:.4f}", "" if score is None else f"{score:.9g}", "" if face is None else face)
        for frame in frames
        for face, score in scores.get(frame.number, [(None, None)])
    ]
    write_table(path, ("frame", "seconds", "prob_fake", "face"), rows)


def _evidence(detector: LoadedDetector, faces: Sequence[ExplainedFace]) -> str:
    """Say for which class the maps of a frame show evidence."""
    gradcam = detector.gradcam
    if gradcam.target != "predicted" or gradcam.signed:
        return evidence_for(SIGNED_TARGET if gradcam.signed else str(gradcam.target))
    predicted = {CLASS_NAMES[predicted_class(face.prob_fake)].lower() for face in faces}
    return f"evidence for {predicted.pop() if len(predicted) == 1 else 'the predicted class'}"


def drawn_frame(
    frame: VideoFrame, faces: Sequence[ExplainedFace], curve: ScoreCurve, names: Sequence[str], evidence: str
) -> np.ndarray:
    """Draw the whole frame with the overlays of all followed faces, or a face crop's, above the score curve."""
    scores = {face.track: face.prob_fake for face in faces}
    # Track 0 is a face crop or a whole frame that is explained as such.
    whole = [face for face in faces if not face.track]
    shown = panels(whole[0].view.image, whole[0].layers) if whole else _photographs(frame, faces, names)
    captioned = [
        (text + _verdicts(name, text, faces), image) for name, (text, image) in zip(["", *names], shown, strict=True)
    ]
    table = comparison(captioned, _title(frame, scores, evidence))
    return np.vstack([table, curve.add(scores, table.shape[1])])


def _verdicts(layer: str, caption: str, faces: Sequence[ExplainedFace]) -> str:
    """Return what to add to a layer's caption: each face's verdict, with the person's number if there are several."""
    words = [(face.track, face.words[layer]) for face in faces if layer in face.words]
    text = ", ".join(word if len(faces) == 1 else f"{track} {word}" for track, word in words)
    return f" ({text})" if text and not caption.endswith(f"({text})") else ""


def _photographs(frame: VideoFrame, faces: Sequence[ExplainedFace], names: Sequence[str]) -> Panels:
    """Draw the whole frame, and for each layer the frame with all faces' overlays pasted in."""
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
    """Draw a box around each face, with its number, in the colour of its curve."""
    for face in faces:
        if face.view.face is None:
            continue
        left, top, right, bottom = (round(scale * edge) for edge in face.view.face.box)
        ink = ink_of(face.track, face.prob_fake)
        cv2.rectangle(photo, (left, top), (right, bottom), ink, 2)
        cv2.putText(photo, str(face.track), (left + 3, top + 18), cv2.FONT_HERSHEY_SIMPLEX, 0.6, ink, 2, cv2.LINE_AA)
    return photo


def _title(frame: VideoFrame, scores: Mapping[int, float], evidence: str) -> str:
    text = "   ".join(f"face {track}: {score:.3f}" for track, score in scores.items()) or "no face"
    if len(scores) == 1:
        text = f"fake probability {next(iter(scores.values())):.3f}"
    return f"frame {frame.number}   {frame.seconds:.2f} s   {text}{f'   {evidence}' if scores else ''}"


def ink_of(track: int, score: float) -> Ink:
    """Return the colour of a person's curve. The first person's is red if predicted fake, else blue."""
    if track <= 1:
        return FAKE_INK if predicted_class(score) else REAL_INK
    return OTHER_INKS[(track - 2) % len(OTHER_INKS)]


class ScoreCurve:
    """A curve of P(fake) over the frames so far, one line per person, with gaps where the face is missing."""

    def __init__(self, length: int) -> None:
        self._length = length  # expected number of frames, for the scale
        self._frames = 0
        self._before: dict[int, tuple[int, int]] = {}
        self._canvas: np.ndarray | None = None

    def add(self, scores: Mapping[int, float], width: int) -> np.ndarray:
        """Add the next frame's scores by track. Return the curve, (CURVE, width, 3) uint8 RGB, with a dot at each."""
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
