"""QEMU's guest agent played by a thread: it runs real commands, or does what a test wants of a hostile one."""

import base64
import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Callable

Answer = Callable[["FakeAgent", str, dict[str, object]], "bytes | None"]


def returns(value: object) -> bytes:
    """Return an answer's line."""
    return json.dumps({"return": value}).encode() + b"\n"


def fails(reason: str) -> bytes:
    """Return the line of an answer that tells of a failure."""
    return json.dumps({"error": {"class": "GenericError", "desc": reason}}).encode() + b"\n"


COMMANDS = ("guest-exec", "guest-exec-status", "guest-shutdown", "guest-get-osinfo", "guest-ping", "guest-info")
INFO = {"version": "7.2.22", "supported_commands": [{"name": name, "enabled": True} for name in COMMANDS]}
OSINFO = {"id": "debian", "version-id": "12", "pretty-name": "Debian GNU/Linux 12 (bookworm)", "kernel-release": "6.1"}


class FakeAgent:
    """Listens where QEMU would. Requests that `answers` names get what is there; others what a sound agent says."""

    def __init__(self, path: str) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, dict[str, object]]] = []
        self.is_deaf = False
        self.is_connected = False
        self.awake = threading.Event()
        """Cleared, it reads nothing, as where the guest does not have the port open."""
        self.awake.set()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._outputs: dict[int, tuple[bytes, bytes]] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._connection, _ = self._listener.accept()
                self.is_connected = True
                self._talk(self._connection)
                self.is_connected = False

    def _talk(self, connection: socket.socket) -> None:
        buffer = b""
        with contextlib.suppress(OSError), connection:
            while data := connection.recv(65536):
                self.awake.wait()
                buffer += data
                *lines, buffer = buffer.split(b"\n")
                for line in lines:
                    self._take(connection, line.lstrip(b"\xff"))

    def _take(self, connection: socket.socket, line: bytes) -> None:
        request = json.loads(line)
        name, arguments = request["execute"], request.get("arguments", {})
        self.requests.append((name, arguments))
        if self.is_deaf:
            return
        answer = self.answers.get(name)
        reply = answer(self, name, arguments) if answer else self._answer(name, arguments)
        if reply:
            connection.sendall(reply)

    def _answer(self, name: str, arguments: dict[str, object]) -> bytes | None:
        if name == "guest-sync-delimited":
            return b"\xff" + returns(arguments["id"])
        if name == "guest-info":
            return returns(INFO)
        if name == "guest-get-osinfo":
            return returns(OSINFO)
        if name == "guest-exec":
            return self.execute(arguments)
        if name == "guest-exec-status":
            return self.look(arguments)
        return None if name == "guest-shutdown" else returns({})

    def execute(self, arguments: dict[str, object]) -> bytes:
        """Run a command for real, without a user and a session of its own."""
        words = arguments["arg"]
        assert isinstance(words, list)
        command = words[-1] if len(words) == 5 else f"kill {words[-1]}"
        data = base64.b64decode(str(arguments.get("input-data", "")))
        child = subprocess.Popen(
            ["/bin/sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        threading.Thread(target=self._collect, args=(child, data)).start()
        self._processes[child.pid] = child
        return returns({"pid": child.pid})

    def _collect(self, child: "subprocess.Popen[bytes]", data: bytes) -> None:
        self._outputs[child.pid] = child.communicate(data)

    def look(self, arguments: dict[str, object]) -> bytes:
        """Tell how a command is."""
        pid = arguments["pid"]
        assert isinstance(pid, int)
        if pid not in self._processes:
            return fails(f"PID {pid} does not exist")
        if pid not in self._outputs:
            return returns({"exited": False})
        out, err = self._outputs.pop(pid)
        code = self._processes.pop(pid).returncode
        status: dict[str, object] = {"exited": True, **({"signal": -code} if code < 0 else {"exitcode": code})}
        for key, value in (("out-data", out), ("err-data", err)):
            if value:
                status[key] = base64.b64encode(value).decode()
        return returns(status)

    def forget(self) -> None:
        """Lose all commands, as an agent does that is started again."""
        for child in self._processes.values():
            child.kill()
        self._processes = {}

    def push(self, data: bytes) -> None:
        """Send what nobody has asked for."""
        assert self._connection
        self._connection.sendall(data)

    def close(self) -> None:
        """End everything."""
        self.forget()
        self.awake.set()
        for end in (self._listener, self._connection):
            if end:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        self._thread.join()
