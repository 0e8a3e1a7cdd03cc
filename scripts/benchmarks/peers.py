"""What people who have libvirt already would do instead: virt-install, virt-clone's overlay and virsh, on a libvirtd.

Both sides run the same guest: the template's kernel, its root below a new layer, the same devices in number and kind.
A VM is there when the agent in it answers on its channel. `launch` is what multipass calls so: a new VM from an image,
and the first command in it; multipass itself comes as a snap alone, and is not measured.
"""

import contextlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator

from tests.vm.libvirtd import Libvirtd

from benchmarks.by_hand import await_agent, backing_file, command_of
from benchmarks.harness import MIN_RUNS, Row, call, own_home, take_turns, time_command, tool
from crannog.config import Paths
from crannog.guest.agent import PORT_NAME

TEMPLATE, STARTED = "debian-12", "started"
MEMORY, VCPUS = 400, 2
COUNT = 20
"""VMs that are listed."""
START_TARGET, LIST_TARGET, CREATE_TARGET = 1.0, 1.0, 1.0
LAUNCH_TARGET = 1.25
"""A new VM of ours has a private volume too, and makes a file system on it; that of virt-install has none."""


class Peer:
    """VMs that virt-install defines on a libvirtd, from layers over a template's root."""

    def __init__(self, uri: str, folder: str, home: str) -> None:
        self.uri = uri
        self.folder = folder
        paths = Paths(home)
        kernel = call("qvm-prefs", TEMPLATE, "kernel").strip()
        self._kernel = f"{paths.kernels}/{kernel}"
        self._base = find_root(home)
        self.channel = f"{folder}/channel"

    def make_layer(self, name: str) -> str:
        """Make a layer over the template's root, and return its path."""
        path = f"{self.folder}/{name}.qcow2"
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", self._base, path]
        subprocess.run(command, check=True, timeout=60)
        return path

    def install(self, name: str, *more: str) -> list[str]:
        """Return the command that makes a VM of a layer; it starts it, unless `more` says otherwise."""
        words = "root=/dev/vda rw console=ttyS0 no_timer_check cryptomgr.notests quiet"
        boot = f"kernel={self._kernel}/vmlinux,initrd={self._kernel}/initramfs,kernel_args={words}"
        return [
            *("virt-install", "--quiet", "--connect", self.uri, "--name", name, "--import", "--osinfo", "generic"),
            *("--memory", str(MEMORY), "--vcpus", str(VCPUS), "--virt-type", "qemu", "--boot", boot),
            *("--disk", f"path={self.folder}/{name}.qcow2,bus=virtio", "--graphics", "none", "--network", "none"),
            *("--channel", f"unix,mode=bind,path={self.channel},target.type=virtio,target.name={PORT_NAME}"),
            *("--rng", "/dev/urandom", "--noautoconsole", "--check", "all=off", *more),
        ]

    def define(self, name: str) -> None:
        """Make a VM of a layer, and do not start it."""
        path = f"{self.folder}/{name}.xml"
        with open(path, "wb") as file:
            subprocess.run(self.install(name, "--print-xml"), stdout=file, check=True, timeout=60)
        self.virsh("define", path)

    def virsh(self, *words: str) -> None:
        """Run virsh; it must succeed."""
        subprocess.run(["virsh", "--quiet", "--connect", self.uri, *words], check=True, timeout=60)


def find_root(home: str) -> str:
    """Start a VM once, and return the file below its root's layer: the template's root."""
    call("qvm-create", "--template", TEMPLATE, STARTED)
    call("qvm-start", "--wait", STARTED)  # the first start makes the file system on private
    volatile = re.findall(r'"filename":"([^"]*/root\.volatile\.qcow2)"', "\n".join(command_of(STARTED, home)))[0]
    call("qvm-kill", STARTED)
    return os.path.realpath(os.path.join(os.path.dirname(volatile), backing_file(volatile)))


@contextlib.contextmanager
def own_peer(home: str) -> Iterator[Peer]:
    """Have a libvirtd, and a folder for disks."""
    daemon = Libvirtd()
    with tempfile.TemporaryDirectory(prefix="crannog-bench-") as folder:
        try:
            daemon.start()
            yield Peer(daemon.uri, folder, home)
        finally:
            daemon.close()


def measure_launch(runs: int, peer: Peer) -> Row:
    """From nothing to a VM of a template that answers."""

    def ours() -> float:
        began = time.perf_counter()
        call("qvm-create", "--template", TEMPLATE, "launched")
        call("qvm-run", "--pass-io", "launched", "true")
        seconds = time.perf_counter() - began
        call("qvm-kill", "launched")
        call("qvm-remove", "--force", "launched")
        return seconds

    def theirs() -> float:
        began = time.perf_counter()
        peer.make_layer("launched")
        time_command(*peer.install("launched"))
        await_agent(peer.channel)
        seconds = time.perf_counter() - began
        peer.virsh("destroy", "launched")
        peer.virsh("undefine", "launched")
        return seconds

    value, reference = take_turns(runs, ours, theirs)
    return Row("a new VM, and `true` in it", value, "virt-install, to the agent", reference, LAUNCH_TARGET)


def measure_start(runs: int, peer: Peer) -> Row:
    """From a VM that is there to its agent."""
    peer.make_layer(STARTED)
    time_command(*peer.install(STARTED))
    await_agent(peer.channel)
    peer.virsh("destroy", STARTED)

    def ours() -> float:
        seconds = time_command(tool("qvm-start"), "--wait", STARTED)
        call("qvm-kill", STARTED)
        return seconds

    def theirs() -> float:
        began = time.perf_counter()
        peer.virsh("start", STARTED)
        await_agent(peer.channel)
        seconds = time.perf_counter() - began
        peer.virsh("destroy", STARTED)
        return seconds

    value, reference = take_turns(runs, ours, theirs)
    return Row("qvm-start, to the agent", value, "virsh start, to the agent", reference, START_TARGET)


def measure_many(runs: int, peer: Peer) -> list[Row]:
    """VMs that come, and a list of them."""
    numbers = iter(range(1000))

    def ours() -> float:
        return time_command(tool("qvm-create"), "--template", TEMPLATE, f"listed{next(numbers)}")

    def theirs() -> float:
        name = f"listed{next(numbers)}"
        began = time.perf_counter()
        peer.make_layer(name)
        peer.define(name)
        return time.perf_counter() - began

    value, reference = take_turns(max(runs, COUNT), ours, theirs)
    rows = [Row("qvm-create", value, "qemu-img, virt-install --print-xml, virsh define", reference, CREATE_TARGET)]
    listing, peers = take_turns(
        3 * MIN_RUNS,
        lambda: time_command(tool("qvm-ls")),
        lambda: time_command("virsh", "--connect", peer.uri, "list", "--all"),
    )
    return [*rows, Row(f"qvm-ls of {COUNT} VMs", listing, "virsh list of as many", peers, LIST_TARGET)]


def measure(runs: int) -> list[Row]:
    """Return all rows."""
    with own_home() as home:
        call("crannog", "template", "build", TEMPLATE)
        with own_peer(home) as peer:
            return [measure_launch(runs, peer), measure_start(runs, peer), *measure_many(runs, peer)]
