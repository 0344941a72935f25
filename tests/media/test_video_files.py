"""Which track of a file is the film, and files of every name that cameras and recorders give them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from utils.gradcam_kit.media.single_images import find_images, is_video
from utils.gradcam_kit.media.video_files import UnreadableVideo, VideoReader

av = pytest.importorskip("av", reason="videos need PyAV: pip install av")

Track = tuple[str, int, int, int]  # codec, side, frames, grey
THUMBNAIL: Track = ("mjpeg", 32, 1, 200)
FILM: Track = ("mpeg4", 96, 12, 60)


def write(path: Path, *tracks: Track) -> Path:
    with av.open(str(path), "w") as container:
        streams = []
        for codec, side, _, _ in tracks:
            stream = container.add_stream(codec, rate=12)
            stream.width = stream.height = side
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            streams.append(stream)
        for stream, (_, side, frames, grey) in zip(streams, tracks, strict=True):
            for _ in range(frames):
                image = np.full((side, side, 3), grey, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("tracks", "side", "frames", "said"),
    [
        ([THUMBNAIL, FILM], 96, 12, ""),
        ([FILM, THUMBNAIL], 96, 12, ""),
        ([THUMBNAIL, ("mjpeg", 640, 1, 9), FILM], 96, 12, ""),  # a cover larger than the film
        ([("mpeg4", 48, 14, 200), FILM], 96, 12, "it has 2 films; only track 2 is explained"),  # a preview
        ([("mjpeg", 320, 3, 9), FILM], 96, 12, "it has 2 films; only track 2 is explained"),  # chapters
        ([FILM, ("mpeg4", 96, 12, 90)], 96, 12, "it has 2 films; only track 1 is explained"),
        ([THUMBNAIL], 32, 1, ""),
    ],
)
def test_the_film_is_explained(tmp_path: Path, tracks: list[Track], side: int, frames: int, said: str) -> None:
    reader = VideoReader(write(tmp_path / "film.mkv", *tracks))
    shown = list(reader)
    assert {frame.image.shape[:2] for frame in shown} == {(side, side)} and len(shown) == reader.length == frames
    assert (reader.remark, reader.faults) == (said, [])


@pytest.mark.parametrize(
    "name", ["a.ts", "A.TS", "b.m2ts", "c.mts", "d.3gp", "e.3g2", "f.mpg", "g.vob", "h.asf", "i.wmv"]
)
def test_names_of_videos(tmp_path: Path, name: str) -> None:
    codec = {"3gp": "mpeg4", "3g2": "mpeg4", "asf": "wmv2", "wmv": "wmv2"}.get(name[2:].lower(), "mpeg2video")
    film = write(tmp_path / name, (codec, 96, 6, 60))
    assert is_video(film) and find_images(str(tmp_path)) == [film]
    assert abs(np.mean([frame.image.mean() for frame in VideoReader(film)]) - 60) < 8


def test_typescript_is_no_video(tmp_path: Path) -> None:
    for name in ("index.ts", "Grid.ts"):
        (tmp_path / name).write_text("Graph = 1" if name == "Grid.ts" else "export const a = 1;\n")
    (tmp_path / "a.png").write_bytes(b"")
    assert tmp_path / "index.ts" not in find_images(str(tmp_path))
    with pytest.raises(UnreadableVideo):  # one that is named itself
        VideoReader(find_images(str(tmp_path / "index.ts"))[0])


def test_images_of_a_folder_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (0, 1, 2, 10, 11):
        for folder in ("v2", "v10"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{number}.png").write_bytes(b"")
    assert [file.stem for file in find_images(str(tmp_path / "v2"))] == ["0", "1", "2", "10", "11"]
    found = [f"{file.parent.name}/{file.stem}" for file in find_images(str(tmp_path / "*" / "*.png"))]
    assert found == [f"{folder}/{number}" for folder in ("v2", "v10") for number in (0, 1, 2, 10, 11)]
