"""What calls cost in a real guest, beside what the guest itself needs.

An empty call stands beside the guest's own start of a process, bulk data beside a raw copy over the same virtio-serial
port, in the same guest and run.

The guest is a template's root under plain QEMU. What init starts in it as the agent is this program's own at first: it
copies raw data over the port and starts processes as the agent does. Then it becomes the agent, on the same port.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.vm.guest import Guest, boot, boot_options, make_disk, make_overlay

from benchmarks.harness import Row, summarize
from crannog.client.rpc import is_served, read_status, run_command
from crannog.config import Paths
from crannog.guest import agent
from crannog.images.builder import build_template
from crannog.images.kernel import build_kernel
from crannog.rpc import frames

CALLS, COPIES = 40, 7
BULK = 32 << 20
SLACK = 0.003
"""Seconds that a call may take beyond the start of its process."""
RATE = 1 / 0.7
DELAY = 0.01
"""Seconds that bulk data may delay another call beyond what the port takes for a window: they share one processor."""
SECONDS = 60
LAUNCHER = """
import os, time
PORT = "/dev/virtio-ports/org.crannog.agent.0"
BULK = {bulk}
port = os.open(PORT, os.O_RDWR)
os.write(port, b"ready\\n")

def start():
    began = time.perf_counter()
    pid = os.fork()
    if not pid:
        os.setsid()
        os.execve("/bin/sh", ["-sh", "-c", "true"], dict(os.environ, HOME="/root", USER="root"))
    os.waitpid(pid, 0)
    return time.perf_counter() - began

while True:
    wish = os.read(port, 1)
    if wish == b"S":
        os.write(port, b"%f\\n" % start())
    elif wish == b"O":
        block, left = bytes(65536), BULK
        while left:
            left -= os.write(port, block[:left])
    elif wish == b"I":
        left = BULK
        while left:
            left -= len(os.read(port, min(left, 65536)))
        os.write(port, b"done\\n")
    elif wish == b"P":
        end, theirs = os.pipe()
        if not os.fork():
            os.dup2(theirs, 1)
            os.execv("/usr/bin/head", ["head", "-c", str(BULK), "/dev/zero"])
        os.close(theirs)
        while data := os.read(end, 65536):
            while data:
                data = data[os.write(port, data):]
        os.close(end)
        os.wait()
    elif wish == b"Q":
        ours, end = os.pipe()
        if not os.fork():
            os.dup2(ours, 0)
            os.close(end)
            os.execv("/bin/sh", ["sh", "-c", "exec head -c %d >/dev/null" % BULK])
        os.close(ours)
        left = BULK
        while left:
            data = os.read(port, min(left, 65536))
            left -= len(data)
            while data:
                data = data[os.write(end, data):]
        os.close(end)
        os.wait()
        os.write(port, b"done\\n")
    elif wish == b"A":
        size, source = int(os.read(port, 8)), b""
        while len(source) < size:
            source += os.read(port, size - len(source))
        os.write(port, b"done\\n")
        os.close(port)
        exec(compile(source, "agent.py", "exec"), {{"__name__": "__main__"}})
    elif not wish:
        time.sleep(0.05)
