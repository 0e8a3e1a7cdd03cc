"""libvirt as a library of this process: loaded late, quiet, with its event loop running.

libvirt has one event loop for the life of a process. It gets a thread of its own, not asyncio's loop: its callbacks
then never wait for the daemon's work, libvirt's threads never wait for Python's, and a process (a test run) may
have several asyncio loops one after the other.
"""

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from crannog.adapters.libvirt import failures
from crannog.adapters.libvirt.modules import count_late_modules
from crannog.core.domain import DomainInfo, DomainState, DomainStats
from crannog.errors import HypervisorError

if TYPE_CHECKING:
    import libvirt

Answer = TypeVar("Answer")

_LOG_VARIABLES = ("LIBVIRT_DEBUG", "LIBVIRT_LOG_OUTPUTS")
_LOG_ERRORS = "4"
_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT = 5, 3
"""A libvirtd that says nothing for that many seconds that many times is taken for dead."""

_loop_lock = threading.Lock()
_loop_threads: list[threading.Thread] = []
_connections: "dict[str, libvirt.virConnect]" = {}


def _ignore_error(_context: object, _error: object) -> None:
    """Take libvirt's place of writing each error to stderr: all are raised as exceptions as well."""


def _import_quietly(log: str) -> None:
    # libvirt reads where to log from the environment, once, when it is loaded. What was set is put back, because
    # the environment goes on to every child (B8).
    before = {name: os.environ.get(name) for name in _LOG_VARIABLES}
    if not any(before.values()):
        os.environ.update(zip(_LOG_VARIABLES, (_LOG_ERRORS, f"{_LOG_ERRORS}:file:{log}"), strict=True))
    try:
        import libvirt
    except ImportError as error:
        raise HypervisorError(f"libvirt's Python binding cannot be loaded: {error}: install libvirt-python") from error
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
    libvirt.registerErrorHandler(_ignore_error, None)


def _run_event_loop() -> None:
    import libvirt

    while True:
        libvirt.virEventRunDefaultImpl()


def load_libvirt(log: str) -> None:
    """Import libvirt, let it log its own errors to the file `log`, and start its event loop.

    May be called again; the first call decides. Raises HypervisorError when libvirt is not installed.
    """
    with _loop_lock:
        if _loop_threads:
            return
        _import_quietly(log)
        count_late_modules()
        import libvirt

        libvirt.virEventRegisterDefaultImpl()
        thread = threading.Thread(target=_run_event_loop, name="libvirt-events", daemon=True)
        thread.start()
        _loop_threads.append(thread)


# virDomainState and virDomainEventType (libvirt, libvirt-domain.h).
_STATES = {
    1: DomainState.RUNNING,
    2: DomainState.RUNNING,  # blocked on a resource
    3: DomainState.PAUSED,
    4: DomainState.DYING,
    5: DomainState.ABSENT,
    6: DomainState.CRASHED,
    7: DomainState.SUSPENDED,
}
_EVENTS = {
    3: DomainState.PAUSED,
    4: DomainState.RUNNING,
    5: DomainState.ABSENT,
    6: DomainState.DYING,
    7: DomainState.SUSPENDED,
    8: DomainState.CRASHED,
}
"""`started` (2) is left out: domains start paused, and the event for that follows."""


_PAUSED_FOR_IO_ERROR = 5
"""virDomainPausedReason."""
_SUSPENDED_FOR_IO_ERROR = 2
"""virDomainEventSuspendedDetailType."""


def to_state(number: int, reason: int) -> DomainState:
    """Return the state for libvirt's numbers; a state that this version does not know counts as running."""
    state = _STATES.get(number, DomainState.RUNNING)
    return DomainState.STALLED if state is DomainState.PAUSED and reason == _PAUSED_FOR_IO_ERROR else state


def describe(domain: "libvirt.virDomain", state: int, reason: int) -> DomainInfo:
    """Return what is to be known of a domain in the given state."""
    return DomainInfo(domain.UUIDString(), domain.name(), to_state(state, reason), domain.ID())


