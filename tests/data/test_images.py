"""Images written by Pillow and OpenCV, read back through decode_image."""

from __future__ import annotations

import errno
import io
import os
import struct
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from tests.helpers.png import beginning, chunk
from utils.gradcam_kit.data import images
from utils.gradcam_kit.data.images import UnreadableImage, decode_image, image_size, jpeg_scans, read_file
from utils.gradcam_kit.data.masks import face_points, read_landmarks, read_mask

FORMATS = ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG2000", "PPM"]


def smooth(height: int = 96, width: int = 128) -> np.ndarray:
    """A colourful image without hard edges, so that lossy formats stay close to it."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [128 + 100 * np.sin(x / 17), 128 + 100 * np.cos(y / 13), 255 * (x + y) / (height + width)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def encoded(pixels: np.ndarray | Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, file_format, **options)
    return file.getvalue()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("resolution", [None, 50, 224])
def test_pixels_are_those_of_the_host(tmp_path: Path, file_format: str, resolution: int | None) -> None:
    path = tmp_path / f"a.{file_format.lower()}"
    path.write_bytes(encoded(smooth(), file_format))
    expected = cv2.imread(str(path))
    assert expected is not None
    expected = cv2.cvtColor(expected, cv2.COLOR_BGR2RGB)
    if resolution is not None:
        expected = cv2.resize(expected, (resolution, resolution), interpolation=cv2.INTER_CUBIC)
    got = decode_image(read_file(str(path)), resolution)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_images_come_back_exactly(file_format: str) -> None:
    np.testing.assert_array_equal(decode_image(encoded(smooth(), file_format), None), smooth())


@pytest.mark.parametrize(
    ("mode", "file_format"), [("L", "PNG"), ("L", "JPEG"), ("LA", "PNG"), ("1", "PNG"), ("P", "GIF")]
)
def test_greyscale_becomes_three_equal_channels(mode: str, file_format: str) -> None:
    grey = Image.fromarray(smooth()).convert("L")
    expected = np.asarray(grey.convert("1").convert("L") if mode == "1" else grey)
    got = decode_image(
        encoded(grey.convert(mode), file_format, **({"quality": 95} if file_format == "JPEG" else {})), None
    )
    assert got.shape == (*expected.shape, 3)
    assert np.abs(got.astype(int) - expected[..., None]).max() <= (6 if file_format == "JPEG" else 0)


def test_palette_with_and_without_colour() -> None:
    grey = Image.fromarray(smooth()).convert("L").convert("P")
    np.testing.assert_array_equal(decode_image(encoded(grey, "PNG"), None), np.asarray(grey.convert("RGB")))
    colour = Image.fromarray(smooth()).quantize(64)
    np.testing.assert_array_equal(decode_image(encoded(colour, "PNG"), None), np.asarray(colour.convert("RGB")))


def test_alpha_is_dropped() -> None:
    rgba = np.dstack([smooth(), np.full(smooth().shape[:2], 90, np.uint8)])
    np.testing.assert_array_equal(decode_image(encoded(rgba, "PNG"), None), smooth())


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(file_format: str) -> None:
    data = encoded(Image.fromarray(smooth()).convert("CMYK"), file_format, quality=95)
    assert np.abs(decode_image(data, None).astype(int) - smooth()).mean() < 3


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_keep_the_high_byte(suffix: str) -> None:
    low = np.random.default_rng(0).integers(0, 256, smooth().shape, dtype=np.uint16)
    colour = cv2.imencode(suffix, ((smooth().astype(np.uint16) << 8) | low)[..., ::-1])[1].tobytes()
    assert np.abs(decode_image(colour, None).astype(int) - smooth()).max() <= 1
    grey = cv2.imencode(suffix, (smooth()[..., 0].astype(np.uint16) << 8) | low[..., 0])[1].tobytes()
    assert np.abs(decode_image(grey, None).astype(int) - smooth()[..., :1]).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16", "P", "CMYK", "RGBA"])
def test_what_opencv_cannot_read_pillow_does(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mode == "I;16":
        image = Image.fromarray(smooth()[..., 0].astype(np.uint16) << 8)
        expected = np.repeat(smooth()[..., :1], 3, axis=2)
    else:
        image = Image.fromarray(smooth()).convert(mode)
        expected = np.asarray(image.convert("RGB"))
    data = encoded(image, "TIFF")
    monkeypatch.setattr(images.cv2, "imdecode", lambda *_: None)
    np.testing.assert_array_equal(decode_image(data, None), expected)


def test_one_pixel_and_a_large_image() -> None:
    one = np.array([[[10, 200, 30]]], np.uint8)
    np.testing.assert_array_equal(decode_image(encoded(one, "PNG"), 224), np.broadcast_to(one, (224, 224, 3)))
    large = np.zeros((6000, 8000, 3), np.uint8)
    large[:, 4000:] = (255, 0, 90)
    got = decode_image(cv2.imencode(".png", large[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes(), 224)
    assert got.shape == (224, 224, 3)
    assert got[:, :100].max() == 0
    assert (got[:, -100:] == (255, 0, 90)).all()


def test_orientation_tag_is_followed_by_both_decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6  # stored lying on its side
    data = encoded(smooth(), "JPEG", exif=tags.tobytes(), quality=95)
    (tmp_path / "a.jpg").write_bytes(data)
    got = decode_image(data, None)
    np.testing.assert_array_equal(got[..., ::-1], cv2.imread(str(tmp_path / "a.jpg")))
    assert np.abs(got.astype(int) - np.rot90(smooth(), -1)).mean() < 4
    monkeypatch.setattr(images.cv2, "imdecode", lambda *_: None)
    assert np.abs(decode_image(data, None).astype(int) - np.rot90(smooth(), -1)).mean() < 4


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_never_a_image(file_format: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(whole, file_format)
    # Older OpenCV gives a half-grey image for such a file instead of none.
    monkeypatch.setattr(images.cv2, "imdecode", lambda *_: np.full((64, 64, 3), 128, np.uint8))
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UnreadableImage, match=r"cut off|damaged"):
        decode_image(data[: int(len(data) * share)], None)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_bytes_after_the_end_do_not_spoil_a_image() -> None:
    np.testing.assert_array_equal(decode_image(encoded(smooth(), "PNG") + b"\0" * 500, None), smooth())
    data = encoded(smooth(), "JPEG")
    np.testing.assert_array_equal(decode_image(data + b"trailer", None), decode_image(data, None))


@pytest.mark.parametrize(
    "data", [b"not an image at all" * 20, b"\0" * 5000, b"<html>404</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_what_is_no_image_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(UnreadableImage, match="not an image"):
        decode_image(data, None)


def test_an_empty_file() -> None:
    with pytest.raises(UnreadableImage, match="empty"):
        decode_image(b"", 224)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims that size, as a decompression bomb does."""
    return beginning(width, height) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "size", [(10_001, 10_000), (100_000, 1), (1, 32_769), (60_000, 60_000), (2**31 - 1, 2**31 - 1)]
)
def test_size_is_refused_before_decoding(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: object) -> None:
        raise AssertionError("decoded before its size was judged")

    monkeypatch.setattr(images.cv2, "imdecode", decoded)
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    with pytest.raises(UnreadableImage, match="megapixels"):
        decode_image(png_claiming(*size), 224)


