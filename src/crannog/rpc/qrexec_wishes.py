"""Calls that a guest with somebody else's agent has asked for, and the processes that decide about them."""

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from crannog.errors import RpcError
from crannog.rpc.guest_call import Errand


@dataclass
class Wish:
    """One call. It is answered once: connected, or refused."""

    ident: bytes
    errand: Errand
    is_answered: bool = False

    def end(self) -> None:
        """Ask its process to end."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.errand.pidfd, signal.SIGTERM)

    def close(self) -> None:
        """Close all files of it."""
        for fd in self.errand.fds():
            os.close(fd)


def find_wish(wishes: Iterable[Wish], ident: bytes) -> Wish:
    """Return the call that waits for an answer as `ident`, however much filling that has. Raises RpcError."""
    name = ident.rstrip(b"\0")
    for wish in wishes:
        if not wish.is_answered and wish.ident.rstrip(b"\0") == name:
            return wish
    raise RpcError(f"no call with the ident '{name.decode('ascii', 'replace')}' waits to be connected")
