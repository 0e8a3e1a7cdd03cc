"""The guest DB of one VM as its RPC process holds it: told to the agent, and written to by it, within limits. No I/O.

On Xen the guest can write to XenStore as well, also one without our agent: what is there stands beside what the agent
has written (rpc/xen_guest.py).

The agent has a copy. It gets all entries after its HELLO, then GUESTDB_READY, then each change. What the guest writes
comes back to it as a change when it was taken, so that its copy never shows what was refused.
"""

from collections.abc import Callable, Mapping

from crannog.core.announcement import PREFIX
from crannog.core.guestdb import GuestDB, check_guest_may_write, check_path, differences
from crannog.errors import DeniedError, ProtocolError
from crannog.rpc import frames

TOLD_VERSION = 3
"""The first version of the agent's HELLO that says it keeps a copy."""
ANNOUNCED = PREFIX.decode("ascii")

Send = Callable[[int, int, bytes], None]
"""Queues a frame for the guest: stream, type, body."""


class GuestTree:
    """The guest DB, the host's end."""

    def __init__(self, send: Send, log: Callable[[str], None]) -> None:
        self.db = GuestDB()
        self._send = send
        self._log = log
        self._is_told = False
        self._stored: Mapping[str, bytes] = {}
        self.db.watch("/", self._pass_on)

    def begin(self, version: int) -> None:
        """Tell an agent that has just come all that there is, if it can keep it.

        Once, until `end`: else thousands of short HELLOs would be answered with all of it each, and fill our memory.
        """
        if version >= TOLD_VERSION and not self._is_told:
            self._is_told = True
            for path, value in self.db.list():
                self._send(0, frames.GUESTDB_WRITE, _encode(path, value))
            self._send(0, frames.GUESTDB_READY, b"")

    def end(self) -> None:
        """Forget the agent, and what it has said it is; what is in XenStore stays."""
        self._is_told = False
        self.db.remove(ANNOUNCED)
        self._apply({path: value for path, value in self._stored.items() if path.startswith(ANNOUNCED)})

    @property
    def has_stored(self) -> bool:
        """Whether the guest says in XenStore what it is."""
        return any(path.startswith(ANNOUNCED) for path in self._stored)

    def take_stored(self, untrusted_entries: Mapping[str, bytes]) -> bool:
        """Take over what the guest has in XenStore now; return whether what it says that it is has changed."""
        changed = differences(self._stored.items(), untrusted_entries.items())
        self._stored = dict(untrusted_entries)
        self._apply(changed)
        return any(path.startswith(ANNOUNCED) for path in changed)

    def _apply(self, untrusted_changes: Mapping[str, bytes | None]) -> None:
        for path, value in untrusted_changes.items():
            try:
                check_guest_may_write(path)
                if value is None:
                    self.db.remove(path)
                else:
                    self.db.write(path, value)
            except (ProtocolError, DeniedError) as error:
                self._log(f"refused a change of the guest DB: {error}")

    def take(self, kind: int, untrusted_body: bytes) -> None:
        """Do what the guest wants done; what it may not, or is nonsense, is logged and changes nothing."""
        try:
            if kind == frames.GUESTDB_REMOVE:
                self._take_removal(untrusted_body)
            else:
                untrusted_path, _, untrusted_value = untrusted_body.partition(b"\0")
                path = check_path(untrusted_path)
                check_guest_may_write(path)
                self.db.write(path, untrusted_value)
        except (ProtocolError, DeniedError) as error:
            self._log(f"refused a change of the guest DB: {error}")

    def _take_removal(self, untrusted_path: bytes) -> None:
        path = check_path(untrusted_path, may_be_folder=True)
        check_guest_may_write(path)
        self.db.remove(path)

    def announced(self) -> dict[bytes, bytes]:
        """Return what the guest has said it is, for the one parser of that."""
        return {path.encode("ascii"): value for path, value in self.db.list(ANNOUNCED)}

    def _pass_on(self, path: str) -> None:
        """Tell the agent of a change."""
        value = self.db.read(path)
        if not self._is_told:
            return
        if value is None:
            self._send(0, frames.GUESTDB_REMOVE, path.encode("ascii"))
        else:
            self._send(0, frames.GUESTDB_WRITE, _encode(path, value))


def _encode(path: str, value: bytes) -> bytes:
    return path.encode("ascii") + b"\0" + value
