"""Decoding of image files into RGB pixels, or a plain reason why one cannot be decoded.

OpenCV decodes, so that a well-formed file gives the same pixels as in the hosts. Pillow reads the header first, so
that the size is checked before decoding; it also checks files that look cut off, and decodes what OpenCV cannot.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ..base.files import kind_of
from ..base.text import one_line

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 100_000_000
MAX_SIDE = 32_768
MAX_FILE_BYTES = 512 * 1024 * 1024

MAX_SCANS = 100  # a progressive JPEG is decoded once per scan, even if the scan is tiny; programs write about ten
# Formats that OpenCV reads too. Pillow knows more, but its EPS reader, for example, starts another program.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
NO_FOLDER = "no such folder"  # the reason begins so if a frame's folder is missing

_END_MARKERS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # not every format has one
# If open() fails with these, the machine is at its limit; the image may be fine.
_MACHINE_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class UnreadableImage(Exception):
    """A file cannot be used as an image, mask or landmarks; the message is the reason."""


def read_file(path: str) -> bytes:
    """Read an ordinary file of at most 512 MiB.

    Raises:
        UnreadableImage: it is missing, larger, not readable or not an ordinary file. The reason begins with NO_FOLDER
            if its folder is missing.
        OSError: the machine is at its limit (too many open files, no memory).
    """
    try:
        info = os.stat(path)  # noqa: PTH116
        if not stat.S_ISREG(info.st_mode):  # reading a pipe or a device might never end
            raise UnreadableImage(f"not a file but a {kind_of(info.st_mode)}: {path!r}")
        if info.st_size > MAX_FILE_BYTES:
            raise UnreadableImage(f"the file has {info.st_size:,} bytes, more than the {MAX_FILE_BYTES:,} allowed")
        with open(path, "rb") as file:  # noqa: PTH123 (a million Path objects would be slow)
            return file.read()
    except FileNotFoundError:
        there = os.path.isdir(os.path.dirname(path) or ".")  # noqa: PTH112, PTH120
        raise UnreadableImage(f"no such file: {path!r}" if there else f"{NO_FOLDER}: {path!r}") from None
    except OSError as error:
        if error.errno in _MACHINE_ERRORS:
            raise
        raise UnreadableImage(f"the file cannot be read ({error.strerror}): {path!r}") from error
    except ValueError as error:  # a NUL or half of a surrogate pair in the path
        raise UnreadableImage(f"the path cannot be opened ({error}): {path!r}") from error


def image_size(data: bytes) -> tuple[int, int]:
    """Return an encoded image's width and height in pixels, its EXIF orientation applied. Raises UnreadableImage."""
    image = _open_header(data)
    # The orientation tag, and its values for quarter turns.
    turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
    return image.size[::-1] if turned else image.size


def decode_image(data: bytes, resolution: int | None) -> np.ndarray:
    """Decode a file's bytes to RGB uint8 (H, W, 3). `resolution`: resize both sides to it by cubic interpolation.

    Greyscale, palette, RGBA (alpha dropped), CMYK and 16-bit (high byte) images become RGB uint8. EXIF orientation is
    applied; an animation yields its first image. The pixels equal those of `cv2.imread`, `cv2.cvtColor(BGR2RGB)`,
    `cv2.resize(INTER_CUBIC)`. Raises UnreadableImage if the data is empty, no image, cut off, damaged, or above 100
    megapixels or 32,768 pixels a side.
    """
    if not data:
        raise UnreadableImage("the file is empty (0 bytes)")
    image = _open_header(data)
    if image.format == "PNG":
        _check_png_chunks(data)
    elif image.format in ("JPEG", "MPO") and jpeg_scans(data) > MAX_SCANS:
        raise UnreadableImage(f"a JPEG of more than {MAX_SCANS} scans, which no camera or program writes")
    end = _END_MARKERS.get(image.format or "")
    if end is None or not data.endswith(end):
        _load_strictly(image)  # older OpenCV silently fills the missing part of such a file with grey
    pixels = _decode_with_opencv(data)
    if pixels is None:
        pixels = _decode_with_pillow(image)
    if resolution is not None:
        pixels = cv2.resize(pixels, (resolution, resolution), interpolation=cv2.INTER_CUBIC)
    return pixels


