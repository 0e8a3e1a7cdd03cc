"""Registry files of Qubes R1 to R3: what has a place in R4 is taken over, what has none is said, or refused."""

import time
import uuid
from collections.abc import Mapping
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from crannog.adapters.store import qubes_xml, r3_document
from crannog.adapters.store.qubes_xml import Document
from crannog.adapters.store.r4_writer import R4Writer
from crannog.core.registry import Registry
from crannog.core.vms import ADMIN_NAME, QubeBase
from crannog.core.volumes import DEFAULT_SIZES, GIB
from crannog.errors import StorageError

TEMPLATE_UUID = "5b1c8c0e-0d9e-4a53-a1d5-3c7a0e4a0001"

R3_2 = f"""<QubesVmCollection clockvm="2" default_fw_netvm="2" default_kernel="4.1.13" default_netvm="3"
    default_template="1" updatevm="3">
<QubesAdminVm qid="0" name="dom0" label="black" memory="2048" maxmem="4096" vcpus="2" services="{{'x': True}}"
    netvm_qid="none" include_in_backups="False" backup_content="True" backup_path="/mnt/one" backup_size="123"/>
<QubesTemplateVm qid="1" name="heather" uuid="{TEMPLATE_UUID}" label="black" template_qid="none" netvm_qid="3"
    uses_default_netvm="True" memory="400" maxmem="4000" vcpus="2" kernel="4.1.13" uses_default_kernel="True"
    kernelopts="nopat" uses_default_kernelopts="True" default_user="user" debug="False" autostart="False"
    include_in_backups="True" installed_by_rpm="True" qrexec_timeout="60" internal="False" pool_name="default"
    services="{{ 'meminfo-writer': True}}" pcidevs="[]" pci_strictreset="True" pci_e820_host="True"
    backup_content="False" backup_path="" backup_size="0" backup_timestamp="" dir_path="/var/lib/qubes/vm-templates/h"
    conf_file="h.conf" firewall_conf="firewall.xml" root_img="root.img" private_img="private.img"
    volatile_img="volatile.img" dispvm_netvm="none" uses_default_dispvm_netvm="True"/>
<QubesNetVm qid="2" name="burn" label="red" template_qid="1" netvm_qid="none" memory="300" maxmem="300" vcpus="2"
    netid="1" services="{{'meminfo-writer': False, 'ntpd': False}}" pcidevs="['03:00.0', '00:19.0']"
    pci_strictreset="False" autostart="True" uses_default_kernelopts="False" kernelopts="iommu=soft"/>
<QubesProxyVm qid="3" name="weir" label="green" template_qid="1" netvm_qid="2" memory="300" maxmem="2000" vcpus="2"
    netid="2" services="{{'meminfo-writer': True}}" pcidevs="[]" autostart="True"/>
<QubesAppVm qid="5" name="loch" label="yellow" template_qid="1" netvm_qid="3" memory="512" maxmem="2048" vcpus="4"
    debug="True" default_user="ewan" qrexec_timeout="90" mac="00:16:3E:5E:6C:09" backup_timestamp="1400000000"
    backup_content="True" backup_path="/mnt/two" backup_size="4711" internal="True" uses_default_kernel="False"
    kernel="3.18.17" services="{{'meminfo-writer': True, 'qubes-update-check': False, 'cups': True}}"/>
<QubesAppVm qid="6" name="isle" label="blue" template_qid="1" uses_default_netvm="False" netvm_qid="none"
    memory="400" maxmem="4000" vcpus="4"/>
<QubesAppVm qid="7" name="croft" label="gray" template_qid="none" uses_default_netvm="False" netvm_qid="2"
    memory="400" maxmem="4000" vcpus="4" uses_default_kernel="False" kernel="None"/>
<QubesTemplateHVm qid="8" name="panes" label="orange" memory="1024" vcpus="2" qrexec_installed="True"
    guiagent_installed="True" seamless_gui_mode="False" drive="None" timezone="localtime"/>
<QubesHVm qid="9" name="pane" label="purple" template_qid="8" memory="1024" maxmem="1024" vcpus="2"
    qrexec_installed="True" guiagent_installed="True" seamless_gui_mode="True" timezone="3600"/>
<QubesHVm qid="10" name="box" label="red" template_qid="none" memory="2000" vcpus="1" qrexec_installed="False"
    guiagent_installed="False" drive="cdrom:dom0:/srv/os.iso"/>
</QubesVmCollection>
"""

R2 = """<QubesVmCollection default_template="1" default_netvm="2" default_kernel="None" updatevm="none" clockvm="None">
<QubesTemplateVm qid="1" name="furrow" label="black" memory="400" maxmem="2000" vcpus="2"
  services="{'meminfo-writer': True}" pcidevs="none" dir_path="/var/lib/qubes/vm-templates/furrow"/>
<QubesNetVm qid="2" name="cable" label="red" template_qid="1" memory="200" maxmem="200" vcpus="2" kernels_dir="k"
  services="{u'ntpd': False}" pcidevs="00:1b.0, 00:1d.0"/>
<QubesAppVm qid="3" name="field" label="green" template_qid="1" memory="400" maxmem="2000" vcpus="2" type="AppVM"
  updateable="False"/>
</QubesVmCollection>
"""


