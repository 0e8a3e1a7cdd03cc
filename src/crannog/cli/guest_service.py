"""One call of a service in a VM by a tool: what the VM sends is bounded in size and time, and returned unchecked."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from crannog.client.rpc import run_command
from crannog.errors import CrannogError, RpcError, ValueRefusedError

MISSING = 127
"""Exit code of a service that the VM does not have."""
_COMPLAINT_MAX = 200
_CHUNK = 65536
"""A message of a call has no more data than that."""


class Service:
    """A service of guests: `most` bytes of its output are taken, within `patience` seconds.

    `thing` is what it is about, in sentences such as "VM did not answer about THING".
    """

    def __init__(self, name: str, thing: str, most: int, patience: float) -> None:
        self.name = name
        self.thing = thing
        self.most = most
        self.patience = patience

    def call(self, socket: str, vm: str, user: str = "DEFAULT", data: bytes = b"") -> tuple[int, bytes]:
        """Return the exit code and what was printed, for 0; else what was complained of, at most 200 bytes of it.

        `socket` is the VM's RPC process's. Raises ValueRefusedError when too much comes, RpcError when the VM cannot
        be asked, or takes too long.
        """
        with ExitStack() as stack:
            streams = [os.memfd_create("service", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING) for _ in range(3)]
            for stream in streams:
                stack.callback(os.close, stream)
            stdin, stdout, stderr = streams
            os.write(stdin, data)
            os.lseek(stdin, 0, os.SEEK_SET)
            for stream in (stdout, stderr):  # the kernel lets nothing in that is beyond
                os.ftruncate(stream, self.most + _CHUNK)
                fcntl.fcntl(stream, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
            try:
                with self._time_limit(vm):
                    code = run_command(socket, user, f"QUBESRPC {self.name}+ dom0", stdin, stdout, stderr)
            except RpcError:
                if max(map(_measure, (stdout, stderr))) <= self.most:
                    raise
                raise ValueRefusedError(
                    f"{vm} sent more than {self.most} bytes as {self.thing}; have it send less"
                ) from None
            stream, most = (stderr, _COMPLAINT_MAX) if code else (stdout, self.most + _CHUNK)
            return code, os.pread(stream, min(_measure(stream), most), 0)

    def explain(self, vm: str, code: int, untrusted_complaint: bytes) -> CrannogError:
        """Return the error for a call that failed. What the VM says stands in quotes; `complain` escapes the rest."""
        if code == MISSING:
            return RpcError(
                f"{vm} has no service {self.name}; install the graphical guest tools there (docs/display.md)"
            )
        untrusted_line = untrusted_complaint.decode("utf-8", "replace").strip().partition("\n")[0]
        said = "".join(char if char.isprintable() else "_" for char in untrusted_line)
        return CrannogError(f"{vm} was not reached for {self.thing}: {self.name} ended with {code}, and said '{said}'")

    @contextmanager
    def _time_limit(self, vm: str) -> Iterator[None]:
        """Raise RpcError when it takes too long: there may be no terminal to interrupt it."""

        def give_up(*_: object) -> None:
            raise RpcError(
                f"{vm} did not answer about {self.thing} within {self.patience:.0f} s; see whether it still works"
            )

        before = signal.signal(signal.SIGALRM, give_up)
        signal.setitimer(signal.ITIMER_REAL, self.patience)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _measure(stream: int) -> int:
    """Return how much was written."""
    return os.lseek(stream, 0, os.SEEK_CUR)
