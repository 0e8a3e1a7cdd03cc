"""How a method is declared: name, destination, argument, payload. The declaration is checked before it runs.

The texts of the protocol errors are those that clients know (Admin API, section 3).
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto

from crannog.api.backend import Backend
from crannog.api.framing import Request
from crannog.core.vms import LocalVM, QubeBase
from crannog.errors import ProtocolError


class Destination(Enum):
    """Which VM a method may be sent to."""

    ADMIN = auto()
    VM = auto()
    ANY = auto()


class Presence(Enum):
    """Whether an argument or a payload must, must not or may be there."""

    NONE = auto()
    REQUIRED = auto()
    OPTIONAL = auto()


@dataclass(frozen=True)
class Call:
    """A checked request with its destination found."""

    backend: Backend
    vm: QubeBase
    argument: str
    payload: bytes
    source: str

    @property
    def local_vm(self) -> LocalVM:
        """The destination, as a VM that runs on this host."""
        if not isinstance(self.vm, LocalVM):
            raise ProtocolError("expected destination to not be AdminVM")
        return self.vm

    def text(self) -> str:
        """Return the payload as text; raises ProtocolError unless it is ASCII."""
        try:
            return self.payload.decode("ascii")
        except UnicodeDecodeError:
            raise ProtocolError("the payload is not ASCII") from None

    def path(self) -> str:
        """Return the payload as an absolute path; raises ProtocolError when it is none."""
        path = self.payload.decode("utf-8", "surrogateescape")
        if not path.startswith("/") or "\0" in path:
            raise ProtocolError("the payload is not an absolute path")
        return path


Handler = Callable[[Call], Awaitable[bytes | str | None]]


@dataclass(frozen=True)
class Method:
    """One declared method."""

    name: str
    handler: Handler
    destination: Destination
    argument: Presence
    payload: Presence
    is_writing: bool

    async def call(self, backend: Backend, request: Request) -> bytes:
        """Check the request against the declaration, run it, and return the reply's data."""
        vm = backend.registry.find_vm(request.destination)
        self._check(vm, request)
        reply = await self.handler(Call(backend, vm, request.argument, request.payload, request.source))
        return reply.encode() if isinstance(reply, str) else reply or b""

    def _check(self, vm: QubeBase, request: Request) -> None:
        _check_presence("argument", "an argument", self.argument, is_there=bool(request.argument))
        _check_presence("payload", "payload", self.payload, is_there=bool(request.payload))
        if self.destination is Destination.ADMIN and vm.klass != "AdminVM":
            raise ProtocolError("expected destination to be AdminVM")
        if self.destination is Destination.VM and vm.klass == "AdminVM":
            raise ProtocolError("expected destination to not be AdminVM")


def _check_presence(unexpected: str, expected: str, presence: Presence, *, is_there: bool) -> None:
    if presence is Presence.NONE and is_there:
        raise ProtocolError(f"unexpected {unexpected}")
    if presence is Presence.REQUIRED and not is_there:
        raise ProtocolError(f"expected {expected}")


METHODS: dict[str, Method] = {}


def method(
    name: str,
    destination: Destination,
    *,
    argument: Presence = Presence.NONE,
    payload: Presence = Presence.NONE,
    is_writing: bool = False,
) -> Callable[[Handler], Handler]:
    """Declare the decorated coroutine as the method called `name`."""

    def register(handler: Handler) -> Handler:
        METHODS[name] = Method(name, handler, destination, argument, payload, is_writing)
        return handler

    return register


def find_method(name: str) -> Method:
    """Return the declared method, or raise ProtocolError."""
    try:
        return METHODS[name]
    except KeyError:
        raise ProtocolError(f"no such method: '{name[:100]}'") from None
