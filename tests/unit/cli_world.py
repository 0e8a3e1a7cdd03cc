"""A daemon that says what a test tells it to, on a real socket, and the tools that talk to it."""

import contextlib
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from crannog.cli.options import Command, Values
from crannog.cli.tool import run
from crannog.config import Paths
from crannog.errors import CrannogError


@dataclass(frozen=True)
class Asked:
    """One request that the daemon got."""

    method: str
    argument: str
    vm: str
    payload: str

    def __str__(self) -> str:
        """Return the request in short: `METHOD+ARGUMENT VM PAYLOAD`."""
        return " ".join(filter(None, [f"{self.method}+{self.argument}".rstrip("+"), self.vm, self.payload]))


Reply = str | bytes | CrannogError
Answer = Reply | Callable[[Asked], Reply]


class FakeDaemon:
    """Answers each method as `answers` says, with an empty reply where they say nothing."""

    def __init__(self, home: Path) -> None:
        self.paths = Paths(str(home), str(home / "cache"))
        self.answers: dict[str, Answer] = {}
        self.asked: list[Asked] = []
        self.raw: list[bytes] = []
        """What is sent to the next callers, as it is, before `answers` are looked at."""
        self.is_patient = False
        """Whether connections stay open until `patience` is over."""
        self.patience = threading.Event()
        (home / "run").mkdir()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.paths.daemon_socket)
        self._listener.listen(64)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                request = b""
                while chunk := connection.recv(65536):
                    request += chunk
                if request == b"end":
                    return
                if request == b"settle":
                    continue
                reply = self.raw.pop(0) if self.raw else self._answer(request)
                with contextlib.suppress(BrokenPipeError):  # a lease's answer is waited for by nobody
                    connection.sendall(reply)
                if self.is_patient:
                    self.patience.wait(30)

    def _answer(self, request: bytes) -> bytes:
        header, _, payload = request.partition(b"\0")
        method, _, _, vm = header.decode().split(" ")
        name, _, argument = method.partition("+")
        asked = Asked(name, argument, vm, payload.decode())
        self.asked.append(asked)
        answer = self.answers.get(name, "")
        reply = answer(asked) if callable(answer) else answer
        if isinstance(reply, CrannogError):
            sentence = str(reply).replace("%", "%%")
            return f"2\0{reply.wire_name}\0{type(reply).__name__}\0{sentence}\0".encode()
        return b"0\0" + (reply.encode() if isinstance(reply, str) else reply)

    @property
    def heard(self) -> list[str]:
        """Return all requests in short."""
        return [str(asked) for asked in self.asked]

    def settle(self) -> None:
        """Return when whatever came before is answered, and those connections are closed, as a lease's is."""
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self.paths.daemon_socket)
            last.sendall(b"settle")
            last.shutdown(socket.SHUT_WR)
            assert last.recv(1) == b""

    def close(self) -> None:
        """End; requests that are on their way are still answered."""
        self.patience.set()
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self.paths.daemon_socket)
            last.sendall(b"end")
        self._thread.join(10)
        self._listener.close()


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    """Make a home with such a daemon, which the tools of this process then use."""
    # Short, as it must be for a socket's path; not of tests.fakes, which loads the whole daemon.
    with tempfile.TemporaryDirectory(prefix="cr-", dir="/tmp") as home:
        monkeypatch.setenv("CRANNOG_HOME", home)
        daemon = FakeDaemon(Path(home))
        try:
            yield daemon
        finally:
            daemon.close()


class Tool:
    """One tool, run in this process."""

    def __init__(
        self, command: Command, action: Callable[[Values], int | None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._command = command
        self._action = action
        self._capsys = capsys

    def run(self, *words: str) -> tuple[int, str, str]:
        """Return code, output and errors."""
        self._capsys.readouterr()
        code = run(self._command, self._action, list(words))
        out, err = self._capsys.readouterr()
        return code, out, err

    def ok(self, *words: str) -> str:
        """Run what must succeed without a word on standard error; return its output."""
        code, out, err = self.run(*words)
        assert (code, err) == (0, ""), (words, code, out, err)
        return out

    def fails(self, code: int, *words: str) -> str:
        """Run what must fail with one sentence and nothing else; return the sentence."""
        found, out, err = self.run(*words)
        assert (found, out, err.count("\n")) == (code, "", 1), (words, found, out, err)
        assert err.startswith(f"{self._command.program}: ")
        return err.removeprefix(f"{self._command.program}: ").rstrip("\n")


def listing(*rows: str) -> str:
    """Return what admin.vm.List says of VMs that are given as `NAME CLASS STATE`."""
    lines = []
    for row in rows:
        name, klass, state = row.split()
        lines.append(f"{name} class={klass} state={state} uuid=00000000-0000-0000-0000-000000000000\n")
    return "".join(lines)
