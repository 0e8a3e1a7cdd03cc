"""A call that a guest makes: a process of its own on the host, and a stream to the guest.

The process (rpc.errand) asks the policy, and then is the service, or the way to another VM. This module moves bytes
between its pipes and the stream. Nothing here waits; everything that a guest can grow is bounded.
"""

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator
from enum import Enum

from crannog.errors import ProtocolError
from crannog.rpc import frames
from crannog.rpc.channel import GuestChannel

REFUSED = 126


class Errand:
    """A child process: the ends of its pipes that are ours, and what its end is noticed by (pidfd_open(2)).

    `verdict` gives `+` when the service is there, and `h` before that when its stderr is for this host alone; its end
    without `+` is a refusal. -1 is what is closed.
    """

    def __init__(self, pid: int, pidfd: int, stdin: int, stdout: int, stderr: int, verdict: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.verdict = verdict

    def fds(self) -> list[int]:
        """Return all of them that are open."""
        return [fd for fd in (self.pidfd, self.stdin, self.stdout, self.stderr, self.verdict) if fd >= 0]


class Stage(Enum):
    """How far a call is."""

    ASKED = "asked"
    CONNECTED = "connected"
    OVER = "over"


class GuestCall:
    """One call of the guest (see channel.Call)."""

    data_kinds = frozenset({frames.DATA_STDIN})

    def __init__(self, channel: GuestChannel, ident: bytes, errand: Errand, keep: Callable[[bytes], None]) -> None:
        """`keep` takes what a service of this host complains of."""
        self.stage = Stage.ASKED
        self._channel = channel
        self._ident = ident
        self._keep = keep
        self._keeps_errors = False
        self._errand = errand
        self._stream = 0
        self._input = bytearray()
        self._has_input_ended = False
        self._ungranted = 0
        self._credit = frames.WINDOW
        self._exit_code: int | None = None
        for fd in errand.fds():
            os.set_blocking(fd, False)

    # -- what the guest says

    def deliver(self, kind: int, untrusted_body: bytes) -> None:
        """Take input of the service; an empty body is its end."""
        del kind
        if not untrusted_body:
            self._has_input_ended = True
            return
        self._ungranted += frames.HEADER.size + len(untrusted_body)
        if self._ungranted > frames.WINDOW:
            raise ProtocolError("it sent more than the window of the stream allows")
        if self._errand.stdin >= 0:
            self._input += untrusted_body

    def add_credit(self, untrusted_count: int) -> None:
        """Note that the guest takes more output; never more than one window."""
        self._credit = min(frames.WINDOW, self._credit + untrusted_count)

    def end(self, untrusted_exit_code: int) -> None:
        """Note that the caller is gone: the process sees the ends of its pipes."""
        del untrusted_exit_code
        self._stream = 0
        self.close()

    def fail(self, sentence: str) -> None:
        """Note that the guest, or its agent, is gone."""
        del sentence
        self.end(0)

    # -- what the process says

    def wants(self) -> Iterator[tuple[int, int]]:
        """Give the file descriptors to wait for, with their poll events."""
        errand = self._errand
        if errand.verdict >= 0:
            yield errand.verdict, select.POLLIN
        if errand.pidfd >= 0 and self._exit_code is None:
            yield errand.pidfd, select.POLLIN
        if errand.stdin >= 0 and (self._input or self._has_input_ended):
            yield errand.stdin, select.POLLOUT
        if self.stage is not Stage.CONNECTED:
            return
        outputs = [errand.stderr] if self._keeps_errors else []
        if self._credit >= frames.CREDIT_MIN and self._channel.has_room:
            outputs = [errand.stdout, errand.stderr]
        yield from ((fd, select.POLLIN) for fd in outputs if fd >= 0)

    def serve(self, fd: int) -> None:
        """Act on what poll has found out about one of them."""
        errand = self._errand
        if fd == errand.verdict:
            self._take_verdict()
        elif fd == errand.pidfd:
            self._take_end()
        elif fd == errand.stdin:
            self._write()
        elif fd == errand.stdout:
            self._read("stdout", frames.DATA_STDOUT)
        elif fd == errand.stderr:
            self._read_errors()
        self._finish_if_over()

    def _take_verdict(self) -> None:
        said = b""
        with contextlib.suppress(BlockingIOError):
            said = os.read(self._errand.verdict, 2)
        self._keeps_errors |= b"h" in said
        if said == b"h" and self._exit_code is None:
            return  # the rest is about to come
        self._close_fd("verdict")
        if b"+" in said:
            self.stage = Stage.CONNECTED
            self._stream = self._channel.connect(self._ident, self)
            if self._keeps_errors:
                self._channel.send(self._stream, frames.DATA_STDERR)
        else:
            self._channel.refuse(self._ident)
            self.close()

    def _take_end(self) -> None:
        """Take the exit code: that of the service, or 128 and the number of the signal that killed it."""
        found = os.waitid(os.P_PIDFD, self._errand.pidfd, os.WEXITED | os.WNOHANG)
        if found is None:
            return
        self._exit_code = found.si_status if found.si_code == os.CLD_EXITED else 128 + found.si_status
        self._close_fd("pidfd")
        self._close_fd("stdin")
        self._input.clear()

    def _write(self) -> None:
        """Hand the service what it takes now; what one with a closed input does not take is dropped."""
        try:
            while self._input:
                with memoryview(self._input) as view, view[: frames.BODY_MAX] as part:
                    count = os.write(self._errand.stdin, part)
                del self._input[:count]
        except BlockingIOError:
            pass
        except OSError:
            self._input.clear()
            self._has_input_ended = True
        self._give_credit()
        if self._has_input_ended and not self._input:
            self._close_fd("stdin")

    def _give_credit(self) -> None:
        grant = self._ungranted - len(self._input)
        if grant >= frames.GRANT_MIN and self._stream:
            self._ungranted -= grant
            self._channel.send(self._stream, frames.CREDIT, frames.NUMBER.pack(grant))

    def _read(self, name: str, kind: int) -> None:
        count = min(frames.BODY_MAX, self._credit - frames.HEADER.size)
        try:
            data = os.read(getattr(self._errand, name), count)
        except BlockingIOError:
            # A process that it left behind keeps the pipe open: when the service has ended, so has the call.
            if self._exit_code is not None:
                self._close_fd(name)
            return
        except OSError:
            data = b""
        if data:
            self._credit -= frames.HEADER.size + len(data)
        else:
            self._close_fd(name)
        self._channel.send(self._stream, kind, data)

    def _read_errors(self) -> None:
        if self._keeps_errors:
            self._keep_errors()
        else:
            self._read("stderr", frames.DATA_STDERR)

    def _keep_errors(self) -> None:
        """Keep what the service complains of; none of it is the guest's business."""
        data = b""
        try:
            data = os.read(self._errand.stderr, frames.BODY_MAX)
        except BlockingIOError:
            return
        except OSError:
            pass
        if data:
            self._keep(data)
        else:
            self._close_fd("stderr")

    def _finish_if_over(self) -> None:
        """Send the exit code once the process has ended and all of its output is sent."""
        if self._exit_code is None:
            return
        if self.stage is Stage.CONNECTED:
            if self._keeps_errors and self._errand.stderr >= 0:
                self._keep_errors()  # all that was said before the end: a pipe holds no more than one read takes
                self._close_fd("stderr")
            for name, kind in (("stdout", frames.DATA_STDOUT), ("stderr", frames.DATA_STDERR)):
                if getattr(self._errand, name) >= 0 and not self._has_more(name):
                    self._close_fd(name)
                    self._channel.send(self._stream, kind)
            if self._errand.stdout >= 0 or self._errand.stderr >= 0:
                return
            self._channel.finish_call(self._stream, self._exit_code)
        elif self._errand.verdict >= 0:
            self._take_verdict()
            return
        self.close()

    def _has_more(self, name: str) -> bool:
        poll = select.poll()
        poll.register(getattr(self._errand, name), select.POLLIN)
        return bool(poll.poll(0))

    def _close_fd(self, name: str) -> None:
        fd = getattr(self._errand, name)
        if fd >= 0:
            os.close(fd)
            setattr(self._errand, name, -1)

    def close(self) -> None:
        """Close all pipes. A way to another VM ends with them; a service of this host may finish what it does."""
        self.stage = Stage.OVER
        self._input.clear()
        for name in ("stdin", "stdout", "stderr", "verdict"):
            self._close_fd(name)
        if self._errand.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._errand.pidfd, signal.SIGTERM)

    @property
    def is_buried(self) -> bool:
        """Whether its process has ended."""
        return self.stage is Stage.OVER and self._errand.pidfd < 0
