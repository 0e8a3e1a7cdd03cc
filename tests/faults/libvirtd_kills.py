"""libvirtd is killed -9 and started again while a tool waits for a VM: the tool gets an answer, VMs come back."""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.results import Report, Result
from tests.faults.sites import NEIGHBOUR, NO_STATUS, SETTLE_SECONDS, VM, Site, Status, wait_for
from tests.faults.watching import Tool, answer_of, begun, catch, run_until_hit, spread

AWAY_SECONDS = 0.5
"""How long libvirtd is away."""


def _begins(site: Site, tool: Tool) -> bool:
    return catch(lambda: site.status() != NO_STATUS, tool)


def _has_qemu(site: Site, tool: Tool) -> bool:
    return catch(lambda: site.status().pid > 0, tool)


def _boots(site: Site, tool: Tool) -> bool:
    is_there = catch(lambda: site.status().state == "running", tool)
    time.sleep(0.5)
    return is_there and tool.poll() is None


def _is_halting(site: Site, tool: Tool) -> bool:
    return catch(lambda: site.state() == "Halting", tool)


def _was_asked(_site: Site, tool: Tool) -> bool:
    return tool.wait(60) == 0


def _is_half_made(status: Status) -> bool:
    """Tell whether libvirtd does not know its QEMU yet. libvirt 9.0 never ends such a domain, nor lets it be ended."""
    return status != NO_STATUS and status.pid == 0


def _is_being_made(status: Status) -> bool:
    return status.pid > 0 and status.reason == "starting up"


@dataclass(frozen=True)
class Moment:
    """While which tool runs, how its moment is waited for, and what libvirtd has written down if it was hit."""

    words: tuple[str, ...]
    wait: Callable[[Site, Tool], bool]
    is_hit: Callable[[Status], bool] = lambda _status: True


MOMENTS = {
    "a start, as soon as it is written down": Moment(("qvm-start", "--no-wait", VM), _begins),
    "a start, QEMU is there": Moment(("qvm-start", "--no-wait", VM), _has_qemu, _is_being_made),
    "qvm-start --wait, the guest boots": Moment(("qvm-start", "--wait", VM), _boots),
    "qvm-shutdown --wait, the guest halts": Moment(("qvm-shutdown", "--wait", VM), _is_halting),
    "a shutdown, the guest was asked": Moment(("qvm-shutdown", VM), _was_asked),
}


class LibvirtdKill:
    """One kill."""

    def __init__(self, site: Site) -> None:
        assert site.libvirtd
        self._site = site
        self._libvirtd = site.libvirtd
        self._wrong: list[str] = []

    def run(self, point: str) -> Result | None:
        """Return the result, None when the moment was missed; another VM runs all the time, and must go on doing so."""
        moment, home = MOMENTS[point], self._site.home
        home.ok("qvm-start", "--wait", NEIGHBOUR)
        if moment.words[0] == "qvm-shutdown":
            home.ok("qvm-start", "--wait", VM)
        neighbour = home.qemu(NEIGHBOUR)
        with begun(self._site, *moment.words) as tool:
            is_hit, killed = moment.wait(self._site, tool), time.monotonic()
            is_hit = is_hit and self._kill(moment)
            answer = answer_of(self._site, tool, self._wrong)
        state = self._find_state(moment.words)
        seconds = time.monotonic() - killed
        self._check_neighbour(neighbour)
        self._end()
        return Result(point, answer, state, tuple(self._wrong), round(seconds, 3)) if is_hit else None

    def _kill(self, moment: Moment) -> bool:
        """Kill libvirtd and have it come back; return whether the moment was hit."""
        self._libvirtd.kill()
        status = self._site.status()
        time.sleep(AWAY_SECONDS)
        self._libvirtd.start()
        if _is_half_made(status):
            self._take_away_half()
        return moment.is_hit(status)

    def _take_away_half(self) -> None:
        """Do what the host's operator has to: have libvirtd forget the domain."""
        time.sleep(AWAY_SECONDS)
        self._libvirtd.kill()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._site.home.status_folder}/{VM}.xml")
        self._libvirtd.start()

    def _find_state(self, words: tuple[str, ...]) -> str:
        """Return the state that lasts: a VM that was asked to shut down must be Halted in the end."""
        wanted = ("Halted",) if words[0] == "qvm-shutdown" else ("Running", "Halted")
        if not wait_for(lambda: self._site.state() in wanted and self._is_true(), SETTLE_SECONDS):
            self._wrong.append(f"its state is {self._site.state()}, libvirt's {self._site.status()}")
        return self._site.state()

    def _is_true(self) -> bool:
        """Tell whether the state is what libvirtd has as well."""
        return (self._site.state() == "Running") == (VM in self._site.domains())

    def _check_neighbour(self, pid: int) -> None:
        if self._site.state(NEIGHBOUR) != "Running" or self._site.home.qemu(NEIGHBOUR) != pid:
            self._wrong.append(f"{NEIGHBOUR} is {self._site.state(NEIGHBOUR)}")
        done = self._site.home.run("qvm-run", NEIGHBOUR, "echo there")
        if done.stdout != b"there\n":
            self._wrong.append(f"{NEIGHBOUR} does not answer: {done.stderr.decode()}")

    def _end(self) -> None:
        """End what runs, so that nothing may be left."""
        for vm in (VM, NEIGHBOUR):
            if self._site.state(vm) != "Halted":
                done = self._site.home.run("qvm-kill", vm)
                if done.returncode:
                    self._wrong.append(f"qvm-kill {vm}: {done.stderr.decode()}")
        self._wrong += self._site.settled()


def kill_libvirtds(site: Site, points: int, report: Report) -> list[Result]:
    """Kill libvirtd at so many of the moments; the embedded driver has none, and no results."""
    results = []
    for point in spread(list(MOMENTS), points) if site.libvirtd else ():
        result = run_until_hit(point, lambda point=point: LibvirtdKill(site).run(point))  # type: ignore[misc]
        results.append(result)
        report(f"{point}: {result.answer}; {result.state} after {result.seconds:.2f} s {' '.join(result.wrong)}")
    return results
