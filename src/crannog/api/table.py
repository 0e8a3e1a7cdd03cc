"""How a method is declared: name, destination, argument, payload, access. The declaration is checked before it runs.

The texts of the protocol errors are those that clients know (Admin API, section 3). docs/api.md and the policy includes
are made from the same declarations (api.reference).
"""

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum, Flag, auto

from crannog.api.backend import Backend
from crannog.api.framing import Request
from crannog.core.events import Listener
from crannog.core.vms import LocalVM, QubeBase
from crannog.errors import DeniedError, ProtocolError, StateError


class Destination(Enum):
    """Which VM a method may be sent to."""

    ADMIN = "dom0"
    VM = "a VM, not dom0"
    ANY = "any"


class Presence(Enum):
    """Whether an argument or a payload must, must not or may be there."""

    NONE = "-"
    REQUIRED = "required"
    OPTIONAL = "optional"


class Family(Enum):
    """Which socket serves a method (Admin API, section 1)."""

    PUBLIC = "admin"
    INTERNAL = "internal"
    MISC = "misc"


class Access(Flag):
    """What a method does to what it is sent to; policy includes are made of it."""

    READ = auto()
    WRITE = auto()
    EXECUTE = auto()


class Scope(Enum):
    """Whether a method is about one VM or about the whole system; policy includes are made of it."""

    LOCAL = "local"
    GLOBAL = "global"


class Permission(Enum):
    """Who decides whether a caller other than dom0 gets an answer."""

    CALL = "the policy, for the call"
    EACH_VM = "the policy, for the call; then for each VM that would be listed"
    EACH_EVENT = "the policy, for the call; then for each event that would be sent"


@dataclass(frozen=True)
class Follow:
    """A reply without an end: what `start` is given is called with each event, until what it returned is called."""

    start: Callable[[Listener], Callable[[], None]]


Reply = bytes | str | None
Outcome = Reply | Follow | Awaitable[Reply]


@dataclass(frozen=True)
class Call:
    """A checked request with its destination and source found."""

    backend: Backend
    vm: QubeBase
    argument: str
    payload: bytes
    source: QubeBase
    method: str = ""

    @property
    def local_vm(self) -> LocalVM:
        """The destination, as a VM that runs on this host; raises StateError for dom0 and RemoteVMs."""
        return as_local(self.vm)

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

    def number(self, *, may_be_negative: bool = False) -> int:
        """Return the payload as a number: decimal, at most 19 digits, no leading zeros; raises ProtocolError."""
        text = self.text()
        digits = text.removeprefix("-") if may_be_negative else text
        if not digits.isdigit() or len(digits) > 19 or (digits[0] == "0" and digits != "0"):
            raise ProtocolError(f"'{text[:40]}' is not a decimal number of at most 19 digits")
        return int(text)

    def may_see(self, vm: QubeBase, argument: str = "") -> bool:
        """Tell whether the caller may hear of a VM by this method; dom0 always may."""
        return self.source.klass == "AdminVM" or self.backend.permits(self.source, self.method, argument, vm)


def as_local(vm: QubeBase) -> LocalVM:
    """Return the VM, as one that runs on this host; raises StateError for dom0 and RemoteVMs."""
    if not isinstance(vm, LocalVM):
        raise StateError(f"{vm.name} is of class {vm.klass}: it is not a VM that runs on this host")
    return vm


Handler = Callable[[Call], Outcome]


@dataclass(frozen=True)
class Method:
    """One declared method. A handler that is a plain function answers from memory, a coroutine takes its time."""

    name: str
    handler: Handler
    destination: Destination
    argument: Presence
    payload: Presence
    access: Access
    scope: Scope
    permission: Permission
    is_plain: bool = False
    """Whether the reply is the data alone, and a failure no reply: a service that is no part of the Admin API."""
    family: Family = field(init=False)

    def __post_init__(self) -> None:
        families = {"internal": Family.INTERNAL, "qubes": Family.MISC}
        family = Family.MISC if self.is_plain else families.get(self.name.partition(".")[0], Family.PUBLIC)
        object.__setattr__(self, "family", family)

    @property
    def help(self) -> str:
        """What the method does, in one paragraph."""
        return inspect.cleandoc(self.handler.__doc__ or "")

    def begin(self, backend: Backend, request: Request, vm: QubeBase, source: QubeBase) -> Outcome:
        """Check the request against the declaration and run it: a reply, or something to wait for or to follow."""
        self._check(vm, request)
        return self.handler(Call(backend, vm, request.argument, request.payload, source, self.name))

    def _check(self, vm: QubeBase, request: Request) -> None:
        _check_presence("payload", "payload", self.payload, is_there=bool(request.payload))
        _check_presence("argument", "an argument", self.argument, is_there=bool(request.argument))
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


def method(  # noqa: PLR0913 - the words of a declaration
    name: str,
    destination: Destination,
    *,
    argument: Presence = Presence.NONE,
    payload: Presence = Presence.NONE,
    access: Access = Access.READ,
    scope: Scope | None = None,
    permission: Permission = Permission.CALL,
    is_plain: bool = False,
) -> Callable[[Handler], Handler]:
    """Declare the decorated function as the method called `name`.

    Without a scope, methods that are about one VM by their name are local, others global.
    """
    default = Scope.LOCAL if ".vm." in name else Scope.GLOBAL

    def register(handler: Handler) -> Handler:
        METHODS[name] = Method(
            name, handler, destination, argument, payload, access, scope or default, permission, is_plain
        )
        return handler

    return register


def begin(backend: Backend, request: Request, family: Family) -> Outcome:
    """Run a request. Raises VMNotFoundError, ProtocolError, or what the method raises."""
    source = backend.registry.find_vm(request.source)
    vm = backend.registry.find_vm(request.destination)
    declared = METHODS.get(request.method)
    if declared is None or declared.family is not family:
        raise ProtocolError(f"no such method: '{request.method[:100]}'")
    return declared.begin(backend, request, vm, source)


def is_plain(name: str) -> bool:
    """Tell whether a method answers with its data alone."""
    return name in METHODS and METHODS[name].is_plain


def encode_reply(reply: Reply) -> bytes:
    """Return a reply's data as bytes."""
    return reply.encode() if isinstance(reply, str) else reply or b""


async def answer(backend: Backend, request: Request, family: Family = Family.PUBLIC) -> bytes:
    """Run a request to its end and return the reply's data; raises what `begin` raises, DeniedError for a stream."""
    outcome = begin(backend, request, family)
    if isinstance(outcome, Follow):
        raise DeniedError(f"{request.method} is a stream of events; it is followed over the daemon's socket")
    return encode_reply(await outcome if isinstance(outcome, Awaitable) else outcome)
