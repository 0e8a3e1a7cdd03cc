"""The one reader of a guest's packets: what it returns is of a known form, with numbers in known bounds.

xpra has parsed the encoding (rencode, zlib) and hands over lists of anything. What is not exactly as an xpra 3.1
server of this project's guests sends it is dropped: a packet is returned anew, field by field, with nothing more in
it. Pure, and of the standard library alone, as it runs in the sandbox.
"""

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence

from crannog.display.forwarder_fields import (
    NUMBER_MAX,
    PLACE_MAX,
    RefusedError,
    read_mapping,
    read_number,
    read_place,
    read_sequence,
    read_size,
    read_window,
    read_word,
)
from crannog.display.forwarder_hello import read_hello
from crannog.display.forwarder_rules import AREA_MAX, CURSOR_MAX, SIDE_MAX

DATA_MAX = 4 * AREA_MAX
"""Bytes of pixels, inflated, of one window."""
INTERNAL = frozenset({"connection-lost", "gibberish", "invalid"})
"""Packets that the client makes for itself: each ends it, so a guest may send them as well."""
ENCODINGS = frozenset({"rgb24", "rgb32", "png", "png/L", "png/P"})
FORMATS = frozenset({"RGB", "RGBX", "RGBA", "BGR", "BGRX", "BGRA"})
_PNG = b"\x89PNG\r\n\x1a\n"


def read_packet(untrusted_packet: object) -> list[object] | None:
    """Return a packet of a known form, with its type as a word; None for anything else."""
    try:
        fields = read_sequence(untrusted_packet, 1, 16)
        kind = read_word(fields[0])
        if kind in INTERNAL:
            return [kind, "nonsense", b""]
        return [kind, *READERS[kind](fields[1:])]
    except (KeyError, RefusedError):
        return None


def inflate(data: bytes, size_max: int = DATA_MAX) -> bytes:
    """Return what zlib data hold. Raises RefusedError when that is not zlib's, or more than `size_max` bytes."""
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(data, size_max + 1)
    except zlib.error as error:
        raise RefusedError(str(error)) from None
    if len(inflated) > size_max or not inflater.eof:
        raise RefusedError("too much, or cut off")
    return inflated


def measure_cost(packet: Sequence[object]) -> int:
    """Return how many bytes a `draw` packet takes until it is on the screen, at most."""
    width, height, data = packet[4], packet[5], packet[7]
    pixels = width * height * 4 if isinstance(width, int) and isinstance(height, int) else 0
    return pixels + (len(data) if isinstance(data, bytes) else 0)


def _read_nothing(_fields: Sequence[object]) -> list[object]:
    return []


def _read_new_window(fields: Sequence[object]) -> list[object]:
    window, x, y, width, height, metadata = read_sequence(
        fields[:6], 6, 6
    )  # wishes such as another workspace come after
    return [read_window(window), read_place(x), read_place(y), *read_size(width, height), read_mapping(metadata)]


def _read_geometry(fields: Sequence[object]) -> list[object]:
    window, x, y, width, height = read_sequence(fields[:5], 5, 5)
    return [read_window(window), read_place(x), read_place(y), *read_size(width, height), *_counter(fields[5:])]


def _read_resized(fields: Sequence[object]) -> list[object]:
    window, width, height = read_sequence(fields[:3], 3, 3)
    return [read_window(window), *read_size(width, height), *_counter(fields[3:])]


def _counter(fields: Sequence[object]) -> list[object]:
    return [read_number(fields[0], -1, NUMBER_MAX)] if fields else []


def _read_metadata(fields: Sequence[object]) -> list[object]:
    window, metadata = read_sequence(fields[:2], 2, 2)
    return [read_window(window), read_mapping(metadata)]


def _read_window_alone(fields: Sequence[object]) -> list[object]:
    return [read_window(read_sequence(fields[:1], 1, 1)[0])]


def _read_ping(fields: Sequence[object]) -> list[object]:
    """Return the time of a ping; the number of its source, which a server may add, is no field of ours."""
    return [read_number(read_sequence(fields[:1], 1, 1)[0], 0, NUMBER_MAX)]


def _read_echo(fields: Sequence[object]) -> list[object]:
    numbers = read_sequence(fields[:5], 5, 5)
    return [read_number(number, -1, NUMBER_MAX) for number in numbers]


def _read_desktop(fields: Sequence[object]) -> list[object]:
    return [read_number(number, 1, PLACE_MAX) for number in read_sequence(fields[:4], 4, 4)]


def _read_draw(fields: Sequence[object]) -> list[object]:
    window, x, y, width, height, coding, data, sequence, stride = read_sequence(fields[:9], 9, 9)
    wide, high = read_size(width, height)
    word, options = read_word(coding), _read_options(fields[9] if len(fields) > 9 else {})
    if word not in ENCODINGS or not isinstance(data, bytes):
        raise RefusedError("a picture")
    read = _read_pixels if word.startswith("rgb") else _read_png
    numbers = [read_window(window), read_place(x), read_place(y), wide, high]
    data, row = read(word, data, (read_number(wide, 1, SIDE_MAX), read_number(high, 1, SIDE_MAX)), stride, options)
    return [*numbers, word, data, read_number(sequence, 0, NUMBER_MAX), row, options]


