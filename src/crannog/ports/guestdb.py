"""What Crannog asks of guest DBs: one VM's tree, and those that the hypervisor keeps (XenStore; design.md, B4, B6)."""

from collections.abc import Iterator
from typing import Protocol

from crannog.core.guestdb import Watcher


class Tree(Protocol):
    """The guest DB of one VM: `core.guestdb.GuestDB` where Crannog keeps it itself, XenStore on Xen.

    What a guest has written is untrusted. A tree outside of this process raises HypervisorError when it cannot be
    reached, and ProtocolError when a guest has made more of it than is let.
    """

    def read(self, path: str) -> bytes | None:
        """Return a value, None where there is none."""

    def list(self, prefix: str = "/") -> Iterator[tuple[str, bytes]]:
        """Give the entries whose paths begin with `prefix`, by path."""

    def write(self, path: str, value: bytes) -> None:
        """Set a value; raises ProtocolError for one that is too long, or one entry too many."""

    def remove(self, path: str) -> bool:
        """Remove an entry, or with a slash at the end all below; return whether there was anything."""

    def watch(self, path: str, watcher: Watcher) -> int:
        """Have a watcher told of a path, or with a slash at the end of all below; return the number of the watch."""

    def unwatch(self, number: int) -> None:
        """End a watch; one that is not there is no error."""


class HostTrees(Protocol):
    """What the hypervisor itself keeps of domains; `xid` is its number of one. Without XenStore there is nothing."""

    def prepare(self, xid: int) -> bool:
        """Make room for what the guest of a new domain may write; return whether there is such a thing here.

        To be called before the guest runs. Raises HypervisorError.
        """

    def stubdom_xid(self, xid: int) -> int:
        """Return the number of the domain's stub domain; -1 where there is none. Never an error (design.md, B4)."""

    def memory(self, xid: int) -> int:
        """Return the memory that a domain is to have, in KiB; 0 where that is not known."""
