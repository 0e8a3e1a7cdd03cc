"""Boots the built images with plain QEMU: a guest comes up, keeps what it must keep, and ends cleanly."""

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.config import Paths
from crannog.images.builder import TemplateImage, build_template
from crannog.images.kernel import KernelImage, build_kernel

pytestmark = pytest.mark.vm

BOOT_SECONDS = 60
STOP_SECONDS = 30

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


def report(text: str) -> None:
    print(text)


@pytest.fixture(scope="module")
def agent_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("agent") / "agent.py"
    path.write_text(AGENT)
    return str(path)


@pytest.fixture(scope="module")
def kernel() -> KernelImage:
    return build_kernel(Paths().cache, report)


@pytest.fixture(scope="module")
def pv(agent_path: str) -> TemplateImage:
    return build_template("debian-12", "pv", Paths().cache, report, agent_path=agent_path)


@pytest.fixture(scope="module")
def hvm(agent_path: str) -> TemplateImage:
    return build_template("debian-12", "hvm", Paths().cache, report, agent_path=agent_path)


class Guest:
    """A QEMU, the host's ends of its agent port and monitor, and its console's text."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self.folder = folder

    def connect(self) -> None:
        self.port = socket.socket(socket.AF_UNIX)
        self.port.settimeout(BOOT_SECONDS)
        deadline = time.monotonic() + 10
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
        self.run(f"for try in $(seq 200); do {condition} && exit; sleep 0.1; done; exit 1")

    def press_power_button(self) -> None:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self.folder / "monitor"))
            for request in ("qmp_capabilities", "system_powerdown"):
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
def start(folder: Path, image: TemplateImage, private: Path | None, *options: str) -> Iterator[Guest]:
    folder.mkdir(exist_ok=True)
    overlay = folder / "overlay"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", image.root_img, "-F", "raw", str(overlay)],
        check=True,
    )
    disks = [f"file={overlay},format=qcow2", *([f"file={private},format=raw"] if private else [])]
    command = ["qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-cpu", "max", "-m", "300"]
    command += ["-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{folder}/console"]
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


def boot_options(kernel: KernelImage, extra: str = "") -> list[str]:
    facts = json.loads(Path(kernel.path, "kernel.json").read_text())
    files = ["-kernel", f"{kernel.path}/vmlinux", "-initrd", f"{kernel.path}/initramfs"]
    return [*files, "-append", f"{facts['kernelopts']} {extra}"]


def make_disk(path: Path, size: int = 2**30) -> Path:
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def test_pv_keeps_the_private_volume_and_nothing_else(tmp_path: Path, kernel: KernelImage, pv: TemplateImage) -> None:
    private = make_disk(tmp_path / "private")
    options = boot_options(kernel, "crannog.name=work")
    with start(tmp_path / "1", pv, private, *options) as guest:
        guest.wait_for_agent()
        assert guest.run("hostname") == "work\n"
        assert guest.run("stat -c '%U %a' /home/user /usr/bin/su /etc/shadow") == "user 755\nroot 4755\nroot 640\n"
        guest.run("touch /home/user/kept /usr/local/bin/kept /etc/gone")
        guest.power_off()
        assert "making a file system" in guest.console()
    with start(tmp_path / "2", pv, private, *options) as guest:
        guest.wait_for_agent()
        guest.run("test -e /home/user/kept && test -e /usr/local/bin/kept && test ! -e /etc/gone")
        assert guest.run("findmnt -n -o SOURCE /rw") == "/dev/vdb\n"
        guest.power_off()
        assert "making a file system" not in guest.console()


def test_pv_without_private_volume_ends_at_the_power_button(
    tmp_path: Path, kernel: KernelImage, pv: TemplateImage
) -> None:
    with start(tmp_path / "1", pv, None, *boot_options(kernel)) as guest:
        guest.wait_for_agent()
        assert guest.run("hostname") == "debian-12\n"
        guest.wait_until("busybox ps | grep -q 'busybox acpi[d]'")
        guest.press_power_button()
        guest.expect_clean_end()


def test_private_volume_with_unknown_use_is_left_alone(tmp_path: Path, kernel: KernelImage, pv: TemplateImage) -> None:
    private = make_disk(tmp_path / "private", 2**26)
    table = b"label: dos\nstart=2048, type=83\n"
    subprocess.run(["/sbin/sfdisk", "-q", str(private)], input=table, check=True)
    before = private.read_bytes()
    with start(tmp_path / "1", pv, private, *boot_options(kernel)) as guest:
        guest.wait_for_agent()
        guest.run("test -d /home/user")
        guest.power_off()
        assert "cannot be mounted: going on without it" in guest.console()
    assert private.read_bytes() == before


def test_missing_root_is_said_and_powers_off(tmp_path: Path, kernel: KernelImage, pv: TemplateImage) -> None:
    options = boot_options(kernel, "root=/dev/vdz")
    with start(tmp_path / "1", pv, None, *options) as guest:
        assert guest.process.wait(BOOT_SECONDS) == 0
        assert "cannot start: the root disk /dev/vdz did not appear within 5 seconds" in guest.console()


def test_dead_agent_comes_back(tmp_path: Path, kernel: KernelImage, pv: TemplateImage) -> None:
    with start(tmp_path / "1", pv, None, *boot_options(kernel)) as guest:
        guest.wait_for_agent()
        guest.port.sendall(b"kill -9 $PPID")
        guest.wait_for_agent()
        guest.power_off()


def test_hvm_boots_itself(tmp_path: Path, hvm: TemplateImage) -> None:
    private = make_disk(tmp_path / "private")
    network = ["-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net"]
    options = ["-device", "VGA", "-smbios", "type=3,serial=box", *network]
    with start(tmp_path / "1", hvm, private, *options) as guest:
        guest.wait_for_agent()
        assert guest.run("hostname") == "box\n"
        assert guest.run("findmnt -n -o SOURCE /") == "/dev/vda1\n"
        assert guest.run("findmnt -n -o SOURCE /rw") == "/dev/vdb\n"
        guest.wait_until("test -e /sys/class/net/eth0")  # its driver is not in the initramfs
        guest.power_off()


def test_cached_images_cost_nothing(agent_path: str, pv: TemplateImage) -> None:
    before = os.stat(pv.root_img)
    again = build_template("debian-12", "pv", Paths().cache, report, agent_path=agent_path)
    assert (again.path, os.stat(again.root_img).st_mtime_ns) == (pv.path, before.st_mtime_ns)
