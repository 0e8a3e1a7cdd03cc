"""How the VM's keyboard layout becomes that of the guest's display."""

import pytest

from crannog.core.rules import LAYOUT
from crannog.guest.gui import session
from crannog.guest.gui.keyboard import list_words, main


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("de++", ["-layout", "de", "-variant", "", "-option", ""]),
        ("us+basic+", ["-layout", "us", "-variant", "basic", "-option", ""]),
        (
            "us,de+,nodeadkeys+grp:alt_shift_toggle,compose:ralt",
            [
                *["-layout", "us,de", "-variant", ",nodeadkeys"],
                *["-option", "", "-option", "grp:alt_shift_toggle", "-option", "compose:ralt"],
            ],
        ),
    ],
)
def test_layouts(text: str, end: list[str]) -> None:
    assert LAYOUT.fullmatch(text) or "," in text, "the host may know fewer layouts at once"
    assert list_words(text) == ["setxkbmap", "-rules", "evdev", "-model", "pc105", *end]


@pytest.mark.parametrize("text", ["", "de", "de+", "-print++", "de;x++", "de+x y+", "de++\n", "a" * 50 + "++"])
def test_what_is_no_layout_changes_nothing(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(text) == 1
    assert "is no keyboard layout" in capsys.readouterr().err


def test_the_default_follows_the_host(tmp_path: object) -> None:
    file = f"{tmp_path}/layout"
    assert session.read_layout(file) == ""
    for text, layout in (("us++\n", ""), ("us++", ""), ("de+nodeadkeys+", "de+nodeadkeys+")):
        with open(file, "w") as opened:
            opened.write(text)
        assert session.read_layout(file) == layout


def test_xpra_has_the_hosts_keyboard_unless_there_is_an_own_one() -> None:
    assert session.list_xpra_words("SEAMLESS")[0] == "xpra"
    words = session.list_xpra_words("FULLSCREEN", "de++")
    assert words[:4] == ["/usr/bin/python3", "-s", session.OWN_KEYBOARD, "shadow"]
