"""What the xpra client in the sandbox believes of a guest. Pure, and of the standard library alone."""

from collections.abc import Callable, Mapping

FRAME = 5
"""Width of a window's frame in pixels."""
MENU_SHARE = 0.5
"""Largest part of a monitor that all windows of a guest without a title bar may cover together."""
SIDE_MAX = 16384
"""Largest width and height of a window in pixels."""
AREA_MAX = 1 << 25
"""Pixels of one window at most: four bytes for each of them are held here, and by an X server with a compositor."""
AREA_SUM_MAX = 1 << 26
"""Pixels of all windows of a guest at most; one that would be more is not shown."""
EDGE = 64
"""Pixels of a window's title bar that stay on the screen when the guest moves it."""
WINDOWS_MAX = 200
"""Windows of one guest at a time; more are not shown."""
CURSOR_MAX = 64
"""Largest width and height of a cursor in pixels."""
_NUMBERS = frozenset({"transient-for", "maximized", "iconic"})
_CONSTRAINTS = {
    "base-size": (0, SIDE_MAX),
    "increment": (1, 1024),
    "maximum-aspect-ratio": (1, SIDE_MAX),
    "maximum-size": (1, 32767),
    "minimum-aspect-ratio": (1, SIDE_MAX),
    "minimum-size": (0, 2048),
}
"""Of a window's size, in pixels: a smallest size beyond any monitor would be one that the user cannot mend."""
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
        elif key == "size-constraints":
            kept[b"size-constraints"] = _filter_constraints(untrusted_value)
        elif key in _NUMBERS and isinstance(untrusted_value, int) and -1 <= untrusted_value < 1 << 31:
            kept[key.encode()] = int(untrusted_value)
    return kept


def _filter_constraints(untrusted: object) -> dict[bytes, object]:
    """Return the sizes that a window may have, as far as they make sense."""
    kept: dict[bytes, object] = {}
    for untrusted_key, untrusted_value in untrusted.items() if isinstance(untrusted, dict) else ():
        key = untrusted_key.decode("latin-1") if isinstance(untrusted_key, bytes) else str(untrusted_key)
        if key == "gravity" and untrusted_value in range(1, 11):
            kept[b"gravity"] = untrusted_value
        elif key == "set-initial-position" and isinstance(untrusted_value, int):
            kept[b"set-initial-position"] = bool(untrusted_value)
        elif key in _CONSTRAINTS and _is_pair(untrusted_value, *_CONSTRAINTS[key]):
            kept[key.encode()] = untrusted_value
    return kept


def _is_pair(value: object, least: int, most: int) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return all(isinstance(number, int) and least <= number <= most for number in value)


def _filter_types(untrusted_types: object) -> list[bytes]:
    values = untrusted_types if isinstance(untrusted_types, list | tuple) else []
    texts = [value.decode("latin-1") if isinstance(value, bytes) else str(value) for value in values]
    return [text.encode() for text in texts if text in WINDOW_TYPES] or [b"NORMAL"]


def is_too_large(width: int, height: int, monitor: tuple[int, int], others: int = 0) -> bool:
    """Tell whether windows without a title bar would cover too much of a monitor.

    `others` is the area of those that the guest has already; a wide or high one would have its frame outside.
    """
    wide, high = width + 2 * FRAME, height + 2 * FRAME
    return wide > monitor[0] or high > monitor[1] or others + wide * high > MENU_SHARE * monitor[0] * monitor[1]


def keep_on_screen(x: int, y: int, screen: tuple[int, int]) -> tuple[int, int]:
    """Return the place of a window with a title bar: the bar's beginning, which has the VM's name, is on the screen."""
    return max(0, min(x, screen[0] - EDGE)), max(0, min(y, screen[1] - EDGE))


def widen_hints(hints: dict[object, float]) -> dict[str, float]:
    """Return a window's size hints with the frame added to each size; steps and aspects stay as they are."""
    named = {key.decode() if isinstance(key, bytes) else str(key): value for key, value in hints.items()}
    wider = {key: value + 2 * FRAME if key.endswith(("_width", "_height")) else value for key, value in named.items()}
    if "width_inc" in wider and "base_width" not in wider and "min_width" not in wider:
        wider |= {"base_width": 2 * FRAME, "base_height": 2 * FRAME}
    return wider


def would_loop(child: int, parent: int, parents: Mapping[int, int]) -> bool:
    """Tell whether a window would, over any number of others, become the parent of itself."""
    seen = {child}
    while parent in parents and parent not in seen:
        seen.add(parent)
        parent = parents[parent]
    return parent in seen