def load(text: str) -> Document:
    return qubes_xml.from_bytes(text.encode(), {"4.1.13"})


def element(tag: str, attributes: Mapping[str, str], inside: str = "") -> str:
    return f"<{tag} {' '.join(f'{name}={quoteattr(value)}' for name, value in attributes.items())}>{inside}</{tag}>"


def document(attributes: Mapping[str, str], tag: str = "QubesAppVm", root: str = "", more: str = "") -> str:
    """Return a file with a template in line 2 and in line 3 the VM `loch` that has these attributes too."""
    vm = {"qid": "5", "name": "loch", "label": "red", **attributes}
    lines = [
        f"<QubesVmCollection {root}>",
        element("QubesTemplateVm", {"qid": "1", "name": "heather", "label": "black"}),
        element(tag, vm),
        more,
        "</QubesVmCollection>",
    ]
    return "\n".join(lines)


def vm_of(attributes: Mapping[str, str], tag: str = "QubesAppVm", root: str = "") -> tuple[QubeBase, list[str]]:
    """Return the VM, and what is said of it."""
    read = load(document(attributes, tag, root))
    return read.registry.find_vm("loch"), [remark for remark in read.remarks if "'loch'" in remark]


def content(registry: Registry) -> object:
    """Return everything that a registry holds, as plain values that can be compared."""

    def plain(values: dict[str, object]) -> dict[str, str]:
        return {name: f"{type(value).__name__} {value}" for name, value in values.items()}

    vms = [(vm.klass, plain(vm.values), vm.features, vm.tags, vm.volumes, vm.devices, vm.foreign) for vm in registry]
    return plain(registry.values), registry.foreign, registry.labels, sorted(vms, key=lambda vm: vm[1]["qid"])


def check_comes_back(registry: Registry) -> None:
    again = qubes_xml.from_bytes(R4Writer().to_bytes(registry), registry.kernels)
    assert not again.is_old
    assert content(again.registry) == content(registry)


@pytest.fixture(scope="module")
def r3() -> Document:
    return load(R3_2)


def plain(vm: QubeBase) -> dict[str, str]:
    """Return the VM's own values as texts, without what tells VMs apart."""
    left_out = ("name", "uuid", "qid")
    return {name: vm.declared()[name].kind.format(value) for name, value in vm.values.items() if name not in left_out}


def test_a_whole_file_of_r3(r3: Document) -> None:
    assert r3.is_old
    assert {vm.name: (vm.qid, vm.klass) for vm in r3.registry} == {
        "dom0": (0, "AdminVM"), "heather": (1, "TemplateVM"), "burn": (2, "AppVM"), "weir": (3, "AppVM"),
        "loch": (5, "AppVM"), "isle": (6, "AppVM"), "croft": (7, "StandaloneVM"), "panes": (8, "TemplateVM"),
        "pane": (9, "AppVM"), "box": (10, "StandaloneVM"),
    }  # fmt: skip
    assert {name: str(value) for name, value in r3.registry.values.items()} == {
        "default_template": "heather", "default_netvm": "weir", "updatevm": "weir", "clockvm": "burn",
        "default_kernel": "4.1.13",
    }  # fmt: skip
    assert r3.registry.find_vm("heather").uuid == TEMPLATE_UUID
    check_comes_back(r3.registry)


def test_all_remarks_of_a_whole_file(r3: Document) -> None:
    """Three things of it have no place, and all files lack disks and firewall rules."""
    template, nothing_there, drive, images = sorted(r3.remarks, key=lambda remark: "not in qubes.xml" in remark)
    assert "'heather'" in template
    assert "no netvm now" in template
    assert "'panes'" in nothing_there
    assert "'box'" in drive
    assert "'cdrom:dom0:/srv/os.iso'" in drive
    assert "qvm-start --cdrom" in drive
    assert "firewall rules" in images
    assert "empty until images are imported" in images


