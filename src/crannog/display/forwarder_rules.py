"""What the xpra client in the sandbox believes of a guest. Pure, and of the standard library alone."""

from collections.abc import Callable, Mapping, Sequence

FRAME = 5
"""Width of a window's frame in pixels."""
MENU_SHARE = 0.5
"""Largest part of the screen that a window without a title bar may cover."""
WINDOWS_MAX = 200
"""Windows of one guest at a time; more are not shown."""
CURSOR_MAX = 64
"""Largest width and height of a cursor in pixels."""
PACKETS = frozenset(
    {
        "configure-override-redirect",
        "connection-lost",
        "cursor",
        "desktop_size",
        "disconnect",
        "draw",
        "eos",
        "gibberish",
        "hello",
        "invalid",
        "lost-window",
        "new-override-redirect",
        "new-window",
        "ping",
        "ping_echo",
        "startup-complete",
        "window-metadata",
        "window-move-resize",
        "window-resized",
    }
)
METADATA = frozenset({"title", "size-constraints", "transient-for", "window-type", "maximized", "iconic"})
WINDOW_TYPES = frozenset(
    {"NORMAL", "DIALOG", "UTILITY", "MENU", "DROPDOWN_MENU", "POPUP_MENU", "TOOLTIP", "COMBO", "SPLASH"}
)


def filter_metadata(
    compose: Callable[[str, object], str], name: str, untrusted: Mapping[object, object], *, is_new: bool
) -> dict[bytes, object]:
    """Return what is believed of a window's metadata, with titles of ours; a new window gets one, and its class."""
    kept: dict[bytes, object] = {}
    if is_new:
        kept[b"title"] = kept[b"icon-title"] = compose(name, "").encode()
        kept[b"class-instance"] = (name.encode(), b"crannog")
    for untrusted_key, untrusted_value in untrusted.items():
        key = untrusted_key.decode("latin-1") if isinstance(untrusted_key, bytes) else str(untrusted_key)
        if key == "title":
            kept[b"title"] = kept[b"icon-title"] = compose(name, untrusted_value).encode()
        elif key == "window-type":
            kept[b"window-type"] = _filter_types(untrusted_value)
        elif key in METADATA:
            kept[key.encode()] = untrusted_value
    return kept


def _filter_types(untrusted_types: object) -> list[bytes]:
    values = untrusted_types if isinstance(untrusted_types, list | tuple) else []
    texts = [value.decode("latin-1") if isinstance(value, bytes) else str(value) for value in values]
    return [text.encode() for text in texts if text in WINDOW_TYPES] or [b"NORMAL"]


def is_too_large(width: int, height: int, screen: tuple[int, int]) -> bool:
    """Tell whether a window without a title bar would cover too much of the screen."""
    return width * height > MENU_SHARE * screen[0] * screen[1]


def widen_hints(hints: dict[object, float]) -> dict[str, float]:
    """Return a window's size hints with the frame added to each size; steps and aspects stay as they are."""
    named = {key.decode() if isinstance(key, bytes) else str(key): value for key, value in hints.items()}
    wider = {key: value + 2 * FRAME if key.endswith(("_width", "_height")) else value for key, value in named.items()}
    if "width_inc" in wider and "base_width" not in wider and "min_width" not in wider:
        wider |= {"base_width": 2 * FRAME, "base_height": 2 * FRAME}
    return wider


def is_large_cursor(untrusted_packet: Sequence[object]) -> bool:
    """Tell whether a cursor reaches far over its window. Its packet has x, y, width, height after one or two words."""
    numbers = [value for value in untrusted_packet[1:6] if isinstance(value, int)]
    return max(numbers[2:4], default=0) > CURSOR_MAX
