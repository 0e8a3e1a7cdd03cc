"""How long a start takes, and what the tools and the creation of a VM cost."""

import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from benchmarks.harness import Row, call, own_home, take_turns, time_command, tool
from crannog.rpc.channel import GuestChannel

START_TARGET = 1.25
TOOL_TARGET = 2.5
CREATE_TARGET = 1.2
"""The same time, but for what remains of a noisy machine's noise in the median."""

TOOL_RUNS = 40
CREATE_RUNS = 15
AGENT_TIMEOUT = 120
GIB = 2**30
VM = "work"


def command_of(vm: str, home: str) -> list[str]:
    """Return the command line of a running VM's QEMU."""
    with open(f"{home}/vmm/run/qemu/{vm}.pid") as file:
        pid = file.read().strip()
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return [word.decode() for word in file.read().split(b"\0")[:-1]]


def by_hand(command: list[str], channel: str, console: str, overlay: str) -> list[str]:
    """Return the same command for a shell: files in place of the descriptors that libvirt hands over, and no -S."""
    words: list[str] = []
    rest = iter(command)
    for word in rest:
        if word == "-S":
            continue
        if word in ("-add-fd", "-mon"):
            next(rest)
            continue
        words.append(word)
    result = []
    for word in words:
        hand = re.sub(r"^socket,id=charchannel0,fd=\d+", f"socket,id=charchannel0,path={channel}", word)
        hand = re.sub(r"^socket,id=charmonitor,fd=\d+", f"socket,id=charmonitor,path={channel}.monitor", hand)
        hand = hand.replace("path=/dev/fdset/0,append=on", f"path={console}")
        result.append(re.sub(r'"filename":"[^"]*/root\.volatile\.qcow2"', f'"filename":"{overlay}"', hand))
    return result


def await_agent(channel: str) -> None:
    """Do at the channel what a VM's RPC process does, until the agent answers."""
    guest = GuestChannel(VM, lambda _sentence: None)
    deadline = time.monotonic() + AGENT_TIMEOUT
    with socket.socket(socket.AF_UNIX) as link:
        while link.connect_ex(channel):
            time.sleep(0.005)
        while not guest.is_ready and time.monotonic() < deadline:
            readable, writable, _ = select.select([link], [link] if guest.out else [], [], 1.0)
            if writable:
                del guest.out[: link.send(guest.out[:65536])]
            if readable:
                guest.receive(link.recv(65536))
    if not guest.is_ready:
        raise TimeoutError(f"the agent did not answer by hand within {AGENT_TIMEOUT} s")


def measure_start(runs: int, home: str) -> Row:
    """`qvm-start --wait` against the same QEMU command, the same guest, started by hand to the same point."""
    call("crannog", "template", "build", "debian-12")
    call("qvm-create", "--template", "debian-12", VM)
    call("qvm-start", "--wait", VM)  # the first start makes the file system on private
    folder = tempfile.mkdtemp(dir=home)
    channel, console, overlay = f"{folder}/channel", f"{folder}/console", f"{folder}/root.qcow2"
    original = command_of(VM, home)
    volatile = re.findall(r'"filename":"([^"]*/root\.volatile\.qcow2)"', "\n".join(original))[0]
    base = os.path.realpath(os.path.join(os.path.dirname(volatile), backing_file(volatile)))
    command = _without(by_hand(original, channel, console, overlay), "-object", "masterKey0")
    call("qvm-shutdown", "--wait", VM)

    def ours() -> float:
        seconds = time_command(tool("qvm-start"), "--wait", VM)
        call("qvm-kill", VM)
        return seconds

    def hand() -> float:
        _make_overlay(overlay, base)
        began = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            await_agent(channel)
            return time.perf_counter() - began
        finally:
            process.kill()
            process.wait()

    value, reference = take_turns(runs, ours, hand)
    return Row(f"qvm-start {VM} --wait", value, "same QEMU by hand", reference, START_TARGET)


def _without(command: list[str], option: str, text: str) -> list[str]:
    """Drop the option whose value holds `text`: the key file of libvirt is gone when its VM is."""
    pairs = [i for i, word in enumerate(command[:-1]) if word == option and text in command[i + 1]]
    return [word for i, word in enumerate(command) if i not in pairs and i - 1 not in pairs]


def backing_file(path: str) -> str:
    command = ["qemu-img", "info", "--force-share", path]
    text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return str(re.findall(r"^backing file: (\S+)", text, re.MULTILINE)[0])


def _make_overlay(path: str, base: str) -> None:
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, path]
    subprocess.run(command, check=True)


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
