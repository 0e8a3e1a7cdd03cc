"""Targets: the parsers of bytes from guests, agents and clients. Only typed values or ProtocolError come out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

from crannog.errors import ProtocolError
from crannog.guest import agent
from crannog.rpc import frames, triggers
from crannog.rpc import qrexec_messages as qm
from crannog.rpc.frames import Frame, FrameParser, Marker, MessageParser
from tests.fuzz.guest_bytes import NONCES, guest_bytes
from tests.fuzz.taken import Taken

WISHES = (qm.TRIGGER_SERVICE, qm.TRIGGER_SERVICE3, qm.TRIGGER_SERVICE4)
SIDES = (qm.FROM_AGENT, qm.FROM_DAEMON, qm.FROM_CLIENT, qm.FROM_CALLER, qm.FROM_SERVICE)
LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.@:-")


def cut(data: bytes, size: int) -> Iterator[bytes]:
    """Yield `data` in pieces."""
    return (data[at : at + size] for at in range(0, len(data), size))


# -- the channel's frames


def parse_frames(pieces: Iterable[bytes], data_max: int) -> list[Frame | Marker | str]:
    """Return all that a parser finds: markers while it hunts, frames after the first acknowledgement, and errors."""
    parser, found = FrameParser(), list[Frame | Marker | str]()
    parser.data_max = data_max
    for piece in pieces:
        parser.feed(piece)
        while (item := _next_item(parser)) is not None:
            found.append(item)
        assert len(parser._buffer) <= frames.HEADER.size + data_max, "it holds more than one frame"
    return found


def _hunts(parser: FrameParser) -> bool:
    return parser.is_hunting


def _next_item(parser: FrameParser) -> Frame | Marker | str | None:
    if not parser.is_hunting:
        try:
            return parser.next_frame()
        except ProtocolError as error:
            assert _hunts(parser)
            return str(error)
    marker = parser.next_marker()
    if marker and marker.kind == frames.ACKNOWLEDGE:
        parser.accept_marker()
    return marker


def fuzz_frames(data: bytes) -> None:
    """Check that frames come out alike however they are cut, are what their type says, and that the agent agrees."""
    take = Taken(data)
    size, data_max = 1 + take.number(97), take.one_of((frames.BODY_MAX, frames.BULK_MAX))
    start = frames.encode_marker(Marker(frames.ACKNOWLEDGE, NONCES[0], NONCES[1]))
    sent = b"".join(guest_bytes(take) for _ in range(8))
    found = parse_frames([start + sent], data_max)
    small = sent[:20_000]
    assert parse_frames(cut(start + small, size), data_max) == parse_frames([start + small], data_max)
    for item in found:
        if isinstance(item, Frame):
            assert item.type in frames.CHANNEL_TYPES
            assert len(item.body) <= (data_max if item.type in frames.DATA_TYPES else frames.BODY_MAX)
            assert len(item.body) == frames.FIXED_SIZES.get(item.type, len(item.body))
    if data_max == frames.BODY_MAX:  # what a host may send
        _check_agent(sent, found[1:])
    _check_messages(sent, size)


def _check_agent(sent: bytes, found: list[Frame | Marker | str]) -> None:
    """Check that the frames before the first error are what was sent, and what the agent's parser makes of it."""
    first: list[Frame] = []
    for item in found:
        if not isinstance(item, Frame):
            break
        first.append(item)
    wanted = b"".join(frames.encode_frame(*frame) for frame in first)
    assert sent.startswith(wanted)
    assert _read_as_agent(wanted) == _joined(first), "the agent reads the same"
    with suppress(agent.BadFrame):
        _read_as_agent(sent)


def _read_as_agent(sent: bytes) -> list[tuple[int, int, bytes]]:
    """Return the frames as the agent's own parser cuts them. Raises BadFrame."""
    parser, left = agent.Parser(), memoryview(sent)
    found: list[tuple[int, int, bytes]] = []
    while True:
        item, left = parser.cut(left)
        if item is None and not left:
            return _joined(found)
        if item is not None:
            found.append((item[0], item[1], bytes(item[2])))


