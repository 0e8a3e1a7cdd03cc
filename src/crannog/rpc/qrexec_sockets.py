"""Where other programs find the daemon of a VM: `qrexec.NUMBER`, with links by name and UUID.

See the qrexec protocol, "Flows". A socket that a killed process left is replaced; one that is served is not.
"""

import os
import socket
from contextlib import suppress

from crannog.errors import InUseError, RpcError

OWNER_ONLY, EVERYBODY = 0o177, 0
"""File mode masks: for a home, and for a folder that itself says who may come in."""


class DaemonSocket:
    """The listening socket of one VM, and its links."""

    def __init__(self, folder: str, domain: int, links: tuple[str, ...], mask: int = OWNER_ONLY) -> None:
        """`links` are what else it is called by: the VM's name, and `uuid:` and its UUID."""
        self.path = f"{folder}/qrexec.{domain}"
        self._links = [f"{folder}/qrexec.{name}" for name in links]
        self._mask = mask
        self._inode = 0
        self.listener: socket.socket | None = None

    def check(self) -> None:
        """Raise InUseError when another process serves the VM, RpcError when there is no such folder."""
        for path in (self.path, *self._links):
            if is_served(path):
                raise InUseError(f"another process serves {path} already; end that one first")
        folder = os.path.dirname(self.path)
        if not os.access(folder, os.W_OK):
            raise RpcError(f"no sockets can be made in the folder {folder}; choose --socket-dir, or make it")

    def open(self) -> None:
        """Listen. Raises InUseError when another process serves the VM, RpcError when the folder cannot be used."""
        self.check()
        listener = socket.socket(socket.AF_UNIX)
        try:
            self._bind(listener)
        except OSError as error:
            listener.close()
            raise RpcError(f"the socket {self.path} cannot be made: {error.strerror or error}") from error
        listener.setblocking(False)
        self.listener = listener

    def _bind(self, listener: socket.socket) -> None:
        for path in (self.path, *self._links):
            with suppress(FileNotFoundError):
                os.unlink(path)
        old_mask = os.umask(self._mask)
        try:
            listener.bind(self.path)
        finally:
            os.umask(old_mask)
        listener.listen(128)
        self._inode = os.stat(self.path).st_ino
        for link in self._links:
            os.symlink(os.path.basename(self.path), link)

    def close(self) -> None:
        """Stop listening, and remove what is still ours: a successor may have put its own there."""
        if self.listener is None:
            return
        self.listener.close()
        self.listener = None
        for path in (*self._links, self.path):
            with suppress(OSError):
                if os.stat(path).st_ino == self._inode:
                    os.unlink(path)


def mask_for(folder: str) -> int:
    """Return the mask for sockets of a folder: for all who may go there, if that is not everybody."""
    try:
        return OWNER_ONLY if os.stat(folder).st_mode & 0o001 else EVERYBODY
    except OSError:
        return OWNER_ONLY


def is_served(path: str) -> bool:
    """Tell whether a process listens at `path`."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def discard_left(folder: str, vm: str) -> None:
    """Delete the socket of a VM, and its links, whose process was killed."""
    link = f"{folder}/qrexec.{vm}"
    with suppress(OSError):
        target = os.readlink(link)
        if is_served(link):
            return
        for name in os.listdir(folder):
            path = f"{folder}/{name}"
            if name == target or (name.startswith("qrexec.") and os.path.islink(path) and os.readlink(path) == target):
                os.unlink(path)
