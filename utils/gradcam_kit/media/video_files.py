"""Reading of video files frame by frame, and writing as H.264 that browsers play. Uses PyAV (package `av`)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..base.errors import InputError, RunError
from ..base.files import check_ordinary
from ..base.text import one_line

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".mts", ".m2ts", ".3gp",
    ".3g2", ".ogv", ".mxf", ".vob", ".f4v", ".m2v", ".asf",
)  # fmt: skip

LEAST_MISSING = 0.1  # a video counts as cut off if so many seconds are missing at its end
TICK = Fraction(1, 90_000)  # time base of written frames, in seconds


class UnreadableVideo(RunError):
    """No frame of a file can be decoded; the message is the reason."""


class VideoFrame(NamedTuple):
    """A decoded frame, (H, W, 3) uint8 RGB, and its time in seconds. H and W may change within a file."""

    number: int
    seconds: float
    image: np.ndarray


class VideoReader:
    """A video with `rate` frames per second and about `length` frames. After its end, `faults` lists damage.

    Of several tracks the film is read, not a thumbnail or a cover. If there are several films, `remark` tells which.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and count its frames. Raises UnreadableVideo."""
        import av

        self.faults: list[str] = []
        self._path = path
        try:
            check_ordinary(path)
            with av.open(str(path)) as container:
                lengths = [0 for _ in container.streams.video]
                if not lengths:
                    raise IndexError("no track of images")
                last = [-math.inf for _ in lengths]
                for packet in container.demux(video=tuple(range(len(lengths)))):
                    track = container.streams.video.index(packet.stream)
                    lengths[track] += packet.size > 0
                    if packet.size and packet.pts is not None:
                        last[track] = max(last[track], float(packet.pts * packet.time_base))
                # A track of an unknown codec has no size.
                sizes = [getattr(one, "width", 0) * getattr(one, "height", 0) for one in container.streams.video]
                self._track = _film(lengths, sizes)
                self.length, self._last_packet = lengths[self._track], last[self._track]
                stream = container.streams.video[self._track]
                self.rate = stream.average_rate or Fraction(25)
                self._promised = _promised_seconds(container, stream)
                films = sum(length > 1 for length in lengths)
                self.remark = f"it has {films} films; only track {self._track + 1} is explained" if films > 1 else ""
        except (av.error.FFmpegError, IndexError, OSError, ValueError) as error:
            reason = "it has no images" if isinstance(error, IndexError) else one_line(error)
            raise UnreadableVideo(f"the video cannot be decoded: {reason}") from error

    def __iter__(self) -> Iterator[VideoFrame]:
        """Yield the frames in order of time, until the end or the first that cannot be decoded."""
        import av

        self.faults, damaged, count = [], 0, 0
        first = seconds = duration = 0.0
        with av.open(str(self._path)) as container:
            try:
                for frame in container.decode(video=self._track):
                    seconds = float(count / self.rate if frame.time is None else frame.time)
                    # 0 if the frame, or an older PyAV, has no duration.
                    duration = float((getattr(frame, "duration", None) or 0) * (frame.time_base or 0))
                    first = first if count else seconds
                    damaged += frame.is_corrupt
                    count += 1
                    yield VideoFrame(count - 1, seconds, upright(frame))
            except av.error.FFmpegError as error:
                self.faults.append(f"decoding ended after {count} frames: {one_line(error)}")
        if damaged:
            self.faults.append(f"{damaged} of {count} frames are damaged")
        if count:
            self.faults += self._missing_end(first, seconds, duration)

    def _missing_end(self, first: float, last: float, duration: float) -> list[str]:
        """Describe missing frames after the last decoded one, if any."""
        frame = max(duration, float(1 / self.rate))
        if self._last_packet > last + frame / 2:
            return [f"cut off or damaged: nothing after {last:.2f} s can be decoded"]
        end = last - first + frame
        if self._promised > end + max(1.5 * frame, LEAST_MISSING):
            return [f"cut off: the file declares {self._promised:.2f} s of video, but its frames end at {end:.2f} s"]
        return []


def _film(lengths: Sequence[int], sizes: Sequence[int]) -> int:
    """Return the track with the largest images among those at least half as long as the longest."""
    long = [track for track, length in enumerate(lengths) if 2 * length >= max(lengths)]
    return max(long, key=lambda track: (sizes[track], -track))


def _promised_seconds(container: Any, stream: Any) -> float:
    """Return the video's duration in seconds by its header; 0 if unknown. Raises ValueError."""
    promised = float(stream.duration * stream.time_base) if stream.duration else 0.0
    if (
        container.format.name == "avi" and stream.frames
    ):  # the duration is the actual one, the number of frames is the header's
        promised = max(promised, float(stream.frames / (stream.average_rate or 25)))
    if promised:
        return promised
    text = next((value for key, value in stream.metadata.items() if key.upper().startswith("DURATION")), "")
    clock = re.fullmatch(r"([0-9]{1,4}):([0-9]{2}):([0-9.]{2,12})", text)  # in Matroska files
    if clock is not None:
        return 3600 * int(clock[1]) + 60 * int(clock[2]) + float(clock[3])
    if len(container.streams) == 1 and container.duration:  # otherwise it may be a longer sound track's
        return float(container.duration / 1_000_000)
    return 0.0


