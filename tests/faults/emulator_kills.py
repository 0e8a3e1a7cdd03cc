"""QEMU is killed -9 at each stage of a VM's life: afterwards the VM is halted and clean, and everybody was told."""

import contextlib
import os
import signal
import time
from collections.abc import Callable

from tests.faults.results import Report, Result
from tests.faults.sites import SETTLE_SECONDS, VM, Site, Status, wait_for
from tests.faults.watching import Events, Tool, answer_of, begun, catch, run_until_hit, spread
from tests.processes import read_words

_BOOTING_SECONDS = 1.0


class EmulatorKill:
    """One kill: finds the moment, kills, and looks at what came of it."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._wrong: list[str] = []
        self._answer = ""
        self._killed = 0.0
        self._is_start = False

    def run(self, point: str) -> Result | None:
        """Return the result; None when the moment was missed and nothing was killed."""
        with contextlib.closing(Events(self._site, VM)) as events:
            if not STAGES[point](self):
                return None
            self._check_events(events)
        if not wait_for(lambda: self._site.state() == "Halted", SETTLE_SECONDS):
            self._wrong.append("it did not get Halted")
        state = self._site.state()
        self._wrong += self._site.settled()
        seconds = time.monotonic() - self._killed
        self._start_again()
        return Result(point, self._answer, state, tuple(self._wrong), round(seconds, 3))

    def _check_events(self, events: Events) -> None:
        last = "domain-start-failed" if self._is_start else "domain-shutdown"
        told = events.wait_for(last, seconds=SETTLE_SECONDS)
        wanted = [] if self._is_start and "domain-spawn" not in events.names else ["domain-stopped", "domain-shutdown"]
        wanted += ["domain-start-failed"] if self._is_start else []
        if not told or events.names[-len(wanted) :] != wanted:
            self._wrong.append(f"told were {events.names}")

    def _start_again(self) -> None:
        for words in (("qvm-start", "--no-wait", VM), ("qvm-kill", VM)):
            done = self._site.home.run(*words)
            if done.returncode:
                self._wrong.append(f"it cannot be started again: {done.stderr.decode()}")
        self._site.settled()

    def _kill(self, pid: int = 0) -> None:
        self._killed = time.monotonic()
        os.kill(pid or self._site.home.qemu(VM), signal.SIGKILL)

    # -- while it starts

    def _while_starting(self, strike: Callable[[Tool], bool]) -> bool:
        """Start the VM and strike; when the moment was missed, end the VM."""
        self._is_start = True
        with begun(self._site, "qvm-start", "--wait", VM) as tool:
            is_hit = strike(tool)
            if not is_hit:
                self._site.home.run("qvm-kill", VM)
            self._answer = answer_of(self._site, tool, self._wrong)
        if is_hit and self._answer == "done":
            self._wrong.append("the start succeeded")
        if not is_hit:
            self._site.settled()
        return is_hit

    def created(self) -> bool:
        """Kill QEMU as soon as it is there; libvirt has not spoken with it yet."""

        def strike(tool: Tool) -> bool:
            return catch(self._is_executed, tool) and self._kill_if(lambda status: status.state != "running")

        return self._while_starting(strike)

    def _is_executed(self) -> bool:
        with contextlib.suppress(OSError, ValueError):  # libvirt has not written its number
            return "-uuid" in read_words(self._site.home.qemu(VM))
        return False

    def _kill_if(self, is_right: Callable[[Status], bool]) -> bool:
        if is_right(self._site.status()):
            self._kill()
            return True
        return False

    def paused(self) -> bool:
        """Kill QEMU while its domain is whole and does not run: crannogd is held still for that."""

        def is_paused() -> bool:
            status = self._site.status()
            return status.state == "paused" and status.reason != "starting up"

        def strike(tool: Tool) -> bool:
            if not catch(lambda: is_paused() or self._site.status().state == "running", tool):
                return False
            daemon = self._site.daemon()
            os.kill(daemon, signal.SIGSTOP)
            try:
                time.sleep(0.05)  # what was asked of a libvirtd before that may still be done by it
                return is_paused() and self._kill_if(lambda status: status.state == "paused")
            finally:
                os.kill(daemon, signal.SIGCONT)

        return self._while_starting(strike)

    def resumed(self) -> bool:
        """Kill QEMU in the moment in which its processors run."""

        def strike(tool: Tool) -> bool:
            return catch(lambda: self._site.status().state == "running", tool) and self._kill_if(lambda _status: True)

        return self._while_starting(strike)

    def booting(self) -> bool:
        """Kill QEMU while the guest boots."""

        def strike(tool: Tool) -> bool:
            if not catch(lambda: self._site.status().state == "running", tool):
                return False
            time.sleep(_BOOTING_SECONDS)
            return tool.poll() is None and self._kill_if(lambda _status: True)

        return self._while_starting(strike)

    # -- while it runs

    def running(self) -> bool:
        """Kill QEMU while its guest's agent answers."""
        self._site.home.ok("qvm-start", "--wait", VM)
        self._kill()
        return True

    def shutting_down(self) -> bool:
        """Kill QEMU while its guest is asked to shut down: it is held still, so that it cannot do that."""
        return self._while_held(lambda: self._site.state() == "Halting", "qvm-shutdown", "--wait", VM)

    def pausing(self) -> bool:
        """Kill QEMU while it is asked to pause: it is held still, so that it does not answer."""
        with contextlib.closing(Events(self._site, VM)) as events:
            return self._while_held(lambda: events.wait_for("domain-pre-paused"), "qvm-pause", VM)

    def _while_held(self, is_asked: Callable[[], bool], *words: str) -> bool:
        self._site.home.ok("qvm-start", "--wait", VM)
        pid = self._site.home.qemu(VM)
        os.kill(pid, signal.SIGSTOP)
        with begun(self._site, *words) as tool:
            is_hit = catch(is_asked, tool)
            time.sleep(0.1)  # until the question is with QEMU
            self._kill(pid)
            self._answer = answer_of(self._site, tool, self._wrong)
        return is_hit


STAGES: dict[str, Callable[[EmulatorKill], bool]] = {
    "being created": EmulatorKill.created,
    "paused after its creation": EmulatorKill.paused,
    "just resumed": EmulatorKill.resumed,
    "booting": EmulatorKill.booting,
    "running": EmulatorKill.running,
    "being shut down": EmulatorKill.shutting_down,
    "being paused by its user": EmulatorKill.pausing,
}


def kill_emulators(site: Site, points: int, report: Report) -> list[Result]:
    """Kill QEMU at so many of the stages; a moment that was missed is tried again."""
    results = []
    for point in spread(list(STAGES), points):
        result = run_until_hit(point, lambda point=point: EmulatorKill(site).run(point))  # type: ignore[misc]
        results.append(result)
        report(f"{point}: {result.state} after {result.seconds:.2f} s {' '.join(result.wrong)}")
    return results
