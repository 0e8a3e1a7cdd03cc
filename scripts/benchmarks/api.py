"""What a call costs: to crannogd with 250 VMs, each call on a new connection, as clients make them.

The targets for calls and memory are fixed figures; those for tools are ratios to a Python that does nothing.
"""

import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # a client is run as a script

from benchmarks.harness import MIN_RUNS, Figure, Row, call, own_home, take_turns, time_command, tool
from benchmarks.model import KERNEL, populate
from crannog.adapters.store.file import FileStore
from crannog.config import Paths

VMS = 250
CALLS = 400
"""Calls in one run."""
CALL_TARGET = 0.00025
CLIENTS, CLIENT_CALLS, RATE_TARGET = 8, 1000, 1 / 2000
LS_TARGET, PREFS_TARGET = 3.0, 4.0
MEMORY_TARGET = 60e6 + VMS * 8e3
VM = "work-00100"
REQUESTS = {
    "admin.vm.List": b"admin.vm.List+ dom0 name dom0\0",
    "admin.vm.property.Get": f"admin.vm.property.Get+memory dom0 name {VM}\0".encode(),
    "admin.vm.property.GetAll": f"admin.vm.property.GetAll+ dom0 name {VM}\0".encode(),
}


def ask(path: str, request: bytes) -> bytes:
    """Make one call on a new connection."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        chunks = []
        while chunk := client.recv(262144):
            chunks.append(chunk)
    return b"".join(chunks)


def measure_calls(path: str, request: bytes) -> Callable[[], float]:
    """Return an action that makes many calls and returns the median seconds of one."""

    def measure() -> float:
        times = []
        for _ in range(CALLS):
            began = time.perf_counter()
            reply = ask(path, request)
            times.append(time.perf_counter() - began)
            if not reply.startswith(b"0\0"):
                raise RuntimeError(f"{request!r} was answered {reply[:200]!r}")
        return statistics.median(times)

    return measure


def measure_rate(path: str) -> float:
    """Return the seconds that a call takes when several clients, each a process, call without a pause."""
    command = [sys.executable, __file__, path]
    clients = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ) for _ in range(CLIENTS)
    ]
    for client in clients:
        client.stdout.read(1)  # type: ignore[union-attr] # it is ready
    began = time.perf_counter()
    for client in clients:
        client.stdin.close()  # type: ignore[union-attr]
    for client in clients:
        if client.wait():
            raise RuntimeError("a client failed")
    return (time.perf_counter() - began) / (CLIENTS * CLIENT_CALLS)


def be_client(path: str) -> None:
    """Wait to be let go, then call as fast as can be."""
    sys.stdout.write("r")
    sys.stdout.flush()
    sys.stdin.read()
    for _ in range(CLIENT_CALLS):
        if not ask(path, REQUESTS["admin.vm.property.Get"]).startswith(b"0\0"):
            raise RuntimeError("no answer")


def read_memory(pid: int) -> int:
    """Return the resident memory of a process in bytes (proc(5), status)."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def _fill(home: str) -> None:
    paths = Paths(home)
    os.makedirs(os.path.join(paths.kernels, KERNEL))
    for name in ("vmlinuz", "initramfs"):
        with open(os.path.join(paths.kernels, KERNEL, name), "wb"):
            pass
    registry = populate(VMS)
    for vm in registry.local_vms():
        vm.values.pop("autostart", None)  # else their starts, which fail for want of disks, would be measured as well
    FileStore(paths.store, paths.kernels).save(registry)


def _target(seconds: float, unit: str) -> Figure:
    return Figure(seconds, seconds, seconds, 1, unit)


def measure(runs: int) -> list[Row]:
    """Return the table."""
    with own_home() as home:
        _fill(home)
        call("qvm-ls")  # starts the daemon
        path = Paths(home).daemon_socket
        pid = int(call("crannog", "daemon", "status").rpartition("process ")[2].rstrip(")\n"))
        single = take_turns(runs, *(measure_calls(path, request) for request in REQUESTS.values()))
        rows = [
            Row(name, Figure(f.median, f.least, f.most, f.runs, "us"), "target", _target(CALL_TARGET, "us"), 1.0)
            for name, f in zip(REQUESTS, single, strict=True)
        ]
        (rate,) = take_turns(runs, lambda: measure_rate(path))
        shown = Figure(rate.median, rate.least, rate.most, rate.runs, "us")
        rows.append(Row(f"a call, {CLIENTS} clients at once", shown, "target", _target(RATE_TARGET, "us"), 1.0))
        ls, prefs, bare, python = take_turns(
            max(runs, 3 * MIN_RUNS),
            lambda: time_command(tool("qvm-ls")),
            lambda: time_command(tool("qvm-prefs"), VM, "memory"),
            lambda: time_command(sys.executable, "-S", "-c", "pass"),
            lambda: time_command(sys.executable, "-c", "pass"),
        )
        rows.append(Row(f"qvm-ls of {VMS} VMs", ls, "python3 -S -c pass", bare, LS_TARGET))
        rows.append(Row("qvm-prefs VM memory", prefs, "python3 -c pass", python, PREFS_TARGET))
        memory = float(read_memory(pid))
        used = Figure(memory, memory, memory, 1, "MB")
        return [*rows, Row("resident memory of crannogd", used, "target", _target(MEMORY_TARGET, "MB"), 1.0)]


if __name__ == "__main__":
    be_client(sys.argv[1])
