"""Videos in the demo: real files written by FFmpeg's encoders, and what comes out decoded again."""

from __future__ import annotations

import csv
import json
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.helpers.command_server import CommandServer
from tests.helpers.datasets import DataTree
from tests.helpers.detectors import ARCHITECTURE, BLOCKS, PATCH, PIXELS, tiny_detector
from tests.helpers.references import reference_clip as reference
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.media.explain_video import explain_video
from utils.gradcam_kit.media.faces import TEMPLATE, Face, NoFaceError, Photographs
from utils.gradcam_kit.media.tracks import FrameViews
from utils.gradcam_kit.media.video_files import UnreadableVideo, VideoReader, video_writer
from utils.gradcam_kit.model.detector import LoadedDetector
from utils.gradcam_kit.model.load import find_device, load_detector
from utils.gradcam_kit.settings.config import detector_settings

av = pytest.importorskip("av", reason="videos need PyAV: pip install av")
DEMO = "utils/gradcam_demo.py"


def shots(count: int, height: int = 96, width: int = 128, seed: int = 0) -> list[np.ndarray]:
    """Coarse random images, which a codec keeps well."""
    rng = np.random.default_rng(seed)
    return [
        cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(count)
    ]


def write_clip(path: Path, images: list[np.ndarray], codec: str = "mpeg4", rate: int = 12) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def decoded(path: Path) -> list[np.ndarray]:
    """By OpenCV, as another reader."""
    capture = cv2.VideoCapture(str(path))
    frames: list[np.ndarray] = []
    while True:
        done, frame = capture.read()
        if not done:
            return frames
        frames.append(np.asarray(frame)[..., ::-1])


@pytest.fixture
def detector(data_tree: DataTree) -> LoadedDetector:
    return load_detector(detector_settings(data_tree.detector_yaml, {"gradcam_enabled": True}), find_device("cpu"))


def whole_frames() -> FrameViews:
    return FrameViews(Photographs(PIXELS))


