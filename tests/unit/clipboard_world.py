"""A VM with a clipboard, and a policy that decides about it, on real sockets."""

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from crannog.client.rpc import DATA_EXIT_CODE, DATA_STDERR, DATA_STDIN, DATA_STDOUT, EXEC_CMDLINE, HELLO
from crannog.policy.answers import format_reply, parse_request
from crannog.policy.decisions import Ask, Request
from crannog.policy.evaluator import confirm, evaluate
from crannog.policy.loader import load_text
from tests.unit.policy_world import SYSTEM


class Listener:
    """Serves each connection to a socket in a thread, until it is closed."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(path)
        self._socket.listen(16)
        self._threads: list[threading.Thread] = []
        self._begin(self._accept)

    def _begin(self, function: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=function, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._begin(self._handle, connection)

    def _handle(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, struct.error):  # the other end may go
            self.serve(connection)

    def serve(self, connection: socket.socket) -> None:
        """Do what one who has connected wants."""
        raise NotImplementedError

    def close(self) -> None:
        """End."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join(10)


class FakeVM(Listener):
    """An RPC process of a VM whose services do as they are told."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.clipboard = b""
        self.picture = b""
        self.complaint = b""
        self.code = 0
        self.is_silent = False
        self.commands: list[str] = []
        self.on_paste: Callable[[], None] = lambda: None

    def serve(self, connection: socket.socket) -> None:
        connection.sendall(struct.pack("<III", HELLO, 4, 3))
        file = connection.makefile("rb")
        while True:
            kind, body = self._read(file)
            if kind == EXEC_CMDLINE:
                break
        command = body[8:-1].decode()
        self.commands.append(command)
        if self.is_silent:
            file.read()
            return
        if "Screenshot" in command:
            self._send(connection, DATA_STDOUT, self.picture)
        elif "ClipboardCopy" in command:
            self._send(connection, DATA_STDOUT, b"" if self.code else self.clipboard)
        elif not self.code:
            self.on_paste()
            self.clipboard = b"".join(iter(lambda: self._read(file, DATA_STDIN)[1], b""))
        self._send(connection, DATA_STDERR, self.complaint)
        connection.sendall(struct.pack("<III", DATA_EXIT_CODE, 4, self.code))

    @staticmethod
    def _read(file: object, expected: int = 0) -> tuple[int, bytes]:
        kind, length = struct.unpack("<II", file.read(8))  # type: ignore[attr-defined]
        assert expected in (0, kind)
        return kind, file.read(length)  # type: ignore[attr-defined]

    @staticmethod
    def _send(connection: socket.socket, kind: int, data: bytes) -> None:
        for start in range(0, len(data), 65536):
            piece = data[start : start + 65536]
            connection.sendall(struct.pack("<II", kind, len(piece)) + piece)


class FakePolicy(Listener):
    """Decides as the real one does, by rules that a test sets; `answer` is whom the user picks, None is no."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.rules = ""
        self.answer: str | None = None
        self.asked: list[Request] = []
        self.before_answer: Callable[[], None] = lambda: None

    def serve(self, connection: socket.socket) -> None:
        data = b""
        while not data.endswith(b"\n\n"):
            data += connection.recv(65536)
        request = parse_request(data)
        self.asked.append(request)
        decision = evaluate(load_text(self.rules), SYSTEM, request)
        if isinstance(decision, Ask):
            self.before_answer()
            decision = confirm(SYSTEM, decision, self.answer)
        connection.sendall(format_reply(decision).encode())


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now
