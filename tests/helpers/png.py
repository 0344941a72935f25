"""PNG files byte by byte, also such as no program writes."""

from __future__ import annotations

import struct
import zlib


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def beginning(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """Signature and header. `colour`: 0 for grey, 2 for RGB."""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
