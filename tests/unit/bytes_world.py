"""Talks with the servers of a small fixed world: what is sent on their sockets and what comes back, byte for byte."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from crannog.api.server import Server
from crannog.api.table import METHODS, Family
from crannog.core.announcement import AgentState, AgentStatus
from tests.fakes import Inside, build_inside, short_folder
from tests.unit.api_world import CONNECTED, Client, ask

SOCKETS = {Family.PUBLIC: "daemon_socket", Family.INTERNAL: "internal_socket", Family.MISC: "misc_socket"}
DISK = {"size": "16", "ro": "0", "device/model": "Acme"}
NIC = {"vendor": "0x8086", "device": "0x1e20", "class": "0x020000"}
STICK = {
    "idVendor": "0951", "idProduct": "1666", "serial": "50%", "product": "It's",
    "1-2:1.0/bInterfaceClass": "08", "1-2:1.0/bInterfaceSubClass": "06", "1-2:1.0/bInterfaceProtocol": "50",
}  # fmt: skip
_TOOLS = {"version": b"1.0", "os": b"Linux", "qrexec": b"1", "gui": b"0", "default-user": b"ann"}

_PATTERNS = {
    b"<N>": rb"(?:0|[1-9][0-9]{0,18})",
    b"<SECONDS>": rb"[0-9]{1,3}\.[0-9]{6}",
    b"<TOKEN>": rb"(?P<token>[0-9a-f]{32})",
    b"<REVISION>": rb"(?P<revision>[a-zA-Z0-9:._-]{1,80})",
}
_PLACE = re.compile(rb"(<[A-Z]{1,10}>)")


@dataclass(frozen=True)
class Exchange:
    """One connection: a request as it is sent, and the reply.

    In both, `<HOME>` is the daemon's folder. In a reply, `<N>`, `<SECONDS>`, `<TOKEN>` and `<REVISION>` stand for what
    is no constant; in a request, `<TOKEN>` and `<REVISION>` are those of the last reply that had one.
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

    def __str__(self) -> str:
        return self.title


def talk(title: str, *exchanges: Exchange) -> Talk:
    return Talk(title, exchanges)


def say(header: str, reply: bytes, payload: bytes = b"") -> Exchange:
    """Return an exchange; `header` is the request up to its NUL, with neither source nor kind where those are usual.

    `METHOD+ARGUMENT VM` stands for `METHOD+ARGUMENT dom0 name VM`, as a client on dom0 sends it.
    """
    called, *rest = header.split(" ")
    words = [called, *(["dom0", "name", *rest] if len(rest) == 1 else rest)]
    return Exchange(" ".join(words).encode() + b"\0" + payload, reply)


def ok(text: str = "") -> bytes:
    """Return the bytes of a success (Admin API, section 3)."""
    return b"0\0" + text.encode()


def error(wire_name: str, own_name: str, message: str) -> bytes:
    """Return the bytes of an error (Admin API, section 3); `message` is as it is sent, with each `%` doubled."""
    return f"2\0{wire_name}\0{own_name}\0{message}\0".encode()


def protocol(message: str) -> bytes:
    return error("ProtocolError", "ProtocolError", message)


def refused(message: str) -> bytes:
    return error("QubesValueError", "ValueRefusedError", message)


def refused_property(message: str) -> bytes:
    return error("QubesPropertyValueError", "PropertyRefusedError", f"property {message}")


def denied(message: str) -> bytes:
    return error("PermissionDenied", "DeniedError", message)


def not_yet(message: str) -> bytes:
    return error("QubesNotImplementedError", "NotYetError", message)


def in_use(message: str) -> bytes:
    return error("QubesVMInUseError", "InUseError", message)


def exists(vm: str) -> bytes:
    return error(
        "QubesVMAlreadyExistsError", "VMExistsError", f"a VM called '{vm}' exists already; choose another name"
    )


def absent(vm: str) -> bytes:
    return error(
        "QubesVMNotFoundError", "VMNotFoundError", f"there is no VM '{vm}'; qvm-ls lists the VMs that there are"
    )


def elsewhere(vm: str, klass: str) -> bytes:
    return error("QubesVMError", "StateError", f"{vm} is of class {klass}: it is not a VM that runs on this host")


def runs(what: str) -> bytes:
    """Return the refusal for VM `work`, which runs; `what` is what it cannot do."""
    hint = "while it is Running; shut it down with 'qvm-shutdown work'"
    return error("QubesVMNotHaltedError", "VMNotHaltedError", f"work cannot {what} {hint}")