@pytest.mark.parametrize(
    ("name", "properties"),
    [
        ("dom0", {"label": "black", "include_in_backups": "False"}),
        (
            "heather",
            {
                "label": "black", "virt_mode": "pv", "memory": "400", "maxmem": "4000", "vcpus": "2", "debug": "False",
                "autostart": "False", "include_in_backups": "True", "installed_by_rpm": "True", "qrexec_timeout": "60",
                "default_user": "user",
            },
        ),
        (
            "burn",
            {
                "label": "red", "virt_mode": "pv", "memory": "300", "maxmem": "300", "vcpus": "2", "autostart": "True",
                "template": "heather", "netvm": "", "provides_network": "True", "kernelopts": "iommu=soft",
            },
        ),
        (
            "weir",
            {
                "label": "green", "virt_mode": "pv", "memory": "300", "maxmem": "2000", "vcpus": "2",
                "autostart": "True", "template": "heather", "netvm": "burn", "provides_network": "True",
            },
        ),
        (
            "loch",
            {
                "label": "yellow", "virt_mode": "pv", "memory": "512", "maxmem": "2048", "vcpus": "4", "debug": "True",
                "default_user": "ewan", "qrexec_timeout": "90", "mac": "00:16:3e:5e:6c:09", "template": "heather",
                "backup_timestamp": "1400000000", "kernel": "3.18.17",
            },
        ),
        (
            "isle",
            {
                "label": "blue", "virt_mode": "pv", "memory": "400", "maxmem": "4000", "vcpus": "4",
                "template": "heather", "netvm": "",
            },
        ),
        (
            "croft",
            {
                "label": "gray", "virt_mode": "pv", "memory": "400", "maxmem": "4000", "vcpus": "4", "netvm": "burn",
                "kernel": "",
            },
        ),
        ("panes", {"label": "orange", "virt_mode": "hvm", "memory": "1024", "vcpus": "2"}),
        ("pane", {"label": "purple", "virt_mode": "hvm", "memory": "1024", "vcpus": "2", "template": "panes"}),
        ("box", {"label": "red", "virt_mode": "hvm", "memory": "2000", "vcpus": "1"}),
    ],
)  # fmt: skip
def test_the_properties_of_a_vm(r3: Document, name: str, properties: dict[str, str]) -> None:
    assert plain(r3.registry.find_vm(name)) == properties


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("dom0", {"backup-content": "1", "backup-path": "/mnt/one", "backup-size": "123"}),
        ("heather", {"qrexec": "1", "gui": "1", "service.meminfo-writer": "1"}),
        ("burn", {"service.meminfo-writer": "", "service.ntpd": ""}),
        (
            "loch",
            {
                "backup-content": "1", "backup-path": "/mnt/two", "backup-size": "4711", "internal": "1",
                "service.meminfo-writer": "1", "check-updates": "", "service.cups": "1",
            },
        ),
        ("isle", {}),
        ("croft", {"qrexec": "1", "gui": "1"}),
        ("panes", {"qrexec": "1", "gui": "1"}),
        ("pane", {"qrexec": "1", "gui": "1", "seamless-gui-mode": "1", "timezone": "3600"}),
        ("box", {"qrexec": "", "gui": "", "drive": "cdrom:dom0:/srv/os.iso"}),
    ],
)  # fmt: skip
def test_the_features_of_a_vm(r3: Document, name: str, features: dict[str, str]) -> None:
    assert r3.registry.find_vm(name).features == features


def test_pci_devices(r3: Document) -> None:
    devices = r3.registry.find_vm("burn").devices
    assert [(device.devclass, device.backend, device.port) for device in devices] == [
        ("pci", ADMIN_NAME, "03_00.0"),
        ("pci", ADMIN_NAME, "00_19.0"),
    ]
    assert {device.options for device in devices} == {(("no-strict-reset", "True"),)}
    assert r3.registry.find_vm("burn").get("virt_mode") == "pv"


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("none", []),
        ("[]", []),
        (" ['00:1B.0', '00:1b.0'] ", ["00_1b.0"]),
        ("00:1b.0", ["00_1b.0"]),
        ("00:1b.0,03:00.1", ["00_1b.0", "03_00.1"]),
    ],
)
def test_the_forms_of_pcidevs(text: str, ports: list[str]) -> None:
    vm, _ = vm_of({"pcidevs": text, "pci_strictreset": "True"})
    assert [device.port for device in vm.devices] == ports
    assert not any(device.options for device in vm.devices)


def test_volumes_are_those_of_a_new_vm(r3: Document) -> None:
    """As registry.draft makes them, in the pool that every home has."""
    for vm in r3.registry.local_vms():
        fresh = Registry()
        template = fresh.create("TemplateVM", "t", str(uuid.UUID(int=1)), None)
        twin = fresh.create(vm.klass, vm.name, vm.uuid, template if vm.is_template_based else None)
        assert vm.volumes == twin.volumes
    sizes = {name: volume.size for name, volume in r3.registry.find_vm("box").volumes.items()}
    assert sizes == DEFAULT_SIZES
    assert sizes["root"] > GIB
    assert not r3.registry.dom0.volumes


def test_a_whole_file_of_r2() -> None:
    read = load(R2)
    registry = read.registry
    assert {vm.name: vm.klass for vm in registry} == {
        "dom0": "AdminVM", "furrow": "TemplateVM", "cable": "AppVM", "field": "AppVM",
    }  # fmt: skip
    assert {name: str(value) for name, value in registry.values.items()} == {
        "default_template": "furrow", "default_netvm": "cable", "updatevm": "None", "clockvm": "None",
        "default_kernel": "",
    }  # fmt: skip
    assert set(registry.dom0.values) == {"name", "uuid", "qid"}
    assert [device.port for device in registry.find_vm("cable").devices] == ["00_1b.0", "00_1d.0"]
    assert registry.find_vm("cable").features == {"service.ntpd": ""}
    assert registry.find_vm("field").get("netvm") is registry.find_vm("cable")
    assert len(read.remarks) == 2
    check_comes_back(registry)


def test_a_uuid_that_is_missing_is_the_same_at_each_reading() -> None:
    first, second = load(R2).registry, load(R2).registry
    uuids = [vm.uuid for vm in first]
    assert uuids == [vm.uuid for vm in second]
    assert len(set(uuids)) == len(uuids)


