"""The forwarder's child processes: the client in its sandbox, and calls into the guest."""

import contextlib
import os
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
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()


class Client:
    """A client in its sandbox: what it writes, and how it is told to look."""

    def __init__(self, stdin: int, output: Output) -> None:
        self.output = output
        self.is_deaf = False
        """Whether it did not take a line: it reads nothing any more."""
        self._stdin = stdin
        os.set_blocking(stdin, False)

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or is of no use any more."""
        return self.output.has_ended or self.is_deaf

    def tell(self, line: str) -> None:
        """Write a line."""
        try:
            os.write(self._stdin, line.encode() + b"\n")
        except OSError:
            self.is_deaf = True


@contextlib.contextmanager
def start_client(command: list[str]) -> "Iterator[Client]":
    """Have a client run in its sandbox as long as the block does."""
    pipe = subprocess.PIPE
    with ended(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)) as process:
        stdin, stdout, stderr = (
            stream.fileno() for stream in (process.stdin, process.stdout, process.stderr) if stream
        )
        yield Client(stdin, Output(stdout, stderr))


def feed(process: "subprocess.Popen[bytes]", data: bytes) -> None:
    """Write a process's input, all of it, and close it."""
    if process.stdin:
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(data)
