"""Labels: the built-in ones, what a custom one may be, and its number (Admin API, section 6)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.core.labels import BUILT_IN, BUILT_IN_NAMES, Label, check_label_name, new_label, parse_color
from crannog.core.registry import Registry
from crannog.errors import ColorRefusedError, CrannogError, LabelExistsError, LabelNotFoundError, LabelRefusedError

SPECIFIED = """
    1 red 0xcc0000, 2 orange 0xf57900, 3 yellow 0xedd400, 4 green 0x73d216, 5 gray 0x555555, 6 blue 0x3465a4,
    7 purple 0x75507b, 8 black 0x000000"""


def test_the_built_in_labels_are_those_of_the_specification() -> None:
    words = [entry.split() for entry in SPECIFIED.split(",")]
    assert [(str(label.index), label.name, label.color) for label in BUILT_IN] == [tuple(word) for word in words]
    assert list(Registry().labels.values()) == list(BUILT_IN)
    assert {label.name for label in BUILT_IN} == BUILT_IN_NAMES


def test_a_label_is_shown_by_its_name() -> None:
    assert str(Label(9, "pink", "0xff00ff")) == "pink"


def test_registries_do_not_share_labels() -> None:
    one = Registry()
    one.labels["pink"] = Label(9, "pink", "0xff00ff")
    assert "pink" not in Registry().labels


@pytest.mark.parametrize(
    ("text", "color"),
    [("0xff00ff", "0xff00ff"), ("0xFF00aB", "0xff00ab"), ("#FF00ab", "0xff00ab"), ("0XFF00FF", "0xff00ff")],
)
def test_colours(text: str, color: str) -> None:
    assert parse_color(text) == color


@pytest.mark.parametrize(
    "text", ["", "ff00ff", "0xff00f", "0xff00ff0", "0xgg0000", "#0xff00ff", "##ff00ff", "red", "0xff00ff\n", "x" * 9999]
)
def test_what_is_no_colour(text: str) -> None:
    with pytest.raises(ColorRefusedError, match="is not a colour; write it as 0xRRGGBB") as caught:
        parse_color(text)
    assert len(str(caught.value)) < 100


@given(st.text(max_size=12))
def test_any_text_is_a_colour_or_refused(text: str) -> None:
    try:
        color = parse_color(text)
    except ColorRefusedError:
        return
    assert int(color, 16) < 2**24
    assert parse_color(color) == color


@pytest.mark.parametrize("name", ["pink", "Pink", "9", "light-blue_2.x", "x" * 64])
def test_names_of_labels(name: str) -> None:
    assert check_label_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "a b", "a/b", "a\n", "caf\u00e9", "x" * 65])
def test_names_that_no_label_has(name: str) -> None:
    with pytest.raises(LabelRefusedError, match="cannot be the name of a label"):
        check_label_name(name)


def indexes(*numbers: int) -> list[Label]:
    return [*BUILT_IN, *(Label(number, f"custom-{number}", "0x111111") for number in numbers)]


@pytest.mark.parametrize(
    ("taken", "index"), [((), 9), ((9,), 10), ((10, 11), 9), ((9, 10, 12), 11), (range(9, 300), 300), ((1000,), 9)]
)
def test_a_new_label_gets_the_first_free_number_above_the_built_in_ones(taken: tuple[int, ...], index: int) -> None:
    assert new_label(indexes(*taken), "pink", "0xFF00FF") == Label(index, "pink", "0xff00ff")


def test_numbers_start_at_nine_also_where_a_file_lacks_built_in_labels() -> None:
    assert new_label([], "pink", "0xff00ff").index == 9


@pytest.mark.parametrize(
    ("name", "color", "kind"),
    [
        ("red", "0xff00ff", LabelExistsError),
        ("custom-9", "0xff00ff", LabelExistsError),
        ("", "0xff00ff", LabelRefusedError),
        ("pink", "pink", ColorRefusedError),
    ],
)
def test_labels_that_are_refused(name: str, color: str, kind: type[CrannogError]) -> None:
    with pytest.raises(kind) as caught:
        new_label(indexes(9), name, color)
    assert type(caught.value) is kind


def test_an_unknown_label_is_told_with_those_there_are() -> None:
    registry = Registry()
    registry.labels["pink"] = Label(9, "pink", "0xff00ff")
    assert registry.find_label("pink").index == 9
    with pytest.raises(LabelNotFoundError, match=r"there is no label 'Pink'; use one of red, .*, black, pink"):
        registry.find_label("Pink")
