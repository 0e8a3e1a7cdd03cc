"""The RPC processes of all VMs, as the daemon sees them (ports.channel.AgentLinks)."""

import asyncio
import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from crannog.config import Paths
from crannog.core.announcement import AgentState, AgentStatus
from crannog.core.guestdb import CLOCK, READY, differences
from crannog.errors import CrannogError, RpcError
from crannog.ports.channel import Describe, StatusListener
from crannog.rpc.exercise import exercise
from crannog.rpc.link import RpcLink
from crannog.rpc.nursery_link import NurseryLink, RpcChild
from crannog.rpc.place import DEFAULT_USER, Place
from crannog.rpc.qrexec_sockets import discard_left
from crannog.rpc.renewal import Renewal
from crannog.rpc.strays import end_strays

log = logging.getLogger(__name__)

ADOPTION_TIMEOUT = 1.0
"""Seconds in which the RPC process of a VM that runs must answer; after that it is taken for dead."""
INTRODUCTION_TIMEOUT = 60.0
"""Seconds in which it must answer when a domain was created: where that took long, it may just be started again."""
CONNECT_ROUNDS, CONNECT_TIMEOUT = 12, 10.0
"""How often one that has just been started, and is alive, is waited for; and for how many seconds each time."""
SYSTEM_FOLDER = "/var/run/qubes"
"""Where programs look for the qrexec sockets of a whole host (qrexec protocol, "Flows")."""
RESTART_PAUSES = (0.3, 1, 5, 30)
"""Seconds before a process that ended while its VM runs is started again; the last counts for all further times.

A guest that can crash its process must not make the host start processes all the time. The first pause is longer than
the time between QEMU's end and the news of it, so that the end of a VM starts no process.
"""


@dataclass
class _Follower:
    """One VM's RPC process: how to reach it, what it last said, and the process when this daemon started it."""

    name: str
    default_user: str
    link: RpcLink
    told: dict[str, bytes] = field(default_factory=dict)
    """What its guest DB was told last."""
    status: AgentStatus = field(default_factory=AgentStatus)
    process: RpcChild | None = None
    task: asyncio.Task[None] | None = None


