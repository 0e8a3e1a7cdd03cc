"""Domain XML against golden files and libvirt's own schema; CRANNOG_REGENERATE_GOLDEN=1 writes the files anew."""

import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from crannog.adapters.libvirt.domain_xml import build_domain_xml
from crannog.adapters.libvirt.xml.machine import _machines
from crannog.core.clock import Basis, Clock
from crannog.core.domain import Boot, Channel, Disk, DomainSpec, HostCapabilities, MemoryFiles
from crannog.core.hypervisor_kinds import KINDS
from crannog.core.virt_modes import MODES
from crannog.errors import HypervisorError

GOLDEN = Path(__file__).parent.parent / "golden"
SCHEMA = "/usr/share/libvirt/schemas/domain.rng"
"""Part of Debian's libvirt0."""
EMULATOR = "/usr/bin/qemu-system-x86_64"
LOADER = "/usr/lib/xen-4.17/boot/hvmloader"
TCG = HostCapabilities("tcg", has_hvm=True, emulator=EMULATOR)
KVM = replace(TCG, accel="kvm")
XEN = HostCapabilities("xen", True, "/usr/libexec/xen-qemu-system-i386", "xen", LOADER)

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
        Disk("/home/vm/work/volatile.img", "vdc", format="raw"),
        Disk("/home/vm/kernels/6.1/modules.img", "vdd", format="raw", is_readonly=True),
    ),
    channels=(Channel("org.crannog.agent.0", "/home/vm/run/agent-work.sock"),),
    console_log="/home/vm/log/console-work.log",
    kernel="/home/vm/kernels/6.1/vmlinux",
    initrd="/home/vm/kernels/6.1/initramfs",
    kernelopts="root=/dev/vda ro console=ttyS0 title='a <b> & c'",
)
PV = replace(PVH, virt_mode="pv")
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
CDROM = Disk("/home/vm/install.iso", "sdb", "sata", "raw", "cdrom", boots_first=True)
INSTALLER = replace(HVM, boot=Boot.DRIVE, disks=(*HVM.disks, CDROM), display_socket="")
RESCUE_DISK = Disk("/srv/rescue.img", "sdb", "sata", "raw", boots_first=True)
RESCUE = replace(HVM, boot=Boot.DRIVE, disks=(*HVM.disks, RESCUE_DISK))
GROWING = replace(PVH, maxmem=4000, clock=Clock(offset=-3600))


SAVED = MemoryFiles("/home/vm/memory-images/0f4a54e5/memory", "/home/vm/memory-images/0f4a54e5/state", is_saved=True)
SEEDLING = replace(PVH, memory_files=replace(SAVED, is_saved=False))
RESTORED = replace(PVH, memory_files=SAVED)


def on_xen(spec: DomainSpec) -> DomainSpec:
    return replace(spec, disks=KINDS["xen"].name_disks(spec.disks, is_virtio=False))


DEVICE = Disk("/dev/sdz1", format="raw", is_block=True)
CASES = {
    "domain-pv-tcg": (PV, TCG),
    "domain-pv-kvm": (PV, KVM),
    "domain-pvh-tcg": (PVH, TCG),
    "domain-pvh-kvm": (PVH, KVM),
    "domain-pvh-growing-tcg": (GROWING, TCG),
    "domain-pvh-seedling-tcg": (SEEDLING, TCG),
    "domain-pvh-restored-kvm": (RESTORED, KVM),
    "domain-hvm-tcg": (replace(HVM, clock=Clock(Basis.LOCAL)), TCG),
    "domain-hvm-kvm": (HVM, KVM),
    "domain-hvm-cdrom-tcg": (INSTALLER, TCG),
    "domain-hvm-drive-tcg": (RESCUE, TCG),
    "domain-pv-xen": (on_xen(replace(PV, disks=(*PV.disks, DEVICE))), XEN),
    "domain-pvh-xen": (on_xen(GROWING), XEN),
    "domain-hvm-xen": (on_xen(HVM), XEN),
    "domain-hvm-cdrom-xen": (on_xen(INSTALLER), XEN),
    "domain-hvm-drive-xen": (on_xen(RESCUE), XEN),
}


@pytest.mark.parametrize("case", CASES)
def test_xml_is_the_golden_file(case: str) -> None:
    xml = build_domain_xml(*CASES[case])
    golden = GOLDEN / f"{case}.xml"
    if os.environ.get("CRANNOG_REGENERATE_GOLDEN") == "1":
        golden.write_text(xml)
    assert xml == golden.read_text()


