"""Real processes for the RPC tests: a relay in QEMU's place, the guest agent, the RPC process, and calls."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from crannog.client.rpc import read_status
from crannog.errors import RpcError
from crannog.guest import agent as agent_module

RELAY = """
import os, select, socket, sys

def listen(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + "~")
    listener.listen(4)
    os.rename(path + "~", path)   # so that what exists takes connections
    return listener

def serve(listeners):
    ends = [None, None]          # the host's end, the guest's end
    held = [b"", b""]            # bytes that wait for the host's end, for the guest's end
    while True:
        poll = select.poll()
        for i in (0, 1):
            if ends[i] is None:
                poll.register(listeners[i], select.POLLIN)
            else:
                reads = 0 if held[1 - i] else select.POLLIN
                poll.register(ends[i], reads | (select.POLLOUT if held[i] else 0))
        for fd, events in poll.poll():
            for i in (0, 1):
                if fd == listeners[i].fileno():
                    ends[i] = listeners[i].accept()[0]
                elif ends[i] is not None and fd == ends[i].fileno():
                    try:
                        if events & select.POLLOUT:
                            held[i] = held[i][ends[i].send(held[i], socket.MSG_DONTWAIT):]
                        if events & ~select.POLLOUT:
                            data = ends[i].recv(65536)
                            held[1 - i] += data
                            if not data:
                                raise OSError
                    except OSError:
                        ends[i].close()
                        ends[i] = None
                        if i == 0:
                            held[0] = b""   # QEMU drops what no host reads; what waits for the guest stays

serve([listen(sys.argv[1]), listen(sys.argv[2])])
"""


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until `condition()` is true; fail when it does not get true in `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true after {seconds} s"
        time.sleep(0.005)


class World:
    """One VM's worth of processes below one folder; closed by `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host_port = str(folder / "host-port")
        self.guest_port = str(folder / "guest-port")
        self.rpc_socket = str(folder / "rpc.sock")
        self.log = folder / "rpc.log"
        self.children: list[subprocess.Popen[bytes]] = []
        self.poweroff_mark = folder / "poweroff"
        for name in ("poweroff", "systemctl"):  # an agent under test must never reach the real ones
            program = folder / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(f"#!/bin/sh\necho $0 $@ >{self.poweroff_mark}\n")
            program.chmod(0o755)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a Python process of this world."""
        environment = os.environ | {"PATH": f"{self.folder}/bin:{os.environ['PATH']}"}
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, *arguments], stdin=subprocess.DEVNULL, stderr=log, env=environment
            )
        self.children.append(child)
        return child

    def start_relay(self) -> subprocess.Popen[bytes]:
        """Start what stands in QEMU's place."""
        return self.start("-c", RELAY, self.host_port, self.guest_port)

    def start_agent(self) -> subprocess.Popen[bytes]:
        """Start the guest's agent, in a process group of its own."""
        return self.start("-I", agent_module.__file__, "--socket", self.guest_port)

    def start_process(self, default_user: str = "") -> subprocess.Popen[bytes]:
        """Start the VM's RPC process."""
        user = ["--default-user", default_user] if default_user else []
        names = ["--name", "vm1", "--channel", self.host_port, "--listen", self.rpc_socket]
        return self.start("-m", "crannog.rpc.vm_process", *names, *user)

    def is_serving(self) -> bool:
        """Tell whether the RPC process answers."""
        with contextlib.suppress(RpcError):
            return bool(read_status(self.rpc_socket, 5))
        return False

    def is_ready(self) -> bool:
        """Tell whether the agent has announced itself."""
        with contextlib.suppress(RpcError):
            status = read_status(self.rpc_socket, 5)
            return status["agent"] == "ready" and status["announced"] is not None
        return False

    def start_all(self) -> None:
        """Start everything, and wait for the announcement."""
        self.start_relay()
        self.start_process()
        self.start_agent()
        wait_until(self.is_ready)

    def call(self, command: str, user: str = "DEFAULT", **streams: int) -> subprocess.Popen[bytes]:
        """Start a tool that runs `command` in the guest; its output and input are pipes unless given."""
        program = (
            "import sys; from crannog.client.rpc import run_command; "
            "sys.exit(run_command(sys.argv[1], sys.argv[2], sys.argv[3], 0, 1, 2))"
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
        arguments = [sys.executable, "-c", program, self.rpc_socket, user, command]
        child = subprocess.Popen(arguments, **pipes)  # type: ignore[call-overload]
        self.children.append(child)
        return child  # type: ignore[no-any-return]

    def run(self, command: str, data: bytes = b"", user: str = "DEFAULT") -> tuple[int, bytes, bytes]:
        """Run `command` in the guest; return its exit code, stdout and stderr."""
        child = self.call(command, user)
        out, err = child.communicate(data, timeout=30)
        return child.returncode, out, err

    def connect(self) -> socket.socket:
        """Return a raw connection to the RPC process."""
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.rpc_socket)
        return client

    def close(self) -> None:
        """End every process that this world has started."""
        for child in self.children:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
            child.wait()
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
