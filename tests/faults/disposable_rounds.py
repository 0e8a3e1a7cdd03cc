"""Many disposables, one after the other: made, started, used now and then, and left by their users."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from crannog.client.connection import Client
from crannog.client.leases import create_leased
from crannog.client.rpc import run_command
from crannog.errors import CrannogError
from tests.faults.results import Report, Rounds
from tests.faults.sites import SETTLE_SECONDS, Site, wait_for
from tests.vm.disposables import find_images

DVM = "disposables"
USED = 10
"""One in so many boots up to its agent and runs a command; the others are left while they start to boot."""
IMAGE_SECONDS = 180.0
WARM_UP = 3
"""Rounds after which the daemon has all that it keeps: what it has more at the end is a leak."""
MOST_MEMORY, MOST_FILES = 24 * 1024, 4
"""KiB and descriptors by which the daemon may have grown."""
_REPORT_SECONDS = 10


def run_disposables(site: Site, rounds: int, report: Report) -> list[Rounds]:
    """Have so many disposables come and go; nothing of them may be left, in the host or in the daemon."""
    with template(site):
        # One that is saved meanwhile would be among those that are left.
        site.home.ok("qvm-features", DVM, "restore-dispvm", "")
        done = come_and_go(site, rounds, USED, report)
    return [replace(done, wrong=(*done.wrong, *site.settled()))]


def run_restored(site: Site, rounds: int, report: Report) -> list[Rounds]:
    """Have so many disposables come and go that are restored from a memory image."""
    with template(site):
        site.home.ok("qvm-features", DVM, "preload-dispvm-max", "1")  # the first of a pool has an image made
        wait_for(lambda: bool(find_images(site.home.path)), IMAGE_SECONDS)
        site.home.ok("qvm-features", DVM, "preload-dispvm-max", "0")
        wait_for(lambda: "class=DispVM" not in site.client.text("admin.vm.List"), SETTLE_SECONDS)
        images = find_images(site.home.path)
        done = come_and_go(site, rounds, 1, report)
        cold = [] if images and find_images(site.home.path) == images else ["there was no memory image all the time"]
    return [replace(done, wrong=(*done.wrong, *cold, *site.settled()))]


@contextmanager
def template(site: Site) -> Iterator[None]:
    """Make the disposable template; in the end it is gone, and nothing of it is left."""
    site.home.ok("qvm-create", "--template", "debian-12", "--property", "template_for_dispvms=True", DVM)
    before = site.files
    try:
        site.home.ok("qvm-prefs", DVM, "memory", "256")
        yield
    finally:
        site.home.ok("qvm-remove", "--force", DVM)
        site.files = before


def come_and_go(site: Site, rounds: int, used: int, report: Report) -> Rounds:
    """Do the rounds, of which one in `used` runs a command, and compare what there is with what there was."""
    began, wrong = time.monotonic(), list[str]()
    run_rounds(site, WARM_UP, used, wrong, report)
    # The first use of the template seals its private volume, for good.
    site.files = {path for path in site.home.files() if not re.search(r"/disp\d", path)}
    before = look_at(site.daemon())
    count = run_rounds(site, rounds, used, wrong, report)
    wrong += site.settled()
    wrong += find_growth(before, look_at(site.daemon()))
    result = Rounds(rounds, count, tuple(wrong), round(time.monotonic() - began, 1))
    report(f"{result.rounds} disposables, {count} used, in {result.seconds:.0f} s {' '.join(result.wrong)}")
    return result


def run_rounds(site: Site, rounds: int, step: int, wrong: list[str], report: Report) -> int:
    """Do the rounds, of which one in `step` runs a command; return how many did."""
    used, told = 0, time.monotonic()
    for number in range(rounds):
        try:
            used += live(site.client, is_used=number % step == step - 1)
        except CrannogError as error:
            wrong.append(f"round {number + 1}: {type(error).__name__}: {error}")
            break
        if time.monotonic() - told > _REPORT_SECONDS:
            told = time.monotonic()
            report(f"after {number + 1} disposables")
    return used


def live(client: Client, *, is_used: bool) -> bool:
    """Lead one disposable through its life, and return when it is gone. Raises what any step raises."""
    lease = create_leased(client, DVM)
    try:
        client.text("crannog.vm.Start", lease.vm, "wait" if is_used else "nowait")
        if is_used:
            null = os.open(os.devnull, os.O_RDWR)
            try:
                code = run_command(client.paths.rpc_socket(lease.vm), "DEFAULT", "exit 7", null, null, null)
            finally:
                os.close(null)
            if code != 7:
                raise CrannogError(f"the command in {lease.vm} ended with {code}")
    finally:
        lease.close()
    if not wait_for(lambda: f"{lease.vm} " not in client.text("admin.vm.List"), SETTLE_SECONDS):
        raise CrannogError(f"{lease.vm} is still there")
    return is_used


def look_at(pid: int) -> tuple[int, int]:
    """Return the memory of a process in KiB, and how many files it has open."""
    with open(f"/proc/{pid}/status") as file:
        facts = dict(line.split(":", 1) for line in file)
    return int(facts["VmRSS"].split()[0]), len(os.listdir(f"/proc/{pid}/fd"))


def find_growth(before: tuple[int, int], after: tuple[int, int]) -> list[str]:
    """Return by what the daemon has grown more than it may."""
    grown = [new - old for old, new in zip(before, after, strict=True)]
    limits = ((grown[0], MOST_MEMORY, "KiB of memory"), (grown[1], MOST_FILES, "open files"))
    return [f"crannogd has {by} more {what}" for by, most, what in limits if by > most]
