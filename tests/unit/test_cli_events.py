"""crannog events, and the reading of streams: whatever the pieces, whatever a guest writes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.cli import events
from crannog.client.connection import Client
from crannog.client.events import MAX_EVENT, Event, EventParser, EventStream
from crannog.errors import DaemonError, DeniedError, ProtocolError, VMNotFoundError
from tests.unit.cli_world import FakeDaemon, Tool, serving

FIRST = b"1\0\0connection-established\0\0"
START = b"1\0work\0domain-start\0start_guid\0True\0\0"


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    with serving(monkeypatch) as daemon:
        yield daemon


@pytest.fixture
def follow(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> Tool:
    del daemon
    return Tool(events.COMMAND, events._events, capsys)


def plain(found: list[Event]) -> list[tuple[str, str, dict[str, str]]]:
    return [(event.subject, event.name, event.details) for event in found]


def encode(subject: str, name: str, details: dict[str, str]) -> bytes:
    fields = ["1", subject, name, *(text for pair in details.items() for text in pair), ""]
    return "".join(f"{field}\0" for field in fields).encode()


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
EVENTS = st.lists(st.tuples(TEXT, TEXT, st.dictionaries(TEXT.filter(bool), TEXT, max_size=3)), max_size=4)


@given(EVENTS, st.lists(st.integers(0, 200), max_size=8))
def test_events_survive_any_cut(sent: list[tuple[str, str, dict[str, str]]], cuts: list[int]) -> None:
    data = b"".join(encode(*event) for event in sent)
    parser, found, start = EventParser(), [], 0
    for end in [*sorted(cuts), len(data)]:
        found += parser.feed(data[start:end])
        start = max(start, end)
    assert plain(found) == sent
    assert not parser.is_inside


@given(st.binary(max_size=60))
def test_nonsense_is_an_error_or_events_but_no_crash(data: bytes) -> None:
    parser = EventParser()
    try:
        parser.feed(data)
    except ProtocolError as error:
        assert "no event" in str(error)  # noqa: PT017 - most data is no error


def test_bytes_that_are_no_text_are_kept_readable() -> None:
    [event] = EventParser().feed(b"1\0w\xff\0e\0k\0\xc3\0\0")
    assert plain([event]) == [("w\\xff", "e", {"k": "\\xc3"})]
    assert "w" in repr(event)


def test_an_event_without_an_end_does_not_fill_the_memory() -> None:
    parser = EventParser()
    parser.feed(b"1\0a\0b\0")
    for _ in range(MAX_EVENT // 50010):
        assert parser.feed(b"key\0" + b"x" * 50000 + b"\0") == []
    with pytest.raises(ProtocolError, match="more than"):
        parser.feed(b"key\0" + b"x" * 50000 + b"\0")
    with pytest.raises(ProtocolError, match="more than"):
        EventParser().feed(b"x" * (MAX_EVENT + 1))


def test_the_exact_request_and_an_end_at_a_boundary(daemon: FakeDaemon) -> None:
    daemon.raw = [FIRST + START]
    stream = EventStream(Client(), "work", "admin.vm.Stats")
    found = list(stream)
    stream.close()
    assert plain(found) == [("", "connection-established", {}), ("work", "domain-start", {"start_guid": "True"})]


def test_a_stream_that_is_none(daemon: FakeDaemon, follow: Tool) -> None:
    daemon.raw = [
        b"", FIRST[:9], b"0\0data", b"2\0PermissionDenied\0DeniedError\0not 100%% allowed\0", b"2\0Perm", FIRST,
    ]  # fmt: skip
    assert "gave no answer to admin.Events" in follow.fails(DaemonError.exit_code)
    assert "in the middle of an event" in follow.fails(DaemonError.exit_code)
    assert "no event" in follow.fails(ProtocolError.exit_code)
    assert follow.fails(DeniedError.exit_code) == "not 100% allowed"
    assert "in the middle of an answer" in follow.fails(DaemonError.exit_code)
    code, out, err = follow.run()
    assert (code, out) == (DaemonError.exit_code, "- connection-established\n")
    assert "crannogd has ended" in err


def test_a_vm_that_is_not_there(daemon: FakeDaemon, follow: Tool) -> None:
    daemon.answers["admin.Events"] = VMNotFoundError("there is no VM 'nope'")
    assert follow.fails(3, "nope") == "there is no VM 'nope'"
    assert "there is no VM 'a b'" in follow.fails(3, "a b")
    assert daemon.heard == ["admin.Events nope"]


def test_lines(daemon: FakeDaemon, follow: Tool) -> None:
    guest = b'1\0work\0domain-feature-set:os\0value\0\x1b]0;x\x07 a"b\\\nfake event=\xc2\x9b\0empty\0\0\0'
    daemon.raw = [FIRST + START + guest] * 2
    assert follow.ok("--count", "2").splitlines() == [
        "- connection-established",
        "work domain-start start_guid=True",
        r'work domain-feature-set:os value="\x1b]0;x\x07 a\"b\\\nfake event=\x9b" empty=""',
    ]
    lines = follow.ok("--json", "--count=2", "work").splitlines()
    assert [json.loads(line)["event"] for line in lines] == [
        "connection-established", "domain-start", "domain-feature-set:os",
    ]  # fmt: skip
    assert json.loads(lines[2])["details"]["value"].startswith("\x1b]0;x\x07")
    assert all(line.isascii() and line.isprintable() for line in lines)


def test_stats(daemon: FakeDaemon, follow: Tool) -> None:
    daemon.answers["admin.vm.Stats"] = DeniedError("no")
    assert follow.fails(13, "--stats", "work") == "no"
    assert daemon.heard == ["admin.vm.Stats work"]


@pytest.mark.parametrize("words", ["--count many", "--timeout 1.5", "--count \u0663", "--count 9999999999"])
def test_numbers(words: str, follow: Tool, daemon: FakeDaemon) -> None:
    assert "takes a number" in follow.fails(2, *words.split())
    assert daemon.asked == []


def test_the_time_is_kept_also_when_nothing_happens(daemon: FakeDaemon, follow: Tool) -> None:
    daemon.raw, daemon.is_patient = [FIRST + START[:5]], True
    began = time.monotonic()
    assert follow.ok("--timeout", "1") == "- connection-established\n"
    assert 0.9 < time.monotonic() - began < 20


def test_a_line_is_seen_at_once(daemon: FakeDaemon) -> None:
    daemon.raw, daemon.is_patient = [FIRST + START], True
    env = {**os.environ, "CRANNOG_HOME": daemon.paths.home}
    command = [sys.executable, "-c", "import sys; from crannog.cli.events import main; sys.exit(main(['--count=2']))"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "- connection-established\n"
        assert process.stdout.readline() == "work domain-start start_guid=True\n"
        daemon.patience.set()
        assert process.wait(60) == DaemonError.exit_code
