"""How long disposables take: one that is ready in advance, one that is not, many at once, and the end of each.

The guest is the same in every row, its pool is full and quiet before each claim, and nothing that was claimed is
replaced while a clock runs: boots in the background would be measured with it. A cold disposable is made, started and
waited for until its agent answers; beside it stands its own QEMU command line, started by hand to the same point.

Before many at once, nothing happens for 12 s, on both sides. A host that is itself a VM, as here, hands memory that has
been free for some seconds back to its own host; with that, a boot takes half a second more than with memory that other
VMs have left just now, as they had in runs of one start after the other, and not while a pool was filled.
"""

import glob
import os
import re
import tempfile
import time
from dataclasses import replace

from tests.vm.disposables import find_images

from benchmarks.by_hand import ByHand, command_of
from benchmarks.harness import Figure, Row, call, own_home, summarize, take_turns
from benchmarks.lifecycle import together
from benchmarks.model import exactly
from crannog.client.connection import Client
from crannog.client.leases import Lease, create_leased
from crannog.client.rpc import run_command

DVM, RESTORED = "dvm", "restored"
"""Of the first one no memory image is made, so that what is cold stays so; the other has the same guest, and one."""
CLAIM, CLAIM_SHARE, COLD, RELEASE, BURST, RESTORE = 0.060, 0.03, 1.15, 0.020, 1.1, 0.35
"""Seconds, and ratios. A burst's rest may be as slow as the same starts alone; the rest is noise in a median of few."""
CLAIMS, BURSTS, POOL, BURST_SIZE = 8, 5, 4, 8
FILL_SECONDS, CALM_SECONDS = 300, 1.0
REST_SECONDS = 12.0
"""Seconds in which memory that others have left comes to rest, so that nobody's boots are spared its price."""
MIB = 2**20