"""


def _own_start(guest: Guest) -> float:
    """Return the seconds that the guest itself takes for what a call starts: a login shell that does nothing."""
    guest.port.sendall(b"S")
    return float(guest.reader.readline())


def _raw_out(guest: Guest, wish: bytes = b"O") -> float:
    """Return the seconds of a raw copy out of the guest; with the wish P, of what another process in it writes."""
    began = time.perf_counter()
    guest.port.sendall(wish)
    left = BULK
    while left:
        left -= len(guest.reader.read1(min(left, 262144)))
    return time.perf_counter() - began


def _raw_in(guest: Guest, wish: bytes = b"I") -> float:
    """Return the seconds of a raw copy into the guest; with the wish Q, on to what another process in it reads."""
    block = bytes(262144)
    began = time.perf_counter()
    guest.port.sendall(wish)
    for _ in range(BULK // len(block)):
        guest.port.sendall(block)
    guest.reader.readline()
    return time.perf_counter() - began


@contextmanager
def _served(guest: Guest, folder: Path) -> Iterator[str]:
    """Have the agent on the port, and an RPC process over it; give its socket."""
    source = Path(agent.__file__).read_bytes()
    guest.port.sendall(b"A%08d" % len(source) + source)
    guest.reader.readline()
    guest.reader.close()
    guest.port.close()
    path = str(folder / "rpc.sock")
    words = ["--name", "guest", "--channel", str(folder / "port"), "--listen", path]
    with subprocess.Popen([sys.executable, "-I", "-m", "crannog.rpc.vm_process", *words]) as process:
        try:
            deadline = time.monotonic() + SECONDS
            while not is_served(path) or read_status(path, SECONDS)["agent"] != "ready":
                if time.monotonic() > deadline:
                    raise RuntimeError("the agent of the benchmark does not answer")
                time.sleep(0.05)
            yield path
        finally:
            process.kill()


def _call(path: str, command: str, given: bytes = b"") -> float:
    """Return the seconds of one call, whose input and output are pipes of this process."""
    ours, stdin = socket.socketpair()
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        if not given:
            ours.close()
        began = time.perf_counter()
        if given and os.fork() == 0:
            ours.sendall(given)
            os._exit(0)
        ours.close()
        code = run_command(path, "root", command, stdin.fileno(), sink, 2)
        seconds = time.perf_counter() - began
    finally:
        stdin.close()
        os.close(sink)
    if given:
        os.wait()
    if code:
        raise RuntimeError(f"'{command}' of the benchmark ended with {code}")
    return seconds


class Echo:
    """A call that sends back what it gets."""

    def __init__(self, path: str) -> None:
        self.ours, theirs = socket.socketpair()
        self.output, output = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            self.ours.close()
            os.close(self.output)
            os._exit(run_command(path, "root", "exec cat", theirs.fileno(), output, 2))
        theirs.close()
        os.close(output)

    def measure(self) -> float:
        """Return the seconds in which one byte is there and back."""
        began = time.perf_counter()
        self.ours.sendall(b"x")
        os.read(self.output, 1)
        return time.perf_counter() - began

    def close(self) -> None:
        """End the call."""
        self.ours.close()
        os.close(self.output)
        os.waitpid(self.process, 0)


def _echoes(path: str) -> tuple[list[float], list[float]]:
    """Return the seconds of echoes alone, and while bulk data comes out of the guest."""
    echo = Echo(path)
    echo.measure()
    alone = [echo.measure() for _ in range(CALLS)]
    beside: list[float] = []
    while len(beside) < CALLS:
        process = os.fork()
        if process == 0:
            _call(path, f"head -c {BULK} /dev/zero")
            os._exit(0)
        while os.waitpid(process, os.WNOHANG) == (0, 0):
            beside.append(echo.measure())
            time.sleep(0.005)
    echo.close()
    return alone, beside


def measure(runs: int) -> list[Row]:
    """Return the rows; `runs` is ignored where more are needed."""
    copies = max(runs, COPIES)
    with tempfile.TemporaryDirectory(prefix="crannog-bench-") as name:
        folder = Path(name)
        launcher = folder / "launcher.py"
        launcher.write_text(LAUNCHER.format(bulk=BULK))
        cache = Paths().cache
        kernel = build_kernel(cache, print)
        root = build_template("debian-12", "pv", cache, print, agent_path=str(launcher)).root_img
        disks = [f"file={make_overlay(folder / 'root.qcow2', root)},format=qcow2"]
        disks.append(f"file={make_disk(folder / 'private', 2**28)},format=raw")
        with boot(folder, disks, *boot_options(kernel)) as guest:
            guest.wait_for_agent()
            starts = [_own_start(guest) for _ in range(CALLS)]
            raw_out = [_raw_out(guest) for _ in range(copies)]
            piped = [_raw_out(guest, b"P") for _ in range(copies)]
            raw_in = [_raw_in(guest) for _ in range(copies)]
            piped_in = [_raw_in(guest, b"Q") for _ in range(copies)]
            with _served(guest, folder) as path:
                calls = [_call(path, "true") for _ in range(CALLS)]
                out = [_call(path, f"head -c {BULK} /dev/zero") for _ in range(copies)]
                into = [_call(path, f"head -c {BULK} > /dev/null", bytes(BULK)) for _ in range(copies)]
                alone, beside = _echoes(path)
    slack = [seconds + SLACK for seconds in starts]
    window = [seconds + frames.WIDE_WINDOW / BULK * summarize(raw_out).median + DELAY for seconds in alone]
    return [
        Row("an empty call", summarize(calls), "the guest's own start of a shell, and 3 ms", summarize(slack), 1),
        Row("bulk out of the guest", summarize(out), "a raw copy over the same port", summarize(raw_out), RATE),
        Row("the same", summarize(out), "a raw copy of a process's output", summarize(piped), RATE),
        Row("bulk into the guest", summarize(into), "a raw copy over the same port", summarize(raw_in), RATE),
        Row("the same", summarize(into), "a raw copy into a process's input", summarize(piped_in), RATE),
        Row("an echo beside bulk", summarize(beside), "alone, a raw window, 10 ms", summarize(window), 1),
    ]
