"""Many short lives: VMs are made, started, killed and removed while others read the states of the same names."""

import contextlib
import json
import subprocess
import sys
import time
from typing import Any

from tests.faults import lives
from tests.faults.results import Report, Rounds
from tests.faults.sites import Site

LANES = ("a", "b", "c", "d")
"""How many VMs live at once: two processors have about that much to do."""
_MINUTES = 20
_REPORT_SECONDS = 10

Program = subprocess.Popen[bytes]


def run_rounds(site: Site, rounds: int, report: Report) -> list[Rounds]:
    """Have so many VMs live and die while their states are read through the API and with qvm-ls."""
    began, wrong = time.monotonic(), list[str]()
    with contextlib.ExitStack() as stack:
        reader = _begin(site, stack, "read", *LANES)
        lanes = [_begin(site, stack, "live", lane, str(share)) for lane, share in _share_out(rounds)]
        listings = _list_while(site, lanes, wrong, report)
        told = [_end(lane, wrong) for lane in [*lanes, reader]]
    seconds = time.monotonic() - began
    wrong += site.settled()
    reads = listings + told[-1].get("reads", 0)
    result = Rounds(sum(said.get("rounds", 0) for said in told), reads, tuple(wrong), round(seconds, 1))
    report(f"{result.rounds} rounds, {result.reads} reads in {result.seconds:.0f} s {' '.join(result.wrong)}")
    return [result]


def _share_out(rounds: int) -> list[tuple[str, int]]:
    return [(lane, rounds // len(LANES) + (number < rounds % len(LANES))) for number, lane in enumerate(LANES)]


def _begin(site: Site, stack: contextlib.ExitStack, kind: str, *words: str) -> Program:
    """Start a program, which is killed when the stack is left."""
    command = [sys.executable, lives.__file__, kind, site.home.path, *words]
    program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stack.enter_context(program)
    stack.callback(program.kill)
    return program


def _list_while(site: Site, lanes: list[Program], wrong: list[str], report: Report) -> int:
    """Run qvm-ls until all lanes have ended; return how often."""
    listings, told = 0, time.monotonic()
    deadline = told + 60 * _MINUTES
    while any(lane.poll() is None for lane in lanes) and time.monotonic() < deadline:
        done = site.home.run("qvm-ls", "--raw-data", "--fields", "name,state")
        if done.returncode or done.stderr:
            wrong.append(f"qvm-ls ended with {done.returncode}: {done.stderr.decode()}")
        listings += 1
        time.sleep(0.5)
        if time.monotonic() - told > _REPORT_SECONDS:
            told = time.monotonic()
            report(f"after {listings} listings: {', '.join(done.stdout.decode().split())}")
    return listings


def _end(program: Program, wrong: list[str]) -> dict[str, Any]:
    """Return what a program says at its end, and add what went wrong with it."""
    try:
        said, complaint = program.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        program.kill()
        said, complaint = program.communicate()
    if program.returncode or complaint:
        wrong.append(f"a program ended with {program.returncode}: {complaint.decode()[-500:]}")
        return {}
    values: dict[str, Any] = json.loads(said)
    wrong += values["wrong"]
    return values
