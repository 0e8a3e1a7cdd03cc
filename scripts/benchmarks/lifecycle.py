"""What crannogd adds to the life of VMs: to one start, to twenty at once, to a look at all states, and to a kill.

Starts and kills are calls of the API, so that the start of a tool is not in them. Twenty starts at once are over when
the last agent answers, with us and by hand: then all VMs can be used, and `bench start` stops its clock there as well.
That processors run would be a poor end: by hand the first guests boot while the last QEMUs are still loaded, libvirt
lets each guest run when its QEMU is ready, and up to the same moment both would have done different work. Layers are
made before the clock runs by hand, and within the time with us.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # it is run as a script as well

from benchmarks import domains
from benchmarks.by_hand import AGENT_TIMEOUT, ByHand
from benchmarks.harness import COMMAND_TIMEOUT, Row, call, own_home, take_turns
from benchmarks.model import exactly
from benchmarks.start import VM
from crannog.adapters.libvirt.driver import load_libvirt
from crannog.client.connection import Client
from crannog.client.events import EventStream
from crannog.daemon.main import main as run_daemon

SHARE_TARGET, KILL_TARGET = 0.060, 0.100
END_TIMEOUT = 30
"""Seconds in which the clean-up after a kill must be over."""

TOGETHER, TOGETHER_TARGET = 20, 1.15
MEMORY = 300
"""MiB of each VM."""


# -- the daemon, with a stopwatch at libvirt


@contextlib.contextmanager
def timed_daemon(stopwatch: str) -> Iterator[None]:
    """Run the home's crannogd as a child that notes the seconds of libvirt's calls in the file `stopwatch`."""
    ready, told = os.pipe()
    command = [sys.executable, __file__, stopwatch, "--ready-fd", str(told)]
    daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[told])
    os.close(told)
    with open(ready, "rb") as pipe:
        if pipe.read(1) != b"1":
            raise RuntimeError(f"crannogd did not start: it ended with {daemon.wait()}")
    try:
        yield
    finally:
        daemon.terminate()
        daemon.wait(COMMAND_TIMEOUT)


def be_daemon(stopwatch: str) -> int:
    """Be crannogd, with the calls that create a domain and let it run timed. Everything else is as ever."""
    load_libvirt(os.devnull)
    import libvirt

    for owner, name in ((libvirt.virConnect, "createXML"), (libvirt.virDomain, "resume")):
        setattr(owner, name, timed(getattr(owner, name), stopwatch))
    return run_daemon()


def timed(function: Callable[..., object], stopwatch: str) -> Callable[..., object]:
    """Return the function, which then notes its seconds, a line each time."""

    def run(*arguments: object) -> object:
        began = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            seconds = time.perf_counter() - began
            with open(stopwatch, "a", encoding="ascii") as file:
                file.write(f"{seconds}\n")

    return run


# -- one VM


def measure_one(runs: int, client: Client, stopwatch: str) -> list[Row]:
    """Start a VM without waiting for its agent, let it boot, kill it; in turns."""

    def share() -> float:
        with open(stopwatch, "w", encoding="ascii"):
            pass
        began = time.perf_counter()
        client.text("crannog.vm.Start", VM, "nowait")
        seconds = time.perf_counter() - began
        with open(stopwatch, encoding="ascii") as file:
            inside = [float(line) for line in file]
        if len(inside) != 2:
            raise RuntimeError(f"a start made {len(inside)} timed calls of libvirt, not createXML and resume")
        call("qvm-run", "--no-stdin", VM, "true")  # it waits for the agent: a VM that works is killed
        return seconds - sum(inside)

    own, kill = take_turns(runs, share, lambda: end(client, VM))
    fixed = "a fixed time"
    return [
        Row("a start without libvirt's calls", own, fixed, exactly(SHARE_TARGET), 1),
        Row("admin.vm.Kill", kill, fixed, exactly(KILL_TARGET), 1),
    ]


def end(client: Client, vm: str) -> float:
    """Kill a VM, and return how long that took when it is cleaned up as well: the next start must not wait for it."""
    stream = EventStream(client)
    try:
        stream.next_event()  # from now on nothing is missed
        began = time.perf_counter()
        client.call("admin.vm.Kill", vm)
        seconds = time.perf_counter() - began
        deadline = time.monotonic() + END_TIMEOUT
        while (event := stream.next_event(deadline)) and (event.name, event.subject) != ("domain-shutdown", vm):
            pass
    finally:
        stream.close()
    return seconds


# -- many VMs at once


def together(actions: list[Callable[[], object]]) -> float:
    """Begin everything at once, a thread each; return the seconds until the last is done. Raises the first failure."""
    failures: list[BaseException] = []

    def attempt(action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that waits
            failures.append(error)

    # Daemons, because one that waits for a QEMU that is gone must not keep the process from ending.
    threads = [threading.Thread(target=attempt, args=(action,), daemon=True) for action in actions]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, began + COMMAND_TIMEOUT - time.perf_counter()))
    seconds = time.perf_counter() - began
    if failures:
        raise failures[0]
    if any(thread.is_alive() for thread in threads):
        raise TimeoutError(f"not all of {len(actions)} starts were over within {COMMAND_TIMEOUT} s")
    return seconds


def measure_together(runs: int, client: Client, home: str) -> Row:
    """Many starts at once, against as many of the same command lines by hand."""
    vms = [f"{VM}-{number:02}" for number in range(TOGETHER)]
    for vm in vms:
        call("qvm-clone", VM, vm)  # with the file system that its first start made on private
    folder = tempfile.mkdtemp(dir=home)
    hands: list[ByHand] = []

    def ours() -> float:
        seconds = together([lambda vm=vm: client.text("crannog.vm.Start", vm, "wait") for vm in vms])  # type: ignore[misc]
        hands[:] = [ByHand(vm, home, folder) for vm in vms]
        together([lambda vm=vm: end(client, vm) for vm in vms])  # type: ignore[misc]
        return seconds

    def hand() -> float:
        for one in hands:
            one.prepare()
        try:
            return together([one.start for one in hands])
        finally:
            for one in hands:
                one.stop()

    value, reference = take_turns(runs, ours, hand)
    return Row(f"{TOGETHER} starts at once", value, "same QEMUs by hand", reference, TOGETHER_TARGET)


def measure(runs: int) -> list[Row]:
    """Return all rows."""
    many = domains.measure(runs)
    with own_home() as home, tempfile.TemporaryDirectory(prefix="crannog-bench-") as folder:
        stopwatch = f"{folder}/stopwatch"
        with timed_daemon(stopwatch):
            call("crannog", "template", "build", "debian-12")
            settings = [f"memory={MEMORY}", f"qrexec_timeout={AGENT_TIMEOUT}"]
            properties = [word for setting in settings for word in ("--property", setting)]
            call("qvm-create", "--template", "debian-12", *properties, VM)
            client = Client()
            client.text("crannog.vm.Start", VM, "wait")  # the first start makes the file system on private
            end(client, VM)
            share, kill = measure_one(runs, client, stopwatch)
            return [share, measure_together(runs, client, home), *many, kill]


if __name__ == "__main__":
    sys.exit(be_daemon(sys.argv.pop(1)))