def test_a_uuid_is_taken_in_its_usual_form() -> None:
    assert vm_of({"uuid": TEMPLATE_UUID.upper()})[0].uuid == TEMPLATE_UUID
    assert vm_of({"uuid": "None"})[0].uuid == vm_of({})[0].uuid


def test_an_empty_file() -> None:
    read = load("<QubesVmCollection/>")
    assert [vm.name for vm in read.registry] == ["dom0"]
    assert read.remarks == ()


def test_where_the_document_has_its_parts() -> None:
    root, remarks = r3_document.convert(etree.fromstring(R3_2.encode()))
    assert [child.tag for child in root] == ["properties", "domains"]
    lines = [int(str(domain.sourceline)) for domain in root[1]]
    assert len(lines) == 10
    assert lines == sorted(set(lines))
    assert all(remark == remark.strip() and "\n" not in remark for remark in remarks)


def test_comments_are_no_part_of_it() -> None:
    text = document({}).replace("><", "><!-- one --><?two?><")
    _, remarks = r3_document.convert(etree.fromstring(text.encode()))
    assert len(remarks) == 1


@pytest.mark.parametrize(
    ("tag", "attributes", "root", "netvm", "is_own"),
    [
        ("QubesAppVm", {"netvm_qid": "none"}, "", "", False),
        ("QubesAppVm", {"netvm_qid": "none"}, "default_netvm='7'", "gate", False),
        ("QubesAppVm", {"netvm_qid": "7", "uses_default_netvm": "False"}, "", "gate", True),
        ("QubesAppVm", {"netvm_qid": "", "uses_default_netvm": "False"}, "default_netvm='7'", "", True),
        ("QubesAppVm", {"uses_default_netvm": "False"}, "default_netvm='7'", "", True),
        ("QubesHVm", {"uses_default_netvm": "True"}, "default_netvm='7'", "gate", False),
        ("QubesProxyVm", {"netvm_qid": "7"}, "default_netvm='7' default_fw_netvm='none'", "", True),
        ("QubesProxyVm", {"uses_default_netvm": "True"}, "default_fw_netvm='7'", "gate", True),
        ("QubesProxyVm", {"uses_default_netvm": "False"}, "default_fw_netvm='7'", "", True),
        ("QubesProxyVm", {"uses_default_netvm": "False", "netvm_qid": "7"}, "", "gate", True),
        ("QubesNetVm", {"uses_default_netvm": "False"}, "default_netvm='7'", "", True),
        ("QubesNetVm", {}, "default_netvm='7'", "", True),
        ("QubesTemplateVm", {"netvm_qid": "7", "uses_default_netvm": "False"}, "", "gate", True),
    ],
)
def test_the_netvm(tag: str, attributes: dict[str, str], root: str, netvm: str, is_own: bool) -> None:
    gate = element("QubesNetVm", {"qid": "7", "name": "gate", "label": "red"})
    read = load(document(attributes, tag, root, gate))
    vm = read.registry.find_vm("loch")
    assert str(vm.get("netvm") or "") == netvm
    assert ("netvm" in vm.values) is is_own
    assert not [remark for remark in read.remarks if "'loch'" in remark]


@pytest.mark.parametrize(
    ("tag", "attributes", "root", "words"),
    [
        ("QubesProxyVm", {"netvm_qid": "7"}, "default_netvm='7'", "default for ProxyVMs, which the file does not name"),
        ("QubesTemplateVm", {}, "default_netvm='7'", "default netvm is not for templates"),
        ("QubesNetVm", {"netvm_qid": "7"}, "", "its netvm 'gate' is left out"),
    ],
)
def test_a_netvm_that_is_lost(tag: str, attributes: dict[str, str], root: str, words: str) -> None:
    gate = element("QubesNetVm", {"qid": "7", "name": "gate", "label": "red"})
    read = load(document(attributes, tag, root, gate))
    assert read.registry.find_vm("loch").get("netvm") is None
    assert any(words in remark for remark in read.remarks if "'loch'" in remark)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"dispvm_netvm": "7", "uses_default_dispvm_netvm": "False"}, "network from 'gate'"),
        ({"dispvm_netvm": "none", "uses_default_dispvm_netvm": "False"}, "had no network"),
        ({"dispvm_netvm": "7", "uses_default_dispvm_netvm": "True"}, ""),
        ({"dispvm_netvm": "7"}, ""),
    ],
)
def test_the_netvm_of_disposables_is_only_said(attributes: dict[str, str], words: str) -> None:
    gate = element("QubesNetVm", {"qid": "7", "name": "gate", "label": "red"})
    remarks = [remark for remark in load(document(attributes, more=gate)).remarks if "disposables" in remark]
    assert len(remarks) == bool(words)
    assert all("'loch'" in remark and words in remark for remark in remarks)


