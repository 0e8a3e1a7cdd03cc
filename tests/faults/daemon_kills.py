"""crannogd is killed -9 at many points of a start: the next one finds the VM running and adopts it, or cleans it up."""

import contextlib
import os
import re
import signal
import time
from dataclasses import dataclass

from tests.faults.results import Report, Result
from tests.faults.sites import SETTLE_SECONDS, VM, Site, wait_for
from tests.faults.watching import Events, Tool, answer_of, begun, catch, spread

_EVENTS = ("domain-pre-start", "domain-pre-spawn", "domain-spawn", "domain-pre-unpaused", "domain-unpaused")
_STAGE = re.compile(rf" {VM}: (.+) \(\d+ ms\)$", re.MULTILINE)


@dataclass(frozen=True)
class Point:
    """When to kill: at an event, when the log tells that a stage is done, or so many seconds after the first event."""

    event: str = ""
    stage: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.event:
            return f"at the event {self.event}"
        return f"after the stage '{self.stage}'" if self.stage else f"after {1000 * self.seconds:.0f} ms"


class DaemonLog:
    """What the daemon has logged since this was made."""

    def __init__(self, site: Site) -> None:
        self._path = f"{site.home.path}/log/crannogd.log"
        self._begin = os.path.getsize(self._path)

    def stages(self) -> list[str]:
        """Return the stages of the VM's start that are done."""
        with open(self._path) as file:
            file.seek(self._begin)
            return _STAGE.findall(file.read())


def find_points(site: Site, count: int) -> list[Point]:
    """Return `count` points, spread over the events, the stages and the time that a start takes here: one is made."""
    times = _time_stages(site)
    site.home.ok("qvm-kill", VM)
    site.settled()
    *_, resumed, ready = times.values()
    marks = [Point(event=event) for event in _EVENTS] + [Point(stage=stage) for stage in list(times)[:-1]]
    return _choose_points(marks, count, resumed, ready)


def _time_stages(site: Site) -> dict[str, float]:
    """Start the VM; return when each stage was done, in seconds after the first event."""
    log, events, times = DaemonLog(site), Events(site, VM), dict[str, float]()
    with contextlib.closing(events), begun(site, "qvm-start", "--wait", VM) as tool:
        assert events.wait_for(_EVENTS[0])
        began, is_over = time.monotonic(), False
        while not is_over:
            is_over = tool.poll() is not None
            for stage in log.stages():
                times.setdefault(stage, time.monotonic() - began)
            time.sleep(0.002)
        assert tool.returncode == 0, tool.communicate()
    return times


def _choose_points(marks: list[Point], count: int, resumed: float, ready: float) -> list[Point]:
    """Return `count` points: of the marks a half at most, then delays, two of three of them before the VM runs."""
    chosen = spread(marks, (count + 1) // 2)
    early = (count - len(chosen)) * 2 // 3
    late = count - len(chosen) - early
    delays = [resumed * number / early for number in range(early)]
    delays += [resumed + (ready - resumed) * (number + 0.5) / late for number in range(late)]
    return chosen + [Point(seconds=seconds) for seconds in delays]


class DaemonKill:
    """One kill: makes it at a point of a start, has a tool start the next daemon, and looks at what it found."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._wrong: list[str] = []

    def run(self, point: Point) -> Result:
        """Return the result. A start that is over before its point is killed after its end."""
        daemon, log, events = self._site.daemon(), DaemonLog(self._site), Events(self._site, VM)
        with contextlib.closing(events), begun(self._site, "qvm-start", "--wait", VM) as tool:
            self._wait(point, tool, log, events)
            killed = time.monotonic()
            os.kill(daemon, signal.SIGKILL)
            answer = answer_of(self._site, tool, self._wrong)
        state = self._find_state()
        if state == "Running":
            self._use_and_end()
        elif state != "Halted":
            self._wrong.append(f"its state is {state}")
            self._site.home.run("qvm-kill", VM)
        self._wrong += self._site.settled()
        return Result(str(point), answer, state, tuple(self._wrong), round(self._found - killed, 3))

    def _wait(self, point: Point, tool: Tool, log: DaemonLog, events: Events) -> None:
        if point.event:
            events.wait_for(point.event)
        elif point.stage:
            catch(lambda: point.stage in log.stages(), tool)
        else:
            events.wait_for(_EVENTS[0])
            time.sleep(point.seconds)

    def _find_state(self) -> str:
        """Return the state that the next daemon finds, once it is one that lasts."""
        self._site.home.ok("qvm-ls")
        wait_for(self._is_decided, SETTLE_SECONDS)
        self._found = time.monotonic()
        return self._site.state()

    def _is_decided(self) -> bool:
        """Tell whether the VM is halted, or runs with a QEMU: libvirt may need a second to find that one is gone."""
        state = self._site.state()
        return state == "Halted" or (state == "Running" and self._site.status().state == "running" and self._has_qemu())

    def _has_qemu(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return os.path.exists(f"/proc/{self._site.home.qemu(VM)}")
        return False

    def _use_and_end(self) -> None:
        """Have a VM that was adopted do something, and end it."""
        home = self._site.home
        for words, wanted in ((("qvm-run", VM, "echo adopted"), b"adopted\n"), (("qvm-kill", VM), b"")):
            done = home.run(*words)
            if done.returncode or done.stdout != wanted:
                self._wrong.append(f"{words[0]} ended with {done.returncode}: {done.stderr.decode()}")


def kill_daemons(site: Site, points: int, report: Report) -> list[Result]:
    """Kill crannogd at so many points of a start."""
    results = []
    for point in find_points(site, points):
        result = DaemonKill(site).run(point)
        results.append(result)
        report(f"{result.point}: {result.state} after {result.seconds:.2f} s {' '.join(result.wrong)}")
    return results
