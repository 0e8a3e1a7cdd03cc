"""The ports at which the data of calls is passed (qrexec protocol, "Flows"). Pure: no I/O."""

from crannog.errors import RpcError
from crannog.rpc.qrexec_messages import FIRST_PORT, PORTS

HOST = 0


class PortTable:
    """Which ports of one VM are used, each for calls with one other domain."""

    def __init__(self, domain: int) -> None:
        self._domain = domain
        self._used: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._used)

    def allocate(self, peer: int) -> int:
        """Return a free port. Raises RpcError when there is none.

        Both VMs' daemons choose ports for calls between them: that of the lower number takes the odd offsets. The host
        has no daemon of its own.
        """
        first, step = (0, 1) if peer == HOST else (int(peer > self._domain), 2)
        for offset in range(first, PORTS, step):
            if FIRST_PORT + offset not in self._used:
                self._used[FIRST_PORT + offset] = peer
                return FIRST_PORT + offset
        raise RpcError(f"domain {self._domain} has no free port for a call with domain {peer}; {PORTS} is the most")

    def release(self, port: int, peer: int) -> bool:
        """Free a port; return whether it was used for calls with `peer`."""
        if self._used.get(port) != peer:
            return False
        del self._used[port]
        return True

    def clear(self) -> None:
        """Free all ports."""
        self._used.clear()
