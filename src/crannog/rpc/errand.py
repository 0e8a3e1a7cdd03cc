"""What one call of a guest needs done on the host: ask the policy, then be the service or the way to another VM.

It runs in a child process of the VM's RPC process (rpc.errand_start), alone: it may wait, and it may die. Its standard
streams are the call's.
"""

import os
import signal
import time
from _socket import AF_UNIX, SOCK_STREAM
from _socket import socket as Socket  # noqa: N812
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from crannog.client.connection import Client
from crannog.client.leases import create_leased
from crannog.client.rpc import is_served, run_command
from crannog.config import Paths
from crannog.errors import CrannogError, NotFoundError, RpcError, VMNotHaltedError
from crannog.rpc.errand_start import keep_errors
from crannog.rpc.guest_call import REFUSED
from crannog.rpc.service_config import ServiceConfig, read_config
from crannog.rpc.services import FOLDERS, Caller, Kind, Service, find_service
from crannog.rpc.socket_service import pass_to_socket
from crannog.rpc.triggers import Trigger

HOST = "dom0"
DISPOSABLE = "@dispvm:"
MISSING, TROUBLE = 127, 125
POLICY_PATIENCE = 300.0
"""Seconds for a decision: somebody may have to be asked."""
SERVED_PATIENCE = 10.0
"""Seconds in which the RPC process of a VM that has just been started must be there."""
OWN_SERVICES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "host_services")
_MISC = frozenset(
    {"qubes.NotifyTools", "qubes.NotifyUpdates", "qubes.FeaturesRequest", "policy.EvalSimple", "policy.EvalGUI"}
)
_BLOCK = 65536


class Verdict(NamedTuple):
    """What the policy has allowed (qrexec protocol, "Policy daemon")."""

    target: str
    requested_target: str
    user: str
    autostart: bool
    service: str = ""


def ask_policy(path: str, source: str, trigger: Trigger) -> Verdict | None:
    """Return the policy's answer to a call, None when it denies; raises RpcError when there is no answer."""
    lines = {"source": source, "intended_target": trigger.target, "service_and_arg": trigger.service}
    lines |= {"requested_source": trigger.source} if trigger.source else {}
    connection = Socket(AF_UNIX, SOCK_STREAM)
    connection.settimeout(POLICY_PATIENCE)
    try:
        connection.connect(path)
        connection.sendall("".join(f"{key}={value}\n" for key, value in lines.items()).encode("ascii") + b"\n")
        reply = b""
        while block := connection.recv(_BLOCK):
            reply += block
    except OSError as error:
        raise RpcError(f"{source}: the policy cannot be asked about {trigger.service} ({path}: {error})") from error
    finally:
        connection.close()
    return parse_answer(reply)


def parse_answer(reply: bytes) -> Verdict | None:
    """Return what a policy answered, None for a denial; raises RpcError."""
    values = dict(line.partition("=")[::2] for line in reply.decode("ascii", "replace").splitlines())
    if values.get("result") != "allow":
        return None
    try:
        return Verdict(
            values["target"],
            values["requested_target"],
            values["user"],
            autostart=values["autostart"] == "True",
            service=values.get("service", ""),
        )
    except KeyError as error:
        raise RpcError(f"the policy's answer has no {error}") from None


