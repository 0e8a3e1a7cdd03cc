"""What QEMU's guest agent answers, and what a hostile guest may send in its place."""

import base64
import json
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.core.announcement import QemuAgent
from crannog.errors import ProtocolError
from crannog.rpc import qga_facts
from crannog.rpc.qga_messages import BIG_LINE_MAX, LINE_MAX, OUTPUT_MAX, Reply, ReplyParser, encode_request, encode_sync
from crannog.rpc.qga_messages import parse_reply as parse

ANSWER = b'\xff{"return": 7}\n'


def synced() -> ReplyParser:
    parser = ReplyParser()
    parser.hunt(7)
    parser.feed(ANSWER)
    assert parser.found()
    return parser


def test_requests_are_lines() -> None:
    assert encode_request("guest-ping") == b'{"execute": "guest-ping"}\n'
    assert encode_sync(5) == b'\xff{"execute": "guest-sync-delimited", "arguments": {"id": 5}}\n'


@pytest.mark.parametrize(
    "before",
    [
        b"",
        b'{"return": {}}\n{"return": 7}\n',
        b"\xff\xff\xff",
        b'\xff{"return": 6}\n',
        b'\xff{"return": 7.0}\n\xff{"return": "7"}\n\xff{"return": true}\n\xff{"error": {}}\n\xff[]\n\xff\n',
        b'\xff{"return": 7',
        b"x" * 300_000,
        b"\xff" + b"[" * 200_000,
    ],
)
def test_a_conversation_begins_with_the_answer_that_was_hunted_for(before: bytes) -> None:
    parser = ReplyParser()
    parser.hunt(7)
    for at in range(0, len(before), 70_000):
        parser.feed(before[at : at + 70_000])
        assert not parser.found()
    parser.feed(ANSWER + b'{"return": {"a": 1}}\n')
    assert parser.found()
    assert parser.next_reply(has_output=False) == Reply({"a": 1})
    assert parser.next_reply(has_output=False) is None