@contextmanager
def _pillow(problem: str) -> Iterator[None]:
    """Run Pillow without its warnings; any parser error (struct.error, KeyError) becomes an UnreadableImage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (MemoryError, UnreadableImage):
            raise
        except Exception as error:
            raise UnreadableImage(f"{problem} ({one_line(error)})") from error


def _open_header(data: bytes) -> Image:
    """Read format, mode and size from the header and check the size. Decodes no pixel."""
    from PIL import Image, UnidentifiedImageError

    formats = [*FORMATS, *_phone_formats(data)]
    with _pillow("the image's header is damaged"):
        try:
            image = Image.open(io.BytesIO(data), formats=formats)
        except Image.DecompressionBombError as error:
            raise UnreadableImage(f"larger than {MAX_PIXELS // 1_000_000} megapixels by its header") from error
        except UnidentifiedImageError as error:
            raise UnreadableImage(f"not an image: the file begins with {data[:8]!r}") from error
    width, height = image.size
    if width < 1 or height < 1:
        raise UnreadableImage(f"an image of {width}x{height} pixels")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise UnreadableImage(
            f"{width}x{height} pixels by its header, more than the {MAX_PIXELS // 1_000_000} megapixels "
            f"or {MAX_SIDE:,} pixels a side allowed"
        )
    return image


_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def _phone_formats(data: bytes) -> Sequence[str]:
    """Return Pillow's name for the format of an AVIF or HEIC file, else an empty list."""
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    if brand in _AVIF_BRANDS or (brand in (b"mif1", b"msf1") and b"avif" in data[16:64]):
        from PIL import Image, features

        if "avif" not in features.modules or not features.check("avif"):
            raise UnreadableImage("an AVIF image, which this Pillow cannot decode: pip install 'pillow>=11.3'")
        Image.init()
        return ["AVIF"]
    if brand in _HEIC_BRANDS:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise UnreadableImage(
                "a HEIC image, which needs the package pillow-heif: pip install pillow-heif, or save it as JPEG"
            ) from None
        register_heif_opener()
        return ["HEIF"]
    return []


def _check_png_chunks(data: bytes) -> None:
    """Refuse a chunk that claims to be longer than the file: OpenCV would first allocate that much, up to 4 GB."""
    place, kind = 8, b""
    while place + 8 <= len(data) and kind != b"IEND":
        kind = data[place + 4 : place + 8]
        place += 12 + int.from_bytes(data[place : place + 4], "big")
        if place > len(data):
            raise UnreadableImage("the image is cut off or damaged (a part of it claims to be longer than the file)")


_JPEG_MARKER = re.compile(rb"\xff+([^\xff\x00\x01\xd0-\xd8])")  # of a segment, which begins with its length
_END_OF_IMAGE, _START_OF_SCAN = b"\xd9", b"\xda"


def jpeg_scans(data: bytes) -> int:
    """Count the scans of a JPEG's first image without decoding it. Stops above MAX_SCANS."""
    scans = place = 0
    while scans <= MAX_SCANS:
        found = _JPEG_MARKER.search(data, place)
        if found is None or found[1] == _END_OF_IMAGE:
            break
        scans += found[1] == _START_OF_SCAN
        place = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2], "big"))
    return scans


def _load_strictly(image: Image) -> None:
    """Decode completely with Pillow. Raises UnreadableImage if the data ends early, which OpenCV ignores."""
    from PIL import ImageFile

    tolerant = ImageFile.LOAD_TRUNCATED_IMAGES  # training code often switches this on for the whole process
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with _pillow("the image is cut off or damaged"):
            image.load()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant


def _decode_with_opencv(data: bytes) -> np.ndarray | None:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None  # Pillow then decodes the file or gives the reason
    return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _decode_with_pillow(image: Image) -> np.ndarray:
    """Decode what OpenCV could not to RGB uint8 (H, W, 3). Raises UnreadableImage if Pillow cannot either."""
    from PIL import ImageOps

    _load_strictly(image)
    if image.mode in ("F", "I"):
        raise UnreadableImage("32-bit pixels, which have no agreed range")
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):  # Pillow's conversion would clip at 255
        grey = (np.asarray(upright) >> 8).astype(np.uint8)
        return np.ascontiguousarray(np.stack([grey] * 3, axis=-1))
    return np.array(upright.convert("RGB"))
