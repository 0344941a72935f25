"""A video explained frame by frame: overlay video with the score curve below, scores, consistency of the maps."""

from __future__ import annotations

import math
import shutil
from itertools import islice
from pathlib import Path
from typing import Callable, Iterator, NamedTuple, Sequence

import cv2
import numpy as np
import torch

from utils.data.face_crop import NoFaceError
from utils.data.video_files import UnreadableVideo, VideoFrame, VideoReader, video_writer
from utils.errors import InputError
from utils.explanation_metrics.temporal_consistency import TemporalConsistency
from utils.files import holds_only_own, new_folder, replace_folder, write_listing, write_table
from utils.gradcam import explained_names
from utils.model.detector import LoadedDetector
from utils.results.decision import predicted
from utils.results.overlays import LayerImage, comparison, panels, text_line
from utils.run.explainer import explain_images

BATCH = 16  # frames explained at a time
CURVE = 112  # height of the score curve in pixels
PLOT = (36, 12, 10, 12)  # pixels left, right, above and below its axes
FAKE_INK, REAL_INK = (178, 24, 43), (33, 102, 172)
EMPTY = (225, 225, 225)

Crop = Callable[[np.ndarray], np.ndarray]


class ExplainedFrame(NamedTuple):
    """One frame as the detector saw it; `layers` is empty and `prob_fake` None where no face was found."""

    frame: VideoFrame
    image: np.ndarray
    prob_fake: float | None
    layers: list[LayerImage]


class VideoSummary(NamedTuple):
    """Result for one video. `consistency`: layer → mean correlation of the maps of neighbouring frames."""

    frames: int
    faceless: int
    prob_fake: float  # mean over the frames with a face
    consistency: dict[str, float]
    remarks: list[str]

    def line(self) -> str:
        """For the terminal."""
        steady = ", ".join(f"{layer} {value:.3f}" for layer, value in self.consistency.items() if math.isfinite(value))
        kept = f"mean of {self.frames - self.faceless} frames"
        return f"fake probability {self.prob_fake:.4f} ({kept}), consistency of the maps: {steady or 'none'}"


def explain_video(detector: LoadedDetector, file: Path, folder: Path, crop: Crop | None) -> VideoSummary:
    """Write `overlay.mp4`, `scores.csv` and `video.json` into `folder`.

    The folder appears whole, and replaces one of a video as it was written; InputError where it is anything else.
    Raises UnreadableVideo where nothing can be decoded, NoFaceError where `crop` finds no face in any frame.
    """
    reader = VideoReader(file)
    if folder.is_symlink() or (folder.exists() and not holds_only_own(folder, ["video.json"])):
        raise InputError(
            f"{folder}: is there and is no folder of a video, or one that was changed: move it, or give another"
            " output folder"
        )
    final, folder = folder, folder.with_name(f".{folder.name}.partial")
    new_folder(folder)
    scores: list[tuple[VideoFrame, float | None]] = []
    steadiness, curve = TemporalConsistency(), ScoreCurve(reader.length)
    names = explained_names(detector.model.gradcam_layers(), detector.gradcam.target)
    sizes: dict[tuple[int, ...], int] = {}
    with video_writer(folder / "overlay.mp4", reader.rate) as write:
        for explained in explained_frames(detector, reader, crop):
            sizes.setdefault(explained.frame.image.shape[:2], explained.frame.number)
            scores.append((explained.frame._replace(image=np.empty(0)), explained.prob_fake))
            steadiness.add({layer.name: layer.raw for layer in explained.layers if not layer.empty})
            write(drawn_frame(explained, curve, names), explained.frame.seconds)
    known = [score for _, score in scores if score is not None]
    if not known:
        shutil.rmtree(folder)
        if not scores:
            raise UnreadableVideo("; ".join(["no frame of the video can be decoded", *reader.faults]))
        raise NoFaceError(f"dlib finds no face in any of its {len(scores)} frames")
    remarks = _remarks(reader, len(scores), len(scores) - len(known), sizes)
    steady = steadiness.consistency()
    steady = {name: steady[name] for name in names if name in steady}  # in the order of the panels
    summary = VideoSummary(len(scores), len(scores) - len(known), float(np.mean(known)), steady, remarks)
    write_scores(folder / "scores.csv", scores)
    finite = {name: value if math.isfinite(value) else None for name, value in summary.consistency.items()}
    write_listing(folder / "video.json", {"path": str(file), **summary._asdict(), "consistency": finite})
    replace_folder(folder, final)
    return summary


