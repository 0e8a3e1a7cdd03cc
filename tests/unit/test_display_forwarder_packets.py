"""What the client in the sandbox reads of a guest's packets."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.display.forwarder_fields import RefusedError, read_number
from crannog.display.forwarder_hello import read_hello, tell_guest
from crannog.display.forwarder_packets import DATA_MAX, INTERNAL, READERS, inflate, measure_cost, read_packet
from crannog.display.forwarder_rules import AREA_MAX, SIDE_MAX

PIXELS = b"\x40\x80\xc0" * 400
HELLO: dict[object, object] = {
    b"version": b"3.1.3",
    b"rencode": True,
    b"clipboard": True,
    b"mmap_enabled": True,
    b"desktop_size": (800, 600),
}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=40) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.binary() | st.integers(), inner, max_size=5),
    max_leaves=20,
)


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", width, height, 8, 2, 0, 0, 0, 0)


def draw(coding: object, data: object, stride: object = 60, **more: object) -> object:
    """Return what is read of a picture of 20 x 20 pixels."""
    options = {key.encode(): value for key, value in more.items()}
    return read_packet([b"draw", 1, 0, 0, 20, 20, coding, data, 7, stride, options])


def test_no_packet_reaches_for_more_than_windows() -> None:
    reaching = {"send-file", "open-url", "notify_show", "new-tray", "control", "setting-change", "clipboard-token"}
    reaching |= {"pointer-grab", "bell", "sound-data", "window-icon", "start-command", "challenge", "info-response"}
    assert not reaching & {*READERS, *INTERNAL}
    assert [read_packet([kind, 1, 2, 3]) for kind in reaching] == [None] * len(reaching)


@given(st.sampled_from([*READERS, *INTERNAL]), st.lists(values, max_size=14))
def test_whatever_comes_is_read_or_dropped(kind: str, fields: list[object]) -> None:
    for packet in ([kind, *fields], [kind.encode(), *fields], fields):
        read = read_packet(packet)
        assert read is None or read[0] in READERS or read[0] in INTERNAL


@given(values)
def test_what_is_no_packet_is_dropped(value: object) -> None:
    assert read_packet(value) is None or isinstance(value, list)


def test_windows_are_read_field_by_field() -> None:
    packet = [b"new-window", 3, -5, 7, 484, 316, {b"title": b"x"}, {b"workspace": 4}]
    assert read_packet(packet) == ["new-window", 3, -5, 7, 484, 316, {b"title": b"x"}]
    assert read_packet(["window-move-resize", 3, 1, 2, 0, 0, 9, "more"]) == ["window-move-resize", 3, 1, 2, 1, 1, 9]
    assert read_packet(["lost-window", 3, 4]) == ["lost-window", 3]
    assert read_packet(["startup-complete", "uuid"]) == ["startup-complete"]


@pytest.mark.parametrize(
    "fields",
    [
        (1, 0, 0, SIDE_MAX + 1, 1),
        (1, 0, 0, -1, 1),
        (1, 0, 0, 16000, AREA_MAX // 16000 + 1),
        (1, 0, 0, 1 << 31, 1 << 31),
        (1, 1 << 31, 0, 5, 5),
        (0, 0, 0, 5, 5),
        (True, 0, 0, 5, 5),
        ("1", 0, 0, 5, 5),
        (1, 0.0, 0, 5, 5),
        (1, 0, 0, 5),
    ],
)
def test_windows_that_cannot_be_are_dropped(fields: tuple[object, ...]) -> None:
    for kind in ("new-window", "new-override-redirect"):
        assert read_packet([kind, *fields, {}]) is None
    assert read_packet(["configure-override-redirect", *fields]) is None


def test_pictures_have_the_size_that_they_say() -> None:
    expected = ["draw", 1, 0, 0, 20, 20, "rgb24", PIXELS, 7, 60, {}]
    assert draw(b"rgb24", PIXELS) == expected
    assert draw("rgb24", PIXELS, 0) == expected
    assert draw("rgb24", zlib.compress(PIXELS), zlib=1) == expected
    assert draw("rgb32", PIXELS + bytes(400), 80, rgb_format=b"BGRX")
    assert draw("png", png(20, 20), 0)
    assert measure_cost(expected) == 20 * 20 * 4 + len(PIXELS)


@pytest.mark.parametrize(
    ("coding", "data", "stride", "more"),
    [
        ("rgb24", PIXELS[:-1], 60, {}),
        ("rgb24", PIXELS, 59, {}),
        ("rgb24", PIXELS, -60, {}),
        ("rgb24", PIXELS, 1 << 40, {}),
        ("rgb32", PIXELS, 60, {}),
        ("rgb24", PIXELS, 60, {"rgb_format": "r210"}),
        ("rgb24", PIXELS, 60, {"delta": 3}),
        ("rgb24", zlib.compress(bytes(1 << 20)), 60, {"zlib": 1}),
        ("rgb24", zlib.compress(PIXELS)[:-6], 60, {"zlib": 1}),
        ("rgb24", PIXELS, 60, {"zlib": 1}),
        ("rgb24", "text", 60, {}),
        ("mmap", [[0, 1]], 60, {}),
        ("webp", PIXELS, 60, {}),
        ("jpeg", PIXELS, 60, {}),
        ("scroll", PIXELS, 60, {}),
        ("png", png(20, 21), 0, {}),
        ("png", png(60000, 60000), 0, {}),
        ("png", PIXELS, 0, {}),
        ("png", b"", 0, {}),
    ],
)
def test_other_pictures_are_dropped(coding: str, data: object, stride: int, more: dict[str, object]) -> None:
    assert draw(coding, data, stride, **more) is None


def test_pictures_keep_nothing_for_later() -> None:
    read = draw("rgb24", PIXELS, store=4, bucket=1, lz4=1, flush=0)
    assert isinstance(read, list)
    assert read[-1] == {b"flush": 0}


def test_cursors() -> None:
    pixels = bytes(4 * 64 * 64)
    assert read_packet(["cursor", b""]) == ["cursor", ""]
    read = read_packet(["cursor", b"raw", 0, 0, 64, 64, 1, 2, 9, pixels, b"xterm", 24, (64, 64)])
    assert read == ["cursor", "raw", 0, 0, 64, 64, 1, 2, 9, pixels, "xterm"]
    assert read_packet(["cursor", 0, 0, 64, 64, 1, 2, 9, pixels]) == ["cursor", "raw", 0, 0, 64, 64, 1, 2, 9, pixels]
    assert read_packet(["cursor", "png", 0, 0, 16, 16, 1, 2, 9, png(16, 16)])
    assert read_packet(["cursor", "png", 0, 0, 16, 16, 1, 2, 9, png(16000, 16)]) is None
    assert read_packet(["cursor", "raw", 0, 0, 65, 64, 1, 2, 9, pixels]) is None
    assert read_packet(["cursor", "raw", 0, 0, 64, 64, 1, 2, 9, pixels[1:]]) is None
    assert read_packet(["cursor", "raw", 0, 0, 64, 64, 1, 2, 9]) is None


def test_nothing_is_inflated_beyond_its_bounds() -> None:
    assert inflate(zlib.compress(b"x" * 100), 100) == b"x" * 100
    with pytest.raises(RefusedError):
        inflate(zlib.compress(b"x" * 101), 100)
    with pytest.raises(RefusedError):
        inflate(b"nonsense")
    assert DATA_MAX == 4 * AREA_MAX


def test_of_a_hello_what_windows_need_is_believed() -> None:
    assert read_hello(HELLO) == {
        b"version": b"3.1.3",
        b"platform": b"linux",
        b"rencode": True,
        b"desktop_size": (800, 600),
    }
    assert read_packet(["hello", {**HELLO, b"version": b"x" * 1000}]) is None
    assert read_packet(["hello", {**HELLO, b"desktop_size": (1 << 40, 1)}]) is None
    assert read_packet(["hello", {n: n for n in range(5000)}]) is None
    assert read_packet(["hello"]) is None


def test_a_guest_is_told_no_more_than_it_needs() -> None:
    host: dict[object, object] = {
        b"hostname": b"h",
        "platform.release": "6",
        "build.cpu": "x",
        "theme.default.icons": (),
        "uuid": "1",
    }
    needed: dict[object, object] = {
        "version": "3.1.3",
        "screen_sizes": (),
        b"xkbmap_layout": b"us",
        "window.min-size": (0, 0),
    }
    assert tell_guest({**host, **needed}) == needed


def test_numbers_are_whole() -> None:
    assert read_number(5, 5, 5) == 5
    for value in (4, 6, True, 5.0, "5", None):
        with pytest.raises(RefusedError):
            read_number(value, 5, 5)
