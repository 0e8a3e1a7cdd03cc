"""qubes.xml: what is written comes back, what Qubes writes is read as meant, what is unknown is carried along."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from crannog.adapters.store import qubes_xml
from crannog.adapters.store.file import FileStore
from crannog.adapters.store.r4_writer import R4Writer
from crannog.core import rules
from crannog.core.devices import Assignment
from crannog.core.kinds import BOOL, INT, LABEL, STR, VM
from crannog.core.labels import BUILT_IN, Label, new_label
from crannog.core.plan import CreatePaused, PrepareVolume
from crannog.core.pools import BUILT_IN_POOLS, PoolConfig
from crannog.core.registry import Registry
from crannog.core.startup import StartRequest, plan_start
from crannog.core.vms import ADMIN_NAME, ADMIN_UUID, CLASSES, LocalVM, QubeBase
from crannog.core.volumes import Volume
from crannog.errors import CrannogError, StorageError
from tests.fakes import KERNEL, add_vm, halted_facts, new_registry, template_and_app
from tests.unit.store_worker import KERNELS, again, content, fresh_uuid, full_registry, read, write

ODD = "<&>\"' \t\n\r]]> &amp; <!-- --> \u00e4\u20ac\U0001f600"


# A registry in which nothing is left at its default.


def _sample(registry: Registry, vm: QubeBase, name: str) -> object:
    """Return a value for a property of any class that the rules allow."""
    find = registry.find_vm
    values: dict[str, object] = {
        "label": registry.find_label("teal"), "include_in_backups": False, "keyboard_layout": "de+nodeadkeys+ctrl:swap",
        "devices_denied": "u03****b******", "default_dispvm": find("mother"), "management_dispvm": find("mother"),
        "virt_mode": "pvh", "kernel": KERNEL, "kernelopts": "a=\"b\" c='<d>' &e", "bootmode": "safe", "memory": 500,
        "maxmem": 0, "stubdom_mem": 200, "vcpus": 255, "debug": True, "autostart": True, "installed_by_rpm": True,
        "backup_timestamp": 2**40, "default_user": "anna", "qrexec_timeout": 86400, "shutdown_timeout": 1,
        "guivm": find(ADMIN_NAME), "audiovm": find("far"), "ip": "10.1.2.3", "ip6": "FD00:0::1",
        "mac": "00:16:3E:5E:6C:77", "provides_network": vm.name == "router",
        "netvm": None if vm.name == "router" else find("router"), "appvm_default_bootmode": "old",
        "template_for_dispvms": True, "auto_cleanup": True, "remote_name": "b & c", "transport_rpc": "x.Y+z",
        "relayvm": find("router"),
    }  # fmt: skip
    return values[name]


def every_class() -> Registry:
    """Return a registry with VMs of all classes, in which every property that can be set is set."""
    registry = full_registry()
    template = registry.find_vm("debian")
    mother = add_vm(registry, "AppVM", "mother", template)
    mother.set("template_for_dispvms", value=True)
    add_vm(registry, "StandaloneVM", "router", mode="pvh").set("provides_network", value=True)
    add_vm(registry, "DispVM", "disp1", mother)
    registry.create("RemoteVM", "far", fresh_uuid(), None)
    for vm in registry:
        for name, declared in vm.declared().items():
            if not declared.is_readonly and not declared.is_write_once and name not in ("name", "template"):
                vm.set(name, _sample(registry, vm, name))
        vm.features.update({"odd": ODD, "empty": "", f"{vm.klass}{ODD}": "1", "a-first": "last"})
        vm.tags.update({"created-by-dom0", "Z", "a_-1"})
    for name, value in {
        "check_updates_vm": False, "clockvm": registry.find_vm("router"), "default_audiovm": None,
        "default_guivm": registry.dom0, "default_dispvm": mother, "management_dispvm": mother,
        "default_kernel": KERNEL, "default_netvm": registry.find_vm("router"), "default_pool": "spare",
        "default_pool_kernel": "linux-kernel", "default_pool_private": "spare", "default_pool_root": "vm-pool",
        "default_pool_volatile": "spare", "default_qrexec_timeout": 61, "default_shutdown_timeout": 62,
        "default_template": template, "stats_interval": 7, "updatevm": None,
    }.items():  # fmt: skip
        registry.set(name, value)
    options = (("no-strict-reset", "True"), ("permissive", ""), ("odd", ODD), (ODD, "x"))
    mother.devices = (
        Assignment("pci", (("backend-domain", "dom0"), ("id", "00_1b.0"), ("mode", "required")), options),
        Assignment("pci", (("backend-domain", "dom0"), ("id", "00_1d.0"), ("identity", ODD))),
        Assignment("usb", (("backend-domain", "router"), ("id", "2-1")), (("", "nameless"),)),
    )
    mother.volumes["private"] = Volume(
        "private", "a & b", f"x/{ODD}", 2**62, rw=False, save_on_stop=True, revisions_to_keep=9,
        extra=(("ephemeral", "True"), ("source", ODD)),
    )  # fmt: skip
    mother.volumes["work"] = Volume("work", "gone", "v", 0, rw=True, snap_on_start=True, revisions_to_keep=-1)
    registry.add_pool(PoolConfig("lvm", "lvm_thin", (("volume_group", "dom0"), ("thin_pool", ODD))))
    return registry


def test_nothing_is_left_out_of_the_registry_that_is_to_come_back() -> None:
    registry = every_class()
    assert {vm.klass for vm in registry} == set(CLASSES)
    for holder in (registry, *registry):
        settable = {name for name, declared in holder.declared().items() if not declared.is_readonly}
        assert settable <= set(holder.values), holder.title()
    kinds = {declared.kind for vm in registry for name, declared in vm.declared().items() if name in vm.values}
    assert kinds == {STR, INT, BOOL, VM, LABEL}


def test_a_registry_with_every_class_and_property_comes_back() -> None:
    registry = every_class()
    loaded = again(registry)
    assert content(loaded) == content(registry)
    assert content(again(loaded)) == content(registry)
    assert write(loaded) == write(registry)
    qids = [
        int(str(element.get("id"))[len("domain-") :]) for element in etree.fromstring(write(registry)).iter("domain")
    ]
    assert qids == sorted(qids)


def test_references_lead_to_the_vms_and_labels_of_the_new_registry() -> None:
    loaded = again(every_class())
    for holder in (loaded, *loaded):
        for value in holder.values.values():
            if isinstance(value, QubeBase):
                assert loaded.find_uuid(value.uuid) is value
            elif isinstance(value, Label):
                assert loaded.find_label(value.name) is value
    assert loaded.find_vm("disp1").template is loaded.find_vm("mother") is loaded.get("default_dispvm")


def test_what_was_not_set_is_not_written() -> None:
    registry = new_registry()
    _, app = template_and_app(registry)
    loaded = again(registry).find_vm("work")
    assert set(loaded.values) == {"name", "uuid", "qid", "label", "template"} == set(app.values)
    app.set("memory", 555)
    app.reset("memory")
    assert again(registry).find_vm("work").is_default("memory")


def test_no_reference_and_the_default_are_two_things() -> None:
    registry = new_registry()
    router = add_vm(registry, "StandaloneVM", "router")
    router.set("provides_network", value=True)
    registry.set("default_netvm", router)
    cut, connected = add_vm(registry, "StandaloneVM", "cut"), add_vm(registry, "StandaloneVM", "connected")
    cut.set("netvm", None)
    loaded = again(registry)
    assert (loaded.find_vm("cut").netvm, loaded.find_vm("cut").is_default("netvm")) == (None, False)
    assert loaded.find_vm(connected.name).netvm is loaded.find_vm("router")


def test_dom0_keeps_its_identity_and_the_file_does_not_say_it() -> None:
    registry = every_class()
    domain = etree.fromstring(write(registry)).find("domains/domain[@class='AdminVM']")
    assert domain is not None
    names = {element.get("name") for element in domain.iter("property")}
    assert names
    assert not names & {"name", "uuid", "qid"}
    dom0 = again(registry).dom0
    assert (dom0.name, dom0.uuid, dom0.qid) == (ADMIN_NAME, ADMIN_UUID, 0)


@pytest.mark.parametrize("klass", ["AdminVM"])
@pytest.mark.parametrize(("name", "text"), [("name", "dom1"), ("uuid", "f" * 8), ("qid", "1"), ("name", "")])
def test_dom0_with_another_identity_is_refused(klass: str, name: str, text: str) -> None:
    data = (
        f"<qubes>\n<domains>\n<domain id='domain-0' class='{klass}'><properties>\n"
        f"<property name='{name}'>{text}</property></properties></domain></domains></qubes>"
    )
    with pytest.raises(StorageError, match=r"^line 3: .*dom0"):
        read(data)


@pytest.mark.parametrize(("name", "text"), [("name", ADMIN_NAME), ("uuid", ADMIN_UUID), ("qid", "0")])
def test_dom0_may_say_its_own_identity(name: str, text: str) -> None:
    data = f"<domain class='AdminVM'><properties><property name='{name}'>{text}</property></properties></domain>"
    assert len(read(f"<qubes><domains>{data}</domains></qubes>")) == 1


def test_notes_are_not_in_the_file(tmp_path: Path) -> None:
    store = FileStore(str(tmp_path / "qubes.xml"), str(tmp_path / "kernels"))
    registry = full_registry()
    vm = registry.find_vm("work")
    store.save_notes(vm.uuid, "a secret\nof two lines")
    store.save(registry)
    assert b"secret" not in Path(store.path).read_bytes()
    assert store.notes(store.load().find_vm("work").uuid) == "a secret\nof two lines"


LEGAL = st.characters(exclude_categories=["Cs"], exclude_characters=[chr(n) for n in range(32) if n not in (9, 10, 13)])
LEGAL_TEXT = st.text(LEGAL.filter(lambda char: char not in "\ufffe\uffff"), max_size=20)
PAIRS = st.dictionaries(LEGAL_TEXT.filter(bool), LEGAL_TEXT, max_size=4)


@given(PAIRS, PAIRS, LEGAL_TEXT)
def test_any_text_that_xml_can_hold_comes_back(features: dict[str, str], options: dict[str, str], text: str) -> None:
    registry = new_registry()
    vm = add_vm(registry, "StandaloneVM", "alone")
    vm.features = features
    vm.devices = (Assignment(text, (("backend-domain", "dom0"), ("id", text)), tuple(options.items())),)
    vm.volumes["root"] = Volume("root", text or "p", text or "v", 1, extra=(("odd", text),))
    registry.add_pool(PoolConfig("p", text or "d", (("odd", text),)))
    assert content(again(registry)) == content(registry)
    assert write(again(registry)) == write(registry)


@pytest.mark.parametrize("char", ["\0", "\x01", "\x0b", "\x1f", "\ud800", "\ufffe", "\uffff"])
def test_text_that_xml_cannot_hold_is_not_saved(tmp_path: Path, char: str) -> None:
    store = FileStore(str(tmp_path / "qubes.xml"), str(tmp_path / "kernels"))
    registry = full_registry()
    store.save(registry)
    old = Path(store.path).read_bytes()
    registry.find_vm("work").features["odd"] = f"a{char}b"
    with pytest.raises(StorageError, match="cannot be kept"):
        store.save(registry)
    assert Path(store.path).read_bytes() == old
    registry.find_vm("work").features["odd"] = "fine"
    store.save(registry)
    assert content(store.load()) == content(registry)


# What this version does not know.

PLACES = """<?xml version='1.0' encoding='utf-8'?>
<qubes version="3.0"{root-attribute}>
  <labels{labels-attribute}>
    <label id="label-1" color="0xcc0000"{label-attribute}>red{label}</label>{labels}
  </labels>
  <pools{pools-attribute}>
    <pool name="vm-pool" driver="qcow2"{pool-attribute}>{pool}</pool>{pools}
  </pools>
  <properties{properties-attribute}>
    <property name="stats_interval"{property-attribute}>9{property}</property>{properties}
  </properties>
  <domains{domains-attribute}>{domains}
    <domain id="domain-0" class="AdminVM"{dom0-attribute}>
      <properties><property name="label">red</property>{dom0-properties}</properties>
      <features>{dom0-features}</features>
      <tags>{dom0-tags}</tags>
      <volume-config>{dom0-volumes}</volume-config>
      {dom0}
    </domain>
    <domain id="domain-5" class="StandaloneVM"{vm-attribute}>
      <properties{vm-properties-attribute}>
        <property name="name">alone</property>
        <property name="uuid">00000000-0000-4000-8000-000000000001</property>
        <property name="qid">5</property>
        <property name="label">red</property>
        <property name="memory"{vm-property-attribute}>500{vm-property}</property>{vm-properties}
      </properties>
      <features{features-attribute}>
        <feature name="a"{feature-attribute}>1{feature}</feature>{features}
      </features>
      <devices class="pci"{devices-attribute}>
        <device backend-domain="dom0" id="00_1b.0"{device-attribute}>
          <option name="o"{option-attribute}>1{option}</option>
        </device>
      </devices>
      <tags{tags-attribute}>
        <tag name="t"{tag-attribute}>{tag}</tag>{tags}
      </tags>
      <volume-config{volumes-attribute}>
        <volume name="r" pool="p" vid="v" size="1" revisions_to_keep="0" rw="True"{volume-attribute}>{volume}</volume>
        {volumes}
      </volume-config>
      {vm}
    </domain>
  </domains>
  {root}
