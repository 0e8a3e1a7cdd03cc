"""qrexec's own messages: every one byte by byte, and what a peer can and cannot make of the parser."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.errors import ProtocolError
from crannog.rpc import qrexec_messages as qm
from crannog.rpc.qrexec_messages import ExecParams, Message, MessageParser
from crannog.rpc.triggers import parse_trigger

ALL = frozenset(qm.FROM_AGENT | qm.FROM_DAEMON | qm.FROM_CLIENT | qm.FROM_CALLER | qm.FROM_SERVICE)
WHERE = ExecParams(7, 513)


def pad(text: bytes, size: int) -> str:
    return (text + bytes(size - len(text))).hex()


@pytest.mark.parametrize(
    ("message", "golden"),
    [
        (qm.encode_hello(4), "00030000 04000000 04000000"),
        (qm.encode_hello(3), "00030000 04000000 03000000"),
        (qm.encode_data(qm.DATA_STDIN, b"in"), "90010000 02000000 696e"),
        (qm.encode_data(qm.DATA_STDIN, b""), "90010000 00000000"),
        (qm.encode_data(qm.DATA_STDOUT, b"out"), "91010000 03000000 6f7574"),
        (qm.encode_data(qm.DATA_STDERR, b"e"), "92010000 01000000 65"),
        (qm.encode_exit_code(258), "93010000 04000000 02010000"),
        (
            qm.encode_exec(qm.EXEC_CMDLINE, WHERE, b"user:id"),
            "00020000 10000000 07000000 01020000 757365723a696400",
        ),
        (qm.encode_exec(qm.JUST_EXEC, WHERE, b"u:x"), "01020000 0c000000 07000000 01020000 753a7800"),
        (
            qm.encode_connect(WHERE, b"SOCKET11"),
            "02020000 28000000 07000000 01020000" + pad(b"SOCKET11", 32),
        ),
        (qm.encode_refused(b"SOCKET11"), "03020000 20000000" + pad(b"SOCKET11", 32)),
        (
            qm.encode_trigger(2, "work", b"SOCKET11", "a.B+c"),
            "10020000 80000000" + pad(b"a.B+c", 64) + pad(b"work", 32) + pad(b"SOCKET11", 32),
        ),
        (qm.encode_params(qm.CONNECTION_TERMINATED, WHERE), "11020000 08000000 07000000 01020000"),
        (
            qm.encode_trigger(3, "work", b"SOCKET11", "a.B+c"),
            "12020000 66000000" + pad(b"work", 64) + pad(b"SOCKET11", 32) + "612e422b6300",
        ),
        (
            qm.encode_trigger(4, "work", b"SOCKET11", "a.B+c", "remote"),
            "13020000 a6000000" + pad(b"remote", 64) + pad(b"work", 64) + pad(b"SOCKET11", 32) + "612e422b6300",
        ),
    ],
)
def test_bytes_of_each_message(message: bytes, golden: str) -> None:
    assert message == bytes.fromhex(golden)
    kind = struct.unpack_from("<I", message)[0]
    assert list(MessageParser(ALL).feed(message)) == [Message(kind, message[8:])]


def test_numbers_of_the_protocol() -> None:
    assert (qm.CONTROL_PORT, qm.FIRST_PORT, qm.PORTS) == (512, 513, 256)
    assert (qm.chunk_max(2), qm.chunk_max(3), qm.chunk_max(4)) == (4096, 65536, 65536)
    assert (qm.AGENT_VERSION, qm.CLIENT_VERSION, qm.OLDEST_VERSION) == (4, 3, 2)


@pytest.mark.parametrize(("version", "size"), [(2, 4096), (3, 65536), (4, 65536)])
def test_data_is_cut_for_the_version(version: int, size: int) -> None:
    data = bytes(range(256)) * 1024
    parser = MessageParser({qm.DATA_STDOUT}, version)
    parts = [message.body for message in parser.feed(qm.encode_data(qm.DATA_STDOUT, data, version))]
    assert b"".join(parts) == data
    assert {len(part) for part in parts} == {size}


@pytest.mark.parametrize(
    "header",
    [
        (0, 0),
        (0x714, 0),
        (qm.HELLO, 0),
        (qm.HELLO, 5),
        (qm.HELLO, 0xFFFFFFFF),
        (qm.DATA_STDOUT, 65537),
        (qm.DATA_EXIT_CODE, 3),
        (qm.EXEC_CMDLINE, 7),
        (qm.EXEC_CMDLINE, 8 + 65536),
        (qm.JUST_EXEC, 0x7FFFFFFF),
        (qm.SERVICE_CONNECT, 41),
        (qm.SERVICE_REFUSED, 31),
        (qm.TRIGGER_SERVICE, 127),
        (qm.TRIGGER_SERVICE3, 96),
        (qm.TRIGGER_SERVICE3, 96 + 65001),
        (qm.TRIGGER_SERVICE4, 160),
        (qm.TRIGGER_SERVICE4, 0xFFFFFFFF),
        (qm.CONNECTION_TERMINATED, 9),
    ],
)
def test_headers_that_are_none_are_refused_at_once(header: tuple[int, int]) -> None:
    """Before any of the body is there: nobody can make us wait for, or keep, what is too long."""
    with pytest.raises(ProtocolError):
        list(MessageParser(ALL).feed(struct.pack("<II", *header)))


def test_an_old_peer_gets_no_long_chunks_through() -> None:
    header = struct.pack("<II", qm.DATA_STDOUT, 4097)
    assert list(MessageParser({qm.DATA_STDOUT}, 3).feed(header)) == []
    with pytest.raises(ProtocolError):
        list(MessageParser({qm.DATA_STDOUT}, 2).feed(header))


def test_types_of_the_other_side_are_refused() -> None:
    with pytest.raises(ProtocolError, match="may not"):
        list(MessageParser(qm.FROM_CALLER).feed(qm.encode_exit_code(0)))


MESSAGES = st.lists(
    st.one_of(
        st.binary(max_size=300).map(lambda data: qm.encode_data(qm.DATA_STDOUT, data)),
        st.integers(0, 2**32 - 1).map(qm.encode_exit_code),
        st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(min_size=1, max_size=50)).map(
            lambda t: qm.encode_exec(qm.EXEC_CMDLINE, ExecParams(t[0], t[1]), t[2])
        ),
    ),
    max_size=8,
)


@given(MESSAGES, st.integers(1, 97))
def test_messages_survive_any_cuts(messages: list[bytes], size: int) -> None:
    data = b"".join(messages)
    parser = MessageParser(ALL)
    found = [m for at in range(0, len(data), size) for m in parser.feed(data[at : at + size])]
    assert [qm.encode(*message) for message in found] == messages
    assert parser.held == 0


@given(st.binary(max_size=400), st.integers(1, 50))
def test_no_bytes_do_anything_but_parse_or_be_refused(data: bytes, size: int) -> None:
    parser = MessageParser(ALL)
    try:
        for at in range(0, len(data), size):
            list(parser.feed(data[at : at + size]))
    except ProtocolError:
        return
    assert parser.held <= len(data)


@given(st.binary(min_size=64, max_size=64), st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_old_triggers_mean_what_new_ones_mean(name: bytes, target: bytes, ident: bytes) -> None:
    body = qm.to_trigger4(qm.TRIGGER_SERVICE, name + target + ident)
    try:
        trigger = parse_trigger(body)
    except ProtocolError:
        return
    assert trigger.ident == ident
    assert set(trigger.target + trigger.service) <= set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.@:-+"
    )


def test_triggers_of_all_versions() -> None:
    for version, source in ((2, ""), (3, ""), (4, "remote")):
        message = qm.encode_trigger(version, "work", b"SOCKET1", "a.B+c", source)
        kind = struct.unpack_from("<I", message)[0]
        trigger = parse_trigger(qm.to_trigger4(kind, message[8:]))
        assert (trigger.target, trigger.service, trigger.source) == ("work", "a.B+c", source)
        assert trigger.ident.rstrip(b"\0") == b"SOCKET1"


@pytest.mark.parametrize("line", [b"", b"\0", b"user:x", b"user:x\0y\0", b"user:x\0\0"])
def test_command_lines_that_are_none(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        qm.decode_command(bytes(8) + line)


def test_what_does_not_fit_is_not_sent() -> None:
    with pytest.raises(ProtocolError):
        qm.encode_refused(b"x" * 33)
    with pytest.raises(ProtocolError):
        qm.encode_exec(qm.EXEC_CMDLINE, WHERE, b"x" * 65535)
    with pytest.raises(ProtocolError):
        qm.encode_trigger(4, "t" * 64, b"SOCKET1", "a")
    assert len(qm.encode_exec(qm.EXEC_CMDLINE, WHERE, b"x" * 65534)) == 8 + 8 + 65535
