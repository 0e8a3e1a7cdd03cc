"""What is believed of a guest's windows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.display.forwarder_rules import (
    EDGE,
    FRAME,
    filter_metadata,
    is_too_large,
    keep_on_screen,
    widen_hints,
    would_loop,
)

KEPT = {"title", "size-constraints", "transient-for", "window-type", "maximized", "iconic"}


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
    assert {key.decode() for key in kept} <= KEPT | {"icon-title", "class-instance"}


@given(st.dictionaries(st.text() | st.binary(), st.integers() | st.tuples(st.integers(), st.integers()) | st.text()))
def test_sizes_that_make_no_sense_are_dropped(untrusted: dict[object, object]) -> None:
    untrusted |= {b"minimum-size": (1 << 31, 5), b"increment": (0, 0), b"maximum-aspect-ratio": (1, 0)}
    kept = believe({b"size-constraints": untrusted})[b"size-constraints"]
    assert isinstance(kept, dict)
    assert not {b"minimum-size", b"increment", b"maximum-aspect-ratio"} & set(kept)


def test_sizes_that_make_sense_are_kept() -> None:
    sizes = {b"minimum-size": (10, 17), b"increment": (6, 13), b"base-size": (4, 4), b"gravity": 1}
    assert believe({b"size-constraints": sizes}) == {b"size-constraints": sizes}
    assert believe({b"size-constraints": 7, b"transient-for": "x", b"iconic": 1 << 40}) == {b"size-constraints": {}}


def test_no_window_is_its_own_parent() -> None:
    assert would_loop(1, 1, {})
    assert would_loop(1, 2, {2: 3, 3: 1})
    assert not would_loop(1, 2, {2: 3, 3: -1})
    assert would_loop(1, 2, {2: 3, 3: 2}), "others that do are no reason to go on for ever"


def test_a_title_bar_begins_on_the_screen() -> None:
    assert keep_on_screen(-60, -90, (1600, 1000)) == (0, 0)
    assert keep_on_screen(300, 200, (1600, 1000)) == (300, 200)
    assert keep_on_screen(5000, 5000, (1600, 1000)) == (1600 - EDGE, 1000 - EDGE)


def test_menus_that_cover_the_screen() -> None:
    assert not is_too_large(400, 900, (1600, 1000))
    assert is_too_large(1500, 530, (1600, 1000))
    assert is_too_large(1600, 10, (1600, 1000)), "its frame would be outside"
    assert is_too_large(32000, 32000, (1600, 1000))
    assert not is_too_large(1000, 400, (1600, 1000), others=350_000)
    assert is_too_large(1000, 400, (1600, 1000), others=450_000), "it is their sum that covers"


def test_hints_leave_room_for_the_frame() -> None:
    assert widen_hints({b"min_width": 10, "min_height": 5, b"width_inc": 6, "max_aspect": 1.5}) == {
        "min_width": 10 + 2 * FRAME,
        "min_height": 5 + 2 * FRAME,
        "width_inc": 6,
        "max_aspect": 1.5,
    }
    assert widen_hints({b"width_inc": 6, b"height_inc": 13})["base_width"] == 2 * FRAME
    assert widen_hints({}) == {}
