"""A crannogd of canned answers, to see what tools send to it and what they make of what comes back."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from crannog.cli.options import Command, Values
from crannog.cli.tool import run
from crannog.config import Paths
from tests.fakes import short_folder

TIMEOUT = 30
VMS = "".join(
    f"{name} class={klass} state=Halted uuid=u\n"
    for name, klass in (("dom0", "AdminVM"), ("sys-usb", "AppVM"), ("work", "AppVM"))
)
Act = Callable[[Values], int | None]


class Wire:
    """Answers calls on the sockets of one home. What nobody has prepared an answer for is refused."""

    def __init__(self, home: Path) -> None:
        self.paths = Paths(str(home), str(home / "cache"))
        self.answers: dict[str, bytes] = {}
        self.requests: list[tuple[str, bytes]] = []
        self.arrived = threading.Semaphore(0)
        self.on_request: Callable[[], None] = lambda: None
        """What is done before a request is answered."""
        self._listeners = [_listen(path) for path in (self.paths.daemon_socket, self.paths.internal_socket)]
        for listener in self._listeners:
            threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def answer(self, call: str, data: str | bytes = b"") -> None:
        """Have `call`, as in `admin.pool.Info+vm-pool dom0`, answered with that data."""
        self.answers[call] = b"0\0" + (data.encode() if isinstance(data, str) else data)

    def refuse(self, call: str, name: str, message: str) -> None:
        """Have `call` answered with an error of the Admin API."""
        self.answers[call] = f"2\0{name}\0\0{message.replace('%', '%%')}\0".encode()

    def sent(self, *methods: str) -> list[tuple[str, bytes]]:
        """Return the calls, and their payloads, to methods whose names end so."""
        return [(call, payload) for call, payload in self.requests if call.partition("+")[0].endswith(methods)]

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                request = b""
                while chunk := connection.recv(65536):
                    request += chunk
                reply = self._reply(request)
                with suppress(ConnectionError):  # a tool that was ended waits for no answer
                    connection.sendall(reply)

    def _reply(self, request: bytes) -> bytes:
        header, _, payload = request.partition(b"\0")
        method, source, kind, destination = header.decode().split(" ")
        assert kind == "name"
        call = f"{method} {destination}" + ("" if source == "dom0" else f" from {source}")
        self.requests.append((call, payload))
        self.arrived.release()
        self.on_request()
        return self.answers.get(call, f"2\0ProtocolError\0\0nobody expected '{call}'\0".encode())

    def close(self) -> None:
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    return listener


class Tool:
    """A tool on the home of a Wire."""

    def __init__(self, wire: Wire, command: Command, act: Act, capsys: pytest.CaptureFixture[str]) -> None:
        self.wire = wire
        self._command = command
        self._act = act
        self._capsys = capsys

    def run(self, *words: str) -> tuple[int, str, str]:
        """Run it; return its code, output and errors."""
        code = run(self._command, self._act, list(words))
        output = self._capsys.readouterr()
        return code, output.out, output.err

    def ok(self, *words: str) -> str:
        """Run it, which must succeed; return its output."""
        code, out, err = self.run(*words)
        assert (code, err) == (0, ""), (words, code, out, err)
        return out

    def fails(self, code: int, part: str, *words: str) -> str:
        """Run it, which must fail with one sentence that has `part` in it; return the sentence."""
        ended, out, err = self.run(*words)
        assert (ended, out) == (code, ""), (words, ended, out, err)
        assert err.startswith(f"{self._command.program}: ")
        assert err.count("\n") == 1
        assert part in err, (words, err)
        return err


@contextmanager
def open_wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """Make a home with a Wire, in which tools that start now work."""
    with short_folder() as home:
        (home / "run").mkdir()
        monkeypatch.setenv("CRANNOG_HOME", str(home))
        wire = Wire(home)
        yield wire
        wire.close()


def start(function: str, words: list[str], stdin: int) -> "subprocess.Popen[bytes]":
    """Start a tool, given as MODULE:FUNCTION, as a process of its own."""
    module, _, name = function.partition(":")
    code = f"from crannog.cli.{module} import {name}; {name}()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ,
    )


def assert_examples_are_plain(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that the examples in a command's help are right, and not so odd as to need argparse, which is slow."""
    import shlex

    text = command.build_parser().format_help()
    assert command.examples in text
    monkeypatch.setattr(Command, "build_parser", lambda _self: 1 // 0)
    for line in command.examples.splitlines():
        assert line.startswith(f"  {command.program} ")
        command.parse(shlex.split(line)[len(command.program.split()) :])