def test_any_damage_ends_in_a_image_or_a_reason() -> None:
    rng = np.random.default_rng(2)
    sources = [encoded(smooth(24, 24), file_format) for file_format in FORMATS]
    reasons = whole = 0
    for case in range(600):
        data = bytearray(sources[case % len(sources)])
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(len(data))] = rng.integers(256)
        try:
            image = decode_image(bytes(data), 16)
        except UnreadableImage as reason:
            reasons += str(reason).isprintable()  # not so: the sum below falls short
        else:
            whole += image.shape == (16, 16, 3) and image.dtype == np.uint8
    assert reasons + whole == 600
    assert reasons > 50


def test_files_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, reason in [
        (tmp_path / "none.png", "no such file"),
        (tmp_path, "folder"),
        (tmp_path / "pipe", "pipe"),
        (Path("/dev/zero"), "device"),
        ("a\0b.png", "cannot be opened"),
        ("\ud800.png", "cannot be opened"),
        ("x" * 5000, "cannot be read"),
    ]:
        with pytest.raises(UnreadableImage, match=reason):
            read_file(str(path))
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(images.MAX_FILE_BYTES + 1)
    with pytest.raises(UnreadableImage, match="more than"):
        read_file(str(tmp_path / "huge.png"))


def test_permission_is_a_reason_and_a_machine_at_its_limit_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(code: int) -> Any:
        def fail(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        return fail

    (tmp_path / "a.png").write_bytes(b"x")
    monkeypatch.setattr("builtins.open", failing(errno.EACCES))
    with pytest.raises(UnreadableImage, match="Permission denied"):
        read_file(str(tmp_path / "a.png"))
    monkeypatch.setattr("builtins.open", failing(errno.EMFILE))
    with pytest.raises(OSError, match="Too many open files"):
        read_file(str(tmp_path / "a.png"))


def frame_with(tmp_path: Path, folder: str, name: str) -> tuple[str, Path]:
    (tmp_path / folder / "v").mkdir(parents=True)
    return str(tmp_path / "frames" / "v" / "000.png"), tmp_path / folder / "v" / name


def test_mask_beside_a_frame(tmp_path: Path) -> None:
    frame, path = frame_with(tmp_path, "masks", "000.png")
    assert read_mask(frame, 8) is None
    stored = np.zeros((4, 4), np.uint8)
    stored[1, 2], stored[3, 0], stored[0, 0] = 255, 128, 127
    cv2.imwrite(str(path), stored)
    expected = np.kron(stored > 127, np.ones((2, 2), np.uint8))
    got = read_mask(frame, 8)
    assert got is not None
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)
    cv2.imwrite(str(path), (stored > 127).astype(np.uint8))  # written as 0 and 1
    np.testing.assert_array_equal(read_mask(frame, 8), expected)
    path.write_bytes(b"")
    with pytest.raises(UnreadableImage, match="empty"):
        read_mask(frame, 8)


