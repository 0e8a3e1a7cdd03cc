"""How a tool reaches the API: crannogd over its socket, or, with --offline, the store in the tool's own process."""

from __future__ import annotations

from crannog.cli.options import Option
from crannog.client.connection import Client

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Values
    from crannog.offline.client import OfflineClient

OFFLINE = Option("--offline", help="work on the store itself, without crannogd, which must not run then")


def open_client(program: str, options: Values) -> Client | OfflineClient:
    """Return what the tool's calls go through. Only offline mode costs the time of loading the whole model."""
    if options.offline:
        from crannog.offline.client import OfflineClient

        return OfflineClient(tool=program)
    return Client()