@pytest.mark.parametrize(
    ("tag", "attributes", "klass", "features"),
    [
        ("QubesAppVm", {"template_qid": "1"}, "AppVM", {}),
        ("QubesAppVm", {"template_qid": "none"}, "StandaloneVM", {"qrexec": "1", "gui": "1"}),
        ("QubesAppVm", {}, "StandaloneVM", {"qrexec": "1", "gui": "1"}),
        ("QubesNetVm", {}, "StandaloneVM", {"qrexec": "1", "gui": "1"}),
        ("QubesProxyVm", {"template_qid": "1"}, "AppVM", {}),
        ("QubesTemplateVm", {"template_qid": "None"}, "TemplateVM", {"qrexec": "1", "gui": "1"}),
        ("QubesTemplateHVm", {}, "TemplateVM", {}),
        ("QubesHVm", {}, "StandaloneVM", {}),
    ],
)
def test_the_class_of_a_vm(tag: str, attributes: dict[str, str], klass: str, features: dict[str, str]) -> None:
    vm, _ = vm_of(attributes, tag)
    assert (vm.klass, vm.features) == (klass, features)
    assert vm.values["virt_mode"] == ("hvm" if tag.endswith("HVm") else "pv")
    assert bool(vm.get("provides_network")) is (tag in {"QubesNetVm", "QubesProxyVm"})


@pytest.mark.parametrize(
    ("tag", "name", "text", "feature", "value"),
    [
        ("QubesAppVm", "internal", "True", "internal", "1"),
        ("QubesAppVm", "internal", "False", "internal", None),
        ("QubesAppVm", "pci_e820_host", "False", "pci-e820-host", ""),
        ("QubesAppVm", "pci_e820_host", "True", "pci-e820-host", None),
        ("QubesAppVm", "backup_content", "False", "backup-content", None),
        ("QubesAppVm", "backup_path", "/mnt", "backup-path", None),
        ("QubesAppVm", "services", "{}", "service.", None),
        ("QubesAppVm", "services", "", "service.", None),
        ("QubesAppVm", "services", "{'qubes-update-check': True}", "check-updates", "1"),
        ("QubesHVm", "qrexec_installed", "True", "qrexec", "1"),
        ("QubesHVm", "qrexec_installed", "False", "qrexec", ""),
        ("QubesHVm", "guiagent_installed", "True", "gui", "1"),
        ("QubesHVm", "guiagent_installed", "False", "gui", ""),
        ("QubesHVm", "seamless_gui_mode", "False", "seamless-gui-mode", None),
        ("QubesHVm", "timezone", "localtime", "timezone", None),
        ("QubesHVm", "timezone", "-7200", "timezone", "-7200"),
        ("QubesHVm", "drive", "None", "drive", None),
    ],
)
def test_what_becomes_a_feature(tag: str, name: str, text: str, feature: str, value: str | None) -> None:
    vm, remarks = vm_of({name: text}, tag)
    assert vm.features.get(feature) == value
    assert not remarks


@pytest.mark.parametrize(
    ("name", "text", "prop", "value"),
    [
        ("kernel", "4.1.13", "kernel", None),
        ("kernelopts", "nopat", "kernelopts", None),
        ("mac", "None", "mac", None),
        ("mac", "", "mac", None),
        ("backup_timestamp", "", "backup_timestamp", None),
        ("memory", "64", "memory", 64),
        ("vcpus", "255", "vcpus", 255),
        ("autostart", "True", "autostart", True),
        ("include_in_backups", "False", "include_in_backups", False),
        ("default_user", "root", "default_user", "root"),
    ],
)
def test_what_becomes_a_property(name: str, text: str, prop: str, value: object) -> None:
    vm, remarks = vm_of({name: text})
    assert vm.values.get(prop) == value
    assert not remarks


@pytest.mark.parametrize(("text", "kernel"), [("4.1.13", "4.1.13"), ("None", ""), ("none", ""), ("", "")])
def test_a_kernel_of_its_own(text: str, kernel: str) -> None:
    vm, _ = vm_of({"kernel": text, "uses_default_kernel": "False"})
    assert vm.values["kernel"] == kernel
    assert vm_of({"kernelopts": "", "uses_default_kernelopts": "False"})[0].values["kernelopts"] == ""


@pytest.mark.parametrize(
    "attributes",
    [
        {"dir_path": "/d"}, {"conf_file": "c"}, {"firewall_conf": "f"}, {"root_img": "r"}, {"private_img": "p"},
        {"volatile_img": "v"}, {"pool_name": "default"}, {"netid": "3"}, {"kernels_dir": "k"}, {"updateable": "True"},
        {"type": "AppVM"}, {"backup_size": "0"}, {"uses_default_kernel": "True"}, {"uses_default_kernelopts": "True"},
    ],
)  # fmt: skip
def test_what_means_nothing_today_is_dropped_without_a_word(attributes: dict[str, str]) -> None:
    vm, remarks = vm_of(attributes)
    assert plain(vm) == plain(vm_of({})[0])
    assert not remarks


