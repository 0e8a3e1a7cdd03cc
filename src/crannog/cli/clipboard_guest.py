"""The clipboards of VMs: what a VM answers is bounded in size and time, and believed when it is text."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from crannog.client.rpc import run_command
from crannog.errors import CrannogError, RpcError, ValueRefusedError

BYTES_MAX = 65536
"""Longest text, in bytes of UTF-8."""
PATIENCE = 20.0
"""Seconds for a VM to answer; its service waits for its own display for 5."""
COPY, PASTE = "qubes.ClipboardCopy", "qubes.ClipboardPaste"
_MEMORY = 2 * BYTES_MAX
"""What an output can hold. One that is full has more than BYTES_MAX in it, as messages have no more."""
_COMPLAINT_MAX = 200
_MISSING = 127


def fetch_text(socket: str, vm: str) -> bytes:
    """Return the text in the clipboard of the VM whose RPC process serves `socket`, as UTF-8.

    Raises CrannogError with what the VM says when there is none, ValueRefusedError for what is no text that is
    taken, RpcError when the VM cannot be asked.
    """
    return check_text(vm, _call(socket, vm, "DEFAULT", COPY, b""))


def deliver_text(socket: str, vm: str, user: str, text: bytes) -> None:
    """Put a text into the clipboard of a VM's session; raises CrannogError and RpcError as `fetch_text` does."""
    _call(socket, vm, user, PASTE, text)


def check_text(vm: str, untrusted_data: bytes) -> bytes:
    """Return the data when they are text: UTF-8, neither empty nor too long, without NUL. Raises ValueRefusedError."""
    if not untrusted_data:
        raise ValueRefusedError(f"{vm} has no text in its clipboard; copy some there first")
    if len(untrusted_data) > BYTES_MAX:
        raise ValueRefusedError(
            f"the clipboard of {vm} holds more than {BYTES_MAX} bytes; copy less, or a file with qvm-copy"
        )
    try:
        untrusted_data.decode()
    except UnicodeDecodeError:
        raise ValueRefusedError(f"what {vm} has in its clipboard is not UTF-8 text; copy text there") from None
    if b"\0" in untrusted_data:
        raise ValueRefusedError(f"the text in the clipboard of {vm} has NUL characters; copy other text there")
    return untrusted_data


def _call(socket: str, vm: str, user: str, service: str, data: bytes) -> bytes:
    """Call a service of the VM; return what it printed when it ended with 0, not checked."""
    with ExitStack() as stack:
        streams = [os.memfd_create("clipboard", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING) for _ in range(3)]
        for stream in streams:
            stack.callback(os.close, stream)
        stdin, stdout, stderr = streams
        os.write(stdin, data)
        os.lseek(stdin, 0, os.SEEK_SET)
        for stream in (stdout, stderr):  # the kernel lets nothing in that is beyond
            os.ftruncate(stream, _MEMORY)
            fcntl.fcntl(stream, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        try:
            with _time_limit(vm):
                code = run_command(socket, user, f"QUBESRPC {service}+ dom0", stdin, stdout, stderr)
        except RpcError:
            if max(map(_measure, (stdout, stderr))) <= BYTES_MAX:
                raise
            raise ValueRefusedError(f"{vm} sent more than {BYTES_MAX} bytes; copy less text there") from None
        if code:
            raise _explain(vm, service, code, os.pread(stderr, min(_measure(stderr), _COMPLAINT_MAX), 0))
        return os.pread(stdout, _measure(stdout), 0)


def _measure(stream: int) -> int:
    """Return how much was written."""
    return os.lseek(stream, 0, os.SEEK_CUR)


def _explain(vm: str, service: str, code: int, untrusted_complaint: bytes) -> CrannogError:
    """Return the error for a service that failed. What the VM says stands in quotes; `complain` escapes the rest."""
    if code == _MISSING:
        return RpcError(f"{vm} has no service {service}; install the graphical guest tools there (docs/display.md)")
    untrusted_line = untrusted_complaint.decode("utf-8", "replace").strip().partition("\n")[0]
    said = "".join(char if char.isprintable() else "_" for char in untrusted_line)
    return CrannogError(f"the clipboard of {vm} was not reached: {service} ended with {code}, and said '{said}'")


@contextmanager
def _time_limit(vm: str) -> Iterator[None]:
    """Raise RpcError when it takes too long: there may be no terminal to interrupt it."""

    def give_up(*_: object) -> None:
        raise RpcError(f"{vm} did not answer about its clipboard within {PATIENCE:.0f} s; see whether it still works")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