def _joined(sent: Sequence[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """Return frames with data that follow each other as one: the agent takes data as they come."""
    found: list[tuple[int, int, bytes]] = []
    for stream, kind, body in sent:
        is_more = found and body and found[-1][2] and found[-1][:2] == (stream, kind) and kind in agent.DATA_TYPES
        if is_more:
            found[-1] = (stream, kind, found[-1][2] + body)
        else:
            found.append((stream, kind, body))
    return found


def _check_messages(sent: bytes, size: int) -> None:
    """Check that a local client's bytes are messages alike however they are cut."""
    small = sent[:20_000]
    found = [take_all(MessageParser().feed, [small]), take_all(MessageParser().feed, cut(small, size))]
    assert found[0] == found[1]
    assert all(message.type in frames.LOCAL_TYPES for message in found[0])


def take_all(feed: Callable[[bytes], Iterator[frames.Message]], pieces: Iterable[bytes]) -> list[frames.Message]:
    """Return the messages up to the first that is none."""
    found = []
    with suppress(ProtocolError):
        for piece in pieces:
            for message in feed(piece):
                found.append(message)  # noqa: PERF402  one by one: what came before an error counts
    return found


# -- qrexec's own messages


def fuzz_messages(data: bytes) -> None:
    """Check that messages come out alike however they are cut, and that their fields are read or refused."""
    take = Taken(data)
    types, version, size = take.one_of(SIDES), 2 + take.number(3), 1 + take.number(97)
    sent = b"".join(_message(take, sorted(types)) for _ in range(6))
    found = _parse_messages(sent, len(sent) or 1, types, version)
    assert found == _parse_messages(sent, size, types, version)
    assert sent.startswith(b"".join(qm.encode(*message) for message in found))
    for message in found:
        assert message.type in types
        assert len(message.body) <= qm.PARAMS.size + qm.COMMAND_MAX or message.type in WISHES
        _read_fields(message)


def _message(take: Taken, types: list[int]) -> bytes:
    kind = take.one_of([*types, take.number()])
    body = take.block() * take.one_of((1, 1, 2, 16, 300))
    length = take.one_of((len(body), len(body), take.number(1 << 17)))
    return qm.HEADER.pack(kind, length) + body


def _parse_messages(sent: bytes, size: int, types: Iterable[int], version: int) -> list[qm.Message]:
    parser, found = qm.MessageParser(types, version), []
    with suppress(ProtocolError):
        for piece in cut(sent, size):
            for message in parser.feed(piece):
                found.append(message)  # noqa: PERF402
            assert parser.held <= qm.HEADER.size + qm.TRIGGER4.size + qm.COMMAND_MAX + 1
    return found


def _read_fields(message: qm.Message) -> None:
    kind, body = message
    if kind in (qm.HELLO, qm.DATA_EXIT_CODE):
        assert 0 <= qm.decode_number(body) < 1 << 32
    elif kind in (qm.EXEC_CMDLINE, qm.JUST_EXEC):
        with suppress(ProtocolError):
            line = qm.decode_command(body)
            assert line
            assert b"\0" not in line
            assert qm.encode_exec(kind, qm.decode_params(body), line) == qm.encode(kind, body)
    elif kind == qm.SERVICE_CONNECT:
        with suppress(ProtocolError):
            params, ident = qm.decode_connect(body)
            again = qm.decode_connect(qm.encode_connect(params, ident)[qm.HEADER.size :])
            assert again == (params, ident.rstrip(b"\0").ljust(qm.IDENT_SIZE, b"\0"))
    elif kind in WISHES:
        _read_wish(qm.to_trigger4(kind, body))


def _read_wish(body: bytes) -> None:
    assert len(qm.encode_refused(qm.ident_of(body))) == qm.HEADER.size + qm.IDENT_SIZE, "anybody can be refused"
    fuzz_trigger(body)


# -- services that are asked for


def fuzz_trigger(data: bytes) -> None:
    """Check that a wish is refused whole, or made of letters that names have, and is the same when sent again."""
    if len(data) < frames.TRIGGER_PARAMS.size and data:  # too short for one: a fuzzer's own fields
        take = Taken(data)
        data = frames.TRIGGER_PARAMS.pack(take.block(64), take.block(64), b"SOCKET1") + take.rest() + b"\0"
    try:
        trigger = triggers.parse_trigger(data)
    except ProtocolError:
        return
    assert LETTERS.issuperset(trigger.target + trigger.source)
    assert LETTERS.issuperset(trigger.service.replace("+", ""))
    assert "+" in trigger.service
    assert len(trigger.service) <= triggers.SERVICE_MAX
    assert max(len(trigger.target), len(trigger.source)) <= 64
    assert trigger.ident == data[128:160]
    if len(trigger.service) < triggers.SERVICE_MAX and max(len(trigger.target), len(trigger.source)) < 64:
        again = qm.encode_trigger(4, trigger.target, trigger.ident, trigger.service, trigger.source)
        assert triggers.parse_trigger(again[qm.HEADER.size :]) == trigger
    with suppress(agent.BadFrame):
        passed_on = agent.parse_trigger(frames.TRIGGER_SERVICE4, data)
        theirs = triggers.parse_trigger(passed_on[:128] + trigger.ident + passed_on[160:])
        assert theirs == trigger, "our agent passes on what was asked for"
