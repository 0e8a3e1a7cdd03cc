"""Which libvirt: the one in our own process (embed.py), or a libvirtd that serves others as well."""

import os
from typing import Protocol

from crannog.adapters.libvirt.embed import URI, EmbeddedRoot
from crannog.config import Paths, Settings
from crannog.errors import HypervisorError, ValueRefusedError

DAEMON_URIS = ("qemu:///session", "qemu:///system")


class Root(Protocol):
    """What differs between the two."""

    path: str
    """Folder below which the library's own log is, in `log/`."""
    uri: str
    is_shared: bool
    """Others have domains there as well, which are none of our business."""

    def prepare(self) -> str:
        """Make everything ready and return the URI to open; raises HypervisorError."""

    def share_capabilities(self) -> None:
        """Keep what was found out about QEMU, where that saves time."""

    def owner(self) -> str:
        """Return who keeps us from opening it, or an empty text when that is unknown."""

    def log(self, name: str) -> str:
        """Return the file in which QEMU's own words about the domain `name` are."""

    def runs_as(self) -> str:
        """Return the user and group that QEMU is to run as, as `+UID:+GID`; empty: as libvirt chooses."""


class DaemonRoot:
    """A libvirtd. Its domains are those of all its users; ours are known by their UUIDs."""

    is_shared = True

    def __init__(self, uri: str, home: str) -> None:
        self.uri = uri
        self.path = home

    def prepare(self) -> str:
        """Return the URI; raises HypervisorError when the folder for the log cannot be made."""
        try:
            os.makedirs(self.path + "/log", mode=0o700, exist_ok=True)
        except OSError as error:
            raise HypervisorError(f"{self.path}/log cannot be made: {error.strerror}") from error
        # The transport is named, because libvirt would else ask the driver in this process where that is loaded.
        return self.uri.replace(":///", "+unix:///", 1)

    def share_capabilities(self) -> None:
        """Do nothing: libvirtd keeps what it finds out."""

    def owner(self) -> str:
        """Return nothing: many may use it."""
        return ""

    def log(self, name: str) -> str:
        """Return where that libvirtd writes QEMU's logs by default."""
        if self.uri.startswith("qemu:///session"):
            cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
            return f"{cache}/libvirt/qemu/log/{name}.log"
        return f"/var/log/libvirt/qemu/{name}.log"

    def runs_as(self) -> str:
        """Return our own user for a libvirtd of the system: no other can reach a home's volumes."""
        return f"+{os.geteuid()}:+{os.getegid()}" if self.uri.startswith("qemu:///system") else ""


def choose_root(paths: Paths, settings: Settings) -> Root:
    """Return the libvirt that the settings name; raises ValueRefusedError for one that is not supported."""
    if settings.libvirt_uri == URI:
        return EmbeddedRoot(paths.home, paths.cache)
    if settings.libvirt_uri.startswith(DAEMON_URIS):
        return DaemonRoot(settings.libvirt_uri, paths.home)
    raise ValueRefusedError(
        f"libvirt_uri = '{settings.libvirt_uri}' in {paths.settings} is not supported; use {URI}, "
        f"{', '.join(DAEMON_URIS)}"
    )
