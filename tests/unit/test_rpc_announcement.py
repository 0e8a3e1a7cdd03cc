"""The one parser of what a guest says about itself (B13)."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.core.announcement import AgentState, AgentStatus, Announcement, QemuAgent, parse_announcement
from crannog.errors import ProtocolError

GOOD = {
    b"/qubes-tools/version": b"4.2.1",
    b"/qubes-tools/os": b"Linux",
    b"/qubes-tools/qrexec": b"1",
    b"/qubes-tools/gui": b"0",
    b"/qubes-tools/default-user": b"user",
}


def test_an_announcement_becomes_a_typed_value() -> None:
    assert parse_announcement(GOOD) == Announcement("4.2.1", "Linux", qrexec=True, gui=False, default_user="user")


def test_unknown_keys_are_ignored_and_the_default_user_may_be_absent() -> None:
    entries = {b"/qubes-tools/colour": b"\xff" * 9} | GOOD
    del entries[b"/qubes-tools/default-user"]
    assert parse_announcement(entries).default_user == ""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"version", b""),
        (b"version", b"9" * 65),
        (b"version", b"1\n2"),
        (b"os", b"Li\xc3\xb1ux"),
        (b"os", b"\x1b[31m"),
        (b"qrexec", b"2"),
        (b"qrexec", b"true"),
        (b"gui", b""),
        (b"gui", b"01"),
        (b"default-user", b"Root"),
        (b"default-user", b"0day"),
        (b"default-user", b"a" * 33),
        (b"default-user", b"user:x"),
        (b"default-user", b"\xe4"),
    ],
)
def test_nonsense_is_refused(key: bytes, value: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_announcement(GOOD | {b"/qubes-tools/" + key: value})


@pytest.mark.parametrize("key", ["version", "os", "qrexec", "gui"])
def test_a_missing_part_is_refused_by_name(key: str) -> None:
    entries = {path: value for path, value in GOOD.items() if not path.endswith(key.encode())}
    with pytest.raises(ProtocolError, match=f"lacks {key}"):
        parse_announcement(entries)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), st.binary(max_size=80)))
def test_what_passes_is_printable_and_bounded(entries: dict[bytes, bytes]) -> None:
    try:
        announced = parse_announcement(GOOD | entries)
    except ProtocolError:
        return
    for text in (announced.version, announced.os):
        assert 0 < len(text) <= 64
        assert text.isascii()
        assert text.isprintable()


def test_a_status_survives_its_line_of_json() -> None:
    qemu = AgentStatus(AgentState.FALLBACK, None, QemuAgent("7.2", "Linux", "debian", ""))
    for status in (AgentStatus(), AgentStatus(AgentState.READY, parse_announcement(GOOD)), qemu):
        assert AgentStatus.parse(status.encode()) == status
        assert status.encode().count(b"\n") == 1


@given(st.binary(max_size=60))
def test_a_line_that_is_no_status_is_a_protocol_error(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        AgentStatus.parse(line)


@pytest.mark.parametrize(
    "facts",
    [
        {"version": "1", "os": 1, "distribution": "", "release": ""},
        {"version": "", "os": "\x1b", "distribution": "", "release": ""},
        {"version": "x" * 65, "os": "", "distribution": "", "release": ""},
        {"version": None, "os": "", "distribution": "", "release": ""},
    ],
)
def test_odd_facts_of_qemus_agent_are_a_protocol_error(facts: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        AgentStatus.parse(json.dumps({"agent": "fallback", "announced": None, "qemu": facts}).encode())


@pytest.mark.parametrize(
    "line",
    [
        b"null",
        b"[]",
        b'{"agent": "ready"}',
        b'{"agent": "dancing", "announced": null}',
        b'{"agent": "ready", "announced": {"version": 1, "os": "", "qrexec": 1, "gui": 0, "default_user": 0}}',
        b'{"agent": "ready", "announced": {"version": "1", "os": "x", "qrexec": 1, "gui": true, "default_user": ""}}',
        b'{"agent": "fallback", "announced": null, "qemu": []}',
        b'{"agent": "fallback", "announced": null, "qemu": {"version": "1"}}',
        b"[" * 4000,
        b" " * 5000,
    ],
)
def test_a_status_with_wrong_parts_is_a_protocol_error(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        AgentStatus.parse(line)
