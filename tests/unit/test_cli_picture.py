"""Pictures of screens as PNG."""

import struct
import zlib

import pytest

from crannog.cli.picture import PNG, as_png
from crannog.errors import HypervisorError

RED, BLUE = b"\xff\0\0", b"\0\0\xff"


def chunks(picture: bytes) -> dict[bytes, bytes]:
    """Return the chunks of a PNG by their kinds, after checking them (RFC 2083, section 3)."""
    assert picture.startswith(PNG)
    at, found = len(PNG), {}
    while at < len(picture):
        length, kind = struct.unpack_from(">I4s", picture, at)
        data = picture[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", picture, at + 8 + length) == (zlib.crc32(kind + data),)
        found[kind] = data
        at += 12 + length
    return found


def test_each_pixel_is_where_it_was() -> None:
    found = chunks(as_png(b"P6\n2 3\n255\n" + RED + BLUE + BLUE + RED + RED + RED))
    assert struct.unpack(">IIBBBBB", found[b"IHDR"]) == (2, 3, 8, 2, 0, 0, 0)
    assert zlib.decompress(found[b"IDAT"]) == b"\0" + RED + BLUE + b"\0" + BLUE + RED + b"\0" + RED + RED
    assert list(found) == [b"IHDR", b"IDAT", b"IEND"]


def test_comments_and_other_white_space() -> None:
    assert as_png(b"P6 # made by a hypervisor\n1\t1 255 " + RED) == as_png(b"P6\n1 1\n255\n" + RED)


def test_what_is_png_stays_as_it_is() -> None:
    assert as_png(PNG + b"whatever") == PNG + b"whatever"


@pytest.mark.parametrize(
    "picture",
    [
        b"", b"P5\n1 1\n255\n" + RED, b"P6\n1 1\n65535\n" + RED, b"P6\n0 1\n255\n", b"P6\n99999 99999\n255\n" + RED,
        b"P6\n2 2\n255\n" + RED, b"P6\n-1 1\n255\n" + RED, b"GIF89a", b"P6\n100000 1\n255\n" + RED,
    ],
)  # fmt: skip
def test_anything_else_is_refused(picture: bytes) -> None:
    with pytest.raises(HypervisorError, match="the picture of the screen is"):
        as_png(picture)