def list_domains(connection: "libvirt.virConnect") -> list[DomainInfo]:
    """Return all domains, in one bulk call (virConnectGetAllDomainStats). Raises libvirtError."""
    import libvirt

    found = connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0)
    return [describe(domain, values["state.state"], values["state.reason"]) for domain, values in found]


def list_active(connection: "libvirt.virConnect") -> "list[libvirt.virDomain]":
    """Return all domains that are not shut off. Raises libvirtError."""
    import libvirt

    found: list[libvirt.virDomain] = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
    return found


def ask_all(
    domains: "Iterable[libvirt.virDomain]", question: "Callable[[libvirt.virDomain], Answer]"
) -> "list[Answer]":
    """Return each domain's answer, but of those that have ended since they were listed. Raises libvirtError."""
    import libvirt

    answers = []
    for domain in domains:
        try:
            answers.append(question(domain))
        except libvirt.libvirtError as error:
            if not failures.is_absent(error):
                raise
    return answers


def measure(domain: "libvirt.virDomain") -> DomainStats:
    """Return what a running domain uses (virDomainGetInfo). Raises libvirtError.

    Asked of each: that is answered without a word from its QEMU. In the bulk call for statistics libvirt asks every
    QEMU in turn, so that one that hangs is waited for by all, and nobody knows when which time was read.
    """
    _, memory_max, memory, vcpus, cpu_time = domain.info()
    return DomainStats(domain.UUIDString(), memory, memory_max, cpu_time, vcpus, time.monotonic())


def to_news(event: int, detail: int) -> DomainState | None:
    """Return the state that an event brings, None when it brings no other."""
    state = _EVENTS.get(event)
    return DomainState.STALLED if state is DomainState.PAUSED and detail == _SUSPENDED_FOR_IO_ERROR else state


def connect(uri: str, on_loss: Callable[[], None] | None = None) -> "libvirt.virConnect":
    """Return a connection to `uri`; raises libvirtError.

    To a libvirtd it is a new one, and `on_loss` is called, in libvirt's thread, when it breaks. The in-process driver
    (no `on_loss`) stays loaded for the life of a process, and registers itself anew at each open until libvirt has no
    room for it: nothing is gained by closing it, and much is lost by opening it again, so it is opened once and kept.
    """
    import libvirt

    if on_loss is not None:
        connection = libvirt.open(uri)
        with contextlib.suppress(libvirt.libvirtError):  # drivers without a wire have neither
            connection.registerCloseCallback(lambda _connection, _reason, _opaque: on_loss(), None)
            connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)
        return connection
    with _loop_lock:
        if uri not in _connections:
            _connections[uri] = libvirt.open(uri)
            # Dropped while the binding is still there to close it; domains go on running.
            atexit.register(_connections.pop, uri, None)
        return _connections[uri]


def disconnect(connection: "libvirt.virConnect", subscription: int, is_own: bool) -> None:
    """Have nobody called any more for `subscription`, and close a connection that is nobody else's."""
    import libvirt

    # One that is broken is as good as closed.
    with contextlib.suppress(libvirt.libvirtError):
        connection.domainEventDeregisterAny(subscription)
    if is_own:
        with contextlib.suppress(libvirt.libvirtError):
            connection.unregisterCloseCallback()
        with contextlib.suppress(libvirt.libvirtError):
            connection.close()


def subscribe(connection: "libvirt.virConnect", tell: Callable[[str, DomainState], None]) -> int:
    """Have `tell` called, in libvirt's thread, with the UUID and new state at each change of a domain.

    Returns what `disconnect` wants.
    """
    import libvirt

    def take(_connection: object, domain: "libvirt.virDomain", event: int, detail: int, _opaque: object) -> None:
        state = to_news(event, detail)
        if state:
            tell(domain.UUIDString(), state)

    return int(connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, take, None))