@pytest.mark.parametrize(
    ("tag", "attributes", "words"),
    [
        ("QubesAppVm", {"memory": "63"}, "memory is left out: 63"),
        ("QubesAppVm", {"memory": "lots\n\u202e"}, "memory is left out: 'lots"),
        ("QubesAppVm", {"vcpus": "0"}, "vcpus is left out: 0"),
        ("QubesAppVm", {"maxmem": "-1"}, "maxmem is left out: -1"),
        ("QubesAppVm", {"qrexec_timeout": "0"}, "qrexec_timeout is left out: 0"),
        ("QubesAppVm", {"debug": "perhaps"}, "debug is left out"),
        ("QubesAppVm", {"label": "None"}, "label red"),
        ("QubesAppVm", {"label": ""}, "label red"),
        ("QubesAppVm", {"pool_name": "fast"}, "pool 'fast'"),
        ("QubesAppVm", {"services": "{'a b': True, 'ok': True}"}, "feature 'service.a b' is left out"),
        ("QubesAppVm", {"services": r"{'\x00\n': True}"}, r"feature 'service.\x00\n' is left out"),
        ("QubesAppVm", {"backup_content": "True", "backup_path": "/é"}, "feature 'backup-path' is left out"),
        ("QubesAppVm", {"odd": "1", "also_odd": "2"}, "left out: 'also_odd', 'odd'"),
        ("QubesAppVm", {"drive": "hd:dom0:/x"}, "left out: 'drive'"),
        ("QubesHVm", {"drive": "hd:dom0:/x"}, "only kept in feature drive"),
        ("QubesHVm", {"drive": "hd:dom0:/é"}, "feature 'drive' is left out"),
        ("QubesHVm", {"seamless_gui_mode": "True", "guiagent_installed": "False"}, "seamless_gui_mode is left out"),
        ("QubesHVm", {"seamless_gui_mode": "True"}, "seamless_gui_mode is left out"),
        ("QubesTemplateVm", {"template_qid": "1"}, "its template 'heather' is left out"),
    ],
)
def test_what_cannot_be_taken_over_is_said(tag: str, attributes: dict[str, str], words: str) -> None:
    vm, remarks = vm_of(attributes, tag)
    assert len(remarks) == 1
    assert words in remarks[0]
    assert remarks[0].isprintable()
    assert not set(vm.values) & {"memory", "vcpus", "maxmem", "qrexec_timeout", "debug"}
    assert "seamless-gui-mode" not in vm.features
    check_comes_back(vm.registry)


def test_a_long_list_of_odd_things_is_cut() -> None:
    _, remarks = vm_of({f"odd{number:03}": "" for number in range(500)})
    assert "'odd019' and 480 more" in remarks[0]


def test_elements_that_are_not_known_are_said() -> None:
    text = document({}, more="<mystery/>", root="odd='1'").replace("></QubesAppVm>", "><riddle/></QubesAppVm>")
    remarks = load(text).remarks
    assert any("'<mystery>', 'odd'" in remark for remark in remarks)
    assert any("'loch'" in remark and "'<riddle>'" in remark for remark in remarks)


def test_of_dom0_nothing_is_kept_that_is_not_its_own() -> None:
    read = load(
        "<QubesVmCollection><QubesAdminVm qid='0' memory='1' maxmem='1' vcpus='9' services='nonsense' pcidevs='x' "
        "drive='y' odd='z'/></QubesVmCollection>"
    )
    assert not read.registry.dom0.features
    assert set(read.registry.dom0.values) == {"name", "uuid", "qid"}
    assert read.remarks == ("VM 'dom0': these mean nothing today and are left out: 'odd'",)


@pytest.mark.parametrize("tag", ["QubesDisposableVm", "QubesCowVm", "QubesDom0NetVm", "Other"])
def test_vms_of_other_classes_are_left_out(tag: str) -> None:
    other = element(tag, {"qid": "8", "name": "bygone", "template_qid": "99"})
    read = load(document({}, more=other))
    assert {vm.name for vm in read.registry} == {"dom0", "heather", "loch"}
    assert any("'bygone' is left out" in remark for remark in read.remarks)
    with pytest.raises(StorageError, match=r"line 3: VM 'loch': netvm_qid .* '8', which cannot be taken over"):
        load(document({"netvm_qid": "8"}, more=other))


def test_a_dom0_that_was_a_netvm_is_not_taken_for_todays() -> None:
    old = element("QubesDom0NetVm", {"qid": "0", "name": "dom0"})
    assert load(document({}, more=old)).registry.dom0.name == "dom0"
    with pytest.raises(StorageError, match="which cannot be taken over"):
        load(document({"netvm_qid": "0"}, more=old))


@pytest.mark.parametrize("attribute", ["template_qid", "netvm_qid", "dispvm_netvm"])
@pytest.mark.parametrize("text", ["99", "x", "-1", "9" * 5000, "1 "])
def test_a_reference_of_a_vm_that_leads_nowhere(attribute: str, text: str) -> None:
    with pytest.raises(StorageError, match=rf"^line 3: VM 'loch': {attribute} refers to .* which is not there$"):
        load(document({attribute: text}))


@pytest.mark.parametrize("attribute", ["default_template", "default_netvm", "default_fw_netvm", "updatevm", "clockvm"])
def test_a_reference_of_the_file_that_leads_nowhere(attribute: str) -> None:
    with pytest.raises(StorageError, match=f"^line 1: {attribute} refers to the VM with qid '99', which is not there$"):
        load(document({}, root=f"{attribute}='99'"))


