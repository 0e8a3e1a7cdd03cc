"""What is believed of a guest's windows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.display.forwarder_rules import (
    CURSOR_MAX,
    FRAME,
    METADATA,
    PACKETS,
    filter_metadata,
    is_large_cursor,
    is_too_large,
    widen_hints,
)


def compose(name: str, untrusted: object) -> str:
    return f"[{name}] {untrusted!r}"


def believe(untrusted: dict[object, object], *, is_new: bool = False) -> dict[bytes, object]:
    return filter_metadata(compose, "work", untrusted, is_new=is_new)


def test_titles_and_classes_are_ours() -> None:
    untrusted: dict[object, object] = {b"title": b"x", b"icon-title": b"y", b"class-instance": (b"a", b"b")}
    titles: dict[bytes, object] = {b"title": b"[work] b'x'", b"icon-title": b"[work] b'x'"}
    assert believe(untrusted) == titles
    assert believe(untrusted, is_new=True) == titles | {b"class-instance": (b"work", b"crannog")}
    assert believe({}, is_new=True)[b"title"] == b"[work] ''"


@pytest.mark.parametrize(
    "key", ["above", "fullscreen", "shape", "opacity", "has-alpha", "decorations", "strut", "sticky", "x11-property"]
)
def test_what_would_let_a_window_pass_for_something_else_is_dropped(key: str) -> None:
    assert believe({key: 1, key.encode(): 1}) == {}


def test_docks_and_desktops_are_ordinary_windows() -> None:
    def types(*untrusted: object) -> object:
        return believe({b"window-type": untrusted})[b"window-type"]

    assert types(b"DOCK") == [b"NORMAL"]
    assert types(b"DESKTOP", "NOTIFICATION") == [b"NORMAL"]
    assert types(b"DROPDOWN_MENU", b"DOCK") == [b"DROPDOWN_MENU"]
    assert believe({b"window-type": 7})[b"window-type"] == [b"NORMAL"]


@given(st.dictionaries(st.text() | st.binary() | st.integers(), st.integers() | st.binary() | st.lists(st.binary())))
def test_nothing_else_is_ever_kept(untrusted: dict[object, object]) -> None:
    kept = believe(untrusted, is_new=True)
    assert {key.decode() for key in kept} <= METADATA | {"icon-title", "class-instance"}


def test_no_packet_reaches_for_more_than_windows() -> None:
    reaching = ("send-file", "open-url", "notify_show", "new-tray", "control", "setting-change", "clipboard-token")
    assert not PACKETS & {*reaching, "pointer-grab", "bell", "sound-data", "window-icon", "start-command", "challenge"}


def test_menus_that_cover_the_screen() -> None:
    assert not is_too_large(400, 900, (1600, 1000))
    assert is_too_large(1600, 501, (1600, 1000))
    assert is_too_large(32000, 32000, (1600, 1000))


def test_hints_leave_room_for_the_frame() -> None:
    assert widen_hints({b"min_width": 10, "min_height": 5, b"width_inc": 6, "max_aspect": 1.5}) == {
        "min_width": 10 + 2 * FRAME,
        "min_height": 5 + 2 * FRAME,
        "width_inc": 6,
        "max_aspect": 1.5,
    }
    assert widen_hints({b"width_inc": 6, b"height_inc": 13})["base_width"] == 2 * FRAME
    assert widen_hints({}) == {}


def test_cursors() -> None:
    assert not is_large_cursor(["cursor", b"png", 0, 0, CURSOR_MAX, 16, 1, 1, 7, b""])
    assert is_large_cursor(["cursor", b"png", 0, 0, 16, CURSOR_MAX + 1, 1, 1, 7, b""])
    assert is_large_cursor(["cursor", 0, 0, 400, 400, 1, 1, 7, b""])
    assert not is_large_cursor(["cursor", b""])
