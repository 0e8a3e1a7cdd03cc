"""How displays look: what crannogd says of it, read strictly, and how the client in the sandbox takes it."""

import os

import pytest

from crannog.display.forwarder_dress import Dress
from crannog.display.look import Look, parse_look
from crannog.errors import ValueRefusedError

WORK = Look("work", "cc0000")


@pytest.mark.parametrize(
    ("line", "look"),
    [
        ("look #3465A4 paused", Look("work", "3465a4", "paused")),
        ("look #3465a4 debug, shutting down", Look("work", "3465a4", "debug, shutting down")),
        ("look #3465a4", Look("work", "3465a4")),
        ("look #3465a4 ", Look("work", "3465a4")),
        ("look 0x3465a4", Look("work", "3465a4")),
    ],
)
def test_a_line_changes_colour_and_state(line: str, look: Look) -> None:
    assert Look("work", "cc0000", "starting").change(line) == look


@pytest.mark.parametrize(
    "line",
    [
        "",
        "look",
        "look ",
        "mode #3465a4",
        "look red",
        "look #3465a",
        "look #3465a4 [vault]",
        "look #3465a4 Paused",
        "look #3465a4 paused] x",
        "look #3465a4 paused\u202e",
        "look #3465a4  paused",
        "look #3465a4 " + "a" * 61,
    ],
)
def test_what_is_no_look_is_refused(line: str) -> None:
    with pytest.raises(ValueRefusedError):
        WORK.change(line)


def test_a_state_at_the_start() -> None:
    assert parse_look("work", "0xCC0000", "starting") == Look("work", "cc0000", "starting")
    with pytest.raises(ValueRefusedError, match="is no state of a VM"):
        parse_look("work", "#cc0000", "]")


def test_the_client_dresses_its_windows_as_it_is_told() -> None:
    reads, writes = os.pipe()
    dress = Dress()
    dress.put_on("work", "ff0000", "starting")
    assert (dress.name, dress.prefix, dress.colour) == ("work", "work: starting", (1.0, 0.0, 0.0))
    assert dress.compose("work", b"[vault] x") == "[work: starting] [vault] x"
    os.write(writes, b"look 00ff00 debug, paused\nlook 0000")
    assert dress.read(reads)
    assert (dress.prefix, dress.colour) == ("work: debug, paused", (0.0, 1.0, 0.0))
    os.write(writes, b"ff\n")
    assert dress.read(reads)
    assert (dress.prefix, dress.colour) == ("work", (0.0, 0.0, 1.0))
    os.close(writes)
    assert not dress.read(reads)
    os.close(reads)


@pytest.mark.parametrize(
    ("state", "is_still"),
    [
        ("", False),
        ("debug", False),
        ("paused", True),
        ("debug, paused", True),
        ("suspended", True),
        ("starting", False),
    ],
)
def test_a_vm_whose_processors_stand_still_cannot_answer(state: str, is_still: bool) -> None:
    dress = Dress()
    dress.put_on("work", "ff0000", state)
    assert dress.is_still == is_still


@pytest.mark.parametrize("title", ["shell", "[work: paused] x", "a" * 200, "x\u2026"])
def test_titles_follow_and_keep_what_the_guest_said(title: str) -> None:
    dress = Dress()
    dress.put_on("work", "ff0000", "")
    first = dress.compose("work", title)
    dress.put_on("work", "ff0000", "paused")
    second = dress.change_title(first, "work")
    assert second == f"[work: paused] {title}"
    dress.put_on("work", "ff0000", "")
    assert dress.change_title(second, "work: paused") == first
