"""The QEMU of a VM that runs, started once more without libvirt: the same command line, on layers like its own."""

import json
import os
import re
import select
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator

from crannog.rpc.channel import GuestChannel

AGENT_TIMEOUT = 120
_VOLATILE = "volatile"
"""What the names of files have that a VM has for one session: they are gone after it, and empty at first."""
_DROPPED, _KEY = ("-add-fd", "-mon"), "masterKey0"
"""Options that mean nothing without libvirt, with their values; and the object that is one as well."""


def command_of(vm: str, home: str) -> list[str]:
    """Return the command line of a running VM's QEMU."""
    with open(f"{home}/vmm/run/qemu/{vm}.pid") as file:
        pid = file.read().strip()
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return [word.decode() for word in file.read().split(b"\0")[:-1]]


class ByHand:
    """One such QEMU. Its files are in `folder`, under names that begin with the VM's."""

    def __init__(self, vm: str, home: str, folder: str) -> None:
        place = f"{folder}/{vm}"
        self._channel, self._complaints = f"{place}.channel", f"{place}.complaints"
        original = command_of(vm, home)
        files = re.findall(r'"filename":"([^"]*)"', "\n".join(original))
        own = [path for path in files if _VOLATILE in os.path.basename(path) and not os.path.islink(path)]
        layers = {path: f"{place}.{os.path.basename(path)}" for path in own}
        self._recipes = [_how_to_make(path, copy) for path, copy in layers.items()]
        # What is below them may be found by way of a folder of the VM, which goes with it if it is a disposable.
        replaced = {path: os.path.realpath(path) for path in files} | layers
        words = _without_descriptors(original, self._channel, f"{place}.console")
        self._command = [_replace(word, replaced) for word in words]
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Make the layers for a start."""
        for recipe in self._recipes:
            subprocess.run(recipe, check=True)

    def start(self) -> None:
        """Start QEMU and return when the agent answers. Raises RuntimeError with what QEMU has said."""
        quiet = subprocess.DEVNULL  # it says which terminal the console is
        with open(self._complaints, "wb") as complaints:
            # In a session of its own, as libvirt starts it: the kernel shares out processors by sessions (sched(7),
            # autogroup), and 20 QEMUs in one would get less of a busy host than 20 in as many.
            self._process = subprocess.Popen(
                self._command, stdin=quiet, stdout=quiet, stderr=complaints, start_new_session=True
            )
        try:
            await_agent(self._channel, self._process)
        except OSError as error:
            with open(self._complaints, errors="replace") as said:
                raise RuntimeError(f"QEMU by hand: {error}: {said.read()}") from error

    def stop(self) -> None:
        """End QEMU, if it was started."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def time(self) -> float:
        """Start it once; return the seconds until its agent answers."""
        self.prepare()
        began = time.perf_counter()
        try:
            self.start()
            return time.perf_counter() - began
        finally:
            self.stop()


def await_agent(channel: str, process: subprocess.Popen[bytes] | None = None) -> None:
    """Do at the channel what a VM's RPC process does, until the agent answers.

    Raises TimeoutError, and ConnectionError when the process whose channel it is has ended.
    """
    guest = GuestChannel("work", lambda _sentence: None)
    deadline = time.monotonic() + AGENT_TIMEOUT
    with socket.socket(socket.AF_UNIX) as link:
        while link.connect_ex(channel):
            if process and process.poll() is not None:
                raise ConnectionError(f"it ended with {process.returncode}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody listens at {channel}")
            time.sleep(0.005)
        while not guest.is_ready and time.monotonic() < deadline:
            readable, writable, _ = select.select([link], [link] if guest.out else [], [], 1.0)
            if writable:
                del guest.out[: link.send(guest.out[:65536])]
            if readable:
                guest.receive(link.recv(65536))
    if not guest.is_ready:
        raise TimeoutError(f"the agent did not answer by hand within {AGENT_TIMEOUT} s")


def backing_file(path: str) -> str:
    """Return what an image is a layer over, as it is written there."""
    return str(_describe(path)["backing-filename"])


def _without_descriptors(command: Iterable[str], channel: str, console: str) -> Iterator[str]:
    """Put files in place of the descriptors that libvirt hands over, and leave out -S and the key, which is gone."""
    words = list(command)
    dropped = {i for i, word in enumerate(words) if word in _DROPPED or (word == "-object" and _KEY in words[i + 1])}
    for i, word in enumerate(words):
        if word == "-S" or i in dropped or i - 1 in dropped:
            continue
        hand = re.sub(r"^(socket,id=charchannel0),fd=\d+", rf"\1,path={channel}", word)
        hand = re.sub(r"^(socket,id=char([\w-]+)),fd=\d+", rf"\1,path={channel}.\2", hand)
        yield hand.replace("/dev/fdset/0", console)


def _replace(word: str, replaced: dict[str, str]) -> str:
    for path, other in replaced.items():
        word = word.replace(f'"filename":"{path}"', f'"filename":"{other}"')
    return word


def _how_to_make(path: str, copy: str) -> list[str]:
    """Return the command that makes an image like the one at `path`, as empty as that was at first."""
    facts = _describe(path)
    command = ["qemu-img", "create", "-q", "-f", str(facts["format"])]
    if "full-backing-filename" in facts:
        base = os.path.realpath(str(facts["full-backing-filename"]))
        command += ["-b", base, "-F", str(facts.get("backing-filename-format", "raw"))]
    return [*command, copy, str(facts["virtual-size"])]


def _describe(path: str) -> dict[str, object]:
    command = ["qemu-img", "info", "--force-share", "--output=json", path]
    found: dict[str, object] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found
