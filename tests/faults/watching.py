"""Waiting for the very moment at which a fault is to be made, and taking what a tool then says."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from crannog.client.events import ESTABLISHED, EventStream
from tests.faults.results import Result
from tests.faults.sites import Site, wait_for

MOMENT_SECONDS = 60
ANSWER_SECONDS = 120
_GLANCE = 0.0001
"""Seconds between two looks: some moments last for a few milliseconds only."""

_TRIES = 10

Tool = subprocess.Popen[bytes]
Thing = TypeVar("Thing")


def spread(things: Sequence[Thing], count: int) -> list[Thing]:
    """Return so many of the things, or all of them if there are fewer, at equal distances."""
    count = min(count, len(things))
    return [things[(2 * number + 1) * len(things) // (2 * count)] for number in range(count)]


def run_until_hit(point: str, run: Callable[[], Result | None]) -> Result:
    """Return the first result of `run`, which returns None when it missed its moment."""
    for _ in range(_TRIES):
        if result := run():
            return result
    return Result(point, "", "", (f"this moment was missed {_TRIES} times",), 0.0)


def catch(is_there: Callable[[], bool], tool: Tool | None = None) -> bool:
    """Wait for a moment that is over soon; return whether it came before the tool had ended."""
    wait_for(lambda: is_there() or (tool is not None and tool.poll() is not None), MOMENT_SECONDS, _GLANCE)
    return tool is None or tool.poll() is None


@contextlib.contextmanager
def begun(site: Site, *words: str) -> Iterator[Tool]:
    """Give a tool that has just been started; it is ended if it does not end by itself."""
    with site.home.popen(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tool:
        try:
            yield tool
        finally:
            if tool.poll() is None:
                tool.kill()


def answer_of(site: Site, tool: Tool, wrong: list[str]) -> str:
    """Return what a tool said at its end: `done`, or its one sentence; what is neither is added to `wrong`."""
    try:
        _, complaint = tool.communicate(timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        wrong.append(f"{_name(tool)} gave no answer within {ANSWER_SECONDS} s")
        return "none"
    text = site.without_paths(complaint.decode(errors="replace").strip())
    if tool.returncode == 0:
        wrong += [f"{_name(tool)} succeeded and complained: {text}"] if text else []
        return "done"
    # The end of a guest's console is told below the sentence.
    sentence, _, _ = text.partition("the end of its console")
    if not text.startswith(f"{_name(tool)}: ") or "\n" in sentence.strip() or "Traceback" in text:
        wrong.append(f"{_name(tool)} ended with {tool.returncode} and not one sentence: {text}")
    return sentence.strip().removeprefix(f"{_name(tool)}: ")


def _name(tool: Tool) -> str:
    assert isinstance(tool.args, list)
    return os.path.basename(str(tool.args[0]))


class Events:
    """The names of the events of one VM, from now on."""

    def __init__(self, site: Site, vm: str) -> None:
        self.names: list[str] = []
        self._vm = vm
        self._stream = EventStream(site.client)
        assert self._next(MOMENT_SECONDS) == ESTABLISHED

    def wait_for(self, *wanted: str, seconds: float = MOMENT_SECONDS) -> bool:
        """Return when one of the events has come (True), or the time or the stream is over (False)."""
        deadline = time.monotonic() + seconds
        while name := self._next(deadline - time.monotonic()):
            if name in wanted:
                return True
        return False

    def _next(self, seconds: float) -> str:
        """Return the name of the next event of the VM, or of the system; empty when none comes."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(TimeoutError):
            while event := self._stream.next_event(deadline):
                if event.subject == self._vm:
                    self.names.append(event.name)
                if event.subject in (self._vm, ""):
                    return event.name
        return ""

    def close(self) -> None:
        """Listen no more."""
        self._stream.close()
