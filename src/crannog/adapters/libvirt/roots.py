"""Which libvirt: the one in our own process (embed.py), a libvirtd that serves others as well, or its test driver."""

import os
from typing import Protocol

from crannog.adapters.libvirt.embed import URI, EmbeddedRoot
from crannog.config import Paths, Settings
from crannog.errors import HypervisorError, ValueRefusedError

DAEMON_URIS = ("qemu:///session", "qemu:///system", "xen:///")
MOCK_URI = "test:///"


class Root(Protocol):
    """What differs between the two."""

    path: str
    """Folder below which the library's own log is, in `log/`."""
    uri: str
    is_shared: bool
    """Others have domains there as well, which are none of our business."""
    is_embedded: bool
    """QEMU is started by this process."""

    def prepare(self) -> str:
        """Make everything ready and return the URI to open; raises HypervisorError."""

    def share_capabilities(self) -> None:
        """Keep what was found out about QEMU, where that saves time."""

    def leave(self) -> None:
        """End what was begun beside the domains, as this process ends. Blocks."""

    def owner(self) -> str:
        """Return who keeps us from opening it, or an empty text when that is unknown."""

    def log(self, name: str) -> str:
        """Return the file in which QEMU's own words about the domain `name` are."""

    def runs_as(self) -> str:
        """Return the user and group that QEMU is to run as, as `+UID:+GID`; empty: as libvirt chooses."""


class DaemonRoot:
    """A libvirtd. Its domains are those of all its users; ours are known by their UUIDs."""

    is_shared = True
    is_embedded = False

    def __init__(self, uri: str, home: str) -> None:
        self.uri = uri
        self.path = home

    def prepare(self) -> str:
        """Return the URI; raises HypervisorError when the folder for the log cannot be made."""
        self._make_folder()
        # The transport is named, because libvirt would else ask the driver in this process where that is loaded.
        return self.uri.replace(":///", "+unix:///", 1)

    def _make_folder(self) -> None:
        try:
            os.makedirs(self.path + "/log", mode=0o700, exist_ok=True)
        except OSError as error:
            raise HypervisorError(f"{self.path}/log cannot be made: {error.strerror}") from error

    def share_capabilities(self) -> None:
        """Do nothing: libvirtd keeps what it finds out."""

    def leave(self) -> None:
        """Do nothing: libvirtd sees to what it has begun."""

    def owner(self) -> str:
        """Return nothing: many may use it."""
        return ""

    def log(self, name: str) -> str:
        """Return where that libvirtd writes the logs of QEMU, or of Xen's tools, by default."""
        if self.uri.startswith("xen:"):
            return f"/var/log/libvirt/libxl/{name}.log"
        if self.uri.startswith("qemu:///session"):
            cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
            return f"{cache}/libvirt/qemu/log/{name}.log"
        return f"/var/log/libvirt/qemu/{name}.log"

    def runs_as(self) -> str:
        """Return our own user for a libvirtd of the system: no other can reach a home's volumes."""
        return f"+{os.geteuid()}:+{os.getegid()}" if self.uri.startswith("qemu:///system") else ""


class MockRoot(DaemonRoot):
    """libvirt's test driver, in this process. It has a domain of its own beside ours."""

    def prepare(self) -> str:
        """Return the URI."""
        self._make_folder()
        return self.uri

    def log(self, name: str) -> str:
        """Return nothing: nothing runs that could say anything."""
        del name
        return ""


def choose_root(paths: Paths, settings: Settings) -> Root:
    """Return the libvirt that the settings name; raises ValueRefusedError for one that is not supported."""
    if settings.libvirt_uri == URI:
        return EmbeddedRoot(paths.home, paths.cache)
    if settings.libvirt_uri.startswith(DAEMON_URIS):
        return DaemonRoot(settings.libvirt_uri, paths.home)
    if settings.libvirt_uri.startswith(MOCK_URI):
        return MockRoot(settings.libvirt_uri, paths.home)
    raise ValueRefusedError(
        f"libvirt_uri = '{settings.libvirt_uri}' in {paths.settings} is not supported; use {URI}, "
        f"{', '.join(DAEMON_URIS)} or {MOCK_URI}default"
    )