def test_every_golden_file_is_looked_at() -> None:
    assert {path.stem for path in GOLDEN.glob("domain-*.xml")} == set(CASES)


@pytest.mark.skipif(not os.path.exists(SCHEMA), reason="libvirt's schemas are not installed")
@pytest.mark.parametrize("case", CASES)
def test_xml_fits_libvirts_schema(case: str) -> None:
    schema = etree.RelaxNG(etree.parse(SCHEMA))
    schema.assertValid(etree.fromstring(build_domain_xml(*CASES[case])))


def test_there_is_a_machine_for_every_kind_and_mode() -> None:
    assert set(_machines) == {(kind, mode) for kind in KINDS for mode in MODES}


def find(spec: DomainSpec, path: str, host: HostCapabilities = TCG) -> list[etree._Element]:
    return etree.fromstring(build_domain_xml(spec, host)).findall(path)


def test_values_come_back_as_they_went_in() -> None:
    assert [element.text for element in find(PVH, "os/cmdline")] == [PVH.kernelopts]


def test_no_two_devices_share_a_slot() -> None:
    disks = tuple(Disk(f"/disk{number}", f"vd{chr(97 + number)}") for number in range(26))
    slots = [element.get("slot") for element in find(replace(HVM, disks=disks, maxmem=800), "devices//address")]
    assert len(slots) == 30
    assert len(set(slots)) == len(slots)
    assert "0x1f" not in slots


def test_too_many_disks_are_refused() -> None:
    disks = tuple(Disk(f"/disk{number}", f"vd{number}") for number in range(28))
    with pytest.raises(HypervisorError, match="more than 26 virtio disks"):
        build_domain_xml(replace(PVH, disks=disks), TCG)


@pytest.mark.parametrize("change", [{"kernelopts": "quiet\x00"}, {"name": "a\x1bb"}, {"kernel": "/\udc80"}])
@pytest.mark.parametrize("host", [TCG, XEN])
def test_what_no_xml_can_hold_is_refused(change: dict[str, str], host: HostCapabilities) -> None:
    with pytest.raises(HypervisorError, match="cannot be described"):
        build_domain_xml(replace(PVH, **change), host)  # type: ignore[arg-type]


@pytest.mark.parametrize("host", [replace(TCG, kind="bhyve"), replace(TCG, kind="")])
def test_an_unknown_hypervisor_is_refused(host: HostCapabilities) -> None:
    with pytest.raises(HypervisorError, match="work could not be started: virt_mode pvh is not known on hypervisor"):
        build_domain_xml(PVH, host)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(HypervisorError, match="'qvm-prefs work virt_mode'"):
        build_domain_xml(replace(PVH, virt_mode="para"), TCG)


def test_an_hvm_on_a_xen_without_firmware_is_refused() -> None:
    with pytest.raises(HypervisorError, match="work could not be started: this host's Xen has no firmware"):
        build_domain_xml(on_xen(HVM), replace(XEN, loader=""))


@pytest.mark.parametrize("mode", ["pv", "pvh"])
def test_others_on_that_xen_need_neither_firmware_nor_emulator(mode: str) -> None:
    bare = replace(XEN, loader="", emulator="", has_hvm=False)
    assert not find(on_xen(replace(PVH, virt_mode=mode)), "devices/emulator", bare)


@pytest.mark.parametrize("maxmem", [0, 399, 400])
def test_memory_that_cannot_grow_has_no_balloon(maxmem: int) -> None:
    spec = replace(PVH, maxmem=maxmem)
    assert [element.text for element in find(spec, "memory")] == ["400"]
    assert not find(spec, "currentMemory")
    assert [element.get("model") for element in find(spec, "devices/memballoon")] == ["none"]


@pytest.mark.parametrize(
    ("spec", "orders"),
    [
        (PVH, {}),
        (HVM, {"sda": "1"}),
        (INSTALLER, {"sda": "2", "sdb": "1"}),
        (replace(HVM, disks=()), {}),
        (replace(INSTALLER, disks=(CDROM,)), {"sdb": "1"}),
        (replace(PVH, disks=(*PVH.disks, CDROM)), {}),
    ],
)
def test_what_the_firmware_boots(spec: DomainSpec, orders: dict[str, str]) -> None:
    disks = find(spec, "devices/disk[boot]")
    found = {disk.find("target").get("dev"): disk.find("boot").get("order") for disk in disks}  # type: ignore[union-attr]
    assert found == orders


