"""RPC processes from their real parent, each with a channel that nobody speaks on."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from crannog.rpc.nursery_link import NurseryLink, RpcChild
from crannog.rpc.place import Place

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "WHO": "the parent"}
SECONDS = 60


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait until something holds, with the loop running."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SECONDS} s: {what}"
        await asyncio.sleep(0.005)


class NurseryWorld:
    """A link, and the sockets of VMs below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "rpc.log"
        self.parent_log = folder / "parent.log"
        self.link = NurseryLink(str(self.parent_log), ENVIRONMENT)
        self.children: list[RpcChild] = []
        self._channels: list[socket.socket] = []

    def place(self, vm: str, home: str = "") -> Place:
        """Return where a VM is served; its channel is there."""
        path = self.folder / f"channel-{vm}"
        if not path.exists():
            channel = socket.socket(socket.AF_UNIX)
            channel.bind(str(path))
            channel.listen(8)
            self._channels.append(channel)
        return Place(vm, str(path), str(self.socket(vm)), home=home)

    def socket(self, vm: str) -> Path:
        """Return the path at which a VM's RPC process listens."""
        return self.folder / f"rpc-{vm}.sock"

    async def bear(
        self, vm: str, environment: dict[str, str] | None = None, place: Place | None = None, *, is_up: bool = True
    ) -> RpcChild:
        """Have a VM's process started, and wait until it listens."""
        child = await self.link.bear(place or self.place(vm), environment or ENVIRONMENT, str(self.log))
        self.children.append(child)
        if is_up:
            await self.listens(vm)
        return child

    async def listens(self, vm: str) -> None:
        """Wait until a VM's process answers."""

        def answers() -> bool:
            with socket.socket(socket.AF_UNIX) as probe:
                return probe.connect_ex(str(self.socket(vm))) == 0

        await until(answers, f"{vm} listens; its log: {self.log.read_text() if self.log.exists() else ''}")

    @property
    def parent(self) -> int:
        """The process number of the parent, which must have been started."""
        process = self.link._process
        assert process
        return process.pid

    def kill_parent(self) -> int:
        """Kill the parent; return the number it had."""
        number = self.parent
        os.kill(number, signal.SIGKILL)
        return number

    async def close(self) -> None:
        """End everything; nothing may be left."""
        for child in self.children:
            await child.end()
        number = self.link._process.pid if self.link._process else 0
        await self.link.close()
        assert not number or not exists(number)
        for channel in self._channels:
            channel.close()
        await until(lambda: not any(map(exists, [child.pid for child in self.children])), "the children are buried")


@asynccontextmanager
async def nursery_world(folder: Path) -> AsyncIterator[NurseryWorld]:
    """Give a world, and end it."""
    world = NurseryWorld(folder)
    try:
        yield world
    finally:
        await world.close()


def exists(process: int) -> bool:
    """Tell whether there is such a process, be it a zombie."""
    return Path(f"/proc/{process}").exists()


def open_files(process: int) -> dict[int, str]:
    """Return what a process has open."""
    folder = Path(f"/proc/{process}/fd")
    found = {}
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # the folder itself, while it is read
            found[int(path.name)] = str(path.readlink())
    return found


__all__ = ["ENVIRONMENT", "NurseryWorld", "exists", "nursery_world", "open_files", "until"]
