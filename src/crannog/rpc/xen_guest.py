"""What differs for a VM on Xen: XenStore, which its guest can write to as well, and a channel that is slow.

The guest's folders are read as its other bytes are, here and nowhere else, whether it has an agent of ours or not. What
the host says of the VM is written for guests that look for it in XenStore. One that cannot be reached is let go: calls
through the channel do without it.
"""

import select
from collections.abc import Callable, Iterator

from crannog.adapters.guestdb.tree import XenStoreTree
from crannog.adapters.guestdb.xenstore import XenStore
from crannog.core.guestdb import GUEST_FOLDERS
from crannog.errors import HypervisorError, ProtocolError
from crannog.rpc.channel import GuestChannel

BUFFER = 8192
"""Bytes of the socket's buffer: what is in it goes before everything that is urgent."""
PAD_WAIT = 1.0
"""Seconds that the agent has to ask for a synchronisation, before it is sent the long padding."""
LOOK_PAUSE = 0.1
"""Seconds after the news of a change until it is looked at: a guest that makes more of them is not looked at more."""


class XenGuest:
    """A guest of Xen, beside its channel. Of XenStore there is nothing until the domain's number is known."""

    def __init__(self, channel: GuestChannel, path: str, log: Callable[[str], None]) -> None:
        """`path` is where XenStore is."""
        self._channel = channel
        self._path = path
        self._log = log
        self._store: XenStore | None = None
        self._tree: XenStoreTree | None = None
        self._domain = 0
        self._pad_at: float | None = None
        self._look_at: float | None = None
        self._is_due = False
        channel.tree.db.watch("/", self._pass_on)

    def attach(self, domain: int) -> None:
        """Begin with a domain; one that is known already is no news."""
        if domain == self._domain:
            return
        self.close()
        self._domain = domain
        try:
            self._store = XenStore(self._path)
            self._tree = XenStoreTree(self._store, domain)
            for folder in GUEST_FOLDERS:
                self._tree.watch(folder, lambda _untrusted_path: self._note_change())
            for path, _ in tuple(self._channel.tree.db.list()):
                self._pass_on(path)
        except HypervisorError as error:
            self._give_up(error)
        self._note_change()

    def close(self) -> None:
        """Let go of XenStore, and of the domain."""
        self._let_go()
        self._domain = 0

    # -- what the loop calls

    def wants(self) -> Iterator[tuple[int, int, "XenGuest"]]:
        """Give the file descriptor to wait for, with its poll events."""
        if self._store:
            yield self._store.fileno(), select.POLLIN, self

    def serve(self, fd: int) -> None:
        """Note what has changed."""
        del fd
        try:
            if self._tree:
                self._tree.dispatch()
        except HypervisorError as error:
            self._give_up(error)

    def due(self, now: float) -> float | None:
        """Return when `advance` has something to do."""
        look = now if self._is_due and self._look_at is None else self._look_at
        return min((when for when in (look, self._pad_at) if when is not None), default=None)

    def advance(self, now: float) -> None:
        """Look at what the guest has written, a moment after it has changed something; pad what it may wait for."""
        self._advance_padding(now)
        if self._is_due and self._look_at is None:
            self._look_at = now + LOOK_PAUSE
        if self._look_at is None or now < self._look_at:
            return
        self._look_at, self._is_due = None, False
        if self._tree:
            self._look(self._tree)

    def _advance_padding(self, now: float) -> None:
        if not self._channel.may_need_padding:
            self._pad_at = None
        elif self._pad_at is None:
            self._pad_at = now + PAD_WAIT
        elif now >= self._pad_at:
            self._channel.pad()

    def _look(self, tree: XenStoreTree) -> None:
        try:
            untrusted_entries = {path: value for folder in GUEST_FOLDERS for path, value in tree.list(folder)}
        except ProtocolError as error:
            self._log(f"refused what the guest has in XenStore, nothing is changed: {error}")
        except HypervisorError as error:
            self._give_up(error)
        else:
            self._channel.take_stored(untrusted_entries)

    def _note_change(self) -> None:
        self._is_due = True

    def _pass_on(self, path: str) -> None:
        """Write what the host says; what XenStore has no name for is told through the channel alone."""
        if self._tree is None or path.startswith(GUEST_FOLDERS):
            return
        value = self._channel.tree.db.read(path)
        try:
            if value is None:
                self._tree.remove(path)
            else:
                self._tree.write(path, value)
        except ProtocolError:
            return
        except HypervisorError as error:
            self._give_up(error)

    def _give_up(self, error: HypervisorError) -> None:
        """Go on without XenStore, as long as it is the same domain."""
        self._log(f"the guest is not heard through XenStore any more: {error}")
        self._let_go()

    def _let_go(self) -> None:
        if self._store:
            self._store.close()
        self._store = self._tree = None