def test_landmarks_beside_a_frame(tmp_path: Path) -> None:
    frame, path = frame_with(tmp_path, "landmarks", "000.npy")
    assert read_landmarks(frame) is None
    points = np.random.default_rng(0).integers(0, 256, (81, 2))
    for stored in (points, points.astype(np.float64), points.astype(np.uint32)):
        np.save(path, stored)
        got = read_landmarks(frame)
        assert got is not None
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, points)


@pytest.mark.parametrize(
    "bad", [np.zeros((68, 2)), np.full((81, 2), np.nan), np.full((81, 2), "a"), np.zeros((81, 2), object)]
)
def test_landmarks_of_another_kind(tmp_path: Path, bad: np.ndarray) -> None:
    frame, path = frame_with(tmp_path, "landmarks", "000.npy")
    np.save(path, bad, allow_pickle=True)
    with pytest.raises(UnreadableImage, match=r"landmarks|NumPy"):
        read_landmarks(frame)


@pytest.mark.parametrize("bad", [b"", b"rubbish", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f8'"])
def test_landmarks_that_are_no_array(tmp_path: Path, bad: bytes) -> None:
    frame, path = frame_with(tmp_path, "landmarks", "000.npy")
    path.write_bytes(bad)
    with pytest.raises(UnreadableImage, match="NumPy"):
        read_landmarks(frame)


def header(shape: str, kind: str = "'<f8'", version: int = 1) -> bytes:
    """The header of a `.npy` file, written by the format's own description."""
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        header("(4000000000, 2)"), header("(81, 2, 1000000000)"), header("(81, 2)", "'<U1000000000'"),
        header("(81, 2)", "'|O'") + b"x" * 1296, header("(81, 2)", "[('a', '<f8')]") + b"x" * 1296,
        header("(81, 2)") + b"x" * 1295, header("(-81, 2)"), header("(" * 3000 + "81, 2"), header("(81, 2)", version=2)[:-9],
        header("(81, 2)") + b"x" * 70_000, b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", b"PK\x03\x04" + b"x" * 100,
    ],
)  # fmt: skip
def test_landmark_files_that_promise_what_they_do_not_hold(tmp_path: Path, data: bytes) -> None:
    frame, path = frame_with(tmp_path, "landmarks", "000.npy")
    path.write_bytes(data)
    start = time.process_time()
    with pytest.raises(UnreadableImage):
        read_landmarks(frame)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30, -1e8, 1e300])
def test_one_number_that_no_image_has_refuses_all_landmarks(tmp_path: Path, bad: float) -> None:
    frame, path = frame_with(tmp_path, "landmarks", "000.npy")
    points = np.random.default_rng(0).uniform(10, 50, (81, 2))
    points[40, 0] = bad
    np.save(path, points)
    with pytest.raises(UnreadableImage, match="landmarks that no image can have"):
        read_landmarks(frame)


def test_landmarks_by_column_and_of_the_second_version(tmp_path: Path) -> None:
    frame, path = frame_with(tmp_path, "landmarks", "000.npy")
    points = np.random.default_rng(0).uniform(10, 50, (81, 2)).astype(np.float32)
    np.save(path, np.asfortranarray(points))
    np.testing.assert_array_equal(read_landmarks(frame), points)
    path.write_bytes(header("(81, 2)", "'<f4'", version=2) + points.tobytes())
    np.testing.assert_array_equal(read_landmarks(frame), points)


