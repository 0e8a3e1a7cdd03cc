"""Target: the data of one call over a vchan, moved between real sockets and files, against a model of what it says."""

import os
import socket
from contextlib import suppress

from crannog.errors import ProtocolError, RpcError
from crannog.rpc import qrexec_messages as qm
from crannog.rpc.qrexec_data import Pump, shake_hands
from tests.fuzz.taken import Taken
from tests.fuzz.wire import cut

KINDS = (qm.DATA_STDOUT, qm.DATA_STDERR)
SENT_MAX = 100_000
PATIENCE = 5.0


def fuzz_call_data(data: bytes) -> None:
    """Check that what a service's side says arrives in its files, up to the first nonsense, and its exit code too."""
    take = Taken(data)
    sent = qm.encode_hello(take.number(6)) if take.number(8) else b""
    sent += b"".join(_message(take) for _ in range(8))
    ours, theirs = socket.socketpair()
    files = {kind: os.memfd_create("output") for kind in KINDS}
    try:
        ours.sendall(sent[:SENT_MAX])
        ours.shutdown(socket.SHUT_WR)
        code = _run(theirs, {kind: os.dup(fd) for kind, fd in files.items()})
        said, expected, expected_code = {kind: _content(fd) for kind, fd in files.items()}, *_read(sent[:SENT_MAX])
        assert code == expected_code
        for kind in KINDS:
            assert expected[kind].startswith(said[kind])
            assert code is None or said[kind] == expected[kind], "a call that ends well has lost nothing"
    finally:
        for fd in (ours.fileno(), *files.values()):
            os.close(fd)
        ours.detach()
        theirs.close()


def _message(take: Taken) -> bytes:
    kind = take.one_of((*KINDS, *KINDS, qm.DATA_EXIT_CODE, qm.DATA_STDIN, qm.HELLO, take.number()))
    body = take.block() * take.one_of((1, 1, 20, 300))
    if kind in (qm.DATA_EXIT_CODE, qm.HELLO) and take.number(8):
        body = body[:4].ljust(4, b"\0")
    return qm.encode(kind, body) if take.number(8) else qm.HEADER.pack(kind, take.number(1 << 18)) + body


def _run(connection: socket.socket, inputs: dict[int, int]) -> int | None:
    """Return the exit code of the call; None when it broke off."""
    nothing, sink = os.pipe()
    os.close(sink)
    try:
        parser = shake_hands(connection, qm.FROM_SERVICE, PATIENCE)
        return Pump(connection, parser, inputs, {nothing: qm.DATA_STDIN}).run()
    except (RpcError, ProtocolError):
        return None
    finally:
        for fd in (nothing, *inputs.values()):
            with suppress(OSError):
                os.close(fd)


def _content(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    return b"".join(iter(lambda: os.read(fd, 1 << 20), b""))


def _read(sent: bytes) -> tuple[dict[int, bytes], int | None]:
    """Return what the output is and the exit code, by a reading that does nothing but read."""
    parser = qm.MessageParser(qm.FROM_SERVICE)
    output, open_kinds, is_greeted = dict.fromkeys(KINDS, b""), set(KINDS), False
    with suppress(ProtocolError):
        for piece in cut(sent, 1):
            for kind, body in parser.feed(piece):
                if not is_greeted:
                    version = min(qm.decode_number(body), qm.AGENT_VERSION) if kind == qm.HELLO else 0
                    if version < qm.OLDEST_VERSION:
                        return output, None
                    parser.version, parser.types, is_greeted = version, parser.types - {qm.HELLO}, True
                elif kind == qm.DATA_EXIT_CODE:
                    return output, qm.decode_number(body)
                elif kind in open_kinds and body:
                    output[kind] += body
                else:
                    open_kinds.discard(kind)
    return output, None
