"""Talks with the servers of a small fixed world: what is sent on their sockets and what comes back, byte for byte."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from crannog.api.server import Server
from crannog.api.table import METHODS, Family
from crannog.core.announcement import AgentState, AgentStatus, Announcement
from tests.fakes import Inside, build_inside, short_folder
from tests.unit.api_world import CONNECTED, Client, ask

UUIDS = tuple(f"{number:08x}-0000-4000-8000-000000000000" for number in range(1, 30))
"""What the VMs are called by, in the order of their creation: debian, fedora, work, dvm, sys-net, far."""

SOCKETS = {Family.PUBLIC: "daemon_socket", Family.INTERNAL: "internal_socket", Family.MISC: "misc_socket"}
DISK = {"size": "16", "ro": "0", "device/model": "Acme"}
NIC = {"vendor": "0x8086", "device": "0x1e20", "class": "0x020000"}
STICK = {
    "idVendor": "0951", "idProduct": "1666", "serial": "50%", "product": "It's",
    "1-2:1.0/bInterfaceClass": "08", "1-2:1.0/bInterfaceSubClass": "06", "1-2:1.0/bInterfaceProtocol": "50",
}  # fmt: skip
_TOOLS = AgentStatus(AgentState.READY, Announcement("1.0", "Linux", qrexec=True, gui=False, default_user="ann"))

_PATTERNS = {
    b"<N>": rb"(?:0|[1-9][0-9]{0,18})",
    b"<SECONDS>": rb"[0-9]{1,3}\.[0-9]{6}",
    b"<TOKEN>": rb"(?P<token>[0-9a-f]{32})",
    b"<REVISION>": rb"(?P<revision>[a-zA-Z0-9:._-]{1,80})",
    b"<UUID>": rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
}
_PLACE = re.compile(rb"(<[A-Z]{1,10}>)")


@dataclass(frozen=True)
class Exchange:
    """One connection. In both texts `<HOME>` is the daemon's folder.

    In a reply, `<N>`, `<SECONDS>`, `<TOKEN>`, `<REVISION>` and `<UUID>` stand for what is no constant; in a request,
    `<TOKEN>` and `<REVISION>` are those of the last reply that had one.
    """

    request: bytes
    reply: bytes

    @property
    def method(self) -> str:
        """The name of the method that is called."""
        return re.split(rb"[+ ]", self.request, maxsplit=1)[0].decode()


@dataclass(frozen=True)
class Talk:
    """What is said in a new world, one thing after the other."""

    title: str
    exchanges: tuple[Exchange, ...]


def talk(title: str, *exchanges: tuple[bytes, bytes]) -> Talk:
    return Talk(title, tuple(Exchange(*exchange) for exchange in exchanges))


def error(wire_name: str, own_name: str, message: str) -> bytes:
    """Return the bytes of an error (Admin API, section 3); `message` is as it is sent, with each `%` doubled."""
    return f"2\0{wire_name}\0{own_name}\0{message}\0".encode()


def protocol_error(message: str) -> bytes:
    return error("ProtocolError", "ProtocolError", message)


def refused(message: str) -> bytes:
    return error("QubesValueError", "ValueRefusedError", message)


def denied(message: str) -> bytes:
    return error("PermissionDenied", "DeniedError", message)


def absent_vm(name: str) -> bytes:
    return error("QubesVMNotFoundError", "VMNotFoundError", f"there is no VM '{name}'; qvm-ls lists the VMs that there are")


@dataclass
class BytesWorld:
    """Three servers over one inside."""

    inside: Inside
    servers: list[Server]
    _known: dict[bytes, bytes] = field(default_factory=dict)

    def socket_of(self, method: str) -> str:
        """Return the socket that serves a method; the public one for what is none."""
        family = METHODS[method].family if method in METHODS else Family.PUBLIC
        return str(getattr(self.inside.paths, SOCKETS[family]))

    async def send(self, request: bytes, method: str) -> bytes:
        return await ask(self.socket_of(method), self._fill(request))

    def _fill(self, text: bytes) -> bytes:
        for place, value in {b"<HOME>": self.inside.paths.home.encode(), **self._known}.items():
            text = text.replace(place, value)
        return text

    async def have(self, exchange: Exchange) -> bytes:
        """Send a request; return the reply, which is as expected."""
        reply = await self.send(exchange.request, exchange.method)
        expected = exchange.reply.replace(b"<HOME>", self.inside.paths.home.encode())
        found = _compile(expected).fullmatch(reply)
        if found is None:
            assert reply == expected
        else:
            self._known |= {f"<{name.upper()}>".encode(): value for name, value in found.groupdict().items()}
        return reply

    async def follow(self, request: bytes, method: str) -> Client:
        """Return a reader of a stream that has had the first event."""
        client = Client(self.socket_of(method), request).end_request()
        assert await client.read_exactly(len(CONNECTED)) == CONNECTED
        return client


def _compile(expected: bytes) -> re.Pattern[bytes]:
    parts = (_PATTERNS.get(part) or re.escape(part) for part in _PLACE.split(expected))
    return re.compile(b"".join(parts), re.DOTALL)


@asynccontextmanager
async def bytes_world() -> AsyncIterator[BytesWorld]:
    """Serve a world in which all UUIDs, numbers of disposables and devices of the host are known beforehand."""
    with short_folder() as home:
        inside = build_inside(home)
        write_devices(home / "sys")
        write_kernel(home / "kernel")
        (home / "image").write_bytes(b"t" * 2**20)
        paths = inside.paths
        servers = [Server(inside.inventory, getattr(paths, name), family) for family, name in SOCKETS.items()]
        for server in servers:
            await server.start()
        world = BytesWorld(inside, servers)
        try:
            await _populate(world)
            yield world
        finally:
            for server in servers:
                await server.stop()


async def _populate(world: BytesWorld) -> None:
    inside = world.inside
    uuids = iter(UUIDS)
    inside.inventory.population._new_uuid = lambda: next(uuids)
    inside.inventory.population._choose = min
    for exchange in POPULATION:
        await world.have(exchange)
    inside.agents.statuses[inside.registry.find_vm("dvm").uuid] = _TOOLS


def _ok(*requests: bytes) -> Iterator[Exchange]:
    return (Exchange(request, b"0\0") for request in requests)


POPULATION = tuple(
    _ok(
        b"admin.vm.Create.TemplateVM+ dom0 name dom0\0name=debian label=black",
        b"crannog.vm.volume.ImportFile+root dom0 name debian\0<HOME>/image",
        b"admin.vm.Create.TemplateVM+ dom0 name dom0\0name=fedora label=black",
        b"admin.vm.Create.AppVM+debian dom0 name dom0\0name=work label=green",
        b"admin.vm.Create.AppVM+debian dom0 name dom0\0name=dvm label=red",
        b"admin.vm.property.Set+template_for_dispvms dom0 name dvm\0True",
        b"admin.vm.Create.StandaloneVM+ dom0 name dom0\0name=sys-net label=red",
        b"admin.vm.property.Set+provides_network dom0 name sys-net\0True",
        b"admin.vm.Create.RemoteVM+ dom0 name dom0\0name=far label=gray",
        b"admin.vm.property.Set+netvm dom0 name work\0sys-net",
    )
)


def write_devices(sysfs: Path) -> None:
    """Give the host a disk, a network card and a stick."""
    for folder, files in (
        ("block/sda", DISK), ("bus/pci/devices/0000:00:1f.2", NIC), ("bus/usb/devices/1-2", STICK)
    ):  # fmt: skip
        for name, text in files.items():
            path = sysfs / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")


def write_kernel(folder: Path) -> None:
    folder.mkdir()
    for name in ("vmlinuz", "initramfs"):
        (folder / name).touch()
