"""The loop of `crannog-qrexec-daemon`: one VM whose agent somebody else wrote, its clients, ports and calls.

The data of calls does not come here: callers and services meet at vchans (docs/qrexec.md). Nothing that a guest or a
client sends stops the loop, and all tables are bounded.
"""

import os
import select
import socket
import time
from collections.abc import Callable

from crannog.errors import CrannogError, ProtocolError, RpcError
from crannog.rpc import qrexec_messages as qm
from crannog.rpc import vchan
from crannog.rpc.allowance import Allowance
from crannog.rpc.guest_calls import CALLS_MAX
from crannog.rpc.qrexec_agent_link import AgentLink, fails
from crannog.rpc.qrexec_clients import CLIENTS_MAX, QrexecClient
from crannog.rpc.qrexec_ending import Ending
from crannog.rpc.qrexec_messages import ExecParams, Message
from crannog.rpc.qrexec_ports import PortTable
from crannog.rpc.qrexec_sockets import DaemonSocket
from crannog.rpc.qrexec_wishes import Wish, find_wish
from crannog.rpc.spare_errands import SpareErrands
from crannog.rpc.triggers import Trigger, parse_trigger

RETRY = 0.02
"""Seconds between two looks whether an agent is there."""
QUIET = 0.004
"""Seconds without work, soon after a call, after which a process for the next one is made ready."""
DATA_PORTS = range(qm.FIRST_PORT, qm.FIRST_PORT + qm.PORTS)


