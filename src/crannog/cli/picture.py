"""Pictures of screens as PNG (RFC 2083), whatever the hypervisor made of them."""

import re
import struct
import zlib

from crannog.errors import HypervisorError

PNG = b"\x89PNG\r\n\x1a\n"
SIDE_MAX = 16384
_PPM = re.compile(rb"P6\s(?:#[^\n]*\n)?\s*(\d{1,5})\s+(\d{1,5})\s+255\s", re.DOTALL)


def as_png(untrusted_picture: bytes) -> bytes:
    """Return a PPM (P6, ppm(5)) or PNG picture as PNG. Raises HypervisorError for anything else."""
    if untrusted_picture.startswith(PNG):
        return untrusted_picture
    match = _PPM.match(untrusted_picture)
    if not match:
        raise HypervisorError("the picture of the screen is neither PPM nor PNG")
    width, height = int(match[1]), int(match[2])
    pixels = memoryview(untrusted_picture)[match.end() :]
    if not 0 < width <= SIDE_MAX or not 0 < height <= SIDE_MAX or len(pixels) < 3 * width * height:
        raise HypervisorError(f"the picture of the screen is damaged: {width} x {height} and {len(pixels)} bytes")
    rows = b"".join(b"\0" + pixels[3 * width * y : 3 * width * (y + 1)] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows, 6)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
