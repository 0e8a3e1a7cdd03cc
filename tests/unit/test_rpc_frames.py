"""The wire format: round trips, resynchronisation at any cut, and no surprise from any bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog import __version__
from crannog.client import rpc as client
from crannog.errors import ProtocolError
from crannog.guest import agent
from crannog.rpc import frames
from crannog.rpc.frames import Frame, FrameParser, Marker, MessageParser

BODIES = st.binary(max_size=200)
DATA_FRAMES = st.builds(Frame, st.integers(0, 2**32 - 1), st.just(frames.DATA_STDOUT), BODIES)


def framed_parser() -> FrameParser:
    parser = FrameParser()
    parser.feed(frames.encode_marker(Marker(b"A", b"g" * 8, b"h" * 8)))
    assert parser.next_marker() == Marker(b"A", b"g" * 8, b"h" * 8)
    parser.accept_marker()
    return parser


def take_all(parser: FrameParser) -> list[Frame]:
    taken = []
    while frame := parser.next_frame():
        taken.append(frame)
    return taken


@given(st.lists(DATA_FRAMES, max_size=8), st.integers(1, 64))
def test_frames_survive_any_cut_of_the_byte_stream(sent: list[Frame], step: int) -> None:
    parser = framed_parser()
    data = b"".join(frames.encode_frame(*frame) for frame in sent)
    received = []
    for at in range(0, len(data), step):
        parser.feed(data[at : at + step])
        received += take_all(parser)
    assert received == sent


@given(st.binary(max_size=400), st.integers(0, 212))
def test_padding_and_a_marker_end_any_half_frame(body: bytes, cut: int) -> None:
    parser = framed_parser()
    half = frames.encode_frame(7, frames.DATA_STDOUT, body)[: -1 - cut]
    parser.feed(half + frames.PADDING + frames.encode_marker(Marker(b"R", b"n" * 8, bytes(8))))
    with pytest.raises(ProtocolError):
        take_all(parser)
    assert parser.is_hunting
    assert parser.next_marker() == Marker(b"R", b"n" * 8, bytes(8))


@pytest.mark.parametrize("length", range(frames.HEADER.size + 1))
def test_padding_is_enough_for_the_largest_frame_cut_anywhere_in_its_header(length: int) -> None:
    parser = framed_parser()
    parser.feed(frames.HEADER.pack(7, frames.DATA_STDOUT, frames.BODY_MAX)[:length] + frames.PADDING)
    with pytest.raises(ProtocolError):
        take_all(parser)


def test_a_cut_marker_does_not_hide_the_next_one() -> None:
    parser = FrameParser()
    whole = Marker(b"R", b"new-one!", bytes(8))
    parser.feed(frames.encode_marker(Marker(b"R", b"old-one!", bytes(8)))[:20] + frames.encode_marker(whole))
    found = [parser.next_marker(), parser.next_marker()]
    assert found[1] == whole


def test_frames_follow_an_accepted_marker_in_the_same_read() -> None:
    parser = FrameParser()
    marker = Marker(b"A", b"g" * 8, b"h" * 8)
    parser.feed(b"rubbish" + frames.encode_marker(marker) + frames.encode_frame(0, frames.TRIGGER, b"x"))
    assert parser.next_marker() == marker
    parser.accept_marker()
    assert take_all(parser) == [Frame(0, frames.TRIGGER, b"x")]


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        (0, 0),
        (0x999, 1),
        (frames.DATA_STDOUT, 65537),
        (frames.HELLO, 3),
        (frames.CREDIT, 5),
        (frames.CLOSE, 1),
    ],
)
def test_headers_that_are_no_headers_are_refused(kind: int, length: int) -> None:
    parser = framed_parser()
    parser.feed(frames.HEADER.pack(1, kind, length))
    with pytest.raises(ProtocolError):
        parser.next_frame()
    assert parser.is_hunting


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_random_bytes_raise_nothing_but_protocol_errors(chunks: list[bytes]) -> None:
    parser, messages = framed_parser(), MessageParser()
    for chunk in chunks:
        parser.feed(chunk)
        try:
            take_all(parser)
        except ProtocolError:
            assert parser.is_hunting
        if parser.is_hunting:
            while parser.next_marker():
                pass
        try:
            list(messages.feed(chunk))
        except ProtocolError:
            messages = MessageParser()


@given(st.lists(BODIES, max_size=6), st.integers(1, 40))
def test_local_messages_survive_any_cut(bodies: list[bytes], step: int) -> None:
    data = b"".join(frames.encode_message(frames.DATA_STDIN, body) for body in bodies)
    parser = MessageParser()
    received = [message for at in range(0, len(data), step) for message in parser.feed(data[at : at + step])]
    assert [message.body for message in received] == bodies


def test_a_hunting_parser_holds_no_rubbish() -> None:
    parser = FrameParser()
    for _ in range(50):
        parser.feed(b"\xff" * 65536)
        assert parser.next_marker() is None
    assert len(parser._buffer) < 100


def test_the_copies_in_the_agent_and_the_client_are_equal_to_the_format() -> None:
    for copy in (agent, client):
        shared = [name for name in vars(frames) if name.isupper() and hasattr(copy, name)]
        assert len(shared) >= 8
        for name in shared:
            mine, theirs = getattr(frames, name), getattr(copy, name)
            assert getattr(mine, "format", mine) == getattr(theirs, "format", theirs), name
    assert set(frames.CHANNEL_TYPES) == agent.TYPES
    assert __version__ == agent.VERSION
