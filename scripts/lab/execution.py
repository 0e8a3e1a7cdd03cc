"""Running a command in a machine, through the same agent and channel that Crannog's guests have."""

import contextlib
import math
import os
import select
import socket
import time

from crannog.errors import HypervisorError, RpcError
from crannog.rpc import frames
from crannog.rpc.channel import GuestChannel

_READ_SIZE = 65536
_HANDLES = {frames.DATA_STDOUT: 1, frames.DATA_STDERR: 2}
_WAKE_SECONDS = 1.0
_NO_STREAM = 0xFFFFFFFF
"""A call's number that nobody gets to; an agent ignores what is said of it (crannog.rpc.frames)."""


class _Relay:
    """One command's output, passed on to this process's own. Its input is empty."""

    def __init__(self, channel: GuestChannel) -> None:
        self.exit_code: int | None = None
        self.failure = ""
        self.data_kinds = frozenset(_HANDLES)
        self._channel = channel
        self._ungranted = 0
        self._stream = 0

    def start(self, command: str) -> None:
        self._stream = self._channel.open_call(self, b"root:" + command.encode())
        self._channel.send(self._stream, frames.DATA_STDIN)

    def deliver(self, kind: int, untrusted_body: bytes) -> None:
        with memoryview(untrusted_body) as rest:
            done = 0
            while done < len(rest):
                done += os.write(_HANDLES[kind], rest[done:])
        self._ungranted += frames.HEADER.size + len(untrusted_body)
        if self._ungranted >= frames.GRANT_MIN:
            self._channel.send(self._stream, frames.CREDIT, frames.NUMBER.pack(self._ungranted))
            self._ungranted = 0

    def add_credit(self, untrusted_count: int) -> None:
        pass

    def end(self, untrusted_exit_code: int) -> None:
        self.exit_code = untrusted_exit_code & 0xFF

    def fail(self, sentence: str) -> None:
        self.failure = sentence


class Executor:
    """Runs commands in the machine `name` at the other end of `link`. Nothing takes longer than until `deadline`.

    `deadline` is a time of time.monotonic(). What does take longer ends in a TimeoutError.

    A machine that `is_woken` gets an interrupt each second. One that runs guests by SVM needs that: when such a guest
    exits, QEMU 7.2 changes what the processor has pending without the lock that timers take (do_vmexit in its
    svm_helper.c), so that now and then an interrupt stays unseen until another one comes. After that of an idle
    machine's timer, none does.
    """

    def __init__(self, name: str, link: socket.socket, deadline: float, *, is_woken: bool = False) -> None:
        self._name = name
        self._link = link
        self._deadline = deadline
        self._channel = GuestChannel(name, lambda _sentence: None)
        self._wake_seconds = _WAKE_SECONDS if is_woken else math.inf
        self._woken_at = time.monotonic()

    def await_agent(self, timeout: float) -> None:
        """Wait until the machine takes commands.

        Raises HypervisorError when it ends instead, or does not within `timeout` seconds.
        """
        deadline = min(self._deadline, time.monotonic() + timeout)
        try:
            while not self._channel.is_ready:
                self._turn(deadline)
        except TimeoutError:
            if deadline == self._deadline:
                raise
            raise HypervisorError(f"the agent of the machine {self._name} did not answer in {timeout:.0f} s") from None

    def run(self, command: str) -> int:
        """Run a shell command as root, with this process's output, and return its exit code.

        Raises HypervisorError when the machine ends, RpcError when its agent is lost.
        """
        relay = _Relay(self._channel)
        relay.start(command)
        while relay.exit_code is None:
            self._turn(self._deadline)
            if relay.failure:
                raise RpcError(relay.failure)
        return relay.exit_code

    def _turn(self, deadline: float) -> None:
        """Move what can be moved now, and wait for that until `deadline`."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._wake()
        out = self._channel.out
        waits = min(left, self._wake_seconds)
        readable, writable, _ = select.select([self._link], [self._link] if out else [], [], waits)
        # A machine that has ended is noticed when it is read.
        with contextlib.suppress(ConnectionError):
            if writable:
                del out[: self._link.send(out[:_READ_SIZE])]
        if readable:
            self._channel.receive(self._receive())

    def _wake(self) -> None:
        """Send something that means nothing, if it is time for that and nothing else is being sent."""
        now = time.monotonic()
        if self._channel.is_ready and not self._channel.out and now - self._woken_at >= self._wake_seconds:
            self._channel.send(_NO_STREAM, frames.CLOSE)
            self._woken_at = now

    def _receive(self) -> bytes:
        untrusted_data = b""
        with contextlib.suppress(ConnectionError):
            untrusted_data = self._link.recv(_READ_SIZE)
        if not untrusted_data:
            raise HypervisorError(f"the machine {self._name} has ended by itself")
        return untrusted_data
