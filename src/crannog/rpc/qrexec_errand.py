"""What one call of a VM with somebody else's agent needs done: the policy, then a service here or a way to another VM.

Like rpc.errand, but the data does not pass through the VM's daemon: agent and service meet at a vchan. This process
asks the daemon for that as any other client does.
"""

import fcntl
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from crannog.config import Paths
from crannog.errors import CrannogError, NotFoundError, RpcError
from crannog.rpc import qrexec_messages as qm
from crannog.rpc import vchan
from crannog.rpc.errand import (
    DISPOSABLE,
    HOST,
    MISSING,
    SERVED_PATIENCE,
    TROUBLE,
    GuestErrand,
    Verdict,
    ask_policy,
    parse_answer,
)
from crannog.rpc.errand_start import LOG_FD, spawn_program, start_errand
from crannog.rpc.guest_call import Errand
from crannog.rpc.qrexec_client import MEET_PATIENCE, PATIENCE, Control, find_socket
from crannog.rpc.qrexec_data import ServicePump, send_end, shake_hands
from crannog.rpc.qrexec_messages import ExecParams, MessageParser
from crannog.rpc.service_config import ServiceConfig
from crannog.rpc.services import Caller, Kind, Service
from crannog.rpc.socket_service import pass_to_socket
from crannog.rpc.triggers import Trigger

ANSWER_MAX = 65536
POLICY_PATIENCE = 300.0
ENDING = (signal.SIGTERM, signal.SIGIO)
_HOST_NAMES = frozenset({HOST, "@adminvm", "uuid:00000000-0000-0000-0000-000000000000"})


@dataclass(frozen=True)
class Domain:
    """A VM whose agent somebody else wrote, and whom its daemon asks."""

    name: str
    number: int
    folders: tuple[str, ...]
    """Where the daemons of VMs listen; this VM's own in the first."""
    policy_socket: str
    policy_program: str

    @property
    def socket(self) -> str:
        """The socket of its own daemon."""
        return f"{self.folders[0]}/qrexec.{self.number}"


def end_with_daemon() -> None:
    """Have this process end, as by SIGTERM, when the other end of its stdin is closed: its daemon is gone."""
    for number in ENDING:
        signal.signal(number, lambda *_: sys.exit(125))
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([0], [], [], 0)[0]:
        sys.exit(125)


