"""The data of one call between a vchan and the files of this process, for a process that does nothing else.

Who is slow makes the other side wait: nothing is read while what came before is not passed on.
"""

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from crannog.errors import ProtocolError, RpcError
from crannog.rpc import qrexec_messages as qm
from crannog.rpc.guest_call import Errand
from crannog.rpc.qrexec_messages import Message, MessageParser

READ_SIZE = 262144
OUT_HIGH = 262144
FILE_READ = 65536
LINGER = 5.0
"""Seconds that the last messages have to get to a peer that does not read."""


def shake_hands(connection: socket.socket, types: frozenset[int], patience: float) -> MessageParser:
    """Exchange HELLO, and return the parser for what follows. Raises RpcError, ProtocolError."""
    connection.settimeout(patience)
    parser = MessageParser(types)
    try:
        connection.sendall(qm.encode_hello(qm.AGENT_VERSION))
        while True:
            untrusted_data = connection.recv(FILE_READ)
            if not untrusted_data:
                raise RpcError("the other end of the call closed it before its HELLO")
            for message in parser.feed(untrusted_data):
                version = min(qm.decode_number(message.body), qm.AGENT_VERSION) if message.type == qm.HELLO else 0
                if version < qm.OLDEST_VERSION:
                    raise ProtocolError("the other end of the call does not begin with a HELLO of a known version")
                parser.version = version
                parser.types -= {qm.HELLO}
                return parser
    except OSError as error:
        raise RpcError(f"the other end of the call does not answer: {error}") from error


