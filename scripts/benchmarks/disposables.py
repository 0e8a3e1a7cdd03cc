"""How long disposables take: one that is ready in advance, one that is not, many at once, and the end of each.

The guest is the same in every row, its pool is full and quiet before each claim, and nothing that was claimed is
replaced while a clock runs: boots in the background would be measured with it. A cold disposable is made, started and
waited for until its agent answers; beside it stands its own QEMU command line, started by hand to the same point.
"""

import json
import os
import re
import subprocess
import tempfile
import time
from dataclasses import replace

from benchmarks.harness import Figure, Row, call, own_home, summarize, take_turns
from benchmarks.lifecycle import together
from benchmarks.model import exactly
from benchmarks.start import _without, await_agent, by_hand, command_of
from crannog.client.connection import Client
from crannog.client.leases import Lease, create_leased
from crannog.client.rpc import run_command

DVM = "dvm"
CLAIM, CLAIM_SHARE, COLD, RELEASE, BURST = 0.060, 0.03, 1.15, 0.020, 1.1
"""Seconds, and ratios. A burst's rest may be as slow as the same starts alone; the rest is noise in a median of few."""
CLAIMS, BURSTS, POOL, BURST_SIZE = 8, 2, 4, 8
FILL_SECONDS, CALM_SECONDS = 300, 1.0
MIB = 2**20


class Bench:
    """A home with a disposable template."""

    def __init__(self, home: str) -> None:
        self.home = home
        self.client = Client()
        self._null = os.open(os.devnull, os.O_RDWR)

    def fill(self, count: int) -> None:
        """Have so many disposables ready, and nothing else going on."""
        call("qvm-features", "dom0", "preload-dispvm-delay", "-1")
        call("qvm-features", DVM, "preload-dispvm-max", "0")
        self._wait(0)
        call("qvm-features", DVM, "preload-dispvm-max", str(count))
        self._wait(count)
        time.sleep(CALM_SECONDS)

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

    def use(self) -> tuple[Lease, float]:
        """Have a disposable write something; return it with the seconds until that is there."""
        began = time.perf_counter()
        lease = create_leased(self.client, DVM)
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


class ByHand:
    """The QEMU of a disposable that runs now, to be started once more without libvirt, on layers like its own."""

    def __init__(self, vm: str, home: str, folder: str) -> None:
        self._channel, console = f"{folder}/channel", f"{folder}/console"
        original = [word.replace("/dev/fdset/0", console) for word in command_of(vm, home)]
        command = _without(by_hand(original, self._channel, console, ""), "-object", "masterKey0")
        files = re.findall(r'"filename":"([^"]*)"', "\n".join(original))
        own = [path for path in files if os.path.basename(os.path.dirname(path)).startswith(f"{vm}-")]
        layers = {path: f"{folder}/{os.path.basename(path)}" for path in own if not os.path.islink(path)}
        self._made = {path: _how_to_make(path, copy) for path, copy in layers.items()}
        # What is below them is found by links in the folder of the disposable, which goes.
        self._layers = layers | {path: os.path.realpath(path) for path in own if os.path.islink(path)}
        self._complaints = f"{folder}/complaints"
        self._command = [self._replace(word) for word in _with_names(original, command)]

    def _replace(self, word: str) -> str:
        for path, copy in self._layers.items():
            word = word.replace(f'"{path}"', f'"{copy}"')
        return word

    def time(self) -> float:
        """Start it; return the seconds until its agent answers."""
        for command in self._made.values():
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        quiet = subprocess.DEVNULL
        began = time.perf_counter()
        with open(self._complaints, "wb") as complaints:
            process = subprocess.Popen(
                self._command, stdin=quiet, stdout=quiet, stderr=complaints, start_new_session=True
            )
        try:
            await_agent(self._channel)
            return time.perf_counter() - began
        except OSError as error:
            with open(self._complaints, errors="replace") as said:
                raise RuntimeError(f"QEMU by hand did not start: {said.read()}") from error
        finally:
            process.kill()
            process.wait()


def _with_names(original: list[str], command: list[str]) -> list[str]:
    """Give back the file of the root's layer, which `by_hand` has put another one in place of."""
    names = [word for word in original if '"filename"' in word and "root.volatile" in word]
    return [names.pop(0) if '"filename":""' in word else word for word in command]


def _how_to_make(path: str, copy: str) -> list[str]:
    """Return the command that makes an image like the one at `path`, as empty as that was at first."""
    text = subprocess.run(
        ["qemu-img", "info", "--force-share", "--output=json", path], stdout=subprocess.PIPE, check=True
    ).stdout
    facts = json.loads(text)
    command = ["qemu-img", "create", "-q", "-f", facts["format"]]
    if "full-backing-filename" in facts:
        base = os.path.realpath(facts["full-backing-filename"])
        command += ["-b", base, "-F", facts.get("backing-filename-format", "raw")]
    return [*command, copy, str(facts["virtual-size"])]


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


# -- many


def measure_burst(bench: Bench, runs: int) -> Row:
    """Eight at once with four ready, until the last has written something; against four that are not, alone."""

    def burst(count: int, there: int) -> float:
        bench.fill(there)
        leases: list[Lease] = []
        seconds = together([lambda: leases.append(bench.use()[0])] * count)
        for lease in leases:
            lease.close()
        call("qvm-features", DVM, "preload-dispvm-max", "0")
        bench.idle()
        return seconds

    value, reference = take_turns(
        BURSTS, lambda: burst(BURST_SIZE, POOL), lambda: burst(BURST_SIZE - POOL, 0), least=BURSTS
    )
    del runs
    return Row(f"{BURST_SIZE} at once, {POOL} of them ready", value, f"{BURST_SIZE - POOL} alone", reference, BURST)


def measure(runs: int) -> list[Row]:
    """Return all rows."""
    with own_home() as home:
        call("crannog", "template", "build", "debian-12")
        call("qvm-create", "--template", "debian-12", "--property", "template_for_dispvms=True", DVM)
        bench = Bench(home)
        claims, share = measure_claims(bench, runs)
        cold_row, cold = measure_cold(bench, runs)
        burst = measure_burst(bench, runs)
        first = claims[0].value
        memory = int(call("qvm-prefs", DVM, "memory"))
        whole = Figure(memory * MIB, memory * MIB, memory * MIB, 1, "MB")
        return [
            *claims[:1],
            Row("claim to first output", first, "a cold disposable", cold, CLAIM_SHARE),
            *claims[1:],
            cold_row,
            burst,
            Row("memory of one that is ready (PSS)", share, "what its guest may have", whole, 1),
        ]