@pytest.mark.parametrize(
    ("tag", "attributes", "line", "words"),
    [
        ("QubesAppVm", {"qid": "x"}, 3, "'loch': its qid 'x' is no number"),
        ("QubesAppVm", {"qid": ""}, 3, "'loch': it has no qid"),
        ("QubesAppVm", {"qid": "-5"}, 3, "no number"),
        ("QubesAppVm", {"qid": "\u0665"}, 3, "no number"),
        ("QubesAppVm", {"qid": "9" * 5000}, 3, "no number"),
        ("QubesAppVm", {"qid": "9999999999"}, 3, "malformed UUID or qid"),
        ("QubesAppVm", {"qid": "01"}, 3, "'loch': its qid 1 is that of another VM"),
        ("QubesAppVm", {"qid": "0"}, 3, "number of dom0"),
        ("QubesAdminVm", {"qid": "5"}, 3, "number of dom0"),
        ("QubesCowVm", {"qid": "1"}, 3, "another VM"),
        ("QubesDisposableVm", {"qid": "x"}, 3, "no number"),
        ("QubesAppVm", {"name": ""}, 3, "the VM with qid 5 has no name"),
        ("QubesAppVm", {"name": "None"}, 3, "the VM with qid 5 has no name"),
        ("QubesAppVm", {"name": "dom0"}, 3, "reserved"),
        ("QubesAppVm", {"name": "../../etc"}, 3, "cannot be the name"),
        ("QubesAppVm", {"name": "heather"}, 3, "shares its name"),
        ("QubesAppVm", {"uuid": "x"}, 3, "'loch': its UUID 'x' is none"),
        ("QubesAppVm", {"uuid": str(uuid.UUID(int=0))}, 3, "shares its name, UUID"),
        ("QubesAppVm", {"label": "pink"}, 3, "no label 'pink'"),
        ("QubesAppVm", {"default_user": "a b"}, 3, "not a user name"),
        ("QubesAppVm", {"mac": "x"}, 3, "MAC"),
        ("QubesAppVm", {"template_qid": "0"}, 3, "which is not a template"),
        ("QubesAppVm", {"template_qid": "5"}, 3, "which is not a template"),
        ("QubesAppVm", {"netvm_qid": "1", "uses_default_netvm": "False"}, 3, "provides no network"),
        ("QubesProxyVm", {"netvm_qid": "5", "uses_default_netvm": "False"}, 3, "loops"),
        ("QubesAppVm", {"kernelopts": "é", "uses_default_kernelopts": "False"}, 3, "ASCII"),
    ],
)
def test_what_is_broken_is_refused(tag: str, attributes: dict[str, str], line: int, words: str) -> None:
    with pytest.raises(StorageError, match=f"^line {line}: ") as caught:
        load(document(attributes, tag))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("attribute", "words"), [("default_template", "not a template"), ("default_netvm", "provides no network")]
)
def test_a_default_that_cannot_be_one(attribute: str, words: str) -> None:
    with pytest.raises(StorageError, match=f"^line 1: .*{words}"):
        load(document({}, root=f"{attribute}='5'"))


def test_a_vm_without_any_attribute() -> None:
    for tag in ("QubesAppVm", "QubesDisposableVm", "QubesAdminVm"):
        with pytest.raises(StorageError, match=r"^line 2: VM '': it has no qid$"):
            load(f"<QubesVmCollection>\n<{tag}/></QubesVmCollection>")


LITERALS = {
    "nothing": "   x",
    "a call": "__import__('os').system('true')",
    "a comprehension": "{str(n): True for n in range(9)}",
    "a list": "['meminfo-writer']",
    "numbers": "{'a': 1}",
    "names that are numbers": "{1: True}",
    "a name that is a list": "{[]: True}",
    "unpacking": "{**{}}",
    "a dictionary in it": "{'a': {'b': True}}",
    "brackets": "[" * 60_000,
    "braces": "{'a':" * 12_000,
    "minus signs": "-" * 60_000 + "1",
    "a sum": "1" + "+1" * 30_000,
    "calls": "a" + "()" * 30_000,
    "negations": "not " * 15_000 + "True",
    "lambdas": "lambda:" * 9000 + "1",
    "digits": "9" * 60_000,
    "hexadecimal digits in a list": "[0x" + "f" * 60_000 + "]",
    "65,537 characters": "{'a': True" + " " * 65526 + "}",
    "10 MB": "{'" + "a" * 9_000_000 + "': True}",
    "an odd escape": r"{'\d': 1}",
}


@pytest.mark.parametrize("attribute", ["services", "pcidevs"])
@pytest.mark.parametrize("name", sorted(LITERALS))
def test_a_hostile_literal_is_refused_quickly(attribute: str, name: str) -> None:
    before = time.process_time()
    with pytest.raises(StorageError, match=rf"^line 3: VM 'loch': its {attribute} cannot be read: [^\n]{{1,100}}$"):
        load(document({attribute: LITERALS[name]}))
    assert time.process_time() - before < 1


@pytest.mark.parametrize("text", ["['00:1b.8']", "[['00:1b.0']]", "[None]", "('00:1b.0',)", "00:1b.0 00:1d.0", ","])
def test_pci_devices_that_make_no_sense(text: str) -> None:
    with pytest.raises(StorageError, match=r"^line 3: VM 'loch': its pcidevs cannot be read"):
        load(document({"pcidevs": text}))


