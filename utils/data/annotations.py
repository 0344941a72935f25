"""Files beside a frame: the mask of its forged region and the landmarks of its face."""

from __future__ import annotations

import io

import cv2
import numpy as np

from utils.data.frame_paths import landmark_path, mask_path
from utils.data.images import UnreadableImage, decode_image
from utils.data.storage import in_lmdb, is_there, read_bytes

NUM_LANDMARKS = 81


def read_mask(frame_path: str, size: int) -> np.ndarray | None:
    """The forged region of a frame: uint8 (size, size), 1 forged and 0 not, resized to the nearest pixel.

    None where there is no mask file beside it. Raises UnreadableImage where the file is there and is no image.
    """
    path = mask_path(frame_path)
    return read_mask_file(path, size) if is_there(path) else None


def read_mask_file(path: str, size: int) -> np.ndarray:
    """As `read_mask`, from the mask's own path.

    A pixel is forged where its brightest channel is above 127, or, in a file that holds nothing above 1, where it is 1.
    """
    grey = decode_image(read_bytes(path), None).max(axis=2)  # some masks of FaceForensics++ are coloured
    forged = (grey > (127 if grey.max() > 1 else 0)).astype(np.uint8)
    return cv2.resize(forged, (size, size), interpolation=cv2.INTER_NEAREST)


def read_landmarks(frame_path: str) -> np.ndarray | None:
    """The landmarks of a frame: float32 (81, 2), x and y in pixels of the stored (not resized) face crop.

    None where there is no landmark file. Raises UnreadableImage where it holds anything but 81 finite points.
    """
    path = landmark_path(frame_path)
    if not is_there(path):
        return None
    data = read_bytes(path)
    if in_lmdb(path):  # there the bare numbers are stored, without the header of a .npy file
        return _points_from_lmdb(data, path)
    try:
        points = np.load(io.BytesIO(data), allow_pickle=False)
    # A damaged header ends in ValueError, EOFError, SyntaxError, BadZipFile or a vast allocation.
    except Exception as error:
        raise UnreadableImage(f"not a NumPy array file: {path!r}") from error
    if not isinstance(points, np.ndarray) or points.shape != (NUM_LANDMARKS, 2) or points.dtype.kind not in "fiu":
        found = f"{points.dtype} {points.shape}" if isinstance(points, np.ndarray) else "an archive of arrays"
        raise UnreadableImage(f"landmarks must be {NUM_LANDMARKS} points (81, 2), found {found}: {path!r}")
    landmarks = points.astype(np.float32)
    if not np.isfinite(landmarks).all():
        raise UnreadableImage(f"landmarks that are not finite numbers: {path!r}")
    return landmarks


def _points_from_lmdb(data: bytes, path: str) -> np.ndarray:
    """Landmarks as the host reads them: unsigned 32-bit numbers, two a point. Raises UnreadableImage."""
    if len(data) != NUM_LANDMARKS * 2 * 4:
        raise UnreadableImage(f"landmarks must be {NUM_LANDMARKS * 2} numbers of 4 bytes, found {len(data)}: {path!r}")
    return np.frombuffer(data, np.uint32).reshape(NUM_LANDMARKS, 2).astype(np.float32)
