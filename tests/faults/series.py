"""All series by name, and how many points or rounds each has in full and in a test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.faults.daemon_kills import kill_daemons
from tests.faults.disposable_rounds import run_disposables, run_restored
from tests.faults.emulator_kills import STAGES, kill_emulators
from tests.faults.libvirtd_kills import MOMENTS, kill_libvirtds
from tests.faults.refusals import refuse_starts
from tests.faults.results import Report, Result, Rounds
from tests.faults.rounds import run_rounds
from tests.faults.sites import Site


@dataclass(frozen=True)
class Series:
    """One series: `run(site, count, report)` does `count` points or rounds."""

    title: str
    text: str
    run: Callable[[Site, int, Report], Sequence[Result | Rounds]]
    full: int
    few: int


SERIES = {
    "qemu": Series(
        "QEMU is killed",
        "`kill -9` while it is created, paused after its creation, just resumed, booting, running, being shut down, "
        "and being paused by its user. Good is: the tool that waits gets an answer, the events of the end are told, "
        "the VM is Halted and clean, and it starts again at once.",
        kill_emulators,
        len(STAGES),
        2,
    ),
    "libvirtd": Series(
        "libvirtd is killed",
        "`kill -9` and a new one half a second later, during a start, a start that waits for the agent, a shutdown, "
        "and a shutdown that waits for the end. Another VM runs all the time. Good is: the tool gets an answer, the "
        "VM runs or is Halted and clean, and the other one goes on. The embedded driver has no libvirtd.\n\n"
        "Each start has a moment in which libvirtd has written down that it begins, and not yet which process QEMU "
        "is. libvirtd 9.0 that is killed then keeps that domain for ever, paused: its start counts as going on, and "
        "nobody can end it. The series then does what the host's operator has to: stop libvirtd, delete its status "
        "file of the domain (`/run/libvirt/qemu/VM.xml` or `$XDG_RUNTIME_DIR/libvirt/qemu/run/VM.xml`), start "
        "libvirtd. crannogd goes on all the time. With the embedded driver it takes such files away by itself.",
        kill_libvirtds,
        len(MOMENTS),
        1,
    ),
    "crannogd": Series(
        "crannogd is killed",
        "`kill -9` at events and after stages of a start that waits for the agent, and at moments between; the next "
        "tool starts the next daemon. Good is: the VM runs, is adopted, executes a command and can be ended; or it is "
        "Halted and clean.",
        kill_daemons,
        30,
        3,
    ),
    "rounds": Series(
        "States are read while VMs come and go",
        "Four VMs without a guest are created, started, killed and removed, again and again under the same names; "
        "other processes read the list and each VM's state through the API and with `qvm-ls`, all the time. Good "
        "is: no error on either side, and nothing left at the end.",
        run_rounds,
        500,
        8,
    ),
    "disposables": Series(
        "Disposables come and go",
        "Disposables are made, started and left by their users, one after the other; each tenth boots and runs a "
        "command. Good is: each is removed by itself; no file, process, domain or memory of the host is left, and "
        "crannogd has no more memory and open files than after the first.",
        run_disposables,
        200,
        10,
    ),
    "restored": Series(
        "Restored disposables come and go",
        "The same with disposables that are restored from a memory image of their template; each runs a command.",
        run_restored,
        200,
        5,
    ),
    "refusals": Series(
        "Starts that cannot be",
        "An HVM on a host whose emulator runs no HVMs; and a VM whose name a stranger's domain has, with another UUID, "
        "which takes a libvirtd that others use. Good is: one sentence that says so, nothing left, the stranger "
        "untouched.",
        refuse_starts,
        2,
        2,
    ),
}
