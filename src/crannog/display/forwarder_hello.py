"""What an xpra client and a server say of themselves when they meet: what is believed, and what is told.

Pure, and of the standard library alone, as it runs in the sandbox.
"""

from collections.abc import Mapping

from crannog.display.forwarder_fields import (
    PLACE_MAX,
    RefusedError,
    read_mapping,
    read_number,
    read_sequence,
    read_word,
)

HELLO_MAX = 1024
"""Capabilities that a server may have."""
_FLAGS = frozenset(
    {
        "cursors",
        "desktop",
        "keyboard",
        "pointer",
        "pointer.relative",
        "readonly",
        "rencode",
        "resize_screen",
        "shadow",
        "toggle_keyboard_sync",
        "wheel.precise",
        "window.configure.pointer",
        "window.decorations",
        "window.frame-extents",
        "window_refresh_config",
        "windows",
        "zlib",
    }
)
_SIZES = frozenset({"actual_desktop_size", "desktop_size", "max_desktop_size"})
_WORDS: Mapping[str, frozenset[str]] = {
    "compressors": frozenset({"zlib"}),
    "encoders": frozenset({"rencode"}),
    "encodings": frozenset({"rgb", "png"}),
    "encodings.core": frozenset({"rgb24", "rgb32", "png", "png/L", "png/P"}),
    "window.states": frozenset({"iconified", "focused", "maximized"}),
}


def read_hello(untrusted_hello: object) -> dict[bytes, object]:
    """Return what a server says that it can, as far as windows, keys and the pointer need it.

    Raises RefusedError.
    """
    untrusted = {read_word(key): value for key, value in read_mapping(untrusted_hello, HELLO_MAX).items()}
    hello: dict[bytes, object] = {b"platform": b"linux", b"version": _read_version(untrusted.get("version"))}
    for key, value in untrusted.items():
        if key in _FLAGS and isinstance(value, int):
            hello[key.encode()] = bool(value)
        elif key in _SIZES:
            hello[key.encode()] = tuple(read_number(side, 1, PLACE_MAX) for side in read_sequence(value, 2, 2))
        elif key in _WORDS:
            words = [read_word(word) for word in read_sequence(value, 0, 64)]
            hello[key.encode()] = tuple(word.encode() for word in words if word in _WORDS[key])
        elif key == "auto_refresh_delay":
            hello[key.encode()] = read_number(value, 0, 60000)
        elif key == "key_repeat":
            hello[key.encode()] = tuple(read_number(number, -1, 60000) for number in read_sequence(value, 2, 2))
        elif key == "modifier_keycodes":
            hello[key.encode()] = _read_modifiers(value)
    return hello


def _read_version(value: object) -> bytes:
    word = read_word(value)
    if not word.replace(".", "").isdigit() or len(word) > 16 or not word.isascii():
        raise RefusedError("a version")
    return word.encode()


def _read_modifiers(value: object) -> dict[bytes, object]:
    """Return the keys of each modifier, as numbers and names; a shadow server has names alone."""
    modifiers: dict[bytes, object] = {}
    for name, keys in read_mapping(value).items():
        pairs = [read_sequence(key, 0, 4) for key in read_sequence(keys, 0, 32)]
        modifiers[read_word(name).encode()] = tuple(tuple(_read_key(part) for part in pair) for pair in pairs)
    return modifiers


def _read_key(value: object) -> object:
    return read_number(value, 0, 255) if isinstance(value, int) else read_word(value).encode()


TOLD = frozenset(
    {
        "aliases",
        "auto_refresh_delay",
        "client_type",
        "compression_level",
        "compressors",
        "cursors",
        "desktop_size",
        "desktops",
        "double_click.distance",
        "double_click.time",
        "dpi",
        "dpi.x",
        "dpi.y",
        "encoders",
        "encoding",
        "encodings",
        "encodings.core",
        "encodings.cursor",
        "generic-rgb-encodings",
        "generic_window_types",
        "info-namespace",
        "key_repeat",
        "keyboard_sync",
        "lock",
        "metadata.supported",
        "modifiers",
        "named_cursors",
        "namespace",
        "notify-startup-complete",
        "pointer.relative",
        "randr_notify",
        "rencode",
        "screen_sizes",
        "server-window-move-resize",
        "server-window-resize",
        "share",
        "version",
        "vrefresh",
        "wants_default_cursor",
        "wants_events",
        "windows",
        "zlib",
    }
)
TOLD_PARTS = ("encoding.", "window.", "xkbmap_")
UNTOLD = frozenset({"encoding.delta_buckets", "encoding.pillow.version", "encoding.swscale.version"})


def tell_guest(hello: Mapping[object, object]) -> dict[object, object]:
    """Return what a guest is told of this host: its monitors and keyboard, and what windows need.

    xpra would also tell the host's name, kernel, processor, programs, icons and load, and a number by which two guests
    could find out that they have one host.
    """
    return {key: value for key, value in hello.items() if _is_told(key)}


def _is_told(key: object) -> bool:
    word = key.decode("latin-1") if isinstance(key, bytes) else str(key)
    return word in TOLD or (word.startswith(TOLD_PARTS) and word not in UNTOLD)
