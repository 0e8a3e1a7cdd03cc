"""A home on this dom0's Xen. Calls go to crannogd from the tests' own process: starting a tool takes a second here."""

import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

from crannog.client.connection import Client
from crannog.client.events import ESTABLISHED, EventStream
from crannog.client.rpc import run_command
from crannog.config import Paths
from tests.vm.home import Home

POOL = "mapped"
TEMPLATES = {"pv": "debian-12", "pvh": "debian-12", "hvm": "debian-12-hvm"}
BOOT_SECONDS = 300
"""An emulated guest of an emulated Xen may take that long until its agent answers."""
AHCI_EMULATOR = Path(__file__).parent / "ahci-emulator"
MEMORY = 320
"""MiB of each guest."""


class XenHome(Home):
    """One home with both templates in a pool of the driver device-mapper."""

    def __init__(self) -> None:
        super().__init__(tempfile.mkdtemp(prefix="xen-"))
        Path(self.path, "crannog.toml").write_text('libvirt_uri = "xen:///"\n')
        os.environ["CRANNOG_HOME"] = self.path
        self.paths = Paths(self.path)
        self.client = Client(self.paths)

    def call(self, method: str, vm: str = "dom0", argument: str = "", payload: str = "") -> str:
        """Return the text of a reply; raises the error that the daemon names."""
        return self.client.text(method, vm, argument, payload)

    def install(self) -> None:
        """Make the pool and both templates; their images were built outside and are in the cache."""
        self.call("admin.pool.Add", "dom0", "device-mapper", f"name={POOL}")
        self.call("admin.property.Set", "dom0", "default_pool", POOL)
        for options in ((), ("--virt-mode", "hvm")):
            self.ok("crannog", "template", "build", "debian-12", *options)

    def create(self, name: str, mode: str, **properties: object) -> None:
        """Make an AppVM of a mode."""
        settings = {"virt_mode": mode, "memory": MEMORY, "vcpus": 1, "qrexec_timeout": BOOT_SECONDS, **properties}
        self.call("admin.vm.Create.AppVM", "dom0", TEMPLATES[mode], f"name={name} label=red")
        for prop, value in settings.items():
            self.call("admin.vm.property.Set", name, prop, str(value))
        if mode == "hvm":
            self.have_fast_boot(name)

    def have_fast_boot(self, name: str) -> None:
        """Give an HVM its disks on AHCI: each sector from IDE takes this emulated Xen 20 ms and more."""
        file = Path(self.path, "vmm-overrides", "by-name", f"{name}.xml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"<domain><devices><emulator>{AHCI_EMULATOR}</emulator></devices></domain>")

    def start(self, name: str) -> None:
        """Start a VM, and wait until its agent answers."""
        self.call("crannog.vm.Start", name, "wait")

    def remove(self, name: str) -> None:
        """End a VM and remove it."""
        if self.power_state(name) != "Halted":
            self.call("admin.vm.Kill", name)
        self.call("admin.vm.Remove", name)

    def power_state(self, name: str) -> str:
        """Return a VM's power state."""
        (state,) = re.findall(r"state=(\w+)", self.call("admin.vm.List", name))
        return str(state)

    def await_state(self, name: str, state: str, seconds: float = BOOT_SECONDS) -> None:
        """Wait until a VM has a power state."""
        deadline = time.monotonic() + seconds
        while (now := self.power_state(name)) != state:
            assert time.monotonic() < deadline, f"{name} is {now}, not {state}, after {seconds} s"
            time.sleep(0.2)

    def in_guest(self, name: str, command: str) -> str:
        """Run a command as the guest's root through the agent, and return its output; it must succeed."""
        with open(os.devnull) as nothing, tempfile.TemporaryFile() as output:
            code = run_command(
                self.paths.rpc_socket(name), "root", command, nothing.fileno(), output.fileno(), output.fileno()
            )
            output.seek(0)
            text = output.read().decode()
        assert code == 0, (command, code, text)
        return text

    def listen(self) -> EventStream:
        """Return the stream of events from now on."""
        stream = EventStream(self.client)
        first = stream.next_event(time.monotonic() + 60)
        assert first is not None
        assert first.name == ESTABLISHED
        return stream

    def image(self, name: str, volume: str) -> str:
        """Return the file that holds the content of a halted VM's own volume."""
        (vid,) = re.findall(r"^vid=(.*)$", self.call("admin.vm.volume.Info", name, volume), re.MULTILINE)
        return f"{self.path}/pools/{POOL}/{vid}.img"


def run(*words: str) -> str:
    """Run a program of dom0 that must succeed; return its output."""
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout


def xen_domain(name: str) -> list[str]:
    """Return what `xl list` says of a domain: name, id, MiB, processors, state, seconds; nothing if there is none."""
    lines = (line.split() for line in run("xl", "list").splitlines())
    return next((words for words in lines if words[0] == name), [])


def list_remains() -> dict[str, list[str]]:
    """Return everything that a VM can leave behind in a dom0."""
    processes = run("ps", "-e", "-o", "args=").splitlines()
    return {
        "domains": sorted(line.split()[0] for line in run("xl", "list").splitlines()[1:]),
        "devices": sorted(run("dmsetup", "ls").splitlines()),
        "loops": sorted(run("losetup", "--all", "--noheadings", "--output", "BACK-FILE").split()),
        "backends": sorted(_list_backends()),
        "emulators": sorted(line for line in processes if "xen-qemu" in line and "-xen-domid 0 " not in line),
        "channels": sorted(line for line in processes if "crannog.rpc.vm_process" in line),
    }


def wait_for_remains(wanted: dict[str, list[str]]) -> None:
    """Wait until what is left in dom0 is `wanted`: some of a VM's processes end a moment after it is told halted."""
    deadline = time.monotonic() + 60
    while (left := list_remains()) != wanted:
        assert time.monotonic() < deadline, {kind: left[kind] for kind in left if left[kind] != wanted[kind]}
        time.sleep(0.5)


def _list_backends() -> list[str]:
    """Return the folders of guests' devices that dom0 serves."""
    done = subprocess.run(
        ["xenstore-list", "-p", "/local/domain/0/backend"], capture_output=True, text=True, timeout=60, check=False
    )
    kinds = done.stdout.split() if done.returncode == 0 else []
    return [f"{kind}/{number}" for kind in kinds for number in run("xenstore-list", kind).split()]