def _remarks(reader: VideoReader, frames: int, faceless: int, sizes: dict[tuple[int, ...], int]) -> list[str]:
    remarks = list(reader.faults)
    if faceless:
        remarks.append(f"no face in {faceless} of {frames} frames, which are grey in the video")
    if len(sizes) > 1:
        changes = [f"{width}x{height} from frame {number}" for (height, width), number in sizes.items()]
        remarks.append(f"the image's size changes: {', '.join(changes)}; each frame was resized on its own")
    return remarks


def explained_frames(detector: LoadedDetector, frames: VideoReader, crop: Crop | None) -> Iterator[ExplainedFrame]:
    """Frames in order, explained BATCH at a time."""
    source = iter(frames)
    size = detector.settings.resolution
    while batch := list(islice(source, BATCH)):
        images = [_detector_image(frame.image, size, crop) for frame in batch]
        explained = iter(_explain(detector, [image for image in images if image is not None]))
        for frame, image in zip(batch, images):
            if image is None:
                yield ExplainedFrame(frame, np.full((size, size, 3), EMPTY, np.uint8), None, [])
            else:
                yield ExplainedFrame(frame, image, *next(explained))


def _detector_image(image: np.ndarray, size: int, crop: Crop | None) -> np.ndarray | None:
    """As the detector will see it; None where there is no face."""
    if crop is None:
        return cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
    try:
        return crop(image)
    except NoFaceError:
        return None


def _explain(detector: LoadedDetector, images: Sequence[np.ndarray]) -> list[tuple[float, list[LayerImage]]]:
    """Probability of fake and drawn layers per image."""
    if not images:
        return []
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    explanation, drawn, _ = explain_images(detector, pixels)
    return list(zip(explanation.prediction["prob"].tolist(), drawn))


# ----------------------------------------------------------------------------------------------------------- drawing


def drawn_frame(explained: ExplainedFrame, curve: ScoreCurve, names: Sequence[str]) -> np.ndarray:
    """Original and overlays side by side, and below them the scores so far. Of one size for all frames of a video."""
    frame, image, prob_fake, layers = explained
    drawn = panels(image, layers) if layers else [("no face", image), *((name, image) for name in names)]
    score = "no face" if prob_fake is None else f"fake probability {prob_fake:.3f}"
    table = comparison(drawn, f"frame {frame.number}   {frame.seconds:.2f} s   {score}")
    return np.vstack([table, curve.add(prob_fake, table.shape[1])])


class ScoreCurve:
    """Fake probability over the frames so far, red above one half; a gap where there is no face."""

    def __init__(self, length: int) -> None:
        self._length = length  # frames that are expected, for the scale
        self._frames = 0
        self._before: tuple[int, int] | None = None
        self._canvas: np.ndarray | None = None

    def add(self, score: float | None, width: int) -> np.ndarray:
        """The next frame's score; returns the curve (CURVE, width, 3) uint8 RGB with a dot at it."""
        if self._canvas is None:
            self._canvas = _axes(width)
        left, right, top, bottom = PLOT[0], width - PLOT[1], PLOT[2], CURVE - PLOT[3]
        point = None
        if score is not None:
            x = left + min(1.0, self._frames / max(1, self._length - 1)) * (right - left)
            point = round(x), round(bottom - score * (bottom - top))
            ink = FAKE_INK if predicted(score) else REAL_INK
            cv2.line(self._canvas, self._before or point, point, ink, 2, cv2.LINE_AA)
        self._before = point
        self._frames += 1
        shown = self._canvas.copy()
        if point is not None:
            cv2.circle(shown, point, 4, (20, 20, 20), -1, cv2.LINE_AA)
        return shown


def _axes(width: int) -> np.ndarray:
    canvas = np.full((CURVE, width, 3), 255, np.uint8)
    for value in (0.0, 0.5, 1.0):
        y = round(CURVE - PLOT[3] - value * (CURVE - PLOT[3] - PLOT[2]))
        cv2.line(canvas, (PLOT[0], y), (width - PLOT[1], y), (215, 215, 215), 1)
        canvas[y - 8 if y > 8 else 0 :][:16, : PLOT[0] - 4] = text_line(f"{value:g}", PLOT[0] - 4, 16, 11, centred=True)
    return canvas


def write_scores(path: Path, scores: Sequence[tuple[VideoFrame, float | None]]) -> None:
    """`scores.csv`: frame, seconds, prob_fake (nothing where no face was found)."""
    rows = [(frame.number, f"{frame.seconds:.4f}", "" if score is None else f"{score:.9g}") for frame, score in scores]
    write_table(path, ("frame", "seconds", "prob_fake"), rows)