class VMProcesses:
    """Starts, finds and follows RPC processes."""

    def __init__(
        self,
        paths: Paths,
        find_number: Callable[[str], int] = lambda _uuid: -1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`find_number` tells the hypervisor's number of a VM's domain by its UUID; -1 when it has none.

        `environment` is all that the processes have of it, and so the services of this host; None: ours, as it is now.
        """
        self._paths = paths
        self._environment = dict(os.environ) if environment is None else dict(environment)
        self._nursery = NurseryLink(paths.daemon_log, self._environment)
        self._find_number = find_number
        self._describe: Describe = lambda _uuid: {}
        self._followers: dict[str, _Follower] = {}
        self._renewal = Renewal(self._tell_once, self.status)
        self._listeners: list[StatusListener] = [self._renewal.note_status]

    def provide(self, describe: Describe) -> None:
        """Have each VM's guest DB hold what `describe` says of it."""
        self._describe = describe

    def refresh(self, uuid: str) -> None:
        """Bring a running VM's guest DB to what is to be said of it now."""
        follower = self._followers.get(uuid)
        if follower:
            new = {path: text.encode() for path, text in self._describe(uuid).items()}
            for path, value in differences(follower.told.items(), new.items()).items():
                follower.link.write_entry(path, value)
            follower.told = new

    async def introduce(self, uuid: str) -> None:
        """Tell the VM's process of its domain, which was just created, and return when it has put all in place.

        Raises RpcError.
        """
        follower = self._followers.get(uuid)
        if follower:
            entries = {path: text.encode() for path, text in self._describe(uuid).items()}
            await follower.link.introduce(self._find_number(uuid), entries, INTRODUCTION_TIMEOUT)

    def set_clock(self, uuid: str, nanoseconds: int) -> None:
        """Have the VM's agent set the guest's clock."""
        self._tell_once(uuid, CLOCK, str(nanoseconds).encode("ascii"))

    def _tell_once(self, uuid: str, path: str, value: bytes) -> None:
        """Show a VM's agent an entry that is gone again: one that comes later does not hear of it."""
        follower = self._followers.get(uuid)
        if follower:
            follower.link.write_entry(path, value)
            follower.link.write_entry(path, None)

    async def put_to_sleep(self, uuid: str) -> None:
        """Have the agent stop the guest's other processes. Raises RpcError."""
        await self._renewal.put_to_sleep(uuid)

    async def renew(self, uuid: str, name: str, timeout: float) -> None:  # noqa: ASYNC109
        """Have the agent of a restored guest make it that of the VM. Raises RpcError."""
        await self._renewal.renew(uuid, name, timeout)

    async def exercise(self, uuid: str) -> None:
        """Have a shell made ready, then run a command beside it; a guest that does not is given up after a while.

        Where the guest has windows, their session is waited for before.
        """
        follower = self._followers.get(uuid)
        if follower is None:
            return
        user, announced = follower.default_user or DEFAULT_USER, follower.status.announced
        self._tell_once(uuid, READY, user.encode("ascii"))
        await exercise(follower.link.path, user if announced and announced.gui else "")

    async def read_entries(self, uuid: str, prefix: str) -> dict[str, bytes]:
        """Return what is in the guest DB of a VM below a path; raises RpcError."""
        follower = self._followers.get(uuid)
        if follower is None:
            raise RpcError("the VM has no RPC process, as it does not run")
        return await follower.link.list_entries(prefix)

    def listen(self, listener: StatusListener) -> None:
        """Have `listener` called with each change of a status."""
        self._listeners.append(listener)

    def status(self, uuid: str) -> AgentStatus | None:
        """Return what is known of the VM's agent, None without a process."""
        follower = self._followers.get(uuid)
        return follower.status if follower else None

    async def start(self, uuid: str, name: str, default_user: str) -> None:
        """Start the VM's RPC process; it waits for QEMU's socket by itself."""
        follower = _Follower(name, default_user, RpcLink(self._paths.rpc_socket(name)))
        self._followers[uuid] = follower
        follower.process = await self._spawn(uuid, name, default_user)
        follower.task = asyncio.ensure_future(self._follow(uuid, follower))

    async def adopt(self, uuid: str, name: str, default_user: str) -> None:
        """Follow the process that serves the VM already; start one when none answers."""
        follower = _Follower(name, default_user, RpcLink(self._paths.rpc_socket(name)))
        try:
            await follower.link.connect(ADOPTION_TIMEOUT)
        except CrannogError:
            log.warning("%s: its RPC process is gone, another one is started", name)
            await self.start(uuid, name, default_user)
            return
        self._followers[uuid] = follower
        follower.task = asyncio.ensure_future(self._follow(uuid, follower, is_connected=True))

    async def stop(self, uuid: str) -> None:
        """End the VM's RPC process. One that was adopted ends by itself when QEMU does."""
        follower = self._followers.pop(uuid, None)
        if follower is None:
            return
        if follower.task:
            follower.task.cancel()
        await follower.link.close()
        if follower.process:
            await follower.process.end()
        # A process that was killed cannot take its socket away; one that ended by itself did.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(follower.link.path)
        discard_left(self._qrexec_folder(), follower.name)

    async def end_strays(self) -> list[str]:
        """End the RPC processes of this home that none of the VMs uses whose processes are followed."""
        followers = self._followers.values()
        used = {one.link.path: one.process.pid if one.process else None for one in followers}
        return await asyncio.to_thread(end_strays, self._paths.run, used)

    async def power_off(self, uuid: str) -> bool:
        """Ask the agent to shut its guest down; False when no agent is there to ask."""
        follower = self._followers.get(uuid)
        if follower is None or not follower.status.runs_commands:
            return False
        try:
            await follower.link.power_off()
        except RpcError as error:
            log.warning("%s", error)
            return False
        # QEMU's agent fails where its system has no program for that; the power button is pressed as well then.
        return follower.status.agent is AgentState.READY

    async def close(self) -> None:
        """Follow no process any more; they all go on."""
        for follower in self._followers.values():
            if follower.task:
                follower.task.cancel()
            await follower.link.close()
        self._followers.clear()
        await self._nursery.close()

    async def _spawn(self, uuid: str, name: str, default_user: str) -> RpcChild:
        paths = self._paths
        where = paths.channel_socket(uuid), paths.rpc_socket(name)
        place = Place(name, *where, default_user or DEFAULT_USER, uuid, paths.home, self._qrexec_folder())
        return await self._nursery.bear(place, self._environment, paths.rpc_log(name))

    def _qrexec_folder(self) -> str:
        """Return where other programs look for VMs: the home's folder of sockets, or that of the whole host."""
        is_common = self._paths.is_system_wide and os.access(SYSTEM_FOLDER, os.W_OK)
        return SYSTEM_FOLDER if is_common else self._paths.run

    async def _follow(self, uuid: str, follower: _Follower, *, is_connected: bool = False) -> None:
        """Follow the VM's process, and its successors, until `stop`."""
        for pause in itertools.chain(RESTART_PAUSES, itertools.repeat(RESTART_PAUSES[-1])):
            await self._pass_on(uuid, follower, is_connected=is_connected)
            is_connected = False
            await asyncio.sleep(pause)
            log.warning("%s: its RPC process ended while it runs, another one is started", follower.name)
            if follower.process:
                await follower.process.end()
            try:
                follower.process = await self._spawn(uuid, follower.name, follower.default_user)
            except CrannogError as error:
                log.error("%s", error)

    async def _pass_on(self, uuid: str, follower: _Follower, *, is_connected: bool) -> None:
        """Tell the listeners each status until the process has gone."""
        try:
            if not is_connected:
                await _connect(follower)
            follower.told = {}  # a new process knows nothing
            self.refresh(uuid)
            async for status in follower.link:
                # Only now is it sure that the domain is there: the process is started before it.
                follower.link.tell_number(self._find_number(uuid))
                self._tell(uuid, follower, status)
        except CrannogError as error:
            log.error("%s", error)
        self._tell(uuid, follower, AgentStatus())

    def _tell(self, uuid: str, follower: _Follower, status: AgentStatus) -> None:
        follower.status = status
        for listener in self._listeners:
            listener(uuid, status)


async def _connect(follower: _Follower) -> None:
    """Connect to a process that may still be starting: on a slow host that takes long. Raises RpcError."""
    for _ in range(CONNECT_ROUNDS):
        try:
            await follower.link.connect(CONNECT_TIMEOUT)
        except RpcError:
            if follower.process is None or follower.process.has_ended:
                raise
            continue
        return
    raise RpcError(f"the RPC process of {follower.name} runs and does not answer at {follower.link.path}")