class QrexecBroker:
    """One VM."""

    def __init__(
        self,
        domain: int,
        sockets: DaemonSocket,
        default_user: str,
        errands: SpareErrands,
        log: Callable[[str], None],
    ) -> None:
        self.log = log
        self.ending = Ending()
        self.on_ready: Callable[[], object] = lambda: None
        self._domain = domain
        self._sockets = sockets
        self._default_user = default_user.encode()
        self._errands = errands
        self._agent: AgentLink | None = None
        self._clients: dict[int, QrexecClient] = {}
        self._waiting: dict[int, QrexecClient] = {}
        self._wishes: dict[int, Wish] = {}
        self._ports = PortTable(domain)
        self._allowance = Allowance()
        self._has_served = False

    def run(self) -> None:
        """Serve until an exception ends it.

        Raises RpcError when the vchan's folder can never be used, or the first agent does not begin with a HELLO of a
        known version.
        """
        try:
            while True:
                if self._agent is None:
                    self._find_agent()
                self._turn()
        finally:
            self._lose_agent("")
            self._errands.close()

    # -- the agent

    def _find_agent(self) -> None:
        connection = vchan.try_connect(vchan.path_of(self._domain, 0, qm.CONTROL_PORT))
        if connection:
            self._agent = AgentLink(connection)

    def _lose_agent(self, reason: str) -> None:
        """Close everything that went with the agent; another one may come."""
        if reason:
            self.log(f"lost the agent: {reason}")
        if self._agent:
            self._agent.connection.close()
        self._agent = None
        self._sockets.close()
        for client in self._clients.values():
            client.close()
        for wish in self._wishes.values():
            wish.is_answered = True
            wish.end()
        self._clients.clear()
        self._waiting.clear()
        self._ports.clear()

    def _serve_agent(self, agent: AgentLink) -> None:
        def receive() -> None:
            try:
                for message in agent.receive():
                    self._dispatch(message)
            except ProtocolError as error:
                if agent.version or self._has_served:
                    raise
                raise RpcError(f"the agent cannot be served: {error}") from error
            if agent.version and self._sockets.listener is None:
                self._open()

        reason = fails(receive)
        if reason:
            self._lose_agent(reason)

    def _open(self) -> None:
        self._sockets.open()
        self._has_served = True
        self.log("connected to the agent")
        self.on_ready()

    def _dispatch(self, message: Message) -> None:
        if message.type == qm.CONNECTION_TERMINATED:
            self._end_connection(qm.decode_params(message.body))
            return
        body = qm.to_trigger4(message.type, message.body)
        try:
            trigger = parse_trigger(body)
        except ProtocolError as error:
            self.log(f"refused a call: {error}")
            self._send(qm.encode_refused(qm.ident_of(body)))
            return
        if trigger.is_possible:
            self._begin_wish(trigger)
        else:
            self._send(qm.encode_refused(trigger.ident))

    def _end_connection(self, untrusted_params: ExecParams) -> None:
        if untrusted_params.port not in DATA_PORTS:
            raise ProtocolError(f"it says that port {untrusted_params.port} is free, which is none for data")
        # Another VM's daemon may have chosen it: then it is not in our table, and nothing is to do.
        if self._ports.release(untrusted_params.port, untrusted_params.domain):
            client = self._waiting.pop(untrusted_params.port, None)
            if client:
                client.close()

    def _send(self, message: bytes) -> None:
        if self._agent:
            self._agent.out += message

    # -- calls of the guest

    def _begin_wish(self, trigger: Trigger) -> None:
        if len(self._wishes) >= CALLS_MAX or not self._allowance.take():
            self.log(f"refused a call of {trigger.service}: there are too many of them")
            self._send(qm.encode_refused(trigger.ident))
            return
        try:
            errand = self._errands.start(trigger)
        except OSError as error:
            self.log(f"refused a call of {trigger.service}: no process can be started for it ({error.strerror})")
            self._send(qm.encode_refused(trigger.ident))
            return
        self._wishes[errand.pidfd] = Wish(trigger.ident, errand)

    def _bury(self, pidfd: int) -> None:
        """Take the end of a process; a call that nobody connected is refused."""
        if os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG) is None:
            return
        wish = self._wishes.pop(pidfd)
        wish.close()
        if not wish.is_answered:
            self._send(qm.encode_refused(wish.ident))

    # -- what clients ask for

    def begin(self, client: QrexecClient, kind: int, params: ExecParams, command: bytes) -> ExecParams:
        """Pass a command on to the agent; return where its data is. Raises CrannogError."""
        answer = self._allot(client, params)
        where = ExecParams(params.domain, answer.port)
        self._send(qm.encode_exec(kind, where, command))
        return answer

    def connect(self, client: QrexecClient, params: ExecParams, ident: bytes) -> ExecParams | None:
        """Tell the agent where the service is that it asked for. Raises CrannogError when it did not ask."""
        wish = find_wish(self._wishes.values(), ident)
        answer = None if params.port else self._allot(client, params)
        if params.port and params.port not in DATA_PORTS:
            raise ProtocolError(f"it chose port {params.port}, which is none for data")
        wish.is_answered = True
        if client.peer_process() != wish.errand.pid:
            wish.end()  # the policy's program has done it all itself
        port = answer.port if answer else params.port
        self._send(qm.encode_exec(qm.SERVICE_CONNECT, ExecParams(params.domain, port), ident[:-1]))  # as it came
        if answer is None:
            client.close()
        return answer

    def _allot(self, client: QrexecClient, params: ExecParams) -> ExecParams:
        if self._agent is None or not self._agent.has_room:
            raise RpcError("the agent does not take requests")
        if params.port:
            raise ProtocolError(f"it chose port {params.port} itself")
        port = self._ports.allocate(params.domain)
        self._waiting[port] = client
        return ExecParams(self._domain, port)

    # -- the loop

    def _turn(self) -> None:
        now = time.monotonic()
        self._errands.expire(now)
        if self._agent and (reason := fails(self._agent.flush)):
            self._lose_agent(reason)
        for client in self._clients.values():
            client.advance(now)
            client.flush()
        self._clients = {fd: client for fd, client in self._clients.items() if not client.is_closed}
        ready = dict(self._poll(now))
        agent, listener = self._agent, self._sockets.listener
        agent_events = ready.pop(agent.connection.fileno(), 0) if agent else 0
        is_accepting = ready.pop(listener.fileno(), 0) if listener else 0
        for fd, events in ready.items():
            if fd in self._wishes:
                self._bury(fd)
            elif fd in self._clients:
                self._clients[fd].serve(events)
        if is_accepting and listener:
            self._accept(listener)
        if agent and agent_events & ~select.POLLOUT:
            self._serve_agent(agent)

    def _poll(self, now: float) -> list[tuple[int, int]]:
        """Wait for something to do; make a process ready when there is nothing."""
        poll = select.poll()
        if self._agent:
            poll.register(self._agent.connection, self._agent.events())
        if self._sockets.listener and len(self._clients) < CLIENTS_MAX:
            poll.register(self._sockets.listener, select.POLLIN)
        for fd, client in self._clients.items():
            poll.register(fd, client.events())
        for fd in self._wishes:
            poll.register(fd, select.POLLIN)
        times = [self._errands.deadline, *(client.deadline for client in self._clients.values())]
        deadlines = [deadline for deadline in times if deadline is not None]
        deadlines += [] if self._agent else [now + RETRY]
        deadlines += [now + QUIET] if self._wants_spare else []
        ready = self.ending.wait(poll, max(0.0, min(deadlines) - now) * 1000 + 1 if deadlines else None)
        if not ready and self._wants_spare:
            self._errands.prepare()
        return ready

    @property
    def _wants_spare(self) -> bool:
        return self._errands.is_wanted and self._sockets.listener is not None

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        self._clients[connection.fileno()] = QrexecClient(connection, self, self._default_user)


def explain(error: Exception) -> str:
    """Return the sentence for an end of the daemon."""
    return str(error) if isinstance(error, CrannogError) else f"a mistake of ours: {error!r}"
