"""How long a start takes, and what the tools and the creation of a VM cost."""

import os
import sys
import tempfile
from collections.abc import Callable

from benchmarks.by_hand import ByHand
from benchmarks.harness import Row, call, own_home, take_turns, time_command, tool

START_TARGET = 1.25
TOOL_TARGET = 2.5
CREATE_TARGET = 1.2
"""The same time, but for what remains of a noisy machine's noise in the median."""

TOOL_RUNS = 40
CREATE_RUNS = 15
GIB = 2**30
VM = "work"


def measure_start(runs: int, home: str) -> Row:
    """`qvm-start --wait` against the same QEMU command, the same guest, started by hand to the same point."""
    call("crannog", "template", "build", "debian-12")
    call("qvm-create", "--template", "debian-12", VM)
    call("qvm-start", "--wait", VM)  # the first start makes the file system on private
    hand = ByHand(VM, home, tempfile.mkdtemp(dir=home))
    call("qvm-shutdown", "--wait", VM)

    def ours() -> float:
        seconds = time_command(tool("qvm-start"), "--wait", VM)
        call("qvm-kill", VM)
        return seconds

    value, reference = take_turns(runs, ours, hand.time)
    return Row(f"qvm-start {VM} --wait", value, "same QEMU by hand", reference, START_TARGET)


def measure_tools(runs: int) -> list[Row]:
    """Tools against a daemon that runs, compared with a Python that does nothing."""
    bare = [sys.executable, "-S", "-c", "pass"]
    commands = {"qvm-ls": ("qvm-ls",), f"qvm-prefs {VM} memory": ("qvm-prefs", VM, "memory")}
    actions: list[Callable[[], float]] = [lambda: time_command(*bare)]
    actions += [lambda words=words: time_command(tool(words[0]), *words[1:]) for words in commands.values()]  # type: ignore[misc]
    reference, *values = take_turns(max(runs, TOOL_RUNS), *actions)
    return [
        Row(name, value, "python3 -S -c pass", reference, TOOL_TARGET)
        for name, value in zip(commands, values, strict=True)
    ]


def measure_create(runs: int, home: str) -> Row:
    """Create a template-based VM from a 100 GiB template and from a 1 GiB one."""
    for size in (1, 100):
        image = f"{home}/{size}.img"
        with open(image, "wb") as file:
            file.write(os.urandom(2**20))
            file.truncate(size * GIB)
        name = f"template-{size}"
        call("qvm-create", "--class", "TemplateVM", "--property", "virt_mode=hvm", "--root-copy-from", image, name)

    def create(size: int) -> float:
        seconds = time_command(tool("qvm-create"), "--template", f"template-{size}", "created")
        call("qvm-remove", "--force", "created")
        return seconds

    small, large = take_turns(max(runs, CREATE_RUNS), lambda: create(1), lambda: create(100))
    return Row("qvm-create, template of 100 GiB", large, "template of 1 GiB", small, CREATE_TARGET)


def measure(runs: int) -> list[Row]:
    """Return all rows."""
    with own_home() as home:
        return [measure_start(runs, home), *measure_tools(runs), measure_create(runs, home)]
