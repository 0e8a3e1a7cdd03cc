"""Fields of a guest's packets: each function returns a value of a known type in known bounds, or raises RefusedError.

Pure, and of the standard library alone, as it runs in the sandbox.
"""

from crannog.display.forwarder_rules import AREA_MAX, SIDE_MAX

PLACE_MAX = 32767
"""Largest coordinate of an X display (X protocol, section "Events": INT16)."""
NUMBER_MAX = (1 << 63) - 1
WORD_MAX = 64


class RefusedError(ValueError):
    """A packet is none of those that are read."""


def read_number(value: object, least: int, most: int) -> int:
    """Return a whole number from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise RefusedError("a number")
    return int(value)


def read_word(value: object) -> str:
    """Return a short text, whether it came as text or as bytes."""
    text = value.decode("latin-1") if isinstance(value, bytes) and len(value) <= WORD_MAX else value
    if not isinstance(text, str) or len(text) > WORD_MAX:
        raise RefusedError("a word")
    return text


def read_sequence(value: object, least: int, most: int) -> list[object]:
    """Return a list of `least` to `most` values."""
    if not isinstance(value, list | tuple) or not least <= len(value) <= most:
        raise RefusedError("a sequence")
    return list(value)


def read_mapping(value: object, most: int = 256) -> dict[object, object]:
    """Return a mapping of at most `most` values."""
    if not isinstance(value, dict) or len(value) > most:
        raise RefusedError("a mapping")
    return dict(value)


def read_window(value: object) -> int:
    """Return a window's number."""
    return read_number(value, 1, (1 << 31) - 1)


def read_place(value: object) -> int:
    """Return a coordinate in pixels."""
    return read_number(value, -PLACE_MAX - 1, PLACE_MAX)


def read_size(width: object, height: object) -> tuple[int, int]:
    """Return a width and a height in pixels; none of them is 0."""
    wide, high = (max(1, read_number(side, 0, SIDE_MAX)) for side in (width, height))
    if wide * high > AREA_MAX:
        raise RefusedError("an area")
    return wide, high
