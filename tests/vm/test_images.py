"""Boots the built images with plain QEMU: a guest comes up, keeps what it must keep, and ends cleanly."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.config import Paths
from crannog.images.builder import TemplateImage, build_template
from crannog.images.kernel import KernelImage, build_kernel
from tests.vm.guest import AGENT, BOOT_SECONDS, Guest, boot, boot_options, make_disk, make_overlay

pytestmark = pytest.mark.vm


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


@contextlib.contextmanager
def start(folder: Path, image: TemplateImage, private: Path | None, *options: str) -> Iterator[Guest]:
    folder.mkdir()
    overlay = make_overlay(folder / "overlay", image.root_img)
    disks = [f"file={overlay},format=qcow2", *([f"file={private},format=raw"] if private else [])]
    with boot(folder, disks, *options) as guest:
        yield guest


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
