"""Explaining a video with a clip detector: an overlay video, strips of frames, and scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from ..base.decision import UNKNOWN
from ..base.errors import InputError
from ..base.files import new_folder, second_name, take_place, write_json, write_table
from ..data.clips import clip_starts
from ..data.frame import Frame
from ..drawing.clips import ClipImage, mosaic_of, time_curve
from ..drawing.overlays import comparison, panels
from ..model.detector import LoadedDetector
from ..run.explainer import explain_images
from ..store.sample import Sample
from ..store.sample_folder import RenderedSample, write_sample
from .faces import NoFaceError
from .tracks import FrameViews
from .video_files import UnreadableVideo, VideoFrame, VideoReader, check_video_folder, video_writer

FRAMES = 32  # per video, if the config does not set frame_num: the number that hosts' preprocessing keeps
INK = (20, 20, 20)


class ExplainedClip(NamedTuple):
    """An explained clip of one person."""

    track: int
    frames: list[VideoFrame]  # `image` is what the detector sees: the person's crop, or the whole frame
    sample: Sample
    layers: list[ClipImage]


class ClipVideo(NamedTuple):
    """The result for a video."""

    clips: list[ExplainedClip]
    frames: int  # in the file
    remarks: list[str]

    @property
    def prob_fake(self) -> float:
        """The mean P(fake) of the clips."""
        return float(np.mean([clip.sample.prob_fake for clip in self.clips]))

    def line(self) -> str:
        numbers = self.clips[int(np.argmax([clip.sample.prob_fake for clip in self.clips]))]
        hot = int(numbers.layers[0].time.argmax())
        count = len(self.clips)
        return (
            f"fake probability {self.prob_fake:.4f} (mean of {count} clip{'s' * (count > 1)} of"
            f" {len(numbers.frames)} frames), hottest frame {numbers.frames[hot].number}"
            f" at {numbers.frames[hot].seconds:.2f} s"
        )


def explain_clips_of(detector: LoadedDetector, file: Path, folder: Path, views: FrameViews) -> ClipVideo:
    """Write `overlay.mp4`, `scores.csv`, `video.json` and a folder per clip into `folder`, which appears complete.

    As in the hosts' preprocessing, `frame_num` (32) frames are spread evenly over each person's part of the video.
    Clips are cut from them as from a dataset's.

    Raises UnreadableVideo if nothing can be decoded, NoFaceError if nobody is found, InputError if nobody is seen in
    enough frames for a clip.
    """
    reader = VideoReader(file)
    check_video_folder(folder)
    seen, count = _frames_by_person(reader, views)
    if not count:
        raise UnreadableVideo("; ".join(["no frame of the video can be decoded", *reader.faults]))
    if not seen:
        raise NoFaceError(f"dlib finds no face in any of its {count} frames")
    chosen = {track: _spread(frames, detector) for track, frames in seen.items()}
    size = detector.settings.clip_size or 1
    cut = [
        (track, frames[start : start + size])
        for track, frames in chosen.items()
        for start in clip_starts(len(frames), size)
    ]
    if not cut:
        longest = max(map(len, seen.values()))
        raise InputError(f"{file}: one person is seen in {longest} frames, but a clip has {size}: give a longer video")
    partial = folder.with_name(f".{folder.name}.partial")
    new_folder(partial)
    clips = [_explain(detector, file, i, *one) for i, one in enumerate(cut)]
    for clip in clips:
        drawn = RenderedSample(clip.sample, mosaic_of(_pixels(clip.frames)), clip.layers)
        write_sample(partial / f"clip{clip.sample.index}", drawn, save_raw=True)
    result = ClipVideo(clips, count, [*reader.faults, *filter(None, [views.remark])])
    _write_video(partial / "overlay.mp4", reader, clips)
    second_name(partial / "overlay.mp4", f"{folder.name}_heatmap.mp4")
    _write_scores(partial, file, result)
    take_place(partial, folder)
    return result


def _frames_by_person(reader: VideoReader, views: FrameViews) -> tuple[dict[int, list[VideoFrame]], int]:
    """Return the frames of each person, and the number of frames in the file."""
    seen: dict[int, list[VideoFrame]] = {}
    count = 0
    for frame in reader:
        count += 1
        for face in views.add(frame.image):
            seen.setdefault(face.track, []).append(frame._replace(image=face.view.image))
    return seen, count


def _spread(frames: list[VideoFrame], detector: LoadedDetector) -> list[VideoFrame]:
    """Select as many frames as the config takes per video, spread evenly from the first to the last."""
    wanted = detector.settings.config.get("frame_num")
    wanted = wanted.get("test") if isinstance(wanted, dict) else wanted
    count = min(len(frames), max(wanted or FRAMES, detector.settings.clip_size or 1))
    return [frames[int(place)] for place in np.linspace(0, len(frames) - 1, count)]


def _pixels(frames: Sequence[VideoFrame]) -> torch.Tensor:
    """Stack the frames as (T, 3, R, R) uint8."""
    return torch.from_numpy(np.stack([frame.image for frame in frames])).permute(0, 3, 1, 2).contiguous()


def _explain(detector: LoadedDetector, file: Path, index: int, track: int, frames: list[VideoFrame]) -> ExplainedClip:
    explanation, drawn, _ = explain_images(detector, _pixels(frames).unsqueeze(0))
    frame = Frame(str(file), "single videos", "unknown", file.stem, UNKNOWN, index)
    sample = Sample.of(frame, explanation, 0, drawn[0], detector.settings)
    sample = replace(sample, frames=tuple(one.number for one in frames))
    return ExplainedClip(track, frames, sample, [one for one in drawn[0] if isinstance(one, ClipImage)])


def _write_video(path: Path, reader: VideoReader, clips: Sequence[ExplainedClip]) -> None:
    """Write every frame of every clip at its time: its overlays above the clip's curve of time."""
    shown = [(frame.seconds, clip, place) for clip in clips for place, frame in enumerate(clip.frames)]
    with video_writer(path, reader.rate) as write:
        for seconds, clip, place in sorted(shown, key=lambda one: (one[1].track, one[0])):
            write(_picture(clip, place), seconds)