def test_a_clip_from_the_command_line(commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", shots(20))
    out = tmp_path / "out"
    flags = [
        "--output",
        str(out),
        "--detector_path",
        str(data_tree.detector_yaml),
        "--device",
        "cpu",
        "--target",
        "fake",
    ]
    done = commands.run(DEMO, "--input", clip, *flags, cwd=tmp_path)
    assert done.code == 0, done.err
    # Scores: by OpenCV's decoder and a float64 tower that shares no code.
    frames = decoded(clip)
    flat = [cv2.resize(frame, (PIXELS, PIXELS * 3 // 4), interpolation=cv2.INTER_AREA) for frame in frames]  # 128 x 96
    small = [np.pad(frame, ((PIXELS // 8, PIXELS // 8), (0, 0), (0, 0))) for frame in flat]
    images = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).double().div(255).sub(0.5).div(0.5)
    tower = reference.ReferenceTower(tiny_detector().state_dict(), BLOCKS, ARCHITECTURE["num_attention_heads"], PATCH)
    expected = tower.logits(images).detach().softmax(1)[:, 1].numpy()
    with (out / "clip" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 and [row["frame"] for row in rows] == [str(i) for i in range(20)]
    assert float(rows[12]["seconds"]) == pytest.approx(1.0, abs=0.01)
    np.testing.assert_allclose(
        [float(row["prob_fake"]) for row in rows], expected, atol=0.02
    )  # decoders differ a little
    assert f"fake probability {expected.mean():.2f}"[:-1] in done.out and str(out / "clip") in done.out

    summary = json.loads((out / "clip" / "video.json").read_text())
    assert summary["frames"] == 20 and len(summary["remarks"]) == 1
    assert summary["remarks"][0].startswith("128x96 pixels, not square: padded; the detector expects face crops")
    assert summary["prob_fake"] == pytest.approx(expected.mean(), abs=0.01)
    assert [(track["track"], track["frames"]) for track in summary["tracks"]] == [(0, 20)]
    maps = tiny_detector().explain({"image": images.float()}, layers=["encoder.layers.3"], target="fake")
    raw = maps.layers["encoder.layers.3"].raw.double()
    pairs = [
        float(np.corrcoef(raw[i].ravel(), raw[i + 1].ravel())[0, 1])
        for i in range(19)
        if raw[i].max() > 0 and raw[i + 1].max() > 0
    ]
    assert summary["consistency"]["encoder.layers.3"] == pytest.approx(np.mean(pairs), abs=0.05)

    with av.open(str(out / "clip" / "overlay.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 12
    shown = decoded(out / "clip" / "overlay.mp4")
    assert len(shown) == 20
    # The original stands top left (8 in, 38 down), the curve below grows to the right.
    part = shown[7][38 : 38 + PIXELS, 8 : 8 + PIXELS].astype(float)
    assert np.abs(part - small[7]).mean() < 12
    curves = [(frame[-112:] < 200).any(axis=-1).any(axis=0) for frame in (shown[0], shown[10], shown[19])]
    ends = [int(np.flatnonzero(curve)[-1]) for curve in curves]
    assert ends[0] < ends[1] < ends[2] and ends[2] > shown[0].shape[1] - 30


def test_a_folder_with_bad_videos_does_the_rest(commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    write_clip(folder / "good.avi", shots(5))
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mkv").write_text("this is no film")
    whole = write_clip(folder / "half.mpg", shots(40, seed=3), "mpeg2video", 25).read_bytes()
    (folder / "half.mpg").write_bytes(whole[: len(whole) // 2])
    sound = folder / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    cv2.imwrite(str(folder / "image.png"), shots(1)[0])
    out = tmp_path / "out"
    flags = ["--output", str(out), "--detector_path", str(data_tree.detector_yaml), "--device", "cpu"]
    done = commands.run(DEMO, "--input", folder, *flags, cwd=tmp_path)
    assert done.code == 1 and "3 of 6 files were left out" in done.err and "Traceback" not in done.err
    for name in ("empty.mp4", "text.mkv", "sound.mp4"):
        assert f"{name}: left out: the video cannot be decoded" in done.err
    assert "it has no images" in done.err
    assert (out / "good" / "overlay.mp4").is_file() and (out / "image" / "gradcam_comparison.png").is_file()
    frames = json.loads((out / "half" / "video.json").read_text())["frames"]
    assert 10 < frames < 40 and len(decoded(out / "half" / "overlay.mp4")) == frames
    assert {path.name for path in out.iterdir()} == {"good", "half", "image"}


def test_a_video_that_changes_size(detector: LoadedDetector, tmp_path: Path) -> None:
    """MPEG-TS allows it: two films one after the other are one."""
    parts = [
        write_clip(tmp_path / f"{i}.ts", shots(6, height, width), "mpeg2video", 25).read_bytes()
        for i, (height, width) in enumerate([(96, 128), (144, 176)])
    ]
    clip = tmp_path / "both.ts"
    clip.write_bytes(b"".join(parts))
    summary = explain_video(detector, clip, tmp_path / "out", whole_frames())
    assert summary.frames in (11, 12)  # FFmpeg drops the last frame of the first size in some versions
    change = f"size changes: 128x96 from frame 0, 176x144 from frame {summary.frames - 6}"
    assert any(change in remark for remark in summary.remarks)
    assert len(decoded(tmp_path / "out" / "overlay.mp4")) == summary.frames


def test_frames_without_a_face(detector: LoadedDetector, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", shots(9))
    seen = iter(range(9))

    face = Face((0, 0, PIXELS, PIXELS), TEMPLATE / 112 * PIXELS)

    def find(photo: np.ndarray) -> list[Face]:
        return [] if next(seen) in (0, 4, 5) else [face]

    summary = explain_video(detector, clip, tmp_path / "out", FrameViews(Photographs(PIXELS, "largest", find)))
    assert (summary.frames, summary.faceless) == (9, 3)
    assert "no face in 3 of 9 frames, which have no map" in summary.remarks
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        scores = [row["prob_fake"] for row in csv.DictReader(file)]
    assert [i for i, score in enumerate(scores) if not score] == [0, 4, 5]
    mean = sum(track.prob_fake * track.frames for track in summary.tracks) / 6
    assert mean == pytest.approx(np.mean([float(score) for score in scores if score]), abs=1e-6)
    columns = 1 + len(detector.model.map_names())
    for number, least, most in ((4, 0, 4), (6, 12, 255)):  # a codec changes each pixel a little, a map many pixels much
        frame = decoded(tmp_path / "out" / "overlay.mp4")[number].astype(int)
        step = (frame.shape[1] - 8) // columns  # a panel and the margin beside it
        one, other = (frame[42:394, left + 4 : left + step - 16] for left in (8, 8 + step))
        assert least <= np.abs(one - other).mean() <= most

    with pytest.raises(NoFaceError, match="no face in any of its 9 frames"):
        explain_video(detector, clip, tmp_path / "none", FrameViews(Photographs(PIXELS, "largest", lambda photo: [])))
    assert not (tmp_path / "none").exists()


def test_reader_and_writer(tmp_path: Path) -> None:
    images = shots(5, 65, 67)  # odd sides
    with video_writer(tmp_path / "out.mp4", Fraction(30000, 1001)) as write:
        for number, image in enumerate(images):
            write(image, number * 1001 / 30000)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    reader = VideoReader(tmp_path / "out.mp4")
    frames = list(reader)
    assert reader.length == len(frames) == 5 and reader.rate == Fraction(30000, 1001) and not reader.faults
    assert frames[3].image.shape == (64, 66, 3) and frames[3].seconds == pytest.approx(3 * 1001 / 30000, abs=1e-3)
    assert np.abs(frames[3].image.astype(int) - images[3][:64, :66]).mean() < 12
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # a browser can begin to play at once
    with pytest.raises(UnreadableVideo, match="cannot be decoded"):
        VideoReader(tmp_path / "gone.mp4")


def times_of(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [float(frame.time) for frame in container.decode(video=0)]


def write_at(path: Path, times: list[float], images: list[np.ndarray], codec: str = "libx264") -> Path:
    """A clip of variable frame rate."""
    tick = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=20, options={"bf": "0"})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", tick
        for seconds, image in zip(times, images, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(1000 * seconds), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_the_overlay_keeps_the_times_of_a_clip_of_variable_rate(
    name: str, detector: LoadedDetector, tmp_path: Path
) -> None:
    times = [k / 20 for k in range(10)] + [0.5 + k / 3 for k in range(6)]
    clip = write_at(tmp_path / name, times, shots(len(times), 96, 96))
    summary = explain_video(detector, clip, tmp_path / "out", whole_frames())
    assert summary.remarks == [] and summary.frames == len(times)
    np.testing.assert_allclose(times_of(tmp_path / "out" / "overlay.mp4"), times, atol=2e-3)
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        np.testing.assert_allclose([float(row["seconds"]) for row in csv.DictReader(file)], times, atol=2e-3)


def test_a_video_that_could_not_be_finished_leaves_no_file(tmp_path: Path) -> None:
    def fails() -> None:
        with video_writer(tmp_path / "out.mp4", Fraction(10)) as write:
            write(shots(1)[0], 0.0)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    with video_writer(tmp_path / "none.mp4", Fraction(10)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_times_that_stand_still_or_go_back_are_written_in_order(tmp_path: Path) -> None:
    with video_writer(tmp_path / "out.mp4", Fraction(10)) as write:
        for image, seconds in zip(shots(4), (0.0, 0.0, 0.5, 0.2), strict=True):
            write(image, seconds)
    times = times_of(tmp_path / "out.mp4")
    np.testing.assert_allclose(times, [0, 0, 0.5, 0.5], atol=1e-3)
    assert times == sorted(set(times))


@pytest.mark.parametrize("width", [128, 1408])
def test_colours_are_tagged_so_that_no_player_guesses(width: int, tmp_path: Path) -> None:
    """Players take an untagged file's matrix by its size. Luma of a red by BT.709's own formula."""
    red = np.zeros((64, width, 3), np.uint8)
    red[:] = 220, 30, 40
    with video_writer(tmp_path / "out.mp4", Fraction(10)) as write:
        write(red, 0)
    with av.open(str(tmp_path / "out.mp4")) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (1, 1)
    luma = np.frombuffer(bytes(frame.planes[0]), np.uint8)[20 * frame.planes[0].line_size + 50]
    assert abs(int(luma) - (16 + 219 * (0.2126 * 220 + 0.7152 * 30 + 0.0722 * 40) / 255)) <= 2
    assert np.abs(frame.to_ndarray(format="rgb24")[20, 50].astype(int) - (220, 30, 40)).max() <= 4


CONTAINERS = [("a.avi", "mpeg4"), ("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.mpg", "mpeg2video"), ("a.ts", "libx264"),
              ("a.flv", "flv"), ("a.wmv", "wmv2")]  # fmt: skip


@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
def test_a_video_that_was_cut_off_says_so_and_a_whole_one_does_not(name: str, codec: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(30)]
    whole = write_clip(tmp_path / name, noise, codec, rate=25)
    reader = VideoReader(whole)
    assert len(list(reader)) == 30 and reader.faults == []
    data = whole.read_bytes()
    for share in (0.5, 0.9):
        (tmp_path / f"cut{whole.suffix}").write_bytes(data[: int(share * len(data))])
        reader = VideoReader(tmp_path / f"cut{whole.suffix}")
        assert 0 < len(list(reader)) < 30 and len(reader.faults) > 0


def without_images(path: Path) -> Path:
    """A clip whose index is whole and whose images are not."""
    data = bytearray(write_clip(path, shots(8), "libx264").read_bytes())
    first, last = data.find(b"mdat") + 4, data.find(b"moov") - 4
    data[first:last] = b"\xff" * (last - first)
    path.write_bytes(data)
    return path


def test_a_video_without_an_image_leaves_nothing_and_the_next_input_is_done(
    commands: CommandServer, data_tree: DataTree, tmp_path: Path
) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    without_images(inputs / "a.mp4")
    cv2.imwrite(str(inputs / "b.png"), shots(1, 96, 96)[0])
    out = tmp_path / "out"
    flags = ["--detector_path", str(data_tree.detector_yaml), "--device", "cpu", "--input", str(inputs)]
    done = commands.run(DEMO, *flags, "--output", out, cwd=tmp_path)
    assert done.code == 1 and "Traceback" not in done.err
    said = done.err.splitlines()
    assert said[0].startswith(f"{inputs / 'a.mp4'}: left out: no frame of the video can be decoded") and len(said) == 3
    assert said[1].startswith("map check: ")  # the verdicts on the image's maps
    assert [path.name for path in out.iterdir()] == ["b"]


def test_a_folder_of_ones_own_is_never_replaced(detector: LoadedDetector, tmp_path: Path) -> None:
    """What is a video's is renamed, with whatever was put there; what is not is refused."""
    clip = write_clip(tmp_path / "clip.mp4", shots(4))
    folder = tmp_path / "out" / "clip"
    explain_video(detector, clip, folder, whole_frames())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "notes.txt").write_text("mine")
    explain_video(detector, clip, folder, whole_frames())  # the same bytes once more
    assert [path.name for path in folder.parent.iterdir()] == ["clip"]
    (folder / "scores.csv").write_text("what I think")
    explain_video(detector, clip, folder, whole_frames())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (aside,) = folder.parent.glob("clip.before-*")
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == {
        **before,
        "notes.txt": b"mine",
        "scores.csv": b"what I think",
    }
    (folder / "video.json").unlink()
    with pytest.raises(InputError, match="exists and is not a video's output folder"):
        explain_video(detector, clip, folder, whole_frames())
    assert (folder / "scores.csv").is_file() and sorted(tmp_path.rglob("*.partial")) == []


def test_two_people_have_a_score_and_a_curve_each(detector: LoadedDetector, tmp_path: Path) -> None:
    """Each is the mean over that person's own frames, computed from the rows of `scores.csv`; the video has none."""
    clip = write_clip(tmp_path / "clip.mp4", [shots(1, 120, 240)[0]] * 6)
    shown = iter(range(6))

    def find(photo: np.ndarray) -> list[Face]:
        boxes = [(10.0, 10.0, 90.0, 90.0), (130.0, 20.0, 200.0, 90.0)][: 2 if next(shown) < 4 else 1]
        return [Face(box, TEMPLATE / 112 * (box[2] - box[0]) + box[:2]) for box in boxes]

    summary = explain_video(detector, clip, tmp_path / "out", FrameViews(Photographs(PIXELS, "all", find)))
    assert [(track.track, track.frames, track.last_frame) for track in summary.tracks] == [(1, 6, 5), (2, 4, 3)]
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    for track in summary.tracks:
        scores = [float(row["prob_fake"]) for row in rows if row["face"] == str(track.track)]
        assert track.prob_fake == pytest.approx(np.mean(scores), abs=1e-6)
    written = json.loads((tmp_path / "out" / "video.json").read_text())
    assert written["prob_fake"] is None and len(written["tracks"]) == 2
    assert "face 1 (frames 0 to 5)" in summary.line() and "face 2 (frames 0 to 3)" in summary.line()
    overlay = decoded(tmp_path / "out" / "overlay.mp4")
    named = tmp_path / "out" / "out_heatmap.mp4"  # after the folder, which is named after the video
    assert named.read_bytes() == (tmp_path / "out" / "overlay.mp4").read_bytes()
    assert len(overlay) == 6 and overlay[0].shape[1] > 2 * 700  # the whole frame, twice as wide as high, 360 high
