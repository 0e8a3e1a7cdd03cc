"""What a user changes in a VM's domain by a file: how it is merged, and what is refused."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from crannog.adapters.libvirt.domain_xml import build_domain_xml
from crannog.adapters.libvirt.xml.override_file import MAX_BYTES, read_override
from crannog.adapters.libvirt.xml.overrides import merge_override
from crannog.config import Paths
from crannog.errors import HypervisorError
from tests.unit.test_libvirt_domain_xml import PVH, SCHEMA, TCG

Merge = Callable[[str], etree._Element]


@pytest.fixture
def merge(tmp_path: Path) -> Merge:
    """Return what makes the domain `work` with an override."""

    def build(text: str) -> etree._Element:
        (tmp_path / "work.xml").write_text(text)
        return etree.fromstring(build_domain_xml(PVH, TCG, str(tmp_path)))

    return build


def values(root: etree._Element, path: str, attribute: str) -> list[str | None]:
    return [element.get(attribute) for element in root.findall(path)]


def test_where_the_files_are() -> None:
    assert Paths("/srv/h", "/c").overrides == "/srv/h/vmm-overrides/by-name"


def test_without_a_file_nothing_changes(tmp_path: Path) -> None:
    (tmp_path / "other.xml").write_text("nonsense")
    assert build_domain_xml(PVH, TCG, str(tmp_path)) == build_domain_xml(PVH, TCG)
    assert build_domain_xml(PVH, TCG, str(tmp_path / "absent")) == build_domain_xml(PVH, TCG)


def test_an_empty_domain_changes_nothing(merge: Merge) -> None:
    assert etree.tostring(merge("<domain/>")) == etree.tostring(etree.fromstring(build_domain_xml(PVH, TCG)))


def test_what_is_the_same_is_replaced_whole(merge: Merge) -> None:
    root = merge("<domain><vcpu>7</vcpu><clock offset='utc'><timer name='hpet' present='no'/></clock></domain>")
    assert [element.text for element in root.findall("vcpu")] == ["7"]
    assert root.find("vcpu").get("placement") is None  # type: ignore[union-attr]
    assert values(root, "clock/timer", "name") == ["hpet"]


def test_properties_of_other_devices_leave_the_port_of_qemus_agent_its_name(merge: Merge) -> None:
    namespace = "http://libvirt.org/schemas/domain/qemu/1.0"
    text = "<qemu:frontend><qemu:property name='x' type='string' value='1'/></qemu:frontend>"
    device = f"<qemu:device alias='ua-x'>{text}</qemu:device>"
    root = merge(f"<domain xmlns:qemu='{namespace}'><qemu:override>{device}</qemu:override></domain>")
    path = f"{{{namespace}}}override/{{{namespace}}}device"
    assert values(root, path, "alias") == ["ua-qemu-agent", "ua-x"]
    path += f"/{{{namespace}}}frontend/{{{namespace}}}property"
    assert values(root, path, "value") == ["org.qemu.guest_agent.0", "1"]


def test_what_is_new_is_added(merge: Merge) -> None:
    root = merge("<domain><memoryBacking><locked/></memoryBacking><devices><watchdog model='itco'/></devices></domain>")
    assert root.find("memoryBacking/locked") is not None
    assert values(root, "devices/watchdog", "model") == ["itco"]
    assert len(root.findall("devices/disk")) == len(PVH.disks)


def test_disks_are_told_apart_by_target(merge: Merge) -> None:
    disk = "<disk type='file' device='disk'><source file='{}'/><target dev='{}' bus='virtio'/></disk>"
    root = merge(f"<domain><devices>{disk.format('/one', 'vdb')}{disk.format('/two', 'vdx')}</devices></domain>")
    found = zip(values(root, "devices/disk/target", "dev"), values(root, "devices/disk/source", "file"), strict=True)
    kept = [(disk.target, disk.path) for disk in PVH.disks]
    assert list(found) == [kept[0], ("vdb", "/one"), *kept[2:], ("vdx", "/two")]
    assert root.find("devices/disk[2]/driver") is None


def test_attributes_of_what_is_merged_override(merge: Merge) -> None:
    root = merge("<domain type='kvm'><cpu mode='custom'><model>qemu64</model></cpu></domain>")
    assert root.get("type") == "kvm"
    cpu = root.find("cpu")
    assert cpu is not None
    assert (cpu.get("mode"), cpu.get("check"), cpu.findtext("model")) == ("custom", "none", "qemu64")


def test_os_and_features_are_merged(merge: Merge) -> None:
    root = merge("<domain><os><cmdline>panic=1</cmdline></os><features><pae/></features></domain>")
    assert root.findtext("os/cmdline") == "panic=1"
    assert root.findtext("os/kernel") == PVH.kernel
    assert [child.tag for child in root.find("features")] == ["acpi", "apic", "pae"]  # type: ignore[union-attr]


def test_devices_without_a_key_are_always_added(merge: Merge) -> None:
    hostdev = "<hostdev mode='subsystem' type='pci'/>"
    assert len(merge(f"<domain><devices>{hostdev}{hostdev}</devices></domain>").findall("devices/hostdev")) == 2


def test_devices_that_there_is_one_of_are_replaced(merge: Merge) -> None:
    root = merge(
        "<domain><devices><memballoon model='virtio'/><rng model='virtio'><backend model='builtin'/></rng>"
        "<emulator>/opt/qemu</emulator></devices></domain>"
    )
    assert values(root, "devices/memballoon", "model") == ["virtio"]
    assert values(root, "devices/rng/backend", "model") == ["builtin"]
    assert [element.text for element in root.findall("devices/emulator")] == ["/opt/qemu"]


def test_the_command_line_of_qemu_can_be_added(merge: Merge) -> None:
    uri = "http://libvirt.org/schemas/domain/qemu/1.0"
    root = merge(f"<domain xmlns:q='{uri}'><q:commandline><q:arg value='-S'/></q:commandline></domain>")
    assert values(root, f"{{{uri}}}commandline/{{{uri}}}arg", "value") == ["-S"]


@pytest.mark.parametrize("kind", ["qemu", "xen"])
def test_words_are_added_to_a_command_line_that_is_there(kind: str) -> None:
    uri = f"http://libvirt.org/schemas/domain/{kind}/1.0"
    line = f"<domain xmlns:k='{uri}'><k:commandline><k:arg value='{{}}'/></k:commandline></domain>"
    ours, theirs = etree.fromstring(line.format("-vnc")), etree.fromstring(line.format("-S"))
    merge_override(ours, theirs, "work.xml")
    assert values(ours, f"{{{uri}}}commandline/{{{uri}}}arg", "value") == ["-vnc", "-S"]


def test_comments_are_ignored(merge: Merge) -> None:
    assert merge("<!-- why --><domain><!-- <name>x</name> --><?odd?><vcpu>3</vcpu></domain>").findtext("vcpu") == "3"


@pytest.mark.skipif(not os.path.exists(SCHEMA), reason="libvirt's schemas are not installed")
def test_what_is_merged_fits_libvirts_schema(merge: Merge) -> None:
    root = merge("<domain><devices><memballoon model='virtio'/><input type='tablet' bus='virtio'/></devices></domain>")
    etree.RelaxNG(etree.parse(SCHEMA)).assertValid(root)


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        ("", 1, "this is no XML"),
        ("<domain>", 1, "this is no XML"),
        ("<domain>\n<vcpu>\n</domain>", 3, "this is no XML"),
        ("<domain>\n\n<name>evil</name></domain>", 3, "<name> cannot be overridden; use 'qvm-prefs VM name'"),
        ("<domain>\n<uuid>0</uuid></domain>", 2, "<uuid> cannot be overridden$"),
        ("<domain><memory>9</memory></domain>", 1, "<memory> cannot be overridden; use 'qvm-prefs VM memory'"),
        ("<domain><currentMemory>9</currentMemory></domain>", 1, "<currentMemory> cannot be overridden"),
        ("<domain><maxMemory slots='1'>9</maxMemory></domain>", 1, "use 'qvm-prefs VM maxmem'"),
        ("<network/>", 1, "the first element is <network>; it must be <domain>"),
        ("<domain><devices>\n<disk/></devices></domain>", 2, "<disk> has no target/@dev, which says which one it is"),
        ("<domain><devices><graphics/></devices></domain>", 1, "<graphics> has no @type"),
        ("<!DOCTYPE domain>\n<domain/>", 1, "a document type has no place here"),
        ('<!DOCTYPE d [<!ENTITY x SYSTEM "/etc/passwd">]><domain><title>&x;</title></domain>', 1, "a document type"),
        ("<domain><title>&x;</title></domain>", 1, "this is no XML: Entity 'x' not defined"),
        ("<domain" + "><a" * 300 + "/>", 1, "this is no XML"),
    ],
)
def test_refusals_name_file_and_line(text: str, line: int, sentence: str, merge: Merge, tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match=sentence) as caught:
        merge(text)
    assert str(caught.value).startswith(f"{tmp_path}/work.xml:{line}: ")
    assert "\n" not in str(caught.value)


def test_entities_bring_nothing_in(tmp_path: Path, merge: Merge) -> None:
    """Neither a file of the host nor gigabytes of text."""
    (tmp_path / "secret").write_text("secret")
    steps = zip("abcdefg", "bcdefgh", strict=True)
    bomb = '<!ENTITY a "aaaaaaaaaa">' + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in steps)
    for entities in (f'<!ENTITY h SYSTEM "{tmp_path}/secret">', bomb):
        with pytest.raises(HypervisorError):
            merge(f"<!DOCTYPE domain [{entities}]><domain><title>&h;</title></domain>")


def test_a_long_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "work.xml"
    path.write_bytes(b"<domain>" + b" " * MAX_BYTES + b"</domain>")
    with pytest.raises(HypervisorError, match="is longer than 256 KiB; keep only what differs"):
        read_override(str(path))


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_regular_file_is_refused(make: Callable[[str], None], tmp_path: Path) -> None:
    path = f"{tmp_path}/work.xml"
    make(path)
    with pytest.raises(HypervisorError, match=r"work\.xml (is not a regular file|cannot be read)"):
        read_override(path)


def test_a_link_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "work.xml").symlink_to("work.xml")
    with pytest.raises(HypervisorError, match=r"cannot be read: .*; mend or remove it"):
        read_override(f"{tmp_path}/work.xml")


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> int:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "work.xml"
    path.touch()
    monkeypatch.setattr(os, "open", refuse)  # root, who may run the tests, may read everything
    with pytest.raises(HypervisorError, match="Permission denied"):
        read_override(str(path))


PIECES = st.sampled_from(
    ["<domain>", "</domain>", "<devices>", "</devices>", "<disk>", "</disk>", "<target dev='vda'/>", "<vcpu/>",
     "<name/>", "<!--", "-->", "&lt;", "&x;", "<![CDATA[", "]]>", "<?x?>", "<cpu mode='&#9;'/>", "\0", "<a xmlns='b'/>"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=12).map("".join))
def test_any_file_is_merged_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = f"{tmp_path_factory.getbasetemp()}/any.xml"
    Path(path).write_text(f"<domain>{text}</domain>")
    domain = etree.fromstring(build_domain_xml(PVH, TCG))
    with contextlib.suppress(HypervisorError):
        override = read_override(path)
        assert override is not None
        merge_override(domain, override, path)
    assert domain.findtext("name") == "work"
    etree.fromstring(etree.tostring(domain))
