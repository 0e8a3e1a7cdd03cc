"""Plays QEMU and the guest agent for one VM's RPC process: frames as a test wants them, and what came back."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from crannog.rpc import frames
from crannog.rpc.frames import Frame, FrameParser, Marker
from tests.processes import list_children

SECONDS = 60


class GuestPeer:
    """The guest's end of the channel of a VM `work`, whose RPC process is real; its home is a folder."""

    def __init__(self, home: Path, *options: str) -> None:
        self.home = home
        self._options = options
        self.listen_path = str(home / "rpc.sock")
        self.log = home / "rpc.log"
        self._channel_path = str(home / "channel")
        self._parser = FrameParser()
        self.frames: list[Frame] = []
        self._credit: dict[int, int] = {}

    def start(self) -> None:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(self._channel_path)
            listener.listen(1)
            words = ["--name", "work", "--channel", self._channel_path, "--listen", self.listen_path]
            words += self._options
            environment = os.environ | {"VCHAN_SOCKET_DIR": str(self.home)}
            with open(self.log, "wb") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "crannog.rpc.vm_process", *words, "--home", str(self.home)],
                    stderr=log,
                    env=environment,
                )
            listener.settimeout(SECONDS)
            self.connection, _ = listener.accept()
        self.connection.settimeout(SECONDS)
        self.shake_hands()

    def shake_hands(self) -> None:
        nonce = os.urandom(8)
        self.connection.sendall(frames.PADDING + frames.encode_marker(Marker(frames.REQUEST, nonce, bytes(8))))
        while (marker := self._parser.next_marker()) is None or marker.guest_nonce != nonce:
            self._parser.feed(self.connection.recv(65536))
        self._parser.accept_marker()
        self.connection.sendall(frames.encode_marker(Marker(frames.ACKNOWLEDGE, nonce, marker.host_nonce)))
        self.send(0, frames.HELLO, frames.NUMBER.pack(2))

    def close(self) -> None:
        self.connection.close()
        try:
            assert self.process.wait(SECONDS) == 0
        finally:
            self.process.kill()
            self.process.wait()

    def send(self, stream: int, kind: int, body: bytes = b"") -> None:
        self.connection.sendall(frames.encode_frame(stream, kind, body))

    def trigger(self, service: str, target: str = "dom0", ident: bytes = b"SOCKET7") -> None:
        body = frames.TRIGGER_PARAMS.pack(b"", target.encode(), ident) + service.encode() + b"\0"
        self.send(0, frames.TRIGGER_SERVICE4, body)

    def next_frame(self, *, with_credit: bool = False) -> Frame:
        """Return the next frame; credit is kept count of, and only returned if that is wanted."""
        while True:
            while (frame := self._parser.next_frame()) is None:
                data = self.connection.recv(65536)
                assert data, f"the RPC process has ended: {self.log.read_text()}"
                self._parser.feed(data)
            if frame.type != frames.CREDIT:
                return frame
            self._credit[frame.stream] = self.credit(frame.stream) + frames.NUMBER.unpack(frame.body)[0]
            if with_credit:
                return frame

    def credit(self, stream: int) -> int:
        return self._credit.get(stream, frames.WINDOW)

    def connected(self, ident: bytes = b"SOCKET7") -> int:
        """Return the stream of the call that is answered next, which must be allowed."""
        frame = self.next_frame()
        assert (frame.type, frame.body.rstrip(b"\0")) == (frames.SERVICE_CONNECT, ident), frame
        return frame.stream

    def refused(self) -> bytes:
        """Return the ident of the call that is answered next, which must be refused."""
        frame = self.next_frame()
        assert (frame.stream, frame.type) == (0, frames.SERVICE_REFUSED), frame
        return frame.body.rstrip(b"\0")

    def outcome(self, stream: int) -> tuple[bytes, bytes, int]:
        """Return all output of a call and its exit code, giving credit as it comes."""
        output = {frames.DATA_STDOUT: b"", frames.DATA_STDERR: b""}
        while True:
            frame = self.next_frame()
            assert frame.stream == stream, frame
            if frame.type == frames.DATA_EXIT_CODE:
                return output[frames.DATA_STDOUT], output[frames.DATA_STDERR], frames.NUMBER.unpack(frame.body)[0]
            output[frame.type] += frame.body
            if frame.body:
                self.send(stream, frames.CREDIT, frames.NUMBER.pack(frames.HEADER.size + len(frame.body)))

    def children(self) -> list[int]:
        """Return the processes of the calls that go on."""
        return list_children(self.process.pid)

    def wait_for_no_children(self) -> None:
        deadline = time.monotonic() + SECONDS
        while self.children():
            assert time.monotonic() < deadline, f"processes of calls are left: {self.children()}"
            time.sleep(0.01)


@contextlib.contextmanager
def guest_peer(home: Path, *options: str) -> Iterator[GuestPeer]:
    peer = GuestPeer(home, *options)
    peer.start()
    try:
        yield peer
    finally:
        peer.close()


POLICY = """
import asyncio, sys
async def serve(reader, writer):
    lines = (await reader.readuntil(b"\\n\\n")).decode().split()
    values = dict(line.partition("=")[::2] for line in lines)
    with open(sys.argv[2], "a") as log:
        print(*lines, file=log)
    service = values["service_and_arg"].partition("+")[0]
    if service.startswith("denied"):
        writer.write(b"result=deny")
    elif not service.startswith("silent"):
        target = values["intended_target"].replace("@default", "dom0")
        user = "user=root" if service == "as.root" else "user=DEFAULT"
        writer.write(f"{user}\\nresult=allow\\ntarget={target}\\nautostart=False\\n"
                     f"requested_target={values['intended_target']}".encode())
    writer.close()
async def main():
    server = await asyncio.start_unix_server(serve, sys.argv[1])
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@contextlib.contextmanager
def policy_stand_in(home: Path) -> Iterator[Path]:
    """Run a policy that denies `denied*`, answers nothing to `silent*`, and allows all else; give its log."""
    from crannog.config import Paths
    from crannog.shortpath import provide_short_path

    provide_short_path(str(home))
    paths, log = Paths(str(home)), home / "asked"
    os.makedirs(paths.run, exist_ok=True)
    command = [sys.executable, "-c", POLICY, paths.policy_socket, str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        try:
            yield log
        finally:
            process.send_signal(signal.SIGKILL)