def check_video_folder(folder: Path) -> None:
    """Raise InputError if `folder` holds anything but an earlier video's output."""
    if folder.is_symlink() or (folder.exists() and not (folder / "video.json").is_file()):
        raise InputError(f"{folder}: exists and is not a video's output folder: move it, or give another output folder")


def upright(frame: Any) -> np.ndarray:
    """Return a PyAV frame's pixels, (H, W, 3) uint8 RGB, rotated by the stream's display matrix."""
    turns = round(getattr(frame, "rotation", 0) / 90)  # counterclockwise; older PyAV has no rotation
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


# Colours are written as BT.709 and marked so: without the mark, players guess from the frame size.
BT709 = 1  # FFmpeg's number for its matrix
COLOURS = "colormatrix=bt709:colorprim=bt709:transfer=bt709:range=tv"
# With B-frames x264 is not deterministic, even with one thread: of 300 runs 80 gave one file and 220 another.
REPEATABLE = "bframes=0"


@contextmanager
def video_writer(path: Path, rate: Fraction) -> Iterator[Callable[[np.ndarray, float], None]]:
    """Yield a function that appends an image (H, W, 3) uint8 RGB, shown from a given second on.

    All images have the same size. The file appears when it is complete, and not at all if nothing was appended. An odd
    last row or column is dropped, because H.264 stores colours at half the size. `rate` sets how long the last image is
    shown.
    """
    import av

    partial = path.with_name(f".{path.name}.partial.mp4")
    stream: Any = None
    shown = -1

    def write(image: np.ndarray, seconds: float) -> None:
        nonlocal stream, shown
        height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
        if stream is None:
            options = {"crf": "18", "preset": "veryfast", "x264-params": f"{COLOURS}:{REPEATABLE}"}
            stream = container.add_stream("libx264", rate=rate, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.time_base = TICK
            stream.codec_context.thread_count = 1  # the same bytes on every machine
        even = np.ascontiguousarray(image[:height, :width])
        frame = av.VideoFrame.from_ndarray(even, format="rgb24").reformat(format="yuv420p", dst_colorspace=BT709)
        shown = max(shown + 1, round(seconds / TICK))  # never two at the same time
        frame.pts, frame.time_base = shown, TICK
        container.mux(stream.encode(frame))

    try:
        # faststart puts the index first, so that a browser can play before it has the whole file.
        with av.open(str(partial), "w", options={"movflags": "faststart"}) as container:
            yield write
            if stream is not None:
                container.mux(stream.encode(None))
        if partial.exists() and partial.stat().st_size:  # otherwise nothing was appended
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
