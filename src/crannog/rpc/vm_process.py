"""The RPC process of one VM: the only one on the host that reads what this guest sends.

It connects to the channel's socket, which QEMU makes, and serves local clients on a socket of its own
(formats: rpc/frames.py). It outlives the daemon, and ends by itself when QEMU closes the channel. One thread,
one loop (vm_loop.py). There is one for each running VM: crannogd has rpc/nursery.py fork it, so that all share what
they load.
"""

import argparse
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable

from crannog.adapters.guestdb.places import find_xenstore
from crannog.core.qga import qga_path
from crannog.errors import CrannogError
from crannog.rpc import frames
from crannog.rpc.channel import GuestChannel
from crannog.rpc.endpoints import connect_channel, keep_complaints, listen, make_log
from crannog.rpc.guest_call import Errand
from crannog.rpc.guest_calls import GuestCalls
from crannog.rpc.place import Place
from crannog.rpc.qrexec_door import QrexecDoor
from crannog.rpc.qrexec_ending import Ending
from crannog.rpc.triggers import Trigger
from crannog.rpc.vm_loop import VmLoop

CONNECT_WAIT = 60.0


def serve(place: Place, ending: Ending, starter: int | None = None, domain: int = 0) -> None:
    """Serve a VM until it ends. Raises InUseError, RpcError, OSError; SystemExit, where it waits, on `ending`.

    `starter` is the pipe whose end tells that crannogd is gone (see connect_channel). `domain` is the VM's number, when
    that is known already; else crannogd says it later.
    """
    listener = listen(place.listen_path)
    log = make_log(place.vm)
    xenstore = find_xenstore()
    channel = GuestChannel(place.vm, log, frames.SHORT_PADDING if xenstore else frames.PADDING)
    door = QrexecDoor(channel, place.door_folder, place.default_user, place.uuid, log)
    calls = (
        GuestCalls(channel, _errands_of(place, lambda: door.domain), log, _complaints_of(place)) if place.home else None
    )
    try:
        if domain:
            door.open(domain)
        with listener, ending.during(lambda: connect_channel(place.channel_path, CONNECT_WAIT, starter)) as guest:
            process = VmLoop(channel, guest, listener, place.default_user, door, calls, ending)
            process.qga = qga_path(place.channel_path)
            if xenstore:
                _serve_on_xen(process, guest, xenstore, domain, log)
            process.run()
    finally:
        door.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place.listen_path)


def _serve_on_xen(
    process: VmLoop, guest: socket.socket, xenstore: str, domain: int, log: Callable[[str], None]
) -> None:
    """Have a process serve a guest of Xen. Loaded only there."""
    from crannog.rpc.xen_guest import BUFFER, XenGuest

    guest.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    process.xen = XenGuest(process.channel, xenstore, log)
    if domain:
        process.xen.attach(domain)


def _errands_of(place: Place, find_domain: Callable[[], int]) -> Callable[[Trigger], Errand]:
    """Return what starts the process of a call. What only such processes need is loaded here, or by our parent."""

    def start(trigger: Trigger) -> Errand:
        from crannog.config import Paths
        from crannog.rpc.errand import GuestErrand
        from crannog.rpc.errand_start import start_errand

        return start_errand(GuestErrand(place.vm, Paths(place.home), trigger, find_domain(), place.door_folder).run)

    return start


def _complaints_of(place: Place) -> Callable[[bytes], None]:
    """Return what keeps the complaints of services of this host."""

    def keep(text: bytes) -> None:
        from crannog.config import Paths

        keep_complaints(Paths(place.home).services_log, text)

    return keep


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
    return run(place, 0 if options.starter_on_stdin else None, options.xid)


def run(place: Place, starter: int | None = None, domain: int = 0) -> int:
    """Serve a VM until it ends, or SIGTERM comes; return the exit code. See `serve`."""
    ending = Ending()
    signal.signal(signal.SIGTERM, lambda *_: ending.request(0))
    try:
        serve(place, ending, starter, domain)
    except (CrannogError, OSError) as error:
        sys.stderr.write(f"{place.vm}: {error}\n")
        return error.exit_code if isinstance(error, CrannogError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