UNEXPECTED_ARGUMENT, UNEXPECTED_PAYLOAD = protocol("unexpected argument"), protocol("unexpected payload")
EXPECTED_ARGUMENT, EXPECTED_PAYLOAD = protocol("expected an argument"), protocol("expected payload")
NOT_DOM0, ONLY_DOM0 = (
    protocol("expected destination to not be AdminVM"),
    protocol("expected destination to be AdminVM"),
)


@dataclass
class BytesWorld:
    """Three servers over one inside."""

    inside: Inside
    _known: dict[bytes, bytes] = field(default_factory=dict)

    def socket_of(self, method: str) -> str:
        """Return the socket that serves a method; the public one for what is none."""
        family = METHODS[method].family if method in METHODS else Family.PUBLIC
        return str(getattr(self.inside.paths, SOCKETS[family]))

    async def have(self, exchange: Exchange) -> bytes:
        """Send a request; return the reply, which is as expected."""
        home = self.inside.paths.home.encode()
        request = exchange.request
        for place, value in {b"<HOME>": home, **self._known}.items():
            request = request.replace(place, value)
        reply = await ask(self.socket_of(exchange.method), request)
        expected = exchange.reply.replace(b"<HOME>", home)
        found = _compile(expected).fullmatch(reply)
        if found is None:
            assert reply == expected, exchange.request
        else:
            self._known |= {f"<{name.upper()}>".encode(): value for name, value in found.groupdict().items()}
        return reply

    async def follow(self, request: bytes) -> Client:
        """Return a reader of a stream that has had the first event."""
        client = Client(self.inside.paths.daemon_socket, request).end_request()
        assert await client.read_exactly(len(CONNECTED)) == CONNECTED
        return client


def _compile(expected: bytes) -> re.Pattern[bytes]:
    parts = (_PATTERNS.get(part) or re.escape(part) for part in _PLACE.split(expected))
    return re.compile(b"".join(parts), re.DOTALL)


async def check(spoken: Talk) -> None:
    """Have a talk in a world of its own."""
    async with bytes_world() as world:
        for exchange in spoken.exchanges:
            await world.have(exchange)


@asynccontextmanager
async def bytes_world() -> AsyncIterator[BytesWorld]:
    """Serve a world in which all UUIDs, numbers of disposables and devices of the host are known beforehand.

    The VMs are, in the order of their UUIDs: debian, fedora, work, dvm, sys-net, far.
    """
    with short_folder() as home:
        inside = build_inside(home)
        _write_files(home)
        servers = [Server(inside.inventory, getattr(inside.paths, name), kind) for kind, name in SOCKETS.items()]
        for server in servers:
            await server.start()
        try:
            yield await _populate(BytesWorld(inside))
        finally:
            for server in servers:
                await server.stop()


async def _populate(world: BytesWorld) -> BytesWorld:
    population, agents = world.inside.inventory.population, world.inside.agents
    uuids = (f"{number:08x}-0000-4000-8000-000000000000" for number in range(1, 100))
    population._new_uuid = lambda: next(uuids)
    population._choose = min
    for exchange in POPULATION:
        await world.have(exchange)
    agents.statuses[world.inside.registry.find_vm("dvm").uuid] = AgentStatus(AgentState.READY)
    agents.entries = {f"/qubes-tools/{name}": value for name, value in _TOOLS.items()}
    return world


POPULATION = (
    say("admin.vm.Create.TemplateVM+ dom0", ok(), b"name=debian label=black"),
    say("crannog.vm.volume.ImportFile+root debian", ok(), b"<HOME>/image"),
    say("admin.vm.Create.TemplateVM+ dom0", ok(), b"name=fedora label=black"),
    say("admin.vm.Create.AppVM+debian dom0", ok(), b"name=work label=green"),
    say("admin.vm.Create.AppVM+debian dom0", ok(), b"name=dvm label=red"),
    say("admin.vm.property.Set+template_for_dispvms dvm", ok(), b"True"),
    say("admin.vm.Create.StandaloneVM+ dom0", ok(), b"name=sys-net label=red"),
    say("admin.vm.property.Set+provides_network sys-net", ok(), b"True"),
    say("admin.vm.Create.RemoteVM+ dom0", ok(), b"name=far label=gray"),
    say("admin.vm.property.Set+netvm work", ok(), b"sys-net"),
)


def _write_files(home: Path) -> None:
    """Give the host a disk, a network card and a stick, and make an image and a kernel."""
    devices = {"block/sda": DISK, "bus/pci/devices/0000:00:1f.2": NIC, "bus/usb/devices/1-2": STICK}
    texts = {f"sys/{folder}/{name}": text for folder, files in devices.items() for name, text in files.items()}
    for name, text in {**texts, "kernel/vmlinuz": "", "kernel/initramfs": "", "image": "t" * 2**20}.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
