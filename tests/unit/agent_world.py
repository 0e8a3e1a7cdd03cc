"""The real agent against a host that the test plays itself, frame by frame."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from crannog.guest import agent as agent_module
from crannog.guest import qrexec_client_vm
from crannog.rpc import frames
from crannog.rpc.frames import Frame, FrameParser, Marker
from tests.processes import list_children, processor_seconds, read_words

WAIT = 20.0
PYTHON = os.environ.get("CRANNOG_TEST_GUEST_PYTHON", sys.executable)
"""What runs the agent and qrexec-client-vm: guests may have an older Python than this host, from 3.9 on."""


class AgentWorld:
    """One agent, its folders of services and configurations, and the host's end of its channel."""

    def __init__(self, folder: Path, user: str | None = None) -> None:
        self.folder = folder
        self.user = user
        self.services = [folder / "first", folder / "second"]
        self.configs = [folder / "config-first", folder / "config-second"]
        for path in (*self.services, *self.configs, folder / "sessions"):
            path.mkdir()
            path.chmod(0o755)
        self.trigger = str(folder / "run" / "trigger")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / "port"))
        (folder / "port").chmod(0o777)
        self.listener.listen(1)
        self.listener.settimeout(WAIT)
        self.parser = FrameParser()
        self.held: list[Frame] = []
        self.children: list[subprocess.Popen[bytes]] = []
        self.clients: list[socket.socket] = []
        self.last_stream = 0
        self.start_agent()

    def start_agent(self) -> None:
        """Start the agent, and take its connection up to the announcement's end."""
        environment = os.environ | {
            "QREXEC_SERVICE_PATH": ":".join(map(str, self.services)),
            "QUBES_RPC_CONFIG_PATH": ":".join(map(str, self.configs)),
            "CRANNOG_SESSION_FOLDER": str(self.folder / "sessions"),
            "CRANNOG_SESSION_WAIT": "3",
        }
        arguments = ["--socket", str(self.folder / "port"), "--trigger-socket", self.trigger]
        arguments += ["--database", str(self.folder / "database")]
        with (self.folder / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(
                [PYTHON, "-I", agent_module.__file__, *arguments], stderr=log, env=environment, user=self.user
            )
        self.children.append(self.agent)
        self.port, _ = self.listener.accept()
        self.port.settimeout(WAIT)
        self.synchronise()

    def synchronise(self) -> None:
        """Answer the agent's request for a marker as the host does."""
        self.parser = FrameParser()
        self.held = []
        while True:
            self.parser.feed(self.port.recv(65536))
            while marker := self.parser.next_marker():
                if marker.kind == frames.REQUEST:
                    self.port.sendall(frames.encode_marker(Marker(frames.SYNC, marker.guest_nonce, b"the-host")))
                elif marker.kind == frames.ACKNOWLEDGE:
                    self.parser.accept_marker()
                    self.expect(0, frames.TRIGGER)
                    self.held.clear()
                    return

    def send(self, stream: int, kind: int, body: bytes = b"") -> None:
        """Send one frame to the agent."""
        self.port.sendall(frames.encode_frame(stream, kind, body))

    def next_frame(self) -> Frame:
        """Return the next frame from the agent, whatever it is for."""
        while (frame := self.parser.next_frame()) is None:
            data = self.port.recv(65536)
            assert data, "the agent has closed the port"
            self.parser.feed(data)
        return frame

    def expect(self, stream: int, *kinds: int) -> Frame:
        """Return the next frame of one of these types for this stream; the others are held for later."""
        for at, frame in enumerate(self.held):
            if frame.stream == stream and frame.type in kinds:
                return self.held.pop(at)
        while True:
            frame = self.next_frame()
            if frame.stream == stream and frame.type in kinds:
                return frame
            self.held.append(frame)

    def start(self, line: str) -> int:
        """Start a call `USER:...` of the host; return its stream."""
        self.last_stream += 1
        self.send(self.last_stream, frames.EXEC_CMDLINE, line.encode() + b"\0")
        return self.last_stream

    def finish(self, stream: int) -> tuple[int, bytes, bytes]:
        """Take all data of a call of the host, giving credit; return its exit code, stdout and stderr."""
        data = {frames.DATA_STDOUT: b"", frames.DATA_STDERR: b""}
        ended: set[int] = set()
        while True:
            frame = self.expect(stream, *data, frames.DATA_EXIT_CODE)
            if frame.type == frames.DATA_EXIT_CODE:
                assert ended == set(data), "an exit code before the ends of the outputs"
                return frames.NUMBER.unpack(frame.body)[0], *data.values()
            assert frame.type not in ended
            data[frame.type] += frame.body
            if frame.body:
                self.send(stream, frames.CREDIT, frames.NUMBER.pack(len(frame.body) + frames.HEADER.size))
            else:
                ended.add(frame.type)

    def run(self, line: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        """Run a call of the host with this input; return its exit code, stdout and stderr."""
        stream = self.start(line)
        if stdin:
            self.send(stream, frames.DATA_STDIN, stdin)
        self.send(stream, frames.DATA_STDIN)
        return self.finish(stream)

    def write_service(self, name: str, content: str, *, folder: int = 1, mode: int = 0o755) -> Path:
        """Write a service's file."""
        path = self.services[folder] / name
        path.write_text(content, encoding="ascii")
        path.chmod(mode)
        return path

    def write_config(self, name: str, content: str, *, folder: int = 1) -> None:
        """Write a service's configuration."""
        (self.configs[folder] / name).write_text(content, encoding="ascii")

    def connect(self) -> socket.socket:
        """Return a connection to the trigger socket."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(WAIT)
        client.connect(self.trigger)
        self.clients.append(client)
        return client

    def call_out(self, *arguments: str, **streams: int) -> subprocess.Popen[bytes]:
        """Start qrexec-client-vm; its stdin, stdout and stderr are pipes unless given."""
        program = [PYTHON, "-IS", qrexec_client_vm.__file__, f"--agent-socket={self.trigger}", *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
        child = subprocess.Popen(program, **pipes)  # type: ignore[call-overload]
        self.children.append(child)
        return child  # type: ignore[no-any-return]

    def accept_call(self, stream: int) -> tuple[bytes, bytes, bytes]:
        """Allow the next call from the guest on `stream`; return its source, target and service."""
        source, target, ident, name = self.take_request()
        self.send(stream, frames.SERVICE_CONNECT, ident)
        return source, target, name

    def take_request(self) -> tuple[bytes, bytes, bytes, bytes]:
        """Return the next request from the guest: source, target, ident (all 32 bytes), service."""
        body = self.expect(0, frames.TRIGGER_SERVICE4).body
        source, target, ident = frames.TRIGGER_PARAMS.unpack_from(body)
        name = body[frames.TRIGGER_PARAMS.size :]
        assert name.endswith(b"\0")
        return source.rstrip(b"\0"), target.rstrip(b"\0"), ident, name[:-1]

    def is_quiet(self, stream: int, seconds: float = 0.3) -> bool:
        """Tell whether the agent sends nothing for `stream` for this long."""
        self.port.settimeout(seconds)
        try:
            while not any(frame.stream == stream for frame in self.held):
                self.held.append(self.next_frame())
        except TimeoutError:
            return True
        finally:
            self.port.settimeout(WAIT)
        return False

    def close(self) -> None:
        """End every process that this world has started."""
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream:
                    stream.close()
        for client in (*self.clients, self.port, self.listener):
            client.close()


def find_shells(agent: int) -> list[int]:
    """Return the children of an agent that wait for a command."""
    return [pid for pid in list_children(agent) if ". /dev/fd/3" in " ".join(read_words(pid))]


def spins(pid: int) -> bool:
    """Tell whether a process that has nothing to do uses the processor."""
    before = processor_seconds(pid)
    time.sleep(0.5)
    return processor_seconds(pid) - before > 0.2
