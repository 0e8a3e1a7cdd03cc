"""Domain XML against golden files; CRANNOG_REGENERATE_GOLDEN=1 writes them anew."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from lxml import etree

from crannog.adapters.libvirt.domain_xml import build_domain_xml
from crannog.core.domain import Boot, Channel, Disk, DomainSpec
from crannog.errors import HypervisorError

GOLDEN = Path(__file__).parent.parent / "golden"
EMULATOR = "/usr/bin/qemu-system-x86_64"

PVH = DomainSpec(
    uuid="0f4a54e5-1ad6-4f4e-8c5b-111111111111",
    name="work",
    virt_mode="pvh",
    memory=400,
    vcpus=2,
    boot=Boot.KERNEL,
    disks=(
        Disk("/home/vm/work/root-cow.qcow2", "vda", is_readonly=True),
        Disk("/home/vm/work/private.raw", "vdb", format="raw"),
    ),
    channels=(Channel("org.crannog.agent.0", "/home/vm/run/agent-work.sock"),),
    console_log="/home/vm/log/console-work.log",
    kernel="/home/vm/kernels/6.1/vmlinux",
    initrd="/home/vm/kernels/6.1/initramfs",
    kernelopts="root=/dev/vda ro console=ttyS0 title='a <b> & c'",
)
HVM = replace(
    PVH,
    virt_mode="hvm",
    boot=Boot.DISK,
    kernel="",
    initrd="",
    kernelopts="",
    disks=(Disk("/home/vm/win/root.qcow2", "sda", bus="sata"),),
    has_display=True,
    display_socket="/home/vm/run/display-work.sock",
)
INSTALLER = replace(
    HVM,
    boot=Boot.CDROM,
    disks=(*HVM.disks, Disk("/home/vm/install.iso", "sdb", bus="sata", format="raw", device="cdrom")),
    display_socket="",
)
CASES = {
    "domain-pvh-tcg": (PVH, "tcg"),
    "domain-pvh-kvm": (PVH, "kvm"),
    "domain-hvm-tcg": (HVM, "tcg"),
    "domain-hvm-cdrom-tcg": (INSTALLER, "tcg"),
}


@pytest.mark.parametrize("case", CASES)
def test_xml_is_the_golden_file(case: str) -> None:
    spec, accel = CASES[case]
    xml = build_domain_xml(spec, accel, EMULATOR)
    golden = GOLDEN / f"{case}.xml"
    if os.environ.get("CRANNOG_REGENERATE_GOLDEN") == "1":
        golden.write_text(xml)
    assert xml == golden.read_text()


def find(spec: DomainSpec, path: str) -> list[etree._Element]:
    return etree.fromstring(build_domain_xml(spec, "tcg", EMULATOR)).findall(path)


def test_values_come_back_as_they_went_in() -> None:
    assert [element.text for element in find(PVH, "os/cmdline")] == [PVH.kernelopts]


def test_no_two_devices_share_a_slot() -> None:
    disks = tuple(Disk(f"/disk{number}", f"vd{chr(97 + number)}") for number in range(26))
    slots = [element.get("slot") for element in find(replace(HVM, disks=disks), "devices//address")]
    assert len(slots) == 29
    assert len(set(slots)) == len(slots)
    assert "0x1f" not in slots


def test_too_many_disks_are_refused() -> None:
    disks = tuple(Disk(f"/disk{number}", f"vd{number}") for number in range(28))
    with pytest.raises(HypervisorError, match="more than 27 virtio disks"):
        build_domain_xml(replace(PVH, disks=disks), "tcg", EMULATOR)


def test_control_characters_are_refused() -> None:
    with pytest.raises(HypervisorError, match="cannot be described"):
        build_domain_xml(replace(PVH, kernelopts="quiet\x00"), "tcg", EMULATOR)
