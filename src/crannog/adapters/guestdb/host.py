"""What the daemon asks XenStore about domains (ports.guestdb.HostTrees): of what guests write, nothing.

On a host without XenStore there is nothing to prepare and nothing to find, and no error. It is looked for at each
question, as the daemon may have been started before xenstored.
"""

import contextlib
from collections.abc import Callable

from crannog.adapters.guestdb.places import find_xenstore
from crannog.adapters.guestdb.tree import domain_folder, prepare
from crannog.adapters.guestdb.xenstore import XenStore
from crannog.errors import HypervisorError

STUBDOM = "image/device-model-domid"
"""Where libxl writes the number of the domain that a device model runs in (design.md, B4)."""
TARGET = "memory/target"
"""What a domain is to have, in KiB (docs/misc/xenstore-paths.pandoc)."""
_DOMAINS = range(1, 0x7FF0)
"""Numbers of domains but dom0 (Xen, public/xen.h: DOMID_FIRST_RESERVED)."""
_DIGITS_MAX = 12


class XenStoreHost:
    """XenStore, seen from the host's side."""

    def __init__(self, find: Callable[[], str] = find_xenstore) -> None:
        """`find` tells where XenStore is; empty: nowhere."""
        self._find = find

    def prepare(self, xid: int) -> bool:
        """Make room for what the guest of a new domain may write. Raises HypervisorError."""
        path = self._find()
        if not path or xid not in _DOMAINS:
            return False
        with contextlib.closing(XenStore(path)) as store:
            prepare(store, xid)
        return True

    def stubdom_xid(self, xid: int) -> int:
        """Return the number of the domain's stub domain; -1 where there is none."""
        number = self._read_number(xid, STUBDOM)
        return number if number in _DOMAINS else -1  # 0: the device model runs in dom0

    def memory(self, xid: int) -> int:
        """Return the memory that a domain is to have, in KiB; 0 where that is not known."""
        return max(0, self._read_number(xid, TARGET))

    def _read_number(self, xid: int, name: str) -> int:
        """Return a number of a domain's folder, where only dom0 writes; -1 where there is none."""
        path = self._find()
        if not path or xid not in _DOMAINS:
            return -1
        try:
            with contextlib.closing(XenStore(path)) as store:
                text = store.read(f"{domain_folder(xid)}/{name}") or b""
        except HypervisorError:
            return -1
        return int(text) if text.isdigit() and len(text) <= _DIGITS_MAX else -1
