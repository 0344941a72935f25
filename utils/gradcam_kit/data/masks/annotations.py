"""A frame's own files: the mask of its forged region and the landmarks of its face."""

from __future__ import annotations

import io

import cv2
import numpy as np

from ...base.text import shortened
from ..frame_paths import in_lmdb, is_there, landmark_path, mask_path, read_bytes
from ..images import MAX_SIDE, UnreadableImage, decode_image, image_size

NUM_LANDMARKS = 81
MAX_LANDMARK_BYTES = 64 * 1024  # 81 points take 2.6 kB at most, a header 10 kB


def read_mask(frame_path: str, size: int) -> np.ndarray | None:
    """Read a frame's forged region: uint8 (size, size), 1 forged, 0 not, resized to the nearest pixel.

    Returns None if it has no mask file. Raises UnreadableImage if the file is not an image.
    """
    path = mask_path(frame_path)
    return read_mask_file(path, size) if is_there(path) else None


def read_mask_file(path: str, size: int) -> np.ndarray:
    """Read a mask file: uint8 (size, size), 1 forged, 0 not, resized to the nearest pixel. Raises UnreadableImage.

    A pixel is forged if its brightest channel is above 127, or is 1 in a file without larger values.
    """
    grey = decode_image(read_bytes(path), None).max(axis=2)  # some masks of FaceForensics++ are coloured
    forged = (grey > (127 if grey.max() > 1 else 0)).astype(np.uint8)
    return cv2.resize(forged, (size, size), interpolation=cv2.INTER_NEAREST)


def read_landmarks(frame_path: str) -> np.ndarray | None:
    """Read a frame's landmarks: float32 (81, 2), x and y in pixels of the stored (not resized) face crop.

    Returns None if it has no landmark file. Raises UnreadableImage unless the file holds 81 finite points, none farther
    off than ten times the longest side allowed.
    """
    path = landmark_path(frame_path)
    if not is_there(path):
        return None
    # An LMDB stores only the numbers, without the header of a .npy file.
    points = (_points_from_lmdb if in_lmdb(path) else _points_of_npy)(read_bytes(path), path)
    if not (np.abs(points.astype(np.float64)) <= 10 * MAX_SIDE).all():  # NaN is not
        raise UnreadableImage(f"landmarks that no image can have, such as NaN, infinity or 1e30: {path!r}")
    return points.astype(np.float32)


def face_points(frame_path: str) -> np.ndarray | None:
    """Read a frame's landmarks as shares of the image's sides: float32 (81, 2); None if it has no landmark file.

    Raises UnreadableImage if landmarks or image cannot be read, or if the points do not form a face: a single damaged
    number would stretch the outline over the whole image.
    """
    landmarks = read_landmarks(frame_path)
    if landmarks is None:
        return None
    points = landmarks / np.array(image_size(read_bytes(frame_path)), dtype=np.float32)
    # A point may lie up to one image width outside. A smaller extent than 0.01 is one point 81 times.
    if np.abs(points - 0.5).max() > 1.5 or np.ptp(points, axis=0).min() < 0.01:
        raise UnreadableImage(f"landmarks that do not form a face in this image: {landmark_path(frame_path)!r}")
    return points


def _points_of_npy(data: bytes, path: str) -> np.ndarray:
    """Read the array (81, 2) of a `.npy` file. Its header is checked before anything is allocated."""
    if len(data) > MAX_LANDMARK_BYTES:
        raise UnreadableImage(f"{len(data):,} bytes are too many for {NUM_LANDMARKS} landmarks: {path!r}")
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = read_header(file)
    # A damaged header ends in ValueError, EOFError, SyntaxError, TypeError, RecursionError, MemoryError.
    except Exception as error:
        raise UnreadableImage(f"not a NumPy array file: {path!r}") from error
    if shape != (NUM_LANDMARKS, 2) or dtype.kind not in "fiu":
        found = shortened(f"{dtype} {shape}")
        raise UnreadableImage(f"landmarks must be {NUM_LANDMARKS} points (81, 2), found {found}: {path!r}")
    numbers = data[file.tell() :]
    if len(numbers) < NUM_LANDMARKS * 2 * dtype.itemsize:
        raise UnreadableImage(f"the file is cut off: {path!r}")
    points = np.frombuffer(numbers, dtype, NUM_LANDMARKS * 2)
    return points.reshape((NUM_LANDMARKS, 2), order="F" if by_column else "C")


def _points_from_lmdb(data: bytes, path: str) -> np.ndarray:
    """Read landmarks (81, 2) as the host stores them: two unsigned 32-bit numbers per point."""
    if len(data) != NUM_LANDMARKS * 2 * 4:
        raise UnreadableImage(f"landmarks must be {NUM_LANDMARKS * 2} numbers of 4 bytes, found {len(data)}: {path!r}")
    return np.frombuffer(data, np.uint32).reshape(NUM_LANDMARKS, 2)
