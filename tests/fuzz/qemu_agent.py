"""Target: what QEMU's guest agent answers. Only answers of bounded size come out, or ProtocolError."""

import json
from contextlib import suppress

from crannog.core.announcement import TEXT_MAX, AgentState, AgentStatus
from crannog.errors import ProtocolError
from crannog.rpc import qga_facts
from crannog.rpc.qga_messages import FLUSH, LINE_MAX, REASON_MAX, Reply, ReplyParser
from tests.fuzz.taken import Taken
from tests.fuzz.wire import cut

NUMBER = 77
KEYS = (
    *("return", "error", "desc", "pid", "exited", "exitcode", "signal", "out-data", "err-data", "out-truncated"),
    *("supported_commands", "name", "enabled", "version", "id", "version-id"),
)
VALUES = (
    *(b"1", b"-1", b"true", b"false", b"null", b"1e400", b"NaN", b"[]", b"{}"),
    *(b'"Debian"', b'"guest-exec"', b'"aGVsbG8="'),
)


def fuzz_qga(data: bytes) -> None:
    """Check that answers come out alike however they are cut, and that facts in them are short, plain and numbers."""
    take = Taken(data)
    size, has_output = 1 + take.number(97), bool(take.number(2))
    before = take.block()
    # Another such byte begins another conversation, wherever a read ends.
    sent = b"".join(_piece(take) for _ in range(6)).replace(FLUSH, b"?")
    sent = before + FLUSH + b'{"return": %d}\n' % NUMBER + sent
    found = _parse(sent, len(sent) or 1, has_output)
    assert found == _parse(sent, size, has_output)
    for reply in found:
        assert reply.error.isascii()
        assert reply.error.isprintable() or not reply.error
        assert len(reply.error) <= REASON_MAX
        _read_facts(reply)


def _piece(take: Taken) -> bytes:
    kind = take.number(8)
    if kind == 0:
        return take.block() * take.one_of((1, 1, 300))
    return b'{"return": ' + _value(take, 3) + b"}" + take.one_of((b"\n", b"\n", b"\n", b""))


def _value(take: Taken, depth: int) -> bytes:
    kind = take.number(6) if depth else 0
    if kind < 2:
        return take.one_of((*VALUES, b'"' + take.block(70) + b'"', take.block(4)))
    values = [_value(take, depth - 1) for _ in range(take.number(5))]
    if kind == 2:
        return b"[" + b", ".join(values) + b"]"
    return b"{" + b", ".join(json.dumps(take.one_of(KEYS)).encode() + b": " + value for value in values) + b"}"


def _parse(sent: bytes, size: int, has_output: bool) -> list[Reply]:
    """Return the answers after the synchronisation, up to the first that is none."""
    parser, found = ReplyParser(), list[Reply]()
    parser.hunt(NUMBER)
    with suppress(ProtocolError):
        for piece in cut(sent, size):
            parser.feed(piece)
            while parser.found() and (reply := parser.next_reply(has_output=has_output)):
                found.append(reply)
            assert has_output or len(parser._buffer) <= LINE_MAX + len(piece)
    return [reply for reply in found if reply.untrusted_value == reply.untrusted_value]  # NaN is not itself


def _read_facts(reply: Reply) -> None:
    with suppress(ProtocolError):
        assert 0 < qga_facts.parse_pid(reply) < qga_facts.PID_MAX
    with suppress(ProtocolError):
        outcome = qga_facts.parse_outcome(reply)
        assert outcome is None or 0 <= outcome.code <= 255
    with suppress(ProtocolError):
        ability = qga_facts.parse_info(reply)
        assert len(ability.version) <= TEXT_MAX
        agent = qga_facts.parse_osinfo(reply, ability.version)
        status = AgentStatus(AgentState.FALLBACK, None, agent)
        assert AgentStatus.parse(status.encode()) == status, "the daemon understands it"
