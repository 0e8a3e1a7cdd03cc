"""Using a disposable: it ends with the connection that uses it, whatever happens to whoever holds that."""

from __future__ import annotations

from crannog.errors import CrannogError

# Importing typing and collections.abc would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from crannog.client.connection import Client


class Lease:
    """A disposable in use. To let go of it, or to end in any way, has crannogd end it; nobody waits for that."""

    def __init__(self, client: Client, vm: str) -> None:
        """Begin; raises DaemonError when there is no daemon."""
        self.vm = vm
        self._client = client
        self._connection: _socket.socket | None = client.open_stream("crannog.vm.Lease", vm)

    def close(self) -> None:
        """Let go. A daemon that was started anew meanwhile knows of no lease: it is told to end the disposable."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        is_known = _is_open(connection)
        connection.close()
        if not is_known:
            end_disposable(self._client, self.vm)


def _is_open(connection: _socket.socket) -> bool:
    """Tell whether the other end is still there; what it said is of no interest."""
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def end_disposable(client: Client, vm: str) -> None:
    """Have a disposable ended and removed; one that is gone is no error, and one that never ran is only removed."""
    for method in ("admin.vm.Kill", "admin.vm.Remove"):
        try:
            client.call(method, vm)
        except CrannogError:
            continue
        else:
            if method == "admin.vm.Kill":
                return  # it is removed when it has ended


def create_leased(client: Client, template: str) -> Lease:
    """Return a new disposable of an AppVM, dom0 meaning the default one, in use; raises what the daemon refuses."""
    vm = client.text("admin.vm.CreateDisposable", template)
    try:
        return Lease(client, vm)
    except BaseException:
        end_disposable(client, vm)
        raise