</qubes>
"""
UNKNOWN = (
    '<odd a="1" b="&lt;&amp;&gt;&quot;\'&#9;&#10;&#13;">text &lt;&amp;&gt;&#13; \u20ac'
    '<inner xmlns:y="urn:y" y:z="1"> <leaf/> </inner> after</odd>'
)
UNKNOWN_PROPERTY = '<property name="odd" ref="domain-7" a="1">what\n ever</property>'
COMPUTED_PROPERTY = '<property name="{}">what ever</property>'
FOREIGN_DEVICE = '<devices class="pci"><device id="1"/><odd/></devices>'
ATTRIBUTE = ' odd="&lt;&amp;&gt;&quot;\'&#9;&#10;\u20ac=x"'
ELEMENT_PLACES = [
    "labels", "pools", "properties", "domains", "root", "dom0", "dom0-properties", "dom0-features", "dom0-tags",
    "dom0-volumes", "vm", "vm-properties", "features", "tags", "volumes",
]  # fmt: skip
ATTRIBUTE_PLACES = ["root-attribute", "dom0-attribute", "vm-attribute", "device-attribute", "volume-attribute",
                    "pool-attribute"]  # fmt: skip
SMALL_PLACES = {
    **dict.fromkeys([
        "pool", "volume", "label", "property", "vm-property", "feature", "option", "tag",
    ], UNKNOWN),
    **dict.fromkeys([
        "labels-attribute", "label-attribute", "pools-attribute", "properties-attribute", "property-attribute",
        "domains-attribute",
        "vm-properties-attribute", "vm-property-attribute", "features-attribute", "feature-attribute",
        "devices-attribute", "option-attribute", "tags-attribute", "tag-attribute", "volumes-attribute",
    ], ATTRIBUTE),
}  # fmt: skip
LOST = {"label", "property", "vm-property", "feature", "tag", "domains-attribute"}
ALL_PLACES = [
    *[(place, UNKNOWN) for place in ELEMENT_PLACES],
    *[(place, UNKNOWN + "<odd/>" + UNKNOWN) for place in ELEMENT_PLACES],
    *[(place, ATTRIBUTE) for place in ATTRIBUTE_PLACES],
    *SMALL_PLACES.items(),
    *[(place, UNKNOWN_PROPERTY) for place in ("properties", "dom0-properties", "vm-properties")],
    *[("vm-properties", COMPUTED_PROPERTY.format(name)) for name in ("klass", "xid", "icon", "dns", "updateable")],
    *[("dom0-properties", COMPUTED_PROPERTY.format(name)) for name in ("klass", "vcpus", "memory")],
    *[("properties", COMPUTED_PROPERTY.format(name)) for name in ("maxmem", "no_cpus")],
    ("vm", FOREIGN_DEVICE), ("dom0", FOREIGN_DEVICE),
]  # fmt: skip


def filled(place: str = "", filling: str = "") -> bytes:
    text = PLACES
    for name in (*ELEMENT_PLACES, *ATTRIBUTE_PLACES, *SMALL_PLACES):
        text = text.replace(f"{{{name}}}", filling if name == place else "")
    return text.encode()


def facts(data: bytes) -> Counter[tuple[str, str]]:
    """Return each element of a document with its attributes and text, by the elements that it stands in."""

    def walk(element: etree._Element, path: str) -> Iterable[tuple[str, str]]:
        # Text between elements is layout where a container was read, and content where it was kept.
        text = element.text or ""
        path += f"/{element.tag}" + ("" if element.tag != "domain" else f"[{element.get('id')}]")
        yield path, f"{sorted(element.attrib.items())} {text if text.strip() or '/odd' in path else ''}"
        for child in element:
            yield from walk(child, path)

    return Counter(walk(etree.fromstring(data), ""))


def in_order(data: bytes) -> list[str]:
    return [
        etree.tostring(element, encoding="unicode", with_tail=False) for element in etree.fromstring(data).iter("odd")
    ]


def change_everything(registry: Registry) -> None:
    registry.set("default_shutdown_timeout", 99)
    registry.add_pool(PoolConfig("new", "file"))
    for vm in registry:
        vm.features["changed"] = "1"
        vm.tags.add("changed")


def check_carried(data: bytes) -> None:
    document = qubes_xml.from_bytes(data, set(KERNELS))
    writer = R4Writer()
    writer.learn(document.registry, document.texts)
    once = write(document.registry)
    assert content(read(once)) == content(document.registry)
    change_everything(document.registry)
    for written in (writer.to_bytes(read(data)), once, write(read(once)), writer.to_bytes(document.registry)):
        assert facts(data) - facts(written) == Counter()
        assert in_order(written) == in_order(data)


def test_the_document_is_otherwise_what_is_written() -> None:
    registry = read(filled())
    assert facts(filled()) - facts(write(registry)) == Counter()
    assert registry.foreign == {}
    assert all(vm.foreign == {} for vm in registry)


@pytest.mark.parametrize(
    ("place", "filling"),
    [
        pytest.param(
            place, filling, id=f"{number}-{place}"
        )
        for number, (place, filling) in enumerate(ALL_PLACES)
    ],
)  # fmt: skip
def test_what_is_unknown_is_carried_along(place: str, filling: str) -> None:
    data = filled(place, filling)
    assert facts(data) != facts(filled())
    check_carried(data)


@pytest.mark.parametrize(
    "place",
    [
        "root-attribute", "dom0-attribute", "vm-attribute",
        "pool-attribute", "volume-attribute", "device-attribute", "feature-attribute", "label-attribute",
        "vm-property-attribute", "tag-attribute", "tags-attribute", "labels-attribute",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "attribute",
    [
        ' xml:lang="de"',
        ' xmlns:x="urn:x" x:odd="1"',
        ' xmlns:x="urn:x" xmlns:y="urn:y?a=&apos;&amp;b" x:odd="1" y:odd="2" xml:lang="de" xml:space="preserve"',
        pytest.param(' xmlns:x="urn:x" x:odd="1" x:odder="2"'),
    ],
)
def test_an_attribute_with_a_namespace_does_not_break_the_next_file(place: str, attribute: str) -> None:
    registry = read(filled(place, attribute))
    change_everything(registry)
    assert content(again(registry)) == content(registry)
    assert content(again(again(registry))) == content(registry)
    assert "odd" in write(registry).decode() or "odd" not in attribute


def test_unchanged_vms_stay_as_the_file_had_them(tmp_path: Path) -> None:
    """Not even what has no place in memory gets lost where nothing was changed."""
    store = FileStore(str(tmp_path / "qubes.xml"), str(tmp_path / "kernels"))
    data = filled("vm-property-attribute", ATTRIBUTE)
    Path(store.path).write_bytes(data)
    registry = store.load()
    registry.set("default_shutdown_timeout", 99)
    store.save(registry)
    assert facts(data) - facts(Path(store.path).read_bytes()) == Counter()


# A file as Qubes R4 writes it.

QUBES = """<qubes>
  <labels>
    <label id="label-1" color="0xcc0000">red</label>
    <label id="label-2" color="0xf57900">orange</label>
    <label id="label-4" color="0x73d216">green</label>
    <label id="label-8" color="0x000000">black</label>
    <label id="label-9" color="0x00cccc">teal</label>
  </labels>
  <pools>
    <!-- as they come -->
    <pool name="varlibqubes" driver="file" dir_path="/var/lib/qubes" revisions_to_keep="1"/>
    <pool name="vm-pool" driver="lvm_thin" volume_group="qubes_dom0" thin_pool="vm-pool" revisions_to_keep="2"/>
    <pool name="linux-kernel" driver="linux-kernel" dir_path="/var/lib/qubes/vm-kernels"/>
  </pools>
  <properties>
    <property name="default_netvm" ref="domain-2"/>
    <property name="default_template">fedora</property>
    <property name="clockvm">sys-net</property>
    <property name="updatevm" ref="domain-2"/>
    <property name="default_dispvm" ref="domain-4"/>
    <property name="management_dispvm"/>
    <property name="default_guivm">dom0</property>
    <property name="default_kernel">6.6.54-1</property>
    <property name="default_pool">vm-pool</property>
    <property name="default_pool_root">vm-pool</property>
    <property name="default_qrexec_timeout">60</property>
    <property name="stats_interval">3</property>
    <property name="check_updates_vm">True</property>
  </properties>
  <domains>
    <domain id="domain-0" class="AdminVM">
      <properties>
        <property name="label" ref="label-8"/>
      </properties>
      <features>
        <feature name="config.default.qubes-update-check">1</feature>
      </features>
      <tags/>
    </domain>
    <domain id="domain-4" class="AppVM">
      <properties>
        <property name="label" ref="label-9"/>
        <property name="name">default-dvm</property>
        <property name="netvm" ref="domain-2"/>
        <property name="qid">4</property>
        <property name="template" ref="domain-1"/>
        <property name="template_for_dispvms">True</property>
        <property name="uuid">0e4d1f2a-94a7-4f6c-8d55-3a0f4c1ad004</property>
      </properties>
      <features>
        <feature name="appmenus-dispvm">1</feature>
        <feature name="gui"></feature>
        <feature name="menu-items">a.desktop b.desktop</feature>
        <feature name="empty"/>
      </features>
      <devices class="pci"/>
      <devices class="block"/>
      <tags>
        <tag name="created-by-dom0"/>
      </tags>
      <volume-config>
        <volume name="root" pool="vm-pool" vid="qubes_dom0/vm-default-dvm-root" snap_on_start="True"/>
        <volume name="private" pool="vm-pool" vid="qubes_dom0/vm-default-dvm-private" size="2147483648"
          save_on_stop="True" rw="True" revisions_to_keep="2"/>
        <volume name="volatile" pool="vm-pool" vid="qubes_dom0/vm-default-dvm-volatile" size="10737418240"
          rw="True" ephemeral="True"/>
        <volume name="kernel" pool="linux-kernel" vid="6.6.54-1"/>
      </volume-config>
    </domain>
    <domain id="domain-1" class="TemplateVM">
      <properties>
        <property name="installed_by_rpm">True</property>
        <property name="label">black</property>
        <property name="name">fedora</property>
        <property name="netvm"/>
        <property name="qid">1</property>
        <property name="uuid">0e4d1f2a-94a7-4f6c-8d55-3a0f4c1ad001</property>
        <property name="virt_mode">pvh</property>
      </properties>
      <features><feature name="os">Linux</feature><feature name="qrexec">1</feature></features>
      <devices class="pci"/>
      <tags/>
      <volume-config/>
    </domain>
    <domain id="domain-2" class="StandaloneVM">
      <properties>
        <property name="autostart">True</property>
        <property name="kernel"/>
        <property name="label" ref="label-1"/>
        <property name="mac">00:16:3e:5e:6c:02</property>
        <property name="maxmem">0</property>
        <property name="memory">425</property>
        <property name="backup_timestamp"/>
        <property name="name">sys-net</property>
        <property name="netvm">None</property>
        <property name="provides_network">True</property>
        <property name="qid">2</property>
        <property name="uuid">0e4d1f2a-94a7-4f6c-8d55-3a0f4c1ad002</property>
        <property name="virt_mode">hvm</property>
      </properties>
      <features/>
      <devices class="pci">
        <device backend-domain="dom0" id="00_14.3">
          <option name="no-strict-reset">True</option>
          <option name="permissive">true</option>
        </device>
        <device backend-domain="dom0" id="00_1f.6" devclass="pci" mode="required" port_id="00_1f.6"/>
      </devices>
      <tags><tag name="a"/><tag name="b"/></tags>
      <volume-config/>
    </domain>
    <domain id="domain-7" class="DispVM">
      <properties>
        <property name="auto_cleanup">True</property>
        <property name="dispid">4711</property>
        <property name="label" ref="label-2"/>
        <property name="name">disp4711</property>
        <property name="qid">7</property>
        <property name="template" ref="domain-4"/>
        <property name="uuid">0e4d1f2a-94a7-4f6c-8d55-3a0f4c1ad007</property>
      </properties>
      <features/>
      <tags/>
      <volume-config/>
    </domain>
  </domains>
