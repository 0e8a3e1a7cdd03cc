"""The policy on this host's disk, and its VMs: from crannogd when it runs, else from the store."""

from __future__ import annotations

import _socket
import os

from crannog.cli.connect import open_client
from crannog.cli.options import Values
from crannog.cli.policy import COMMAND
from crannog.cli.server_text import misunderstood
from crannog.client.connection import Client, connect, read_all
from crannog.config import Paths
from crannog.errors import DaemonError, NotFoundError, ProtocolError

# Importing typing and collections.abc would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from crannog.policy.policy import Policy
    from crannog.policy.system import SystemInfo

_METHOD = "internal.GetSystemInfo"


def load_policy(folders: Sequence[str] = ()) -> Policy:
    """Return the policy that counts, or what it would be with other folders; raises NotFoundError for one that is none.

    An administrator's own folder need not be there.
    """
    from crannog.adapters.policy.files import PolicyFiles
    from crannog.policy.loader import DEFAULTS, load

    for folder in folders:
        if not os.path.isdir(folder):
            raise NotFoundError(f"there is no folder {folder}; policy is in folders, in files that end in .policy")
    chosen = [os.path.abspath(folder) for folder in folders] or Paths().policy_folders
    return load(PolicyFiles(), (*chosen, DEFAULTS))


def find_system() -> SystemInfo:
    """Return the VMs of this home; raises DaemonError when neither crannogd nor the store can be asked."""
    import json

    from crannog.policy.system import read_system

    reply = _ask_daemon(Paths())
    if reply is None:
        reply = open_client(COMMAND.program, Values({"offline": True})).call(_METHOD)
    try:
        return read_system(json.loads(reply))
    except (ValueError, ProtocolError) as error:
        raise misunderstood(_METHOD, str(error)) from error


def _ask_daemon(paths: Paths) -> bytes | None:
    """Return the daemon's answer, None when none can be asked. It is not started: the store knows as much."""
    try:
        connection = connect(paths, paths.internal_socket, may_start_daemon=False)
    except DaemonError:
        return None
    try:
        connection.sendall(f"{_METHOD}+ dom0 name dom0\0".encode())
        connection.shutdown(_socket.SHUT_WR)
        reply = read_all(connection)
    except OSError as error:
        raise DaemonError(f"crannogd broke off during {_METHOD}: {error.strerror}") from error
    finally:
        connection.close()
    if not reply.startswith(b"0\0"):
        raise Client.parse_error(reply)
    return reply[2:]
