"""Where the API is served: at the home's own sockets, and where other programs look for it (Admin API, section 1)."""

import grp
import resource
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from crannog.api.backend import Backend
from crannog.api.server import Server
from crannog.api.table import Family
from crannog.config import SYSTEM_SOCKET, Paths, Settings
from crannog.daemon.decision_log import DecisionLog
from crannog.daemon.policy import PolicyKeeper
from crannog.daemon.policy_server import PolicyServer
from crannog.errors import ValueRefusedError

SYSTEM_SOCKETS = {
    Family.PUBLIC: SYSTEM_SOCKET,
    Family.INTERNAL: "/var/run/qubesd.internal.sock",
    Family.MISC: "/var/run/qubesd.misc.sock",
}
SYSTEM_GROUP = "qubes"
_DESCRIPTORS = 65536


class Served(Protocol):
    """What listens somewhere."""

    async def start(self) -> None:
        """Listen; raises DaemonError."""

    async def stop(self) -> None:
        """Stop listening."""


def build_policy_server(keeper: PolicyKeeper, paths: Paths) -> PolicyServer:
    """Return what answers questions about the policy."""
    return PolicyServer(keeper, paths.policy_socket, paths.policy_agent_socket, DecisionLog(paths.policy_log))


def build_servers(backend: Backend, paths: Paths, settings: Settings) -> list[Server]:
    """Return a server for each socket; raises ValueRefusedError when the settings name a group that is not there.

    The home's own sockets are for its user alone, the others for the members of a group as well.
    """
    own = {
        Family.PUBLIC: paths.daemon_socket,
        Family.INTERNAL: paths.internal_socket,
        Family.MISC: paths.misc_socket,
    }
    chosen = {
        Family.PUBLIC: settings.api_socket,
        Family.INTERNAL: settings.internal_socket,
        Family.MISC: settings.misc_socket,
    }
    shared = SYSTEM_SOCKETS if paths.is_system_wide else dict.fromkeys(Family, "")
    group = _find_group(paths, settings)
    servers = [Server(backend, path, family) for family, path in own.items()]
    others = {family: chosen[family] or shared[family] for family in Family}
    return servers + [Server(backend, path, family, group) for family, path in others.items() if path]


def _find_group(paths: Paths, settings: Settings) -> int | None:
    """Return the number of the group that may call; None: root and the home's user only."""
    name = settings.api_group or (SYSTEM_GROUP if paths.is_system_wide else "")
    try:
        return grp.getgrnam(name).gr_gid if name else None
    except KeyError:
        if settings.api_group:
            raise ValueRefusedError(
                f"api_group = '{name}' in {paths.settings}: there is no such group; add it with 'groupadd {name}'"
            ) from None
        return None


@asynccontextmanager
async def serving(servers: Sequence[Served]) -> AsyncIterator[None]:
    """Serve all sockets while the block runs; raises DaemonError when one cannot be served, and then serves none."""
    try:
        for server in servers:
            await server.start()
        yield
    finally:
        for server in servers:
            await server.stop()


def raise_descriptor_limit() -> None:
    """Allow this process as many open files as it may have, within reason: each client is one (getrlimit(2))."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, min(most, _DESCRIPTORS)), most))
