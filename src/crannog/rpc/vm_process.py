"""The RPC process of one VM: the only one on the host that reads what this guest sends.

It connects to the channel's socket, which QEMU makes, and serves local clients on a socket of its own
(formats: rpc/frames.py). It outlives the daemon, and ends by itself when QEMU closes the channel. One thread,
one loop; it imports little, as there is one for each running VM.
"""

import argparse
import contextlib
import os
import select
import socket
import sys
import time
from collections.abc import Callable

from crannog.core.announcement import AgentStatus
from crannog.errors import CrannogError, InUseError, RpcError
from crannog.rpc.channel import OUT_MAX, GuestChannel
from crannog.rpc.guest_calls import Errand, GuestCalls
from crannog.rpc.local import LocalClient
from crannog.rpc.triggers import Trigger

READ_SIZE = 262144
CONNECT_WAIT = 60.0
CONNECT_PAUSE = 0.01
CLIENTS_MAX = 512
LOG_LINES_MAX = 500


def make_log(vm: str) -> Callable[[str], None]:
    """Return a function that logs a line to stderr. A guest cannot cause more than LOG_LINES_MAX of them."""
    count = 0

    def log(sentence: str) -> None:
        nonlocal count
        count += 1
        if count <= LOG_LINES_MAX:
            sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {vm}: {sentence}\n")
        if count == LOG_LINES_MAX:
            sys.stderr.write(f"{vm}: further lines are left out\n")
        sys.stderr.flush()

    return log


def listen(path: str) -> socket.socket:
    """Return a socket that listens at `path`, for its owner only; a left-over file is replaced.

    Raises InUseError when a process serves that path already.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            pass
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            raise InUseError(f"another RPC process serves {path} already")
    listener = socket.socket(socket.AF_UNIX)
    old_mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(old_mask)
    listener.listen(128)
    listener.setblocking(False)
    return listener


def connect_channel(path: str, wait: float, starter: int | None = None) -> socket.socket:
    """Return a connection to the channel at `path`, which may appear within `wait` seconds.

    Raises RpcError when it does not, or when `starter`, the read end of a pipe, says by its end that who started this
    process, and was about to make the channel, is gone.
    """
    deadline = time.monotonic() + wait
    while True:
        channel = socket.socket(socket.AF_UNIX)
        try:
            channel.connect(path)
        except OSError as error:
            channel.close()
            if time.monotonic() >= deadline:
                raise RpcError(f"the channel {path} did not appear in {wait:.0f} s: {error}") from error
            if select.select([] if starter is None else [starter], [], [], CONNECT_PAUSE)[0]:
                raise RpcError(f"crannogd ended before it made the channel {path}") from error
        else:
            channel.setblocking(False)
            return channel


class VmProcess:
    """The loop over the channel, the listening socket and the clients."""

    def __init__(
        self,
        channel: GuestChannel,
        guest: socket.socket,
        listener: socket.socket,
        user: str,
        guest_calls: GuestCalls | None = None,
    ) -> None:
        """Without `guest_calls`, calls that the guest makes are refused."""
        self.channel = channel
        self._guest_calls = guest_calls
        self.channel.on_status = self._show_status
        self._guest = guest
        self._listener = listener
        self._default_user = user
        self._clients: dict[int, LocalClient] = {}

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
        is_accepting = ready.pop(self._listener.fileno(), 0)
        for fd, events in ready.items():
            if fd in calls:
                calls[fd][1].serve(fd)
            else:
                self._clients[fd].serve(events)
        if self._guest_calls:
            self._guest_calls.bury()
        if is_accepting:
            self._accept()
        return not guest_events or self._read_guest()

    def _poll(self, now: float, others: dict[int, int]) -> list[tuple[int, int]]:
        """Wait for the sockets and `others`, and for the first deadline of a call that waits for the agent."""
        poll = select.poll()
        for fd, events in others.items():
            poll.register(fd, events)
        guest_in = select.POLLIN if len(self.channel.out) < OUT_MAX else 0
        poll.register(self._guest, guest_in | (select.POLLOUT if self.channel.out else 0))
        if len(self._clients) < CLIENTS_MAX:
            poll.register(self._listener, select.POLLIN)
        for fd, client in self._clients.items():
            poll.register(fd, client.events())
        deadlines = [client.deadline for client in self._clients.values() if client.deadline is not None]
        return poll.poll(max(0.0, min(deadlines) - now) * 1000 + 1 if deadlines else None)

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
        self._clients[connection.fileno()] = LocalClient(connection, self.channel, self._default_user)

    def _show_status(self, status: AgentStatus) -> None:
        for client in self._clients.values():
            client.show_status(status)


def serve(
    vm: str, channel_path: str, listen_path: str, default_user: str, starter: int | None = None, home: str = ""
) -> None:
    """Serve the VM `vm` until it ends. Raises InUseError, RpcError, OSError.

    `home` is the home whose policy decides on the guest's calls; without one they are refused.
    """
    listener = listen(listen_path)
    log = make_log(vm)
    channel = GuestChannel(vm, log)
    calls = GuestCalls(channel, _errands_of(vm, home), log) if home else None
    try:
        with listener, connect_channel(channel_path, CONNECT_WAIT, starter) as guest:
            VmProcess(channel, guest, listener, default_user, calls).run()
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(listen_path)


def _errands_of(vm: str, home: str) -> Callable[[Trigger], Errand]:
    """Return what starts the process of a call. What only such a process needs is loaded in it, once it is there."""

    def start(trigger: Trigger) -> Errand:
        from crannog.rpc.errand_start import start_errand

        def run(tell: Callable[[], None], log: Callable[[str], None]) -> int:
            from crannog.config import Paths
            from crannog.rpc.errand import GuestErrand

            return GuestErrand(vm, Paths(home), trigger).run(tell, log)

        return start_errand(run)

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
    options = parser.parse_args(arguments)
    starter = 0 if options.starter_on_stdin else None
    try:
        serve(options.name, options.channel, options.listen, options.default_user, starter, options.home)
    except (CrannogError, OSError) as error:
        sys.stderr.write(f"{options.name}: {error}\n")
        return error.exit_code if isinstance(error, CrannogError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
