"""Guests under plain QEMU, with an agent that runs what it is told: for tests of images, kernels and initramfs."""

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from crannog.images.kernel import KernelImage

BOOT_SECONDS = 60
STOP_SECONDS = 60

# Runs each line that the host writes to the port in a shell, and ends its output with the exit status.
AGENT = """
import os, subprocess, time
fd = os.open("/dev/virtio-ports/org.crannog.agent.0", os.O_RDWR)
os.write(fd, b"ready\\n")
while True:
    command = os.read(fd, 4096)
    if command:
        done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        os.write(fd, done.stdout + b"\\0%d\\n" % done.returncode)
    else:
        time.sleep(0.05)
"""


class Guest:
    """A QEMU, the host's ends of its agent port and monitor, and its console's text."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self.folder = folder

    def connect(self) -> None:
        self.port = socket.socket(socket.AF_UNIX)
        self.port.settimeout(BOOT_SECONDS)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.port.connect(str(self.folder / "port"))
                break
            except OSError:
                assert time.monotonic() < deadline, "QEMU did not open its sockets"
                time.sleep(0.02)
        self.reader = self.port.makefile("rb")

    def wait_for_agent(self) -> None:
        assert self.reader.readline() == b"ready\n", self.console()

    def run(self, command: str) -> str:
        self.port.sendall(command.encode())
        output = b""
        while b"\0" not in output:
            output += self.reader.readline()
        text, _, status = output.decode().partition("\0")
        assert int(status) == 0, f"{command}: {text}"
        return text

    def wait_until(self, condition: str) -> None:
        self.run(f"for try in $(seq 600); do {condition} && exit; sleep 0.1; done; exit 1")

    def press_power_button(self) -> None:
        self._tell_monitor("system_powerdown")

    def restart(self) -> None:
        """Reset the guest, with what its disks hold now."""
        self._tell_monitor("system_reset")

    def _tell_monitor(self, command: str) -> None:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self.folder / "monitor"))
            for request in ("qmp_capabilities", command):
                monitor.recv(4096)
                monitor.sendall(json.dumps({"execute": request}).encode())
            monitor.recv(4096)

    def expect_clean_end(self) -> None:
        assert self.process.wait(STOP_SECONDS) == 0
        assert "all file systems are unmounted" in self.console()

    def power_off(self) -> None:
        self.port.sendall(b"poweroff")
        self.expect_clean_end()

    def console(self) -> str:
        return (self.folder / "console").read_text(errors="replace")


@contextlib.contextmanager
def boot(folder: Path, disks: list[str], *options: str) -> Iterator[Guest]:
    """Boot a guest with these disks, each as the value of QEMU's -drive."""
    folder.mkdir(exist_ok=True)
    command = ["qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-cpu", "max", "-m", "300"]
    command += ["-nodefaults", "-display", "none", "-serial", f"file:{folder}/console"]
    for number, disk in enumerate(disks):
        command += ["-drive", f"{disk},if=none,id=disk{number},cache=unsafe"]
        command += ["-device", f"virtio-blk-pci,drive=disk{number},addr={4 + number}"]
    command += ["-device", "virtio-serial-pci", "-device", "virtio-rng-pci"]
    command += ["-chardev", f"socket,id=port,path={folder}/port,server=on,wait=off"]
    command += ["-device", "virtserialport,chardev=port,name=org.crannog.agent.0"]
    command += ["-qmp", f"unix:{folder}/monitor,server=on,wait=off", *options]
    with subprocess.Popen(command) as process:
        guest = Guest(process, folder)
        try:
            guest.connect()
            with guest.port, guest.reader:
                yield guest
        finally:
            process.kill()


def make_overlay(path: Path, image: str) -> Path:
    """Make a layer over a raw image."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "raw", str(path)], check=True)
    return path


def boot_options(kernel: KernelImage, extra: str = "") -> list[str]:
    """Return what has QEMU enter a kernel, with `extra` words on its command line."""
    facts = json.loads(Path(kernel.path, "kernel.json").read_text())
    files = ["-kernel", f"{kernel.path}/vmlinux", "-initrd", f"{kernel.path}/initramfs"]
    return [*files, "-append", f"{facts['kernelopts']} {extra}"]


def make_disk(path: Path, size: int = 2**30) -> Path:
    """Make an empty disk."""
    with open(path, "wb") as file:
        file.truncate(size)
    return path
