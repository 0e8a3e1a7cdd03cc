"""Taking turns, medians with their spread, and the table."""

import argparse
import importlib
import json
import os
import pkgutil
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import benchmarks

BIN = os.path.dirname(sys.executable)
MIN_RUNS = 5
COMMAND_TIMEOUT = 300
HELPERS = {"harness", "desktop", "by_hand"}
"""Modules beside the benchmarks that are none."""
PARTS = {"rpc_memory", "disk_io", "domains"}
"""Benchmarks that are parts of others too."""
ALL, PAGE = "all", "page"


@dataclass(frozen=True)
class Figure:
    """The median of several runs and their spread (least and most), in seconds, or in bytes for `unit` MB."""

    median: float
    least: float
    most: float
    runs: int
    unit: str = "ms"

    def __str__(self) -> str:
        scale = {"ms": 1e3, "us": 1e6, "MB": 1e-6}[self.unit]
        spread = f" ({scale * self.least:.1f}-{scale * self.most:.1f})" if self.least < self.most else ""
        return f"{scale * self.median:.1f} {self.unit}{spread}"


@dataclass(frozen=True)
class Row:
    """One line of the table: `value` over `reference` shall be at most `target`."""

    name: str
    value: Figure
    reference_name: str
    reference: Figure
    target: float

    @property
    def ratio(self) -> float:
        """How many times the reference the value is."""
        return self.value.median / self.reference.median

    @property
    def is_met(self) -> bool:
        """Tell whether the target is met."""
        return self.ratio <= self.target


def summarize(seconds: list[float]) -> Figure:
    """Return the figure for the seconds of several runs."""
    return Figure(statistics.median(seconds), min(seconds), max(seconds), len(seconds))


def take_turns(runs: int, *actions: Callable[[], float], least: int = MIN_RUNS) -> list[Figure]:
    """Run the actions in turn, so that a slow moment of the machine hits all alike; each returns its seconds."""
    seconds: list[list[float]] = [[] for _ in actions]
    for _ in range(max(runs, least)):
        for times, action in zip(seconds, actions, strict=True):
            times.append(action())
    return list(map(summarize, seconds))


def time_command(*command: str) -> float:
    """Return the seconds that a command takes; it must succeed within COMMAND_TIMEOUT."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    # Not wait(timeout): that looks again after 1, 2, 4, 8, 16 ms, and short commands would all seem to take as long.
    watchdog = threading.Timer(COMMAND_TIMEOUT, process.kill)
    watchdog.start()
    code = process.wait()
    seconds = time.perf_counter() - began
    watchdog.cancel()
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code}")
    return seconds


def tool(name: str) -> str:
    """Return the path of one of our tools."""
    return os.path.join(BIN, name)


def call(*command: str) -> str:
    """Run one of our tools and return its output; it must succeed."""
    return subprocess.run([tool(command[0]), *command[1:]], stdout=subprocess.PIPE, text=True, check=True).stdout


@contextmanager
def own_home() -> Iterator[str]:
    """Work in a new home; afterwards its VMs are ended, its daemon is stopped and it is deleted."""
    home = tempfile.mkdtemp(prefix="crannog-bench-")
    os.environ["CRANNOG_HOME"] = home
    try:
        yield home
    finally:
        running = call("qvm-ls", "--raw-list", "--running").split()
        for vm in running:
            if vm != "dom0":
                call("qvm-kill", vm)
        call("crannog", "daemon", "stop")
        shutil.rmtree(home)


def print_table(rows: list[Row]) -> None:
    """Print the figures as a table."""
    table = [["", "value", "reference", "ratio", "target", ""]]
    for row in rows:
        reference = f"{row.reference} {row.reference_name}"
        verdict = "met" if row.is_met else "MISSED"
        table.append([row.name, str(row.value), reference, f"{row.ratio:.2f}", f"<= {row.target:.2f}", verdict])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def find_names() -> list[str]:
    """Return the names of all benchmarks."""
    return sorted({module.name for module in pkgutil.iter_modules(benchmarks.__path__)} - HELPERS)


def main() -> int:
    """Run the named benchmarks and return the exit code."""
    names = find_names()
    parser = argparse.ArgumentParser(description="Measure, against a reference measured in the same run.")
    parser.add_argument("name", choices=[*names, ALL, PAGE], help="which benchmark; `page` writes docs/performance.md")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--keep", action="store_true", help="keep the result for docs/performance.md")
    parser.add_argument("--runs", type=int, default=MIN_RUNS, help=f"runs of each, at least {MIN_RUNS}")
    options = parser.parse_args()
    if options.name in (ALL, PAGE):
        wanted = [name for name in names if name not in PARTS] if options.name == ALL else []
        from benchpage.all import run_all

        return run_all(wanted, options.runs)
    module = importlib.import_module(f"benchmarks.{options.name}")
    began = time.time()
    rows = module.measure(options.runs)
    if options.keep:
        from benchpage.results import keep

        keep(options.name, module.__doc__ or "", rows, began)
    if options.json:
        print(json.dumps([asdict(row) | {"ratio": row.ratio, "is_met": row.is_met} for row in rows], indent=2))
    else:
        print_table(rows)
    return 0 if all(row.is_met for row in rows) else 1