class Pump:
    """Moves data until the call is over. Takes over the connection."""

    def __init__(
        self, connection: socket.socket, parser: MessageParser, inputs: dict[int, int], outputs: dict[int, int]
    ) -> None:
        """Take `inputs`, files by the type of message that goes there; `outputs` are types by their file."""
        self._connection = connection
        self._parser = parser
        self._inputs = inputs
        self._outputs = outputs
        self._out = bytearray()
        self._queue: list[Message] = []
        self._part = 0
        self._exit_code: int | None = None
        self._watched: dict[int, Callable[[], None]] = {}
        connection.setblocking(False)
        for fd in (*inputs.values(), *outputs):
            os.set_blocking(fd, False)
        self._take(b"")

    def run(self) -> int:
        """Move data; return the exit code. Raises RpcError when the connection breaks off."""
        try:
            while not self._is_over():
                for fd, events in self._wait():
                    self._serve(fd, events)
            return self._exit_code or 0
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection; files stay open."""
        self._connection.close()

    def _is_over(self) -> bool:
        return self._exit_code is not None and not self._queue

    def _wait(self) -> list[tuple[int, int]]:
        poll = select.poll()
        reads = 0 if self._queue else select.POLLIN
        if reads or self._out:
            poll.register(self._connection, reads | (select.POLLOUT if self._out else 0))
        for fd in self._watched:
            poll.register(fd, select.POLLIN)
        if len(self._out) < OUT_HIGH:
            for fd in self._outputs:
                poll.register(fd, select.POLLIN)
        if self._queue:
            poll.register(self._inputs[self._queue[0].type], select.POLLOUT)
        return poll.poll()

    def _serve(self, fd: int, events: int) -> None:
        if fd == self._connection.fileno():
            self._serve_connection(events)
        elif fd in self._watched:
            self._watched[fd]()
        elif fd in self._outputs:
            self._read_file(fd)
        elif self._queue and fd == self._inputs.get(self._queue[0].type):
            self._write_queue()

    def _serve_connection(self, events: int) -> None:
        try:
            if events & select.POLLOUT:
                with memoryview(self._out) as view:
                    count = self._connection.send(view)
                del self._out[:count]
            if events & ~select.POLLOUT and not self._queue:
                self._take(self._connection.recv(READ_SIZE), is_read=True)
        except BlockingIOError:
            pass
        except OSError:
            self._lose()

    def _take(self, untrusted_data: bytes, *, is_read: bool = False) -> None:
        if is_read and not untrusted_data:
            self._lose()
            return
        for message in self._parser.feed(untrusted_data):
            if message.type == qm.DATA_EXIT_CODE:
                self._exit_code = qm.decode_number(message.body)
                break  # what comes after it is late, whatever it is
            if message.type in self._inputs:
                self._queue.append(message)
        self._write_queue()

    def _lose(self) -> None:
        """Note that the connection has ended before the call did."""
        raise RpcError("the call broke off: its other end closed it")

    def _write_queue(self) -> None:
        """Pass on what came, as far as its files take it; what a closed one does not take is dropped."""
        while self._queue:
            kind, body = self._queue[0]
            fd = self._inputs.get(kind)
            try:
                if fd is not None and self._part < len(body):
                    self._part += os.write(fd, memoryview(body)[self._part :])
            except BlockingIOError:
                return
            except OSError:
                self._part = len(body)
            if fd is None or self._part >= len(body):
                self._part = 0
                del self._queue[0]
                if not body:
                    self._end_input(kind)

    def _end_input(self, kind: int) -> None:
        fd = self._inputs.pop(kind, None)
        if fd is not None:
            os.close(fd)

    def _read_file(self, fd: int) -> None:
        kind = self._outputs[fd]
        try:
            data = os.read(fd, FILE_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            del self._outputs[fd]
        self._out += qm.encode_data(kind, data, self._parser.version)


class CallerPump(Pump):
    """The caller's side: our standard streams are the call's."""

    def __init__(self, connection: socket.socket, parser: MessageParser) -> None:
        super().__init__(connection, parser, {qm.DATA_STDOUT: 1, qm.DATA_STDERR: 2}, {0: qm.DATA_STDIN})


class ServicePump(Pump):
    """The service's side: a process whose pipes are the call's."""

    def __init__(self, connection: socket.socket, parser: MessageParser, errand: Errand, daemon: socket.socket) -> None:
        """Take also a connection to the domain's daemon, whose end says that one of both is gone."""
        outputs = {errand.stdout: qm.DATA_STDOUT, errand.stderr: qm.DATA_STDERR}
        super().__init__(connection, parser, {qm.DATA_STDIN: errand.stdin}, outputs)
        self._errand = errand
        self._is_lost = False
        self._watched = {errand.pidfd: self._note_exit, daemon.fileno(): self._lose}

    def _is_over(self) -> bool:
        if self._is_lost:
            return True
        if self._exit_code is None:
            return False
        for fd in list(self._outputs):
            # A process that it left behind may keep the pipe open: what it says later is lost.
            while fd in self._outputs and len(self._out) < OUT_HIGH and _has_more(fd):
                self._read_file(fd)
        return not any(_has_more(fd) for fd in self._outputs)

    def _note_exit(self) -> None:
        found = os.waitid(os.P_PIDFD, self._errand.pidfd, os.WEXITED | os.WNOHANG)
        if found is not None:
            del self._watched[self._errand.pidfd]
            self._exit_code = found.si_status if found.si_code == os.CLD_EXITED else 128 + found.si_status
            self._queue.clear()
            self._inputs.clear()

    def _lose(self) -> None:
        self._is_lost = True

    def run(self) -> int:
        """Move data, then send the ends and the exit code; return that. A caller that is gone ends the service."""
        try:
            while not self._is_over():
                for fd, events in self._wait():
                    self._serve(fd, events)
            if not self._is_lost:
                self._send_end()
            return self._exit_code or 0
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection, and end the service if it has not ended."""
        super().close()
        if self._exit_code is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._errand.pidfd, signal.SIGTERM)

    def _send_end(self) -> None:
        send_end(self._connection, self._exit_code or 0, self._outputs.values(), self._out)


def send_end(
    connection: socket.socket,
    exit_code: int,
    outputs: Iterable[int] = (qm.DATA_STDOUT, qm.DATA_STDERR),
    waiting: bytes | bytearray = b"",
) -> None:
    """Send a caller what is `waiting`, the ends of the outputs that are still open, and the exit code; then close."""
    out = waiting + b"".join(qm.encode(kind) for kind in outputs) + qm.encode_exit_code(exit_code)
    connection.settimeout(LINGER)
    with suppress(OSError):
        connection.sendall(out)
        # A close with data of the peer unread would throw away what it has not read yet (unix(7)).
        connection.shutdown(socket.SHUT_WR)
    _drain(connection)
    connection.close()


def _has_more(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))


def _drain(connection: socket.socket) -> None:
    end = time.monotonic() + LINGER
    with suppress(OSError):
        while connection.recv(FILE_READ) and time.monotonic() < end:
            pass