def test_points_are_shares_of_the_image_and_a_faces(tmp_path: Path) -> None:
    frame, path = frame_with(tmp_path, "landmarks", "000.npy")
    Path(frame).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(frame, np.zeros((50, 200, 3), np.uint8))
    points = np.random.default_rng(0).uniform(0, 50, (81, 2))
    np.save(path, points)
    shares = face_points(frame)
    assert shares is not None and np.abs(shares - points / np.array([200.0, 50.0])).max() < 1e-6
    points[3] = 250, 60  # a little beside the image, as an ear may be
    np.save(path, points)
    assert face_points(frame) is not None
    for far in ((450, 20), (20, 5000)):
        points[3] = far
        np.save(path, points)
        with pytest.raises(UnreadableImage, match="do not form a face in this image"):
            face_points(frame)
    np.save(path, np.full((81, 2), 20.0))
    with pytest.raises(UnreadableImage, match="do not form a face in this image"):
        face_points(frame)


@pytest.mark.parametrize("orientation", range(10))  # 1 to 8 have a meaning
def test_the_size_is_that_of_the_upright_image(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(40, 90), "JPEG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert image_size(data) == upright.size and decode_image(data, None).shape == np.asarray(upright).shape
    assert image_size(encoded(smooth(40, 90), "PNG")) == (90, 40)


def jpeg_part(mark: int, body: bytes) -> bytes:
    return b"\xff" + bytes([mark]) + struct.pack(">H", len(body) + 2) + body


def many_scans(side: int, scans: int) -> bytes:
    """A grey progressive JPEG: one scan of means, then scans that say of all blocks that nothing follows.

    The codes are of one bit: 0 for "no difference" and for a run of 2^14 empty blocks, whose 14 bits come after it.
    """
    blocks = ((side + 7) // 8) ** 2
    runs, left = "", blocks
    while left > 0:
        run = max(16_384, min(left, 32_767))
        runs, left = runs + "0" + format(run - 16_384, "014b"), left - run

    def packed(bits: str) -> bytes:
        bits += "1" * (-len(bits) % 8)
        return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")

    start = jpeg_part(0xDB, b"\0" + b"\1" * 64)
    start += jpeg_part(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    start += jpeg_part(0xC4, b"\0\1" + b"\0" * 16) + jpeg_part(0xC4, b"\x10\1" + b"\0" * 15 + b"\xe0")
    first = jpeg_part(0xDA, b"\1\1\0\0\0\0") + packed("0" * blocks)
    return b"\xff\xd8" + start + first + (jpeg_part(0xDA, b"\1\1\0\1\x3f\0") + packed(runs)) * (scans - 1) + b"\xff\xd9"


def test_a_jpeg_of_a_thousand_scans_is_refused_before_it_is_decoded() -> None:
    assert decode_image(many_scans(64, 100), None).shape == (64, 64, 3)
    start = time.process_time()
    with pytest.raises(UnreadableImage, match="more than 100 scans"):
        decode_image(many_scans(10_000, 1_000), None)
    assert time.process_time() - start < 0.5


def test_scans_are_counted_as_the_encoder_has_made_them() -> None:
    """libjpeg's own plan for a progressive image has ten scans, six if it is grey; other parts may hold the marker."""
    assert jpeg_scans(encoded(smooth(), "JPEG")) == 1
    assert jpeg_scans(encoded(smooth(), "JPEG", progressive=True)) == 10
    assert jpeg_scans(encoded(Image.fromarray(smooth()).convert("L"), "JPEG", progressive=True)) == 6
    commented = encoded(smooth(), "JPEG", progressive=True, comment=b"\xff\xda\0\2" * 500)
    assert jpeg_scans(commented) == 10 and decode_image(commented, 50).shape == (50, 50, 3)
    assert jpeg_scans(many_scans(64, 37)) == 37


def test_a_missing_folder_is_another_reason_than_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="^no such file"):
        read_file(str(tmp_path / "gone.png"))
    with pytest.raises(UnreadableImage, match="^no such folder"):
        read_file(str(tmp_path / "gone" / "0.png"))


def test_avif_is_decoded_and_heic_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against Pillow's own pixels; a HEIC file is told by its brand, before any decoder sees it."""
    image = Image.fromarray(np.full((24, 32, 3), (200, 90, 40), dtype=np.uint8))
    packed = io.BytesIO()
    image.save(packed, "AVIF", quality=95)
    assert np.abs(decode_image(packed.getvalue(), None).astype(int) - np.asarray(image)).max() <= 4
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    heic = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(200)
    with pytest.raises(UnreadableImage, match="a HEIC image, which needs the package pillow-heif: pip install"):
        decode_image(heic, None)