def test_lines_that_no_element_can_carry() -> None:
    """What is refused here has its line, what is refused of the result has none."""
    far = "\n" * 70_000
    with pytest.raises(StorageError, match=r"^line 7\d{4}: VM 'loch'"):
        load(document({"netvm_qid": "99"}).replace("<QubesAppVm", far + "<QubesAppVm"))
    with pytest.raises(StorageError, match=r"^line 0: "):
        load(document({"label": "pink"}).replace("<QubesAppVm", far + "<QubesAppVm"))


def test_many_vms_take_little_time() -> None:
    vms = [
        element("QubesAppVm", {"qid": str(n), "name": f"v{n}", "template_qid": "1", "label": "red", "memory": "400",
                               "services": "{'meminfo-writer': True}", "pcidevs": "[]"})
        for n in range(10, 5010)
    ]  # fmt: skip
    before = time.process_time()
    assert len(load(document({}, more="\n".join(vms))).registry) == 5003
    assert time.process_time() - before < 10


XML_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"))
ODD = st.one_of(
    XML_TEXT,
    st.integers().map(str),
    st.sampled_from(["True", "None", "loch", "{'a': True}", "['00:1b.0']", TEMPLATE_UUID]),
    st.dictionaries(st.text(max_size=5), st.booleans() | st.integers(), max_size=3).map(repr),
)
"""What no attribute, or another attribute, could have."""

SWITCHES = st.sampled_from(["True", "False"])
QIDS = st.sampled_from(["none", "1", "2", "3"])
NUMBERS = st.integers(-2, 5000).map(str)
FITTING: dict[str, st.SearchStrategy[str]] = {
    **dict.fromkeys(("template_qid", "netvm_qid", "dispvm_netvm"), QIDS),
    **dict.fromkeys(("memory", "maxmem", "vcpus", "qrexec_timeout", "backup_timestamp"), NUMBERS),
    **{f"uses_default_{name}": SWITCHES for name in ("netvm", "kernel", "kernelopts", "dispvm_netvm")},
    **dict.fromkeys(("debug", "autostart", "include_in_backups", "installed_by_rpm", "internal"), SWITCHES),
    **dict.fromkeys(("pci_strictreset", "pci_e820_host", "backup_content", "qrexec_installed"), SWITCHES),
    **dict.fromkeys(("guiagent_installed", "seamless_gui_mode"), SWITCHES),
    **{name: st.text("ab-. ", max_size=9) for name in ("kernel", "kernelopts", "backup_path", "drive", "timezone")},
    "uuid": st.uuids().map(str),
    "label": st.sampled_from(["red", "green", "black", "None"]),
    "default_user": st.sampled_from(["user", "root"]),
    "mac": st.just("00:16:3e:5e:6c:07"),
    "services": st.dictionaries(st.text("ab-. ", max_size=5), st.booleans(), max_size=3).map(repr),
    "pcidevs": st.lists(st.from_regex(r"\A[0-9a-f]{2}:[01][0-9a-f]\.[0-7]\Z"), max_size=3).map(repr),
    "backup_size": NUMBERS,
    "pool_name": st.just("default"),
    "odd": XML_TEXT,
}
TAGS = (
    "QubesTemplateVm", "QubesTemplateHVm", "QubesAppVm", "QubesHVm", "QubesNetVm", "QubesProxyVm", "QubesDisposableVm",
    "QubesCowVm",
)  # fmt: skip
FITTING_GLOBAL = {
    **dict.fromkeys(("default_template", "default_netvm", "default_fw_netvm", "updatevm", "clockvm"), QIDS),
    "default_kernel": st.sampled_from(["4.1.13", "None"]),
}


def draw_values(data: st.DataObject, fitting: dict[str, st.SearchStrategy[str]]) -> dict[str, str]:
    """Return some attributes, most of them with values that they could have."""
    names = data.draw(st.lists(st.sampled_from(sorted(fitting)), max_size=6, unique=True))
    return {name: data.draw(fitting[name] if data.draw(st.integers(0, 15)) else ODD) for name in names}


def draw_document(data: st.DataObject) -> str:
    """Return a file whose first VM can be the template of others."""
    identity = {"qid": ODD, "name": ODD} if data.draw(st.integers(0, 9)) == 0 else {}
    tags = ["QubesTemplateVm", *data.draw(st.lists(st.sampled_from(TAGS), max_size=5))]
    elements = [
        element(tag, {"qid": str(qid), "name": f"vm{qid}", "label": "red", **draw_values(data, FITTING | identity)})
        for qid, tag in enumerate(tags, 1)
    ]
    return element(
        "QubesVmCollection", draw_values(data, FITTING_GLOBAL) if data.draw(st.booleans()) else {}, "\n".join(elements)
    )


@settings(max_examples=300)
@given(st.data())
def test_any_values_are_read_or_refused(data: st.DataObject) -> None:
    text = draw_document(data)
    try:
        read = load(text)
    except StorageError:
        with pytest.raises(StorageError, match=r"^line [1-9]"):
            load(text)
        return
    assert read.is_old
    assert all(remark.isprintable() for remark in read.remarks)
    check_comes_back(read.registry)
    assert all(str(vm.get(name)) is not None for vm in read.registry for name in vm.declared())