class GuestErrand:
    """The errand of one call of one VM."""

    def __init__(self, vm: str, paths: Paths, trigger: Trigger, domain: int = 0, qrexec_folder: str = "") -> None:
        """`domain` is the VM's number; `qrexec_folder` is where the daemons of VMs that others serve listen."""
        self._vm = vm
        self._domain = domain
        self._qrexec_folders = (qrexec_folder,) if qrexec_folder else ()
        self._paths = paths
        self._trigger = trigger
        self._client = Client(paths, may_start_daemon=False)

    def run(self, tell: Callable[[], None], log: Callable[[str], None]) -> int:
        """Do it; return the exit code of the service, 126 when it is refused."""
        try:
            verdict = self._decide()
            if verdict is None:
                return REFUSED
            caller = Caller(self._vm, verdict.service or self._trigger.service, verdict.requested_target)
            if verdict.target == HOST:
                return self._serve(caller, tell)
            if verdict.target.startswith(DISPOSABLE):
                return self._call_disposable(verdict, caller, tell)
            return self._call_vm(verdict.target, verdict, caller, tell)
        except CrannogError as error:
            log(f"{self._vm}: call of {self._trigger.service}: {error}")
            return MISSING if isinstance(error, NotFoundError) else TROUBLE

    def _decide(self) -> Verdict | None:
        return ask_policy(self._paths.policy_socket, self._vm, self._trigger)

    # -- services of this host

    def _serve(self, caller: Caller, tell: Callable[[], None]) -> int:
        try:
            service, config = self._prepare(caller)
        except CrannogError:
            tell()  # it was allowed: the caller gets the exit code, and no refusal
            raise
        if service.kind is Kind.SOCKET:
            return pass_to_socket(service.path, caller, config, tell)
        keep_errors()  # they may name files of this host
        tell()
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # which Python ignores, and a program would inherit
        try:
            os.execve(service.path, caller.arguments(service.path), caller.environment(dict(os.environ)))  # noqa: S606
        except OSError as error:
            raise RpcError(f"{service.path} cannot be run: {error.strerror}") from error

    def _prepare(self, caller: Caller) -> tuple[Service, ServiceConfig]:
        """Return the service and its configuration, once it may begin."""
        service = self._find(caller)
        config = read_config(caller.call)
        if config.wait_for_session:
            self._wait_for_session(caller.source)
        return service, config

    def _wait_for_session(self, source: str) -> None:
        """Run the service that ends when there is a session; where it is not, nobody can say so."""
        waiting = Caller(source, "qubes.WaitForSession+", HOST)
        with suppress(NotFoundError):
            program = self._find(waiting)
            words, environment = waiting.arguments(program.path), waiting.environment(dict(os.environ))
            null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1)]
            try:
                pid = os.posix_spawn(program.path, words, environment, file_actions=null)
            except OSError as error:
                raise RpcError(f"{program.path} cannot be run: {error.strerror}") from error
            os.waitpid(pid, 0)

    def _find(self, caller: Caller) -> Service:
        """Return the service: files of the administrator first, then what Crannog itself serves."""
        folders = os.environ.get("QREXEC_SERVICE_PATH", "")
        chosen = tuple(folders.split(":")) if folders else (self._paths.services, *FOLDERS)
        try:
            return find_service(caller.call, (*chosen, OWN_SERVICES))
        except NotFoundError:
            if caller.service in _MISC:
                return Service(Kind.SOCKET, self._paths.misc_socket)
            if caller.service.startswith("admin."):
                return Service(Kind.SOCKET, self._paths.daemon_socket)
            raise

    # -- other VMs

    def _call_vm(self, target: str, verdict: Verdict, caller: Caller, tell: Callable[[], None]) -> int:
        path = self._paths.rpc_socket(target)
        command = f"QUBESRPC {caller.call} {caller.source}"
        if not is_served(path):
            from crannog.rpc.qrexec_client import call_vm, find_socket

            foreign = find_socket(target, self._qrexec_folders)
            if foreign:
                return call_vm(foreign, self._domain, verdict.user, command, tell)
            if not verdict.autostart:
                raise RpcError(f"{target} does not run, and the policy does not let it be started for that")
            self._start(target, path)
        tell()
        return run_command(path, verdict.user, command, 0, 1, 2)

    def _start(self, target: str, path: str) -> None:
        with suppress(VMNotHaltedError):
            self._client.call("admin.vm.Start", target)
        deadline = time.monotonic() + SERVED_PATIENCE
        while not is_served(path):
            if time.monotonic() >= deadline:
                raise RpcError(f"{target} was started and serves no calls; see 'qvm-ls {target}'")
            time.sleep(0.02)

    def _call_disposable(self, verdict: Verdict, caller: Caller, tell: Callable[[], None]) -> int:
        """Have a disposable for this call alone. It ends with this process, and the caller does not wait for that."""
        lease = create_leased(self._client, verdict.target.removeprefix(DISPOSABLE))
        try:
            return self._call_vm(lease.vm, verdict, caller, tell)
        finally:
            lease.close()
