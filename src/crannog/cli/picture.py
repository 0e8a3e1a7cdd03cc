"""Pictures of screens as PNG (RFC 2083), whatever the hypervisor made of them."""

import re
import struct
import zlib

from crannog.errors import HypervisorError, ValueRefusedError

PNG = b"\x89PNG\r\n\x1a\n"
SIDE_MAX = 16384
_PPM = re.compile(rb"P6\s(?:#[^\n]*\n)?\s*(\d{1,5})\s+(\d{1,5})\s+255\s", re.DOTALL)


def as_png(picture: bytes) -> bytes:
    """Return the picture of a screen, PPM or PNG, as PNG. Raises HypervisorError for anything else.

    The hypervisor has made it: a PNG is one of its making.
    """
    if picture.startswith(PNG):
        return picture
    try:
        return encode(picture)
    except ValueRefusedError as error:
        raise HypervisorError(f"the picture of the screen is {error}") from error


def encode(untrusted_picture: bytes) -> bytes:
    """Return a PPM (P6, ppm(5)) as PNG, whoever made it. Raises ValueRefusedError with what is wrong with it."""
    match = _PPM.match(untrusted_picture)
    if not match:
        raise ValueRefusedError("no PPM")
    width, height = int(match[1]), int(match[2])
    pixels = memoryview(untrusted_picture)[match.end() :]
    if not 0 < width <= SIDE_MAX or not 0 < height <= SIDE_MAX or len(pixels) < 3 * width * height:
        raise ValueRefusedError(f"damaged: {width} x {height} and {len(pixels)} bytes")
    rows = b"".join(b"\0" + pixels[3 * width * y : 3 * width * (y + 1)] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows, 6)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
