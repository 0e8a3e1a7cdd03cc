"""The loop of a VM's RPC process: over the channel, the sockets where clients come in, and the clients."""

import select
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from crannog.core.announcement import AgentStatus
from crannog.rpc.call_end import CallEnd
from crannog.rpc.channel import OUT_MAX, GuestChannel
from crannog.rpc.endpoints import wait
from crannog.rpc.guest_call import GuestCall
from crannog.rpc.guest_calls import GuestCalls
from crannog.rpc.local import LocalClient
from crannog.rpc.qrexec_clients import QrexecClient
from crannog.rpc.qrexec_door import QrexecDoor
from crannog.rpc.qrexec_ending import Ending

if TYPE_CHECKING:
    from crannog.rpc.qga import Fallback
    from crannog.rpc.xen_guest import XenGuest

READ_SIZE = 262144
CLIENTS_MAX = 512
PARTING_WAIT = 1.0
"""Seconds that local clients have to take what is left for them when the VM has ended."""
FALLBACK_WAIT = 10.0
"""Seconds that our agent has before QEMU's is looked for; most guests have started it by then."""


class VmLoop:
    """The loop over the channel, the listening socket and the clients."""

    def __init__(
        self,
        channel: GuestChannel,
        guest: socket.socket,
        listener: socket.socket,
        user: str,
        door: QrexecDoor,
        guest_calls: GuestCalls | None = None,
        ending: Ending | None = None,
    ) -> None:
        """Without `guest_calls`, calls that the guest makes are refused. `ending` is who may end it while it waits."""
        self._ending = ending or Ending()
        self._door = door
        self.channel = channel
        self._guest_calls = guest_calls
        self.channel.on_status = self._show_status
        self._guest = guest
        self._listener = listener
        self._default_user = user
        self._clients: dict[int, CallEnd | QrexecClient] = {}
        self.qga = ""
        """The socket of QEMU's guest agent, which stands in where ours does not come; empty: nothing does."""
        self.xen: XenGuest | None = None
        """What a VM has on Xen besides."""
        self._fallback: Fallback | None = None
        self._fallback_due = time.monotonic() + FALLBACK_WAIT

    def run(self) -> None:
        """Serve until the guest's end of the channel is closed."""
        while self._turn():
            pass
        self.channel.fail_calls(f"the VM '{self.channel.vm}' has ended")
        self._part_from_clients()
        if self._guest_calls:
            self._guest_calls.close()

    def _part_from_clients(self) -> None:
        """Let clients have what they were sent, so that they hear why it ends; those that do not read are left soon."""
        deadline = time.monotonic() + PARTING_WAIT
        while True:
            for client in self._clients.values():
                client.flush()
            waiting = [client for client in self._clients.values() if client.has_unsent]
            left = deadline - time.monotonic()
            if not waiting or left <= 0:
                break
            poll = select.poll()
            for client in waiting:
                poll.register(client.connection, select.POLLOUT)
            poll.poll(left * 1000)
        for client in self._clients.values():
            client.close()

    def _turn(self) -> bool:
        """Send what can be sent, wait once, read what is there; return whether the channel is still open."""
        now = time.monotonic()
        for call in self._door.meet(now):
            self._clients[call.connection.fileno()] = call
        self._advance_parts(now)
        for client in self._clients.values():
            client.advance(now)
            client.flush()
        self._clients = {fd: client for fd, client in self._clients.items() if not client.is_closed}
        if not self._send_to_guest():
            return False
        calls = self._list_others()
        ready = dict(self._poll(now, {fd: events for fd, (events, _) in calls.items()}))
        guest_events = ready.pop(self._guest.fileno(), 0) & ~select.POLLOUT
        newcomers = [accept for fd, accept in self._doors().items() if ready.pop(fd, 0)]
        for fd, events in ready.items():
            if fd in calls:
                calls[fd][1].serve(fd)
            else:
                self._clients[fd].serve(events)
        if self._guest_calls:
            self._guest_calls.bury()
        for accept in newcomers:
            accept()
        return not guest_events or self._read_guest()

    def _list_others(self) -> "dict[int, tuple[int, GuestCall | Fallback | XenGuest]]":
        """Return what else to wait for: file descriptors with their poll events, and who serves them."""
        found: dict[int, tuple[int, GuestCall | Fallback | XenGuest]] = {}
        for part in (self._guest_calls, self._fallback, self.xen):
            found |= {fd: (events, call) for fd, events, call in part.wants()} if part else {}
        return found

    def _advance_parts(self, now: float) -> None:
        """Let QEMU's guest agent stand in where ours has not come in time; few VMs load what that needs."""
        if self.xen:
            self.xen.advance(now)
        if self._fallback is None and self.qga and now >= self._fallback_due and not self.channel.is_ready:
            from crannog.rpc.qga import Fallback

            self._fallback = Fallback(self.channel, self.qga, self._door.log)
        if self._fallback:
            self._fallback.advance(now)

    def _find_fallback_due(self, now: float) -> float | None:
        if self._fallback:
            return self._fallback.due(now)
        return self._fallback_due if self.qga and not self.channel.is_ready else None

    def _doors(self) -> dict[int, Callable[[], None]]:
        """Return the sockets where clients may come in now, and what lets them in."""
        doors = {self._listener.fileno(): self._accept} if len(self._clients) < CLIENTS_MAX else {}
        listener = self._door.listener
        return doors | ({listener.fileno(): self._accept_other} if listener else {})

    def _poll(self, now: float, others: dict[int, int]) -> list[tuple[int, int]]:
        """Wait for the sockets and `others`, and for the first deadline of a call that waits for the agent."""
        poll = select.poll()
        for fd, events in others.items():
            poll.register(fd, events)
        guest_in = select.POLLIN if len(self.channel.out) < OUT_MAX else 0
        poll.register(self._guest, guest_in | (select.POLLOUT if self.channel.out else 0))
        for fd in self._doors():
            poll.register(fd, select.POLLIN)
        for fd, client in self._clients.items():
            poll.register(fd, client.events())
        deadlines = [client.deadline for client in self._clients.values() if client.deadline is not None]
        others_due = (self._door.due(now), self._find_fallback_due(now), self.xen.due(now) if self.xen else None)
        deadlines += [when for when in others_due if when is not None]
        timeout = max(0.0, min(deadlines) - now) if deadlines else None
        return self._ending.during(lambda: wait(poll, timeout))

    def _send_to_guest(self) -> bool:
        """Send what the channel takes now; return whether it is still open."""
        try:
            if self.channel.out:
                with memoryview(self.channel.out) as view, view[:READ_SIZE] as part:
                    count = self._guest.send(part)
                del self.channel.out[:count]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def _read_guest(self) -> bool:
        """Read what the guest has sent; return whether the channel is still open."""
        try:
            untrusted_data = self._guest.recv(READ_SIZE)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.channel.receive(untrusted_data)
        return bool(untrusted_data)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        client = LocalClient(connection, self.channel, self._default_user, self._learn_domain)
        self._clients[connection.fileno()] = client

    def _learn_domain(self, number: int) -> None:
        self._door.learn(number)
        if self.xen:
            self.xen.attach(number)

    def _accept_other(self) -> None:
        client = self._door.accept()
        if client:
            self._clients[client.connection.fileno()] = client

    def _show_status(self, status: AgentStatus) -> None:
        for client in self._clients.values():
            client.show_status(status)