class Bench:
    """A home with a disposable template."""

    def __init__(self, home: str) -> None:
        self.home = home
        self.client = Client()
        self._null = os.open(os.devnull, os.O_RDWR)

    def fill(self, count: int, template: str = DVM) -> None:
        """Have so many disposables ready, and nothing else going on."""
        call("qvm-features", "dom0", "preload-dispvm-delay", "-1")
        call("qvm-features", template, "preload-dispvm-max", "0")
        self._wait(0)
        call("qvm-features", template, "preload-dispvm-max", str(count))
        self._wait(count)
        time.sleep(CALM_SECONDS)

    def save(self) -> None:
        """Have a memory image of the template whose disposables are restored, and nothing else going on."""
        call("qvm-features", "--unset", RESTORED, "restore-dispvm")
        call("qvm-features", RESTORED, "preload-dispvm-max", "1")
        deadline = time.monotonic() + FILL_SECONDS
        while not find_images(self.home) or glob.glob(f"{self.home}/memory-images/*.*"):  # one is being made
            if time.monotonic() > deadline:
                raise TimeoutError("no memory image was made")
            time.sleep(0.1)
        self.fill(0, RESTORED)

    def _wait(self, count: int) -> None:
        deadline = time.monotonic() + FILL_SECONDS
        while (found := self._states()) != ["Paused"] * count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"there are no {count} disposables ready, but {found}")
            time.sleep(0.05)

    def _states(self) -> list[str]:
        lines = self.client.text("admin.vm.List").splitlines()
        return [re.findall(r"state=(\S+)", line)[0] for line in lines if "class=DispVM" in line]

    def idle(self) -> None:
        """Return when no disposable is left."""
        self._wait(0)

    def calm(self, vm: str) -> None:
        """Return when a disposable is gone, and its clean-up is over."""
        deadline = time.monotonic() + FILL_SECONDS
        while f"{vm} " in self.client.text("admin.vm.List"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{vm} does not go")
            time.sleep(0.02)
        time.sleep(CALM_SECONDS)

    # -- what is timed

    def use(self, template: str = DVM) -> tuple[Lease, float]:
        """Have a disposable write something; return it with the seconds until that is there."""
        began = time.perf_counter()
        lease = create_leased(self.client, template)
        path = self.client.paths.rpc_socket(lease.vm)
        if not os.path.exists(path):
            self.client.text("crannog.vm.Start", lease.vm, "wait")
        self.run(path)
        return lease, time.perf_counter() - began

    def run(self, path: str) -> float:
        """Run a command that writes a line; return the seconds until it was there, which is its end as well."""
        began = time.perf_counter()
        output, theirs = os.pipe()
        code = run_command(path, "DEFAULT", "echo here", self._null, theirs, self._null)
        said = os.read(output, 16)
        for fd in (output, theirs):
            os.close(fd)
        if (code, said) != (0, b"here\n"):
            raise RuntimeError(f"the command in {path} ended with {code} and wrote {said!r}")
        return time.perf_counter() - began

    def start_cold(self) -> tuple[Lease, float]:
        """Make a disposable and wait for its agent."""
        began = time.perf_counter()
        lease = create_leased(self.client, DVM)
        self.client.text("crannog.vm.Start", lease.vm, "wait")
        return lease, time.perf_counter() - began


def make_templates(**properties: object) -> None:
    """Make both templates of disposables, with these properties; no memory image is made of either yet."""
    call("crannog", "template", "build", "debian-12")
    wanted = {"template_for_dispvms": True, **properties}
    words = [word for name, value in wanted.items() for word in ("--property", f"{name}={value}")]
    for template in (DVM, RESTORED):
        call("qvm-create", "--template", "debian-12", *words, template)
        call("qvm-features", template, "restore-dispvm", "")


# -- one that is ready


def measure_claims(bench: Bench, runs: int) -> tuple[list[Row], Figure]:
    """Claim what is ready, one after the other; return the rows, and what a pool's VM takes of memory."""
    first, claim, again, release = [], [], [], []
    shares: list[float] = []
    for _ in range(-(-max(runs, CLAIMS) // POOL)):
        bench.fill(POOL)
        shares += [_find_share(bench.home, vm) for vm in _list_ready()]
        for _ in range(POOL):
            began = time.perf_counter()
            lease = create_leased(bench.client, DVM)
            claim.append(time.perf_counter() - began)
            path = bench.client.paths.rpc_socket(lease.vm)
            bench.run(path)
            first.append(time.perf_counter() - began)
            again.append(bench.run(path))
            began = time.perf_counter()
            lease.close()
            release.append(time.perf_counter() - began)
            bench.calm(lease.vm)
    fixed = "a fixed time"
    rows = [
        Row("claim to first output", summarize(first), fixed, exactly(CLAIM), 1),
        Row("the claim alone", summarize(claim), fixed, exactly(CLAIM), 1),
        Row("claim to first output", summarize(first), "the same command in a VM that runs, and 60 ms",
            _longer(summarize(again), CLAIM), 1),
        Row("release", summarize(release), fixed, exactly(RELEASE), 1),
    ]  # fmt: skip
    return rows, replace(summarize(shares), unit="MB")


def _longer(figure: Figure, seconds: float) -> Figure:
    return replace(figure, median=figure.median + seconds, least=figure.least + seconds, most=figure.most + seconds)


def _list_ready() -> list[str]:
    lines = call("qvm-ls", "--raw-data", "--fields", "name,is_preload").splitlines()
    return [name for name, is_preload in (line.split("|") for line in lines) if is_preload == "True"]


def _find_share(home: str, vm: str) -> float:
    """Return the bytes of memory that a VM's QEMU has, shared pages by their shares (proc(5), smaps_rollup, Pss)."""
    with open(f"{home}/vmm/run/qemu/{vm}.pid") as file:
        pid = file.read().strip()
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return 1024.0 * int(re.findall(r"^Pss:\s+(\d+) kB", file.read(), re.MULTILINE)[0])


# -- one that is not


def measure_cold(bench: Bench, runs: int) -> tuple[Row, Figure]:
    """Make and start a disposable, against the same QEMU by hand."""
    bench.fill(0)
    lease, _ = bench.start_cold()
    hand = ByHand(lease.vm, bench.home, tempfile.mkdtemp(dir=bench.home))
    lease.close()

    def ours() -> float:
        bench.idle()
        cold, seconds = bench.start_cold()
        cold.close()
        bench.idle()
        return seconds

    value, reference = take_turns(runs, ours, hand.time)
    return Row("a cold disposable, to its agent", value, "same QEMU by hand", reference, COLD), value


# -- one that is restored from memory


def measure_restores(bench: Bench, runs: int) -> tuple[Row, Figure]:
    """Restore disposables, and have each write something, against cold ones; return too what one has of memory."""
    bench.save()
    shares: list[float] = []

    def use(template: str) -> float:
        bench.idle()
        lease, seconds = bench.use(template)
        if ("defer" in command_of(lease.vm, bench.home)) != (template == RESTORED):
            raise RuntimeError(f"{lease.vm} of {template} was started the other way")
        if template == RESTORED:
            shares.append(_find_share(bench.home, lease.vm))
        lease.close()
        bench.calm(lease.vm)
        return seconds

    value, reference = take_turns(runs, lambda: use(RESTORED), lambda: use(DVM))
    row = Row("a restored one, to first output", value, "a cold one", reference, RESTORE)
    return row, replace(summarize(shares), unit="MB")


# -- many


def measure_bursts(bench: Bench) -> list[Row]:
    """Eight at once with four ready, until the last has written something; against four that are not, alone.

    With a memory image, as it is where nothing else is set, the other four are restored; that is the second row.
    """

    def burst(count: int, there: int, template: str) -> float:
        bench.fill(there, template)
        time.sleep(REST_SECONDS)
        leases: list[Lease] = []
        seconds = together([lambda: leases.append(bench.use(template)[0])] * count)
        for lease in leases:
            lease.close()
        call("qvm-features", template, "preload-dispvm-max", "0")
        bench.idle()
        return seconds

    rest = BURST_SIZE - POOL
    cold, restored, alone = take_turns(
        BURSTS,
        lambda: burst(BURST_SIZE, POOL, DVM),
        lambda: burst(BURST_SIZE, POOL, RESTORED),
        lambda: burst(rest, 0, DVM),
        least=BURSTS,
    )
    what = f"{BURST_SIZE} at once, {POOL} of them ready"
    return [
        Row(what, cold, f"{rest} cold ones alone", alone, BURST),
        Row(f"{what}, the others restored", restored, f"{rest} cold ones alone", alone, BURST),
    ]


def measure(runs: int) -> list[Row]:
    """Return all rows."""
    with own_home() as home:
        make_templates()
        bench = Bench(home)
        claims, share = measure_claims(bench, runs)
        cold_row, cold = measure_cold(bench, runs)
        restore, own = measure_restores(bench, runs)
        bursts = measure_bursts(bench)
        first = claims[0].value
        memory = int(call("qvm-prefs", DVM, "memory"))
        whole = Figure(memory * MIB, memory * MIB, memory * MIB, 1, "MB")
        return [
            *claims[:1],
            Row("claim to first output", first, "a cold disposable", cold, CLAIM_SHARE),
            *claims[1:],
            cold_row,
            restore,
            *bursts,
            Row("memory of one that is ready (PSS)", share, "what its guest may have", whole, 1),
            Row("memory of a restored one (PSS)", own, "one that is ready, started cold", share, 1),
        ]