def _read_options(value: object) -> dict[bytes, object]:
    """Return the options of a picture that are heeded."""
    given = {read_word(key): option for key, option in read_mapping(value).items()}
    if read_number(given.get("delta", -1), -1, NUMBER_MAX) >= 0:
        raise RefusedError("a difference to what nobody keeps")
    options: dict[bytes, object] = {}
    for key, least, most in (("zlib", 0, 9), ("transparency", -1, 255), ("flush", 0, NUMBER_MAX)):
        if key in given:
            options[key.encode()] = read_number(given[key], least, most)
    if "rgb_format" in given:
        options[b"rgb_format"] = _format(given["rgb_format"]).encode()
    if "window-size" in given:
        options[b"window-size"] = tuple(read_size(*read_sequence(given["window-size"], 2, 2)))
    return options


def _format(value: object) -> str:
    word = read_word(value)
    if word not in FORMATS:
        raise RefusedError("a pixel format")
    return word


def _read_pixels(
    coding: str, data: bytes, size: tuple[int, int], stride: object, options: dict[bytes, object]
) -> tuple[bytes, int]:
    """Return the pixels, inflated, and the bytes of a row: as many of them as the picture's size says."""
    default = "RGB" if coding == "rgb24" else "RGBX"
    format_ = options.get(b"rgb_format", default.encode())
    row = size[0] * (len(format_) if isinstance(format_, bytes) else 4)
    given = read_number(stride, 0, 2 * PLACE_MAX * 4) or row
    if given < row or given * size[1] > 2 * DATA_MAX:
        raise RefusedError("a row")
    pixels = inflate(data, given * size[1]) if options.pop(b"zlib", 0) else data
    if len(pixels) != given * size[1]:
        raise RefusedError("pixels")
    return pixels, given


def _read_png(
    _coding: str, data: bytes, size: tuple[int, int], stride: object, options: dict[bytes, object]
) -> tuple[bytes, int]:
    """Return a PNG whose own size is the one that was told."""
    options.pop(b"zlib", None)
    check_png(data, size)
    return data, read_number(stride, 0, 2 * PLACE_MAX * 4)


def check_png(data: bytes, size: tuple[int, int]) -> None:
    """Raise RefusedError unless data begin as a PNG of this width and height (PNG specification, 5.2 and 11.2.2)."""
    if len(data) < 33 or data[:8] != _PNG or data[12:16] != b"IHDR" or struct.unpack(">II", data[16:24]) != size:
        raise RefusedError("a PNG")


def _read_cursor(fields: Sequence[object]) -> list[object]:
    """Return the fields of a cursor: its encoding, x, y, width, height, hot spot, serial, pixels, name, sizes."""
    if len(fields) <= 1:
        return [""]
    is_named = isinstance(fields[0], str | bytes)
    coding = read_word(fields[0]) if is_named else "raw"
    x, y, width, height, hot_x, hot_y, serial, data = read_sequence(fields[is_named : 8 + is_named], 8, 8)
    size = (read_number(width, 1, CURSOR_MAX), read_number(height, 1, CURSOR_MAX))
    if not isinstance(data, bytes) or len(data) > 8 * CURSOR_MAX * CURSOR_MAX:
        raise RefusedError("a cursor")
    if coding == "png":
        check_png(data, size)
    elif coding != "raw" or len(data) != 4 * size[0] * size[1]:
        raise RefusedError("a cursor")
    hot = [read_number(hot_x, 0, CURSOR_MAX), read_number(hot_y, 0, CURSOR_MAX)]
    name = [read_word(word) for word in fields[8 + is_named : 9 + is_named]]
    return [coding, read_place(x), read_place(y), *size, *hot, read_number(serial, 0, NUMBER_MAX), data, *name]


READERS: Mapping[str, Callable[[Sequence[object]], list[object]]] = {
    "configure-override-redirect": _read_geometry,
    "cursor": _read_cursor,
    "desktop_size": _read_desktop,
    "disconnect": lambda _reasons: ["the guest ends it"],
    "draw": _read_draw,
    "eos": _read_window_alone,
    "hello": lambda fields: [read_hello(read_sequence(fields, 1, 8)[0])],
    "lost-window": _read_window_alone,
    "new-override-redirect": _read_new_window,
    "new-window": _read_new_window,
    "ping": _read_ping,
    "ping_echo": _read_echo,
    "startup-complete": _read_nothing,
    "window-metadata": _read_metadata,
    "window-move-resize": _read_geometry,
    "window-resized": _read_resized,
}
"""The packets that show windows, and those that a connection needs; there is no other for this client."""