class QrexecErrand(GuestErrand):
    """The errand of one call."""

    def __init__(self, domain: Domain, paths: Paths, trigger: Trigger) -> None:
        super().__init__(domain.name, paths, trigger, domain.number)
        self._place = domain

    def run(self, tell: Callable[[], None], log: Callable[[str], None]) -> int:
        """Do it; return 0 when the call was connected. Its exit code was sent to the caller then."""
        end_with_daemon()
        return super().run(tell, log)

    def _decide(self) -> Verdict | None:
        verdict = self._ask()
        if verdict and verdict.target in _HOST_NAMES:
            return Verdict(HOST, verdict.requested_target, verdict.user, verdict.autostart, verdict.service)
        return verdict

    def _ask(self) -> Verdict | None:
        if not os.path.exists(self._place.policy_socket):
            return self._ask_program()
        try:
            return ask_policy(self._place.policy_socket, self._vm, self._trigger)
        except RpcError:
            if not os.access(self._place.policy_program, os.X_OK):
                raise
            return self._ask_program()

    def _ask_program(self) -> Verdict | None:
        """Return what the policy program says: no when it fails, or writes nothing: silence allows nothing."""
        program, trigger = self._place.policy_program, self._trigger
        bare = trigger.service.removesuffix("+")  # what has no argument is asked about without "+"
        words = [program, "--", self._vm, trigger.target, trigger.service if "+" in bare else bare]
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until there is somebody who ends the program too
        process, output = _start_program(words)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            answer = _read_all(output)
        except BaseException:
            os.kill(process, signal.SIGTERM)
            raise
        if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
            return None
        return parse_answer(answer)

    # -- services of this host

    def _serve(self, caller: Caller, tell: Callable[[], None]) -> int:
        control = Control(self._place.socket)
        connection, parser = self._meet_caller(control)
        try:
            service, config = self._prepare(caller)
        except CrannogError as error:
            # It was allowed: the caller gets the exit code, and no refusal.
            send_end(connection, MISSING if isinstance(error, NotFoundError) else TROUBLE)
            raise
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until there is somebody who ends the service too
        pump = ServicePump(connection, parser, self._start_service(service, config, caller), control.socket)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            pump.run()
        finally:
            pump.close()
        return 0

    def _meet_caller(self, control: Control) -> tuple[socket.socket, MessageParser]:
        asked = qm.encode_connect(ExecParams(0, 0), self._trigger.ident)
        answer = control.ask(asked, qm.SERVICE_CONNECT)
        path = vchan.path_of(answer.domain, 0, answer.port)
        connection = vchan.connect(path, MEET_PATIENCE, control.socket.fileno())
        return connection, shake_hands(connection, qm.FROM_CALLER, PATIENCE)

    def _start_service(self, service: Service, config: ServiceConfig, caller: Caller) -> Errand:
        if service.kind is Kind.PROGRAM:
            environment = caller.environment(dict(os.environ))
            return spawn_program(service.path, caller.arguments(service.path), environment)

        def pass_on(_tell: Callable[[], None], _log: Callable[[str], None]) -> int:
            for number in ENDING:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            return pass_to_socket(service.path, caller, config, lambda: None)

        return start_errand(pass_on, LOG_FD)

    # -- other VMs

    def _call_vm(self, target: str, verdict: Verdict, caller: Caller, tell: Callable[[], None]) -> int:
        path = find_socket(target, self._place.folders)
        if not path:
            if not verdict.autostart:
                raise RpcError(f"{target} does not run, and the policy does not let it be started for that")
            path = self._start_foreign(target)
        line = f"{verdict.user}:QUBESRPC {caller.call} {caller.source}".encode("ascii")
        control = Control(path)
        answer = control.ask(qm.encode_exec(qm.EXEC_CMDLINE, ExecParams(self._domain, 0), line), qm.EXEC_CMDLINE)
        own = Control(self._place.socket)
        own.send(qm.encode_connect(answer, self._trigger.ident))
        own.wait_for_end()
        if verdict.target.startswith(DISPOSABLE):
            control.wait_for_end()
        return 0

    def _start_foreign(self, target: str) -> str:
        try:
            self._client.call("admin.vm.Start", target)
        except NotFoundError as error:
            raise RpcError(f"there is no VM '{target}' that could be called") from error
        except CrannogError as error:
            if error.wire_name != "QubesVMNotHaltedError":
                raise
        deadline = time.monotonic() + SERVED_PATIENCE
        while not (path := find_socket(target, self._place.folders)):
            if time.monotonic() >= deadline:
                raise RpcError(f"{target} was started and serves no calls; see 'qvm-ls {target}'")
            time.sleep(0.02)
        return path


def _start_program(words: list[str]) -> tuple[int, int]:
    """Start a program; return its number, and the file that gives its output. Raises RpcError."""
    output, theirs = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, theirs, 1)]
    try:
        return os.posix_spawn(words[0], words, os.environ, file_actions=actions, setsigmask=()), output
    except OSError as error:
        os.close(output)
        raise RpcError(f"the policy program {words[0]} cannot be run: {error.strerror}") from error
    finally:
        os.close(theirs)


def _read_all(fd: int) -> bytes:
    """Return what comes until its end, and close it. Raises RpcError for too much, or when it takes too long."""
    data, deadline = b"", time.monotonic() + POLICY_PATIENCE
    try:
        while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            block = os.read(fd, ANSWER_MAX)
            data += block
            if not block:
                return data
            if len(data) > ANSWER_MAX:
                break
    finally:
        with suppress(OSError):
            os.close(fd)
    raise RpcError("the policy program does not come to an end")