def _picture(clip: ExplainedClip, place: int) -> np.ndarray:
    frame = clip.frames[place]
    layers = [replace(layer, overlay=layer.frames[place]) for layer in clip.layers]
    face = f"   face {clip.track}" if clip.track else ""
    title = f"frame {frame.number}   {frame.seconds:.2f} s   fake probability {clip.sample.prob_fake:.3f}{face}"
    table = comparison(panels(frame.image, layers), title)
    width = table.shape[1]
    curves = [_with_place(time_curve(layer.time, width), place, len(clip.frames)) for layer in clip.layers]
    return np.vstack([table, *curves])


def _with_place(curve: np.ndarray, place: int, frames: int) -> np.ndarray:
    x = round((place + 0.5) * curve.shape[1] / frames)
    cv2.line(curve, (x, 0), (x, curve.shape[0] - 1), INK, 1)
    return curve


def _write_scores(folder: Path, file: Path, video: ClipVideo) -> None:
    write_table(folder / "scores.csv", ("clip", "face", "frame", "seconds", "prob_fake", "time"), _rows(video))
    clips: list[dict[str, Any]] = [
        {
            "clip": clip.sample.index,
            "face": clip.track,
            "frames": list(clip.sample.frames),
            "prob_fake": clip.sample.prob_fake,
            "time": {layer.name: layer.time.tolist() for layer in clip.layers},
        }
        for clip in video.clips
    ]
    facts = {"frames": video.frames, "prob_fake": video.prob_fake, "clips": clips, "remarks": video.remarks}
    write_json(folder / "video.json", {"path": str(file), **facts})


def _rows(video: ClipVideo) -> Iterator[tuple[object, ...]]:
    """Yield a row per frame of each clip; `time` is the first layer's."""
    for clip in video.clips:
        for frame, value in zip(clip.frames, clip.layers[0].time, strict=True):
            score = f"{clip.sample.prob_fake:.9g}"
            yield clip.sample.index, clip.track, frame.number, f"{frame.seconds:.4f}", score, f"{value:.9g}"