</qubes>
"""


def set_values(holder: Registry | QubeBase) -> dict[str, object]:
    return {name: value.name if isinstance(value, QubeBase | Label) else value for name, value in holder.values.items()}


def test_a_file_of_qubes_its_labels_pools_and_global_properties() -> None:
    registry = read(QUBES)
    assert content(registry)[1] == {
        "red": Label(1, "red", "0xcc0000"), "orange": Label(2, "orange", "0xf57900"),
        "green": Label(4, "green", "0x73d216"), "black": Label(8, "black", "0x000000"),
        "teal": Label(9, "teal", "0x00cccc"), "yellow": BUILT_IN[2], "gray": BUILT_IN[4], "blue": BUILT_IN[5],
        "purple": BUILT_IN[6],
    }  # fmt: skip
    assert registry.pools == {
        "varlibqubes": PoolConfig("varlibqubes", "file", (("dir_path", "/var/lib/qubes"), ("revisions_to_keep", "1"))),
        "vm-pool": PoolConfig(
            "vm-pool", "lvm_thin",
            (("volume_group", "qubes_dom0"), ("thin_pool", "vm-pool"), ("revisions_to_keep", "2")),
        ),
        "linux-kernel": PoolConfig("linux-kernel", "linux-kernel", (("dir_path", "/var/lib/qubes/vm-kernels"),)),
        "qcow2-pool": PoolConfig("qcow2-pool", "qcow2"),
    }  # fmt: skip
    assert set_values(registry) == {
        "default_netvm": "sys-net", "default_template": "fedora", "clockvm": "sys-net", "updatevm": "sys-net",
        "default_dispvm": "default-dvm", "management_dispvm": None, "default_guivm": "dom0",
        "default_kernel": "6.6.54-1", "default_pool": "vm-pool", "default_pool_root": "vm-pool",
        "default_qrexec_timeout": 60, "stats_interval": 3, "check_updates_vm": True,
    }  # fmt: skip
    assert registry.foreign == {}
    assert all(vm.foreign == {} for vm in registry)


def test_a_file_of_qubes_its_vms() -> None:
    registry = read(QUBES)
    assert {vm.qid: (vm.klass, vm.name) for vm in registry} == {
        0: ("AdminVM", "dom0"), 1: ("TemplateVM", "fedora"), 2: ("StandaloneVM", "sys-net"),
        4: ("AppVM", "default-dvm"), 7: ("DispVM", "disp4711"),
    }  # fmt: skip
    dom0, dvm, net = registry.dom0, registry.find_vm("default-dvm"), registry.find_vm("sys-net")
    assert set_values(dom0) == {"name": "dom0", "uuid": ADMIN_UUID, "qid": 0, "label": "black"}
    assert dom0.features == {"config.default.qubes-update-check": "1"}
    uuid = "0e4d1f2a-94a7-4f6c-8d55-3a0f4c1ad00"
    assert set_values(dvm) == {
        "label": "teal", "name": "default-dvm", "netvm": "sys-net", "qid": 4, "template": "fedora",
        "template_for_dispvms": True, "uuid": f"{uuid}4",
    }  # fmt: skip
    assert list(dvm.features.items()) == [
        ("appmenus-dispvm", "1"), ("gui", ""), ("menu-items", "a.desktop b.desktop"), ("empty", ""),
    ]  # fmt: skip
    assert set_values(registry.find_vm("fedora")) == {
        "installed_by_rpm": True, "label": "black", "name": "fedora", "netvm": None, "qid": 1, "uuid": f"{uuid}1",
        "virt_mode": "pvh",
    }  # fmt: skip
    assert set_values(net) == {
        "autostart": True, "kernel": "", "label": "red", "mac": "00:16:3e:5e:6c:02", "maxmem": 0, "memory": 425,
        "name": "sys-net", "netvm": None, "provides_network": True, "qid": 2, "uuid": f"{uuid}2", "virt_mode": "hvm",
    }  # fmt: skip
    assert set_values(registry.find_vm("disp4711")) == {
        "auto_cleanup": True, "dispid": 4711, "label": "orange", "name": "disp4711", "qid": 7,
        "template": "default-dvm", "uuid": f"{uuid}7",
    }  # fmt: skip
    assert (dvm.tags, net.tags, dom0.tags) == ({"created-by-dom0"}, {"a", "b"}, set())


def test_a_file_of_qubes_its_volumes_and_devices() -> None:
    registry = read(QUBES)
    vid = "qubes_dom0/vm-default-dvm"
    assert registry.find_vm("default-dvm").volumes == {
        "root": Volume("root", "vm-pool", f"{vid}-root", 0, rw=False, snap_on_start=True),
        "private": Volume(
            "private", "vm-pool", f"{vid}-private", 2**31, rw=True, save_on_stop=True, revisions_to_keep=2
        ),
        "volatile": Volume(
            "volatile", "vm-pool", f"{vid}-volatile", 10 * 2**30, rw=True, extra=(("ephemeral", "True"),)
        ),
        "kernel": Volume("kernel", "linux-kernel", "6.6.54-1", 0, rw=False),
    }
    assert registry.find_vm("sys-net").devices == (
        Assignment(
            "pci", (("backend-domain", "dom0"), ("id", "00_14.3")),
            (("no-strict-reset", "True"), ("permissive", "true")),
        ),
        Assignment(
            "pci",
            (
                ("backend-domain", "dom0"), ("id", "00_1f.6"), ("devclass", "pci"), ("mode", "required"),
                ("port_id", "00_1f.6"),
            ),
        ),
    )  # fmt: skip
    assert registry.find_vm("default-dvm").devices == registry.dom0.devices == ()


ROOT_OF_FEDORA = (
    '<volume-config><volume name="root" pool="vm-pool" vid="qubes_dom0/vm-fedora-root" size="21474836480" '
    'save_on_stop="True" rw="True" revisions_to_keep="2"/></volume-config>'
)
KERNEL_OF_QUBES = '<volume name="kernel" pool="linux-kernel" vid="6.6.54-1"/>'


@pytest.mark.parametrize(
    ("kernel", "vid"),
    [
        (KERNEL_OF_QUBES, "6.6.54-1"),
        ('<volume name="kernel" pool="linux-kernel" vid="" size="0" revisions_to_keep="0"/>', ""),
        ('<volume name="kernel" pool="linux-kernel" vid=""/>', ""),
        ('<volume name="kernel" pool="linux-kernel"/>', ""),
    ],
)
def test_the_volatile_and_kernel_volumes_of_a_file_of_qubes(kernel: str, vid: str) -> None:
    """A start uses both, and the file says the same of them afterwards; which kernel is used, a property says."""
    text = QUBES.replace("<volume-config/>", ROOT_OF_FEDORA, 1).replace(KERNEL_OF_QUBES, kernel)
    registry = read(text.replace("6.6.54-1</property>", f"{KERNEL}</property>"))
    vm = registry.find_vm("default-dvm")
    assert isinstance(vm, LocalVM)
    before = content(registry)
    plan = plan_start(vm, StartRequest(), halted_facts())
    assert [step.volume.name for step in plan if isinstance(step, PrepareVolume)] == ["root", "private", "volatile"]
    spec = next(step.spec for step in plan if isinstance(step, CreatePaused))
    assert [(disk.path.rpartition("/")[2], disk.is_readonly) for disk in spec.disks] == [
        ("vm-default-dvm-root", True), ("vm-default-dvm-private", False), ("vm-default-dvm-volatile", False),
        ("modules.img", True),
    ]  # fmt: skip
    assert spec.disks[-1].path == f"/kernels/{KERNEL}/modules.img"
    data = write(registry)
    assert f'<volume name="kernel" pool="linux-kernel" vid="{vid}" size="0" revisions_to_keep="0"/>'.encode() in data
    assert b'vid="qubes_dom0/vm-default-dvm-volatile" size="10737418240" revisions_to_keep="0" rw="True"' in data
    assert content(read(data)) == content(registry) == before
    assert write(read(data)) == data


@pytest.mark.parametrize(
    "volume",
    [
        '<volume name="kernel" vid="6.6.54-1"/>',
        '<volume name="kernel" pool="" vid=""/>',
        '<volume name="volatile2" pool="vm-pool" vid=""/>',
        '<volume name="kernels" pool="linux-kernel"/>',
    ],
)
def test_a_volume_that_says_too_little_is_refused(volume: str) -> None:
    with pytest.raises(StorageError, match="has no pool or no vid"):
        read(QUBES.replace(KERNEL_OF_QUBES, volume))


def test_the_volumes_of_a_new_vm_come_back() -> None:
    registry = new_registry()
    _, app = template_and_app(registry)
    assert again(registry).find_vm("work").volumes == app.volumes
    assert b'<volume name="kernel" pool="linux-kernel" vid="" size="0" revisions_to_keep="0"/>' in write(registry)


def test_a_file_of_qubes_comes_back_and_can_be_changed() -> None:
    registry = read(QUBES)
    assert content(again(registry)) == content(registry)
    registry.rename(registry.find_vm("sys-net"), "net2")
    loaded = again(registry)
    assert content(loaded) == content(registry)
    assert loaded.get("default_netvm").name == "net2"
    assert set_values(loaded.find_vm("default-dvm"))["netvm"] == "net2"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "iso-8859-1"])
@pytest.mark.parametrize("version", ["", " version=''", " version='3'", " version='3.0'"])
def test_encodings_and_versions_that_are_read(encoding: str, version: str) -> None:
    text = QUBES.replace("<qubes>", f"<qubes{version}>").replace("Linux", "L\u00ednux")
    declaration = f"<?xml version='1.0' encoding='{encoding.removesuffix('-sig')}'?>\n"
    registry = read((declaration + text).encode(encoding))
    assert registry.find_vm("fedora").features["os"] == "L\u00ednux"
    assert content(again(registry)) == content(registry)


def test_comments_instructions_and_cdata_are_layout_only() -> None:
    text = QUBES.replace("425", "4<!-- not 5 -->2<?not 6?>5").replace("Linux", "<![CDATA[<Linux>]]>")
    registry = read(text)
    assert registry.find_vm("sys-net").get("memory") == 425
    assert registry.find_vm("fedora").features["os"] == "<Linux>"


def test_the_built_in_labels_are_there_whatever_the_file_lists() -> None:
    text = QUBES[: QUBES.index("  <labels>")] + QUBES[QUBES.index("  <pools>") :]
    for number, name in ((1, "red"), (2, "orange"), (8, "black"), (9, "blue")):
        text = text.replace(f'ref="label-{number}"/>', f">{name}</property>")
    registry = read(text)
    assert {label.name for label in BUILT_IN} == set(registry.labels)
    assert content(again(registry)) == content(registry)


@pytest.mark.parametrize(
    ("pools", "added"),
    [
        ("", ["vm-pool qcow2", "linux-kernel linux-kernel"]),
        ("<pool name='vm-pool' driver='file'/>", ["qcow2-pool qcow2", "linux-kernel linux-kernel"]),
        ("<pool name='mine' driver='qcow2'/><pool name='k' driver='linux-kernel'/>", []),
    ],
)
def test_each_driver_of_ours_has_a_pool(pools: str, added: list[str]) -> None:
    registry = read(f"<qubes><pools>{pools}</pools></qubes>")
    named = [f"{pool.name} {pool.driver}" for pool in registry.pools.values()]
    assert named[pools.count("<pool") :] == added
    assert content(again(registry)) == content(registry)


def test_the_built_in_labels_and_pools_are_there_when_the_file_has_none() -> None:
    registry = read("<qubes/>")
    assert content(registry) == content(Registry())
    assert list(registry.pools.values()) == list(BUILT_IN_POOLS)


def test_vms_can_be_made_when_a_custom_label_has_a_built_in_number() -> None:
    registry = read("<qubes><labels><label id='label-1' color='0x123456'>crimson</label></labels></qubes>")
    vm = registry.create("StandaloneVM", "new", fresh_uuid(), None)
    assert (vm.label_name, registry.dom0.label_name) == ("red", "black")
    assert content(again(registry)) == content(registry)


def test_a_file_that_asks_for_what_is_not_here_is_read() -> None:
    text = (
        QUBES.replace('<property name="kernel"/>', '<property name="kernel">gone</property>')
        .replace("<property name=\"default_pool\">vm-pool", "<property name=\"default_pool\">gone")
        .replace('pool="vm-pool" vid="qubes_dom0/vm-default-dvm-root"', 'pool="gone" vid="x"')
        .replace('<property name="virt_mode">pvh', '<property name="virt_mode">hvm')
        .replace('<property name="template_for_dispvms">True</property>', '<property name="virt_mode">pvh</property>')
    )  # fmt: skip
    registry = read(text)
    assert registry.find_vm("sys-net").get("kernel") == "gone"
    assert registry.get("default_pool") == "gone"
    assert registry.find_vm("default-dvm").volumes["root"].pool == "gone"
    assert (registry.find_vm("fedora").get("virt_mode"), registry.find_vm("default-dvm").get("virt_mode")) == (
        "hvm",
        "pvh",
    )
    assert not registry.get("default_dispvm").is_disposable_template()
    assert content(again(registry)) == content(registry)


# Any sequence of changes.

Change = Callable[[Registry, LocalVM, int], object]


def _other(registry: Registry, number: int) -> LocalVM | None:
    """Return some VM, or none."""
    vms = registry.local_vms()
    return vms[number % len(vms)] if vms and number % 5 else None


def _label(registry: Registry, number: int) -> Label:
    labels = list(registry.labels.values())
    return labels[number % len(labels)]


def _new_label(registry: Registry, number: int) -> None:
    label = new_label(registry.labels.values(), f"l{number % 9}", f"0x{number:06x}")
    registry.labels[label.name] = label


def _remove_label(registry: Registry, number: int) -> None:
    label = _label(registry, number)
    rules.label_removal(registry, label)
    del registry.labels[label.name]


def _devices(registry: Registry, vm: LocalVM, number: int) -> None:
    backend = _other(registry, number) or registry.dom0
    attributes = (("backend-domain", backend.name), ("id", f"00_{number % 32:02x}.0"))
    device = Assignment(("pci", "usb", "block")[number % 3], attributes, (("o", str(number)),) * (number % 2))
    vm.devices = (*vm.devices, device)[-3:] if number % 4 else vm.devices[1:]


def _volume(vm: LocalVM, number: int) -> None:
    volume = vm.volumes.get("private", Volume("private", "p", "v", 1))
    changes: list[dict[str, int | bool | str | tuple[tuple[str, str], ...]]] = [
        {"size": number}, {"rw": not volume.rw}, {"pool": f"p{number}"}, {"extra": (("odd", str(number)),)},
        {"save_on_stop": not volume.save_on_stop}, {"revisions_to_keep": number},
    ]  # fmt: skip
    vm.volumes["private"] = replace(volume, **changes[number % 6])  # type: ignore[arg-type]


def _reorder(vm: LocalVM) -> None:
    if vm.features:
        name = next(iter(vm.features))
        vm.features[name] = vm.features.pop(name)


def _foreign(registry: Registry, vm: LocalVM, number: int) -> None:
    holder = (vm, registry, registry.dom0)[number % 3]
    holder.foreign = {**holder.foreign, ("", "properties")[number % 2]: (f'<odd n="{number}"/>',)}


def _readd(registry: Registry, vm: LocalVM) -> None:
    """Remove a VM and take it back, as a removal that cannot be saved does."""
    registry.remove(vm)
    registry.adopt(vm)


RESET = ("memory", "debug", "netvm", "guivm", "default_dispvm", "kernel", "provides_network", "template_for_dispvms")
CHANGES: dict[str, Change] = {
    "template": lambda registry, _vm, number: add_vm(registry, "TemplateVM", f"t{number}"),
    "app": lambda registry, vm, number: add_vm(registry, "AppVM", f"a{number}", vm),
    "alone": lambda registry, _vm, n: add_vm(registry, "StandaloneVM", f"s{n}", mode=("pv", "pvh", "hvm")[n % 3]),
    "disposable": lambda registry, vm, number: add_vm(registry, "DispVM", f"d{number}", vm),
    "remote": lambda registry, _vm, number: registry.create("RemoteVM", f"f{number}", fresh_uuid(), None),
    "clone": lambda registry, vm, n: registry.add(
        registry.draft_clone(vm, f"c{n}", fresh_uuid(), ("", "StandaloneVM", "AppVM", "DispVM", "TemplateVM")[n % 5])
    ),
    "rename": lambda registry, vm, number: registry.rename(vm, f"r{number}"),
    "rename like others": lambda registry, vm, number: registry.rename(vm, f"a{number % 8}"),
    "remove": lambda registry, vm, _number: registry.remove(vm),
    "remove and take back": lambda registry, vm, _number: _readd(registry, vm),
    "memory": lambda _registry, vm, number: vm.set("memory", number),
    "debug": lambda _registry, vm, number: vm.set("debug", bool(number % 2)),
    "ip": lambda _registry, vm, number: vm.set("ip", f"10.0.0.{number % 300}"),
    "virt_mode": lambda _registry, vm, number: vm.set("virt_mode", ("pv", "pvh", "hvm", "no")[number % 4]),
    "kernel": lambda _registry, vm, number: vm.set("kernel", ("", KERNEL, "none")[number % 3]),
    "set what was not": lambda _registry, vm, number: vm.set("no_such", number),
    "reset": lambda _registry, vm, number: vm.reset(RESET[number % len(RESET)]),
    "new template": lambda registry, vm, number: vm.set("template", _other(registry, number)),
    "netvm": lambda registry, vm, number: vm.set("netvm", _other(registry, number)),
    "provides_network": lambda _registry, vm, number: vm.set("provides_network", bool(number % 4)),
    "guivm": lambda registry, vm, number: vm.set("guivm", _other(registry, number)),
    "default_dispvm of a VM": lambda registry, vm, number: vm.set("default_dispvm", _other(registry, number)),
    "template_for_dispvms": lambda _registry, vm, number: vm.set("template_for_dispvms", bool(number % 4)),
    "default_netvm": lambda registry, _vm, number: registry.set("default_netvm", _other(registry, number)),
    "default_dispvm": lambda registry, _vm, number: registry.set("default_dispvm", _other(registry, number)),
    "default_template": lambda registry, _vm, number: registry.set("default_template", _other(registry, number)),
    "clockvm": lambda registry, _vm, number: registry.set("clockvm", _other(registry, number)),
    "timeout": lambda registry, _vm, number: registry.set("default_shutdown_timeout", number * 2),
    "default_pool": lambda registry, _vm, n: registry.set("default_pool", ("vm-pool", "p1", f"p{n}")[n % 3]),
    "reset a default": lambda registry, _vm, n: registry.reset(("default_netvm", "default_dispvm", "maxmem")[n % 3]),
    "feature": lambda _registry, vm, number: vm.features.update({f"f{number % 5}": f" {chr(0x20 + number % 95)}"}),
    "feature of dom0": lambda registry, _vm, number: registry.dom0.features.update({f"f{number % 5}": str(number)}),
    "no feature": lambda _registry, vm, number: vm.features.pop(f"f{number % 5}", ""),
    "features in another order": lambda _registry, vm, _number: _reorder(vm),
    "tag": lambda _registry, vm, number: vm.tags.add(f"t{number % 5}"),
    "no tag": lambda _registry, vm, number: vm.tags.discard(f"t{number % 5}"),
    "label": lambda registry, vm, number: vm.set("label", _label(registry, number)),
    "new label": lambda registry, _vm, number: _new_label(registry, number),
    "no label": lambda registry, _vm, number: _remove_label(registry, number),
    "new pool": lambda registry, _vm, n: registry.add_pool(PoolConfig(f"p{n % 4}", "file", (("path", f"/{n}"),))),
    "devices": _devices,
    "volume": lambda _registry, vm, number: _volume(vm, number),
    "foreign": _foreign,
}
# Each: the name of a change, an index that chooses a VM, a number.
OPERATION = st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, 20), st.integers(0, 2**16) | st.integers(0, 20))
OPERATIONS = st.lists(OPERATION, max_size=25)
Operations = list[tuple[str, int, int]]


def apply(registry: Registry, operation: tuple[str, int, int]) -> None:
    name, index, number = operation
    vms = registry.local_vms()
    if vms:
        CHANGES[name](registry, vms[index % len(vms)], number)


def started() -> Registry:
    """Return a registry to start from: changes need VMs that serve each other."""
    registry = new_registry()
    _, app = template_and_app(registry)
    app.set("template_for_dispvms", value=True)
    add_vm(registry, "StandaloneVM", "router").set("provides_network", value=True)
    return registry


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(OPERATIONS)
def test_any_sequence_of_operations_comes_back(operations: Operations) -> None:
    """An operation is refused and then has changed nothing, or is made; what is made comes back."""
    registry = started()
    for operation in operations:
        before, data = content(registry), write(registry)
        try:
            apply(registry, operation)
        except CrannogError:
            assert content(registry) == before
            assert write(registry) == data
    loaded = again(registry)
    assert content(loaded) == content(registry)
    assert write(loaded) == write(registry)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(OPERATIONS, st.sets(st.integers(0, 24)))
def test_a_writer_that_remembers_writes_what_a_fresh_one_does(operations: Operations, saves: set[int]) -> None:
    registry, writer = started(), R4Writer()
    for index, operation in enumerate(operations):
        with contextlib.suppress(CrannogError):
            apply(registry, operation)
        if index in saves:
            assert writer.to_bytes(registry) == write(registry)
    assert writer.to_bytes(registry) == write(registry)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(OPERATIONS, st.sets(st.integers(0, 24)), st.booleans())
def test_a_writer_that_has_learned_means_what_a_fresh_one_does(
    operations: Operations, saves: set[int], is_ours: bool
) -> None:
    document = qubes_xml.from_bytes(write(every_class()) if is_ours else QUBES.encode(), set(KERNELS))
    registry, writer = document.registry, R4Writer()
    writer.learn(registry, document.texts)
    for index, operation in enumerate(operations):
        with contextlib.suppress(CrannogError):
            apply(registry, operation)
        if index in saves:
            assert content(read(writer.to_bytes(registry))) == content(registry)
    assert content(read(writer.to_bytes(registry))) == content(registry)


@pytest.mark.parametrize("operation", sorted(CHANGES))
def test_each_operation_can_be_made(operation: str) -> None:
    """Guards the tests above: an operation that is always refused would show nothing."""
    outcomes = set()
    for index, number in product(range(3), range(60, 80)):
        registry = started()
        _new_label(registry, 8)
        try:
            apply(registry, (operation, index, number))
        except CrannogError:
            outcomes.add("refused")
        else:
            outcomes.add("made")
    assert "made" in outcomes or operation == "set what was not"


@pytest.mark.parametrize("is_learned", [False, True])
def test_a_renamed_vm_is_renamed_wherever_it_is_named(is_learned: bool) -> None:
    document = qubes_xml.from_bytes(write(every_class()), set(KERNELS))
    registry, writer = document.registry, R4Writer()
    if is_learned:
        writer.learn(registry, document.texts)
    writer.to_bytes(registry)
    for old, new in (("debian", "trixie"), ("mother", "mum"), ("router", "way")):
        registry.rename(registry.find_vm(old), new)
    data = writer.to_bytes(registry)
    assert data == write(registry) or is_learned
    assert content(read(data)) == content(registry)
    assert not any(old in data.split(b"<volume-config>")[0] for old in (b">debian<", b">mother<", b">router<"))


def test_two_vms_that_swap_names_between_two_saves() -> None:
    registry = new_registry()
    one, two = add_vm(registry, "StandaloneVM", "one"), add_vm(registry, "StandaloneVM", "two")
    user = add_vm(registry, "StandaloneVM", "user")
    two.set("provides_network", value=True)
    user.set("guivm", one)
    user.set("netvm", two)
    writer = R4Writer()
    writer.to_bytes(registry)
    user.reset("guivm")
    user.set("guivm", one)
    for vm, name in ((one, "three"), (two, "one"), (one, "two")):
        registry.rename(vm, name)
    assert writer.to_bytes(registry) == write(registry)


def test_a_change_that_xml_cannot_hold_leaves_the_writer_as_good_as_before() -> None:
    registry, writer = every_class(), R4Writer()
    good = writer.to_bytes(registry)
    registry.find_vm("mother").features["odd"] = "\0"
    with pytest.raises(ValueError, match=r"U\+0000"):
        writer.to_bytes(registry)
    registry.find_vm("mother").features["odd"] = ODD
    assert writer.to_bytes(registry) == write(registry) == good
