"""Images to boot from and overrides, with guests of 512 bytes, driven as a user does."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.home import Home, wait_until
from tests.vm.test_libvirt_hypervisor import HALT, make_disk, say

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """Return a home with the HVM `box`, whose disk is empty."""
    home = Home()
    home.ok("qvm-create", "--class", "StandaloneVM", "--property", "virt_mode=hvm", "box")
    yield home
    home.close()


@pytest.fixture
def overrides(home: Home) -> Iterator[Path]:
    """Return the file that overrides the domain of `box`."""
    path = Path(home.path, "vmm-overrides/by-name/box.xml")
    path.parent.mkdir(parents=True, exist_ok=True)
    yield path
    path.unlink()


def console(home: Home) -> str:
    return Path(home.path, "log/console-box.log").read_text(errors="replace")


@pytest.mark.parametrize("option", ["--hddisk {}", "--drive hd:dom0:{}"])
@pytest.mark.parametrize("virtio", ["", "1"])
def test_a_disk_image_boots_before_the_vms_own_disk(home: Home, tmp_path: Path, option: str, virtio: str) -> None:
    home.ok("qvm-features", "box", "virtio-disk", virtio)
    image = make_disk(tmp_path / "rescue.img", say(b"rescued\n") + HALT).path
    home.ok("qvm-start", *option.format(image).split(), "box")
    wait_until(lambda: "rescued" in console(home), "the image's code runs")
    home.ok("qvm-kill", "box")


def test_volumes_of_others_are_refused(home: Home) -> None:
    volume = glob.glob(f"{home.path}/pools/vm-pool/box-*/private*")[0]
    assert "which Crannog itself keeps" in home.fails(6, "qvm-start", "--hddisk", volume, "box")


def test_an_override_is_applied(home: Home, overrides: Path) -> None:
    overrides.write_text("<domain>\n  <vcpu>3</vcpu>\n  <devices><memballoon model='virtio'/></devices>\n</domain>\n")
    home.ok("qvm-start", "box")
    line = Path(f"/proc/{home.qemu('box')}/cmdline").read_bytes()
    assert b"-smp\x003" in line
    assert b"virtio-balloon" in line
    home.ok("qvm-kill", "box")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<domain>\n<name>evil</name></domain>", "box.xml:2: <name> cannot be overridden"),
        ("<domain>\n\n", "box.xml:3: this is no XML"),
        ("<domain><devices><disk><target dev='sda' bus='odd'/></disk></devices></domain>", "odd"),
    ],
)
def test_an_override_that_is_wrong_leaves_a_halted_vm(home: Home, overrides: Path, text: str, complaint: str) -> None:
    overrides.write_text(text)
    assert complaint in home.fails(10, "qvm-start", "box")
    assert home.state("box") == "Halted"
    assert not os.path.exists(f"{home.path}/vmm/run/qemu/box.pid")


def test_a_clock_and_room_to_grow(home: Home) -> None:
    home.ok("qvm-features", "box", "timezone", "-3600")
    home.ok("qvm-features", "box", "service.meminfo-writer", "1")
    home.ok("qvm-prefs", "box", "maxmem", "800")
    home.ok("qvm-start", "box")
    line = Path(f"/proc/{home.qemu('box')}/cmdline").read_bytes()
    assert b"base=20" in line
    assert b"virtio-balloon" in line
    home.ok("qvm-kill", "box")
