"""The RPC process of one VM: the only one on the host that reads what this guest sends.

It connects to the channel's socket, which QEMU makes, and serves local clients on a socket of its own
(formats: rpc/frames.py). It outlives the daemon, and ends by itself when QEMU closes the channel. One thread,
one loop; it imports little, as there is one for each running VM.
"""

import argparse
import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from crannog.core.announcement import AgentStatus
from crannog.errors import CrannogError
from crannog.rpc.call_end import CallEnd
from crannog.rpc.channel import OUT_MAX, GuestChannel
from crannog.rpc.endpoints import connect_channel, listen, make_log, wait
from crannog.rpc.guest_calls import Errand, GuestCalls
from crannog.rpc.local import LocalClient
from crannog.rpc.qrexec_clients import QrexecClient
from crannog.rpc.qrexec_door import QrexecDoor
from crannog.rpc.triggers import Trigger

READ_SIZE = 262144
CONNECT_WAIT = 60.0
CLIENTS_MAX = 512


class VmProcess:
    """The loop over the channel, the listening socket and the clients."""

    def __init__(
        self,
        channel: GuestChannel,
        guest: socket.socket,
        listener: socket.socket,
        user: str,
        door: QrexecDoor,
        guest_calls: GuestCalls | None = None,
    ) -> None:
        """Without `guest_calls`, calls that the guest makes are refused."""
        self._door = door
        self.channel = channel
        self._guest_calls = guest_calls
        self.channel.on_status = self._show_status
        self._guest = guest
        self._listener = listener
        self._default_user = user
        self._clients: dict[int, CallEnd | QrexecClient] = {}

    def run(self) -> None:
        """Serve until the guest's end of the channel is closed."""
        while self._turn():
            pass
        self.channel.fail_calls(f"the VM '{self.channel.vm}' has ended")
        for client in self._clients.values():
            client.flush()
            client.close()
        if self._guest_calls:
            self._guest_calls.close()

    def _turn(self) -> bool:
        """Send what can be sent, wait once, read what is there; return whether the channel is still open."""
        now = time.monotonic()
        for call in self._door.meet(now):
            self._clients[call.connection.fileno()] = call
        for client in self._clients.values():
            client.advance(now)
            client.flush()
        self._clients = {fd: client for fd, client in self._clients.items() if not client.is_closed}
        if not self._send_to_guest():
            return False
        wanted = self._guest_calls.wants() if self._guest_calls else iter(())
        calls = {fd: (events, call) for fd, events, call in wanted}
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
        meeting = self._door.due(now)
        deadlines += [] if meeting is None else [meeting]
        return wait(poll, max(0.0, min(deadlines) - now) if deadlines else None)

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
        self._clients[connection.fileno()] = LocalClient(connection, self.channel, self._default_user, self._door.learn)

    def _accept_other(self) -> None:
        client = self._door.accept()
        if client:
            self._clients[client.connection.fileno()] = client

    def _show_status(self, status: AgentStatus) -> None:
        for client in self._clients.values():
            client.show_status(status)


class Place(NamedTuple):
    """What a process serves, and where."""

    vm: str
    channel_path: str
    listen_path: str
    default_user: str = "DEFAULT"
    uuid: str = ""
    home: str = ""
    """The home whose policy decides on the guest's calls; without one they are refused."""
    qrexec_folder: str = ""
    """Where other programs look for the VM's qrexec socket."""

    @property
    def door_folder(self) -> str:
        """The folder of that socket: beside our own, unless another one was chosen."""
        return self.qrexec_folder or os.path.dirname(self.listen_path)


def serve(place: Place, starter: int | None = None, domain: int = 0) -> None:
    """Serve a VM until it ends. Raises InUseError, RpcError, OSError.

    `domain` is its number, when that is known already; else crannogd says it later.
    """
    listener = listen(place.listen_path)
    log = make_log(place.vm)
    channel = GuestChannel(place.vm, log)
    door = QrexecDoor(channel, place.door_folder, place.default_user, place.uuid, log)
    calls = GuestCalls(channel, _errands_of(place, lambda: door.domain), log) if place.home else None
    try:
        if domain:
            door.open(domain)
        with listener, connect_channel(place.channel_path, CONNECT_WAIT, starter) as guest:
            VmProcess(channel, guest, listener, place.default_user, door, calls).run()
    finally:
        door.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place.listen_path)


def _errands_of(place: Place, find_domain: Callable[[], int]) -> Callable[[Trigger], Errand]:
    """Return what starts the process of a call. What only such processes need is loaded here, for the first of them."""

    def start(trigger: Trigger) -> Errand:
        from crannog.config import Paths
        from crannog.rpc.errand import GuestErrand
        from crannog.rpc.errand_start import start_errand

        return start_errand(GuestErrand(place.vm, Paths(place.home), trigger, find_domain(), place.door_folder).run)

    return start


def main(arguments: list[str] | None = None) -> int:
    """Run the process; return its exit code."""
    parser = argparse.ArgumentParser(prog="crannog-rpc", description="Serve the RPC of one running VM.")
    parser.add_argument("--name", required=True, help="the VM's name")
    parser.add_argument("--channel", required=True, help="QEMU's socket of the agent's port")
    parser.add_argument("--listen", required=True, help="the socket for local clients")
    parser.add_argument("--default-user", default="DEFAULT", help="whom DEFAULT means; else the agent decides")
    parser.add_argument(
        "--starter-on-stdin", action="store_true", help="end when standard input does before the channel is there"
    )
    parser.add_argument("--home", default="", help="the home whose policy decides on the guest's calls")
    parser.add_argument("--uuid", default="", help="the VM's UUID, by which other programs call it too")
    parser.add_argument("--xid", type=int, default=0, help="the hypervisor's number of the VM, if it is known")
    parser.add_argument("--qrexec-dir", default="", help="where other programs call it; else beside the socket")
    options = parser.parse_args(arguments)
    place = Place(
        options.name,
        options.channel,
        options.listen,
        options.default_user,
        options.uuid,
        options.home,
        options.qrexec_dir,
    )
    # Raised where the process is, so that its sockets are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        serve(place, 0 if options.starter_on_stdin else None, options.xid)
    except (CrannogError, OSError) as error:
        sys.stderr.write(f"{options.name}: {error}\n")
        return error.exit_code if isinstance(error, CrannogError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
