"""Having many VMs shut down at the same time, and those that others need as soon as the others are gone.

Each VM is asked by a call that returns when it is halted, each on a connection of its own; the tool waits for whichever
answers first. So nothing is looked at again and again, and no VM waits for one that it has nothing to do with.
"""

from __future__ import annotations

import select
import time

from crannog.cli.selection import list_vms
from crannog.cli.tool import complain, refuse_host
from crannog.errors import CrannogError, ShutdownTimeoutError, VMNotRunningError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from crannog.client.connection import Client

PAUSE = 0.1
"""Seconds before a VM is asked again that did not halt in the time that the daemon gives it."""
_SHUTDOWN, _KILL = "admin.vm.Shutdown", "admin.vm.Kill"
_COLUMNS = ("name", "state", "netvm")
_FOR_EVER = float("inf")


def call_all(client: Client, program: str, method: str, vms: list[str], argument: str = "") -> int:
    """Call a method for all VMs at the same time; return the exit code of the first failure, or 0.

    All requests are on their way before the first answer is waited for; failures are told in the VMs' order.
    """
    code = 0
    for outcome in [_try_to_send(client, method, vm, argument) for vm in vms]:
        try:
            _take_reply(client, method, outcome)
        except CrannogError as error:
            complain(program, str(error))
            code = code or error.exit_code
    return code


def _try_to_send(client: Client, method: str, vm: str, argument: str) -> _socket.socket | CrannogError:
    try:
        refuse_host(vm)
        return client.open_stream(method, vm, argument)
    except CrannogError as error:
        return error


def _take_reply(client: Client, method: str, outcome: _socket.socket | CrannogError) -> None:
    if isinstance(outcome, CrannogError):
        raise outcome
    client.take_reply(method, outcome)


class Shutdowns:
    """One run of qvm-shutdown. `code` is the exit code of the first failure.

    `timeout`: seconds after which a VM that was asked is killed; None: the daemon says how long it may take.
    """

    def __init__(self, client: Client, program: str, *, is_forced: bool, timeout: float | None) -> None:
        self._client = client
        self._program = program
        self._is_forced = is_forced
        self._timeout = timeout
        self._queue: list[str] = []
        self._users: dict[str, set[str]] = {}
        """Who gets the network from each VM, of those that are to shut down."""
        self._active: set[str] = set()
        self._going: dict[int, tuple[str, _socket.socket, float]] = {}
        """VM, connection and deadline, by the connection's descriptor."""
        self.code = 0

    def ask(self, vms: list[str]) -> None:
        """Ask all VMs at the same time, and return when each has been asked."""
        self.code = call_all(self._client, self._program, _SHUTDOWN, vms, self._words()) or self.code

    def _words(self, *more: str) -> str:
        return "+".join(["force"] * self._is_forced + list(more))

    def _tell(self, error: CrannogError) -> None:
        """Tell a failure and remember its code."""
        complain(self._program, str(error))
        self.code = self.code or error.exit_code

    def ask_and_wait(self, vms: list[str]) -> None:
        """Have VMs shut down, those that others of them need after these, and return when all are halted or failed."""
        self._queue = list(vms)
        self._look_who_needs_whom(set(vms))
        while self._queue or self._going:
            self._ask_the_unneeded()
            self._take_answers()
            self._kill_the_late()

    def _look_who_needs_whom(self, vms: set[str]) -> None:
        table = self._client.text("crannog.vm.Table", "dom0", "+".join(_COLUMNS))
        for line in table.splitlines():
            name, state, netvm = line.split("\t")
            if name in vms and state not in ("Halted", "NA"):
                self._active.add(name)
                if netvm in vms and not self._is_forced:
                    self._users.setdefault(netvm, set()).add(name)

    def _ask_the_unneeded(self) -> None:
        here = {*self._queue, *(vm for vm, _, _ in self._going.values())}
        unneeded = [vm for vm in self._queue if not self._users.get(vm, set()) & here]
        if not unneeded and not self._going:
            unneeded = self._queue  # they need each other; the daemon says so
        self._queue = [vm for vm in self._queue if vm not in unneeded]
        for vm in unneeded:
            self._send(vm, _FOR_EVER if self._timeout is None else time.monotonic() + self._timeout)

    def _send(self, vm: str, deadline: float) -> None:
        outcome = _try_to_send(self._client, _SHUTDOWN, vm, self._words("wait"))
        if isinstance(outcome, CrannogError):
            self._tell(outcome)
        else:
            self._going[outcome.fileno()] = vm, outcome, deadline

    def _take_answers(self) -> None:
        """Wait until a VM has answered or is late, and take all answers that are there then."""
        poller = select.poll()
        for descriptor in self._going:
            poller.register(descriptor, select.POLLIN)
        soonest = min((deadline for _, _, deadline in self._going.values()), default=0.0)
        patience = None if soonest == _FOR_EVER else 1000 * max(0.0, soonest - time.monotonic())
        for descriptor, _ in poller.poll(patience):
            self._take_answer(*self._going.pop(descriptor))

    def _take_answer(self, vm: str, connection: _socket.socket, deadline: float) -> None:
        try:
            self._client.take_reply(_SHUTDOWN, connection)
        except VMNotRunningError as error:
            if vm not in self._active:  # else it has halted by itself
                self._tell(error)
        except ShutdownTimeoutError as error:
            if self._timeout is None:
                self._tell(error)
            else:
                time.sleep(max(0.0, min(PAUSE, deadline - time.monotonic())))
                self._send(vm, deadline)
        except CrannogError as error:
            self._tell(error)

    def _kill_the_late(self) -> None:
        late = [number for number, (_, _, deadline) in self._going.items() if deadline <= time.monotonic()]
        active = {row.name for row in list_vms(self._client) if row.is_active} if late else set()
        ends = []
        for vm, connection, _ in [self._going.pop(number) for number in late]:
            connection.close()
            if vm in active:  # all are told before the first is waited for: a QEMU that hangs takes its time to die
                ends.append((vm, _try_to_send(self._client, _KILL, vm, "")))
        for vm, outcome in ends:
            self._take_end(vm, outcome)

    def _take_end(self, vm: str, outcome: _socket.socket | CrannogError) -> None:
        try:
            _take_reply(self._client, _KILL, outcome)
        except VMNotRunningError:
            pass  # it made it at the last moment
        except CrannogError as error:
            self._tell(error)
        else:
            complain(self._program, f"{vm} did not shut down within {self._timeout:g} s and was killed")