def test_byte_by_byte_is_the_same() -> None:
    parser = ReplyParser()
    parser.hunt(7)
    for byte in b'{"return": {}}\n\xff{"return": 3}\n' + ANSWER:
        assert not parser.found()
        parser.feed(bytes([byte]))
    assert parser.found()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"return": 1, "error": {}}',
        b"{" * 60_000,
        b"[" * 60_000,
        b"\xff\xfe{}",
        b'{"return": 1} x',
        b"1" * 60_000,
        b'{"return": "' + b"a" * LINE_MAX + b'"}',
    ],
)
def test_nonsense_is_no_answer(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(line)
    parser = synced()
    parser.feed(line + b"\n")
    with pytest.raises(ProtocolError):
        parser.next_reply(has_output=False)


@pytest.mark.parametrize(("has_output", "most"), [(False, LINE_MAX), (True, BIG_LINE_MAX)])
def test_an_answer_without_end_is_not_kept(has_output: bool, most: int) -> None:
    parser, chunk, kept = synced(), b"a" * 262144, 0

    def feed_for_ever() -> None:
        nonlocal kept
        while kept <= 2 * BIG_LINE_MAX:
            parser.feed(chunk)
            kept += len(chunk)
            parser.next_reply(has_output=has_output)

    with pytest.raises(ProtocolError, match="too long"):
        feed_for_ever()
    assert kept <= most + len(chunk)


def test_many_small_values_in_a_long_line_cost_no_memory() -> None:
    parser = synced()
    parser.feed(b'{"return": [' + b"[]," * (BIG_LINE_MAX // 4) + b"[]]}\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ProtocolError, match="too long"):
        parser.next_reply(has_output=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"


def test_errors_are_made_printable() -> None:
    reason = {"error": {"class": "GenericError", "desc": "no \x1b[31mway\n" + "x" * 500}}
    assert parse(json.dumps(reason).encode()).error == ("no [31mway" + "x" * 500)[: 200 - 2]
    odds: list[object] = [{}, [], None, {"desc": 5}, {"desc": "\n"}]
    for odd in odds:
        assert parse(json.dumps({"error": odd}).encode()).error == "it gives no reason"


def test_outputs_are_cut_out() -> None:
    status = {"exited": True, "out-data": base64.b64encode(b"\0" * OUTPUT_MAX).decode(), "err-data": "YQ=="}
    parser = synced()
    parser.feed(json.dumps({"return": status}).encode() + b"\n")
    reply = parser.next_reply(has_output=True)
    assert reply is not None
    assert reply.outputs == (b"\0" * OUTPUT_MAX, b"a")
    assert reply.untrusted_value == {"exited": True, "out-data": "", "err-data": ""}


@pytest.mark.parametrize("data", ["a", "====", "YQ", "Y Q=", "\\u0041", "YQ==YQ==", "A" * (OUTPUT_MAX // 3 * 4 + 8)])
def test_outputs_that_are_none(data: str) -> None:
    with pytest.raises(ProtocolError):
        parse(f'{{"return": {{"exited": true, "out-data": "{data}"}}}}'.encode(), has_output=True)


@pytest.mark.parametrize("line", [b'{"return": {"out-data": "YQ==', b'{"return": {"out-data": "', b'"out-data": ""'])
def test_outputs_without_end(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(line, has_output=True)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_an_answer_or_a_protocol_error(line: bytes, has_output: bool) -> None:
    try:
        parse(line, has_output=has_output)
    except ProtocolError:
        return


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["exited", "pid", "id", "name"]), inner)
    ),
    max_leaves=9,
)


@given(JSONS)
def test_any_value_is_understood_or_a_protocol_error(value: object) -> None:
    parsers = (qga_facts.parse_info, qga_facts.parse_pid, qga_facts.parse_outcome)
    for take in (*parsers, lambda reply: qga_facts.parse_osinfo(reply, "1")):
        try:
            take(Reply(value))
        except ProtocolError:
            continue


def test_facts() -> None:
    commands = [{"name": "guest-exec", "enabled": True}, {"name": "guest-shutdown", "enabled": False}, 5, {"name": []}]
    info = qga_facts.parse_info(Reply({"version": "7.2", "supported_commands": commands}))
    assert info == ("7.2", frozenset({"guest-exec"}))
    os = {"id": "debian", "version-id": "12"}
    assert qga_facts.parse_osinfo(Reply(os), "7.2") == QemuAgent("7.2", "Linux", "debian", "12")
    odd = {"id": "de\nbian", "version-id": 12}
    assert qga_facts.parse_osinfo(Reply(odd), "7.2") == QemuAgent("7.2", "", "", "")
    assert qga_facts.parse_osinfo(Reply({"id": "mswindows"}), "7").os == "Windows"
    assert qga_facts.parse_osinfo(Reply(None, "no"), "7") == QemuAgent("7", "", "", "")


@pytest.mark.parametrize("pid", [0, -1, True, 1 << 40, "1", None, 1.0])
def test_numbers_that_no_process_has(pid: object) -> None:
    with pytest.raises(ProtocolError):
        qga_facts.parse_pid(Reply({"pid": pid}))


def test_outcomes() -> None:
    assert qga_facts.parse_outcome(Reply({"exited": False})) is None
    assert qga_facts.parse_outcome(Reply({"exited": True, "exitcode": 3}, "", (b"o", b"e"))) == (3, (b"o", b"e"), False)
    found = qga_facts.parse_outcome(Reply({"exited": True, "signal": 9, "err-truncated": True}))
    assert found == (137, (b"", b""), True)
    for odd in ({}, {"exited": 1}, {"exited": True, "exitcode": "0"}, {"exited": True, "signal": True}):
        with pytest.raises(ProtocolError):
            qga_facts.parse_outcome(Reply(odd))
