"""The forwarder's child processes: the client in its sandbox, and calls into the guest."""

import contextlib
import subprocess
from collections.abc import Iterator

from crannog.display.forwarder_output import Output

GRACE = 2.0
"""Seconds that a child has to end after SIGTERM."""


@contextlib.contextmanager
def ended(process: "subprocess.Popen[bytes]") -> "Iterator[subprocess.Popen[bytes]]":
    """Have a process ended when the block is left; one that does not end is killed."""
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()


@contextlib.contextmanager
def start_client(command: list[str]) -> "Iterator[Output]":
    """Have a client run in its sandbox as long as the block does."""
    pipe = subprocess.PIPE
    with ended(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)) as client:
        outputs = [stream.fileno() for stream in (client.stdout, client.stderr) if stream]
        yield Output(outputs[0], outputs[1])


def feed(process: "subprocess.Popen[bytes]", data: bytes) -> None:
    """Write a process's input, all of it, and close it."""
    if process.stdin:
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(data)
