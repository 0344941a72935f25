"""Video files: decoded frame by frame, written as H.264 that browsers play. Uses PyAV (the package `av`)."""

from __future__ import annotations

from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

import numpy as np

from utils.errors import RunError
from utils.text import one_line

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv")


class UnreadableVideo(RunError):
    """A file from which no frame can be decoded; the message is the reason."""


class VideoFrame(NamedTuple):
    """A decoded frame: (H, W, 3) uint8 RGB, H and W may change within a file, and its time in seconds."""

    number: int
    seconds: float
    image: np.ndarray


class VideoReader:
    """An open video file. `broken` says why decoding ended early, and is empty until and unless it does."""

    def __init__(self, path: Path) -> None:
        """Raises UnreadableVideo."""
        import av

        self.broken = ""
        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                self.rate = stream.average_rate or Fraction(25)
                self.length = sum(1 for packet in container.demux(stream) if packet.size)
        except (av.error.FFmpegError, IndexError, OSError, ValueError) as error:
            reason = "it has no images" if isinstance(error, IndexError) else one_line(error)
            raise UnreadableVideo(f"the video cannot be decoded: {reason}") from error
        self._path = path

    def __iter__(self) -> Iterator[VideoFrame]:
        """The frames, in order of time, until the end or the first that cannot be decoded."""
        import av

        with av.open(str(self._path)) as container:
            try:
                for number, frame in enumerate(container.decode(video=0)):
                    yield VideoFrame(number, float(frame.time or number / self.rate), upright(frame))
            except av.error.FFmpegError as error:
                self.broken = one_line(error)


def upright(frame: Any) -> np.ndarray:
    """The pixels of a PyAV frame, rotated by the stream's display matrix."""
    turns = round(getattr(frame, "rotation", 0) / 90)  # counterclockwise; older PyAV does not say
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


@contextmanager
def video_writer(path: Path, rate: Fraction) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that appends an image (H, W, 3) uint8 RGB, all of one size, to `path`, which appears when whole.

    An odd last row or column is left out, since H.264's colours are of half the size.
    """
    import av

    partial = path.with_name(f".{path.name}.partial.mp4")
    stream: Any = None
    # faststart puts the index first, so that a browser plays before it has the whole file.
    with av.open(str(partial), "w", options={"movflags": "faststart"}) as container:

        def write(image: np.ndarray) -> None:
            nonlocal stream
            height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
            if stream is None:
                stream = container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast"})
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.codec_context.thread_count = 1  # the same bytes on every machine
            even = np.ascontiguousarray(image[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))

        yield write
        if stream is not None:
            container.mux(stream.encode(None))
    partial.replace(path)