def test_warnings_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build_domain_xml(replace(PVH, warnings=("the clock shows UTC",)), TCG)
    assert caplog.messages == ["work: the clock shows UTC"]


TEXTS = st.text(max_size=40)
SPECS = st.builds(
    DomainSpec,
    uuid=TEXTS,
    name=TEXTS,
    virt_mode=st.sampled_from(sorted(MODES)),
    memory=st.integers(),
    vcpus=st.integers(),
    boot=st.sampled_from(Boot),
    disks=st.lists(st.builds(Disk, path=TEXTS, target=TEXTS, format=TEXTS, device=TEXTS), max_size=3).map(tuple),
    channels=st.lists(st.builds(Channel, name=TEXTS, path=TEXTS), max_size=2).map(tuple),
    console_log=TEXTS,
    kernel=TEXTS,
    kernelopts=TEXTS,
    has_display=st.booleans(),
    display_socket=TEXTS,
    maxmem=st.integers(),
    clock=st.builds(Clock, basis=st.sampled_from(Basis), offset=st.integers()),
)


@given(SPECS, st.sampled_from([TCG, KVM, XEN]))
def test_any_values_give_xml_that_holds_them_or_a_refusal(spec: DomainSpec, host: HostCapabilities) -> None:
    try:
        xml = build_domain_xml(spec, host)
    except HypervisorError:
        return
    root = etree.fromstring(xml)
    # XML turns carriage returns within text into line feeds unless they are escaped, as lxml does.
    assert (root.findtext("name") or "") == spec.name
    assert (root.findtext("uuid") or "") == spec.uuid
    assert len(root.findall("devices/disk")) == len(spec.disks)
    assert {child.tag for child in root} <= {
        *("name", "uuid", "memory", "currentMemory", "vcpu", "sysinfo", "os", "features", "cpu", "clock", "devices"),
        *("on_poweroff", "on_reboot", "on_crash", "{http://libvirt.org/schemas/domain/qemu/1.0}override"),
        "{http://libvirt.org/schemas/domain/xen/1.0}commandline",
    }


def test_libvirt_does_not_know_the_port_of_qemus_agent_by_its_name() -> None:
    targets = [target.get("name") for target in find(PVH, "devices/channel/target")]
    assert targets == ["org.crannog.agent.0", "org.crannog.qemu-agent.0"], "it would connect to the right name itself"
    sources = [source.get("path") for source in find(PVH, "devices/channel/source")]
    assert sources == ["/home/vm/run/agent-work.sock", "/home/vm/run/agent-work.qga"]
    alias = find(PVH, "devices/channel/alias")[0].get("name")
    prefix = "{http://libvirt.org/schemas/domain/qemu/1.0}"
    (device,) = find(PVH, f"{prefix}override/{prefix}device")
    assert device.get("alias") == alias
    (prop,) = device.iter(f"{prefix}property")
    assert dict(prop.items()) == {"name": "name", "type": "string", "value": "org.qemu.guest_agent.0"}
    assert find(replace(PVH, channels=()), "devices/channel") == []


def test_the_emulator_runs_as_the_user_who_owns_the_files() -> None:
    xml = build_domain_xml(PVH, replace(TCG, runs_as="+1000:+1000"))
    label = etree.fromstring(xml).find("seclabel")
    assert label is not None
    assert dict(label.items()) == {"type": "static", "model": "dac", "relabel": "no"}
    assert label.findtext("label") == "+1000:+1000"
    assert etree.fromstring(build_domain_xml(PVH, TCG)).find("seclabel") is None


def test_the_screen_of_an_hvm_on_xen_is_on_a_unix_socket() -> None:
    prefix = "{http://libvirt.org/schemas/domain/xen/1.0}"

    def words(spec: DomainSpec) -> list[str | None]:
        root = etree.fromstring(build_domain_xml(spec, XEN))
        assert root.find("devices/graphics") is None, "libxl would serve it on TCP"
        return [word.get("value") for word in root.iter(f"{prefix}arg")]

    assert words(replace(HVM, display_socket="/home/a,b/screen.sock")) == ["-vnc", "unix:/home/a,,b/screen.sock"]
    assert words(replace(HVM, display_socket="")) == []
    assert words(replace(HVM, has_display=False)) == []
