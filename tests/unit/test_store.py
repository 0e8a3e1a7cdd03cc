"""The store: what is broken is refused with its line, hostile files cost little, changes of others are not lost."""

import errno
import logging
import os
import string
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crannog.adapters.store import history
from crannog.adapters.store.file import FileStore
from crannog.adapters.store.history import History
from crannog.core.registry import Registry
from crannog.editing.editor import Editor
from crannog.errors import CrannogError, NotFoundError, StorageError, ValueRefusedError
from tests.fakes import KERNEL, new_registry
from tests.unit.store_worker import (
    KERNELS,
    again,
    content,
    count_to,
    counters,
    counting_registry,
    full_registry,
    load_and_measure,
    read,
    start,
    write,
)

DOMAIN = """<qubes version="3.0">
<domains>
<domain id="domain-5" class="StandaloneVM">
<properties>
<property name="name">alone</property>
<property name="uuid">00000000-0000-4000-8000-000000000001</property>
<property name="qid">5</property>
<property name="label">red</property>{properties}
</properties>
{rest}
</domain>
</domains>
</qubes>
"""
LABELS = "<labels><label id='label-1' color='0xcc0000'>red</label></labels>"


def domain(properties: str = "", rest: str = "") -> str:
    """Return a file with one VM: in line 3, `properties` from line 9 on, `rest` two lines below them."""
    properties = properties and f"\n{properties}"
    return DOMAIN.format(properties=properties, rest=rest).replace("<domains>", f"{LABELS}<domains>")


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    (tmp_path / "kernels" / KERNEL).mkdir(parents=True)
    return FileStore(str(tmp_path / "qubes.xml"), str(tmp_path / "kernels"))


def test_an_absent_file_is_an_empty_registry(store: FileStore) -> None:
    registry = store.load()
    assert content(registry) == content(Registry())
    assert registry.kernels == KERNELS
    assert not Path(store.path).exists()


def test_everything_comes_back(store: FileStore) -> None:
    registry = full_registry()
    store.save(registry)
    loaded = store.load()
    assert content(loaded) == content(registry)
    assert loaded.find_vm("work").template is loaded.find_vm("debian") is loaded.get("default_template")
    assert loaded.kernels == KERNELS
    assert store.remarks == ()


def test_the_files_are_private(store: FileStore) -> None:
    registry = full_registry()
    for number in range(2):
        registry.set("stats_interval", number + 1)
        store.save(registry)
    folder = Path(store.path).parent
    assert sorted(os.listdir(folder)) == ["history", "kernels", "qubes.xml", "qubes.xml.lock"]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir() if path.name != "kernels"} == {
        "history": "0o700", "qubes.xml": "0o600", "qubes.xml.lock": "0o600",
    }  # fmt: skip
    assert Path(store.history.versions()[0].path).stat().st_mode & 0o777 == 0o600


def test_a_reference_may_point_forward() -> None:
    text = write(full_registry()).decode()
    first, last = text.index('    <domain id="domain-1"'), text.index('    <domain id="domain-2"')
    end = text.index("  </domains>")
    swapped = text[:first] + text[last:end] + text[first:last] + text[end:]
    assert swapped.index('name="template">debian<') < swapped.index('name="name">debian<')
    assert content(read(swapped)) == content(read(text))


# Refusals.


def refused(text: str | bytes) -> str:
    with pytest.raises(StorageError) as caught:
        read(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("nonsense", 1),
        ("<qubes version='3.0'>\n<labels>\n</qubes>", 3),
        ("<qubes version='3.0'>\n\n", 3),
        ("<other version='3.0'/>", 1),
        ("\n<qubes xmlns='urn:x'/>", 2),
        ("<qubes version='2.0'/>", 1),
        ("<qubes version='4'/>", 1),
        ("<qubes version='3.0'>\n\x01</qubes>", 2),
        ("<qubes version='3.0'>\n<a b='\x02'/></qubes>", 2),
        ("<qubes>\n<a>&nothing;</a></qubes>", 2),
        ("<!DOCTYPE qubes [<!ENTITY a 'x'>]>\n<qubes version='3.0'/>", 1),
        ("\n<!DOCTYPE qubes SYSTEM 'file:///etc/passwd'>\n<qubes version='3.0'/>", 2),
        ("<!DOCTYPE qubes>\n<qubes/>", 1),
        ("<qubes>\n<labels>\n<label id='label-x' color='0x000000'>odd</label></labels></qubes>", 3),
        ("<qubes>\n<labels>\n<label id='label-9' color='0x0'>odd</label></labels></qubes>", 3),
        ("<qubes>\n<labels>\n<label id='label-9' color='0x000000'>o d</label></labels></qubes>", 3),
        ("<qubes>\n<labels>\n<label id='label-9' color='0x000000'/></labels></qubes>", 3),
        ("<qubes>\n<labels>\n<label color='0x000000'>odd</label></labels></qubes>", 3),
        ("<qubes>\n<pools>\n<pool name='a'/></pools></qubes>", 3),
        ("<qubes>\n<pools>\n<pool driver='a'/></pools></qubes>", 3),
        ("<qubes>\n<properties>\n<property name='stats_interval'>x</property></properties></qubes>", 3),
        ("<qubes>\n<properties>\n\n<property name='clockvm'>nobody</property></properties></qubes>", 4),
        ("<qubes>\n<properties>\n\n<property name='clockvm' ref='domain-9'/></properties></qubes>", 4),
        ("<qubes>\n<domains>\n<domain class='StandaloneVM'/></domains></qubes>", 3),
        ("<qubes>\n<domains>\n<domain/></domains></qubes>", 3),
        ("<qubes>\n<domains>\n<domain class='OddVM'/></domains></qubes>", 3),
        ("<qubes>\n<domains>\n<domain class='QubeBase'/></domains></qubes>", 3),
        ("<qubes>\n<domains>\n<domain class='LocalVM'/></domains></qubes>", 3),
    ],
)
def test_a_broken_file_is_refused_with_its_line_and_left_alone(store: FileStore, text: str, line: int) -> None:
    Path(store.path).write_text(text)
    with pytest.raises(StorageError, match=f"line {line}:") as caught:
        store.load()
    assert store.path in str(caught.value)
    assert "crannog store restore" in str(caught.value)
    assert Path(store.path).read_text() == text
    assert os.listdir(Path(store.path).parent) != []
    assert not Path(store.path + ".new").exists()


@pytest.mark.parametrize(
    ("properties", "named"),
    [
        ("<property name='memory'>lots</property>", "whole number"),
        ("<property name='memory'>4 00</property>", "whole number"),
        (f"<property name='memory'>{2**63}</property>", "whole number"),
        (f"<property name='memory'>{'9' * 5000}</property>", "whole number"),
        ("<property name='debug'>perhaps</property>", "perhaps"),
        ("<property name='debug'>None</property>", "None"),
        ("<property name='netvm'>nobody</property>", "nobody"),
        ("<property name='netvm' ref='domain-9'/>", "domain-9"),
        ("<property name='netvm' ref=''/>", "netvm"),
        ("<property name='guivm' ref='nonsense'>dom0</property>", "nonsense"),
        ("<property name='ip'>10.0.0.256</property>", "10.0.0.256"),
        ("<property name='ip6'>10.0.0.1</property>", "IPv6"),
        ("<property name='mac'>01:16:3e:5e:6c:00</property>", "MAC"),
        ("<property name='default_user'>-rf</property>", "-rf"),
        ("<property name='kernelopts'>\u00e4</property>", "ASCII"),
        ("<property name='kernelopts'>a\nb</property>", "ASCII"),
        (f"<property name='kernelopts'>{'x' * 65537}</property>", "65537"),
        ("<property name='label'>red</property>", "twice"),
        ("<property name='name'>other</property>", "twice"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_with_its_line(properties: str, named: str) -> None:
    message = refused(domain(properties))
    assert message.startswith("line 9: ")
    assert named in message


@pytest.mark.parametrize("label", ["pink", "", "label-1"])
def test_a_label_that_is_not_there_is_refused(label: str) -> None:
    message = refused(domain().replace('"label">red<', f'"label">{label}<'))
    assert message.startswith("line 8: ")
    assert "label" in message


CHECKED = [
    ("<property name='memory'>-5</property>", "-5"),
    ("<property name='memory'>63</property>", "63"),
    ("<property name='vcpus'>256</property>", "256"),
    ("<property name='virt_mode'>xen</property>", "xen"),
    ("<property name='keyboard_layout'>us</property>", "keyboard"),
    ("<property name='devices_denied'>u0</property>", "u0"),
    ("<property name='qrexec_timeout'>0</property>", "0"),
    ("<property name='netvm'>dom0</property>", "dom0"),
    ("<property name='netvm'>alone</property>", "alone"),
]


@pytest.mark.parametrize(("properties", "named"), CHECKED)
def test_a_value_that_the_rules_forbid_is_refused(properties: str, named: str) -> None:
    message = refused(domain(properties))
    assert message.startswith("line ")
    assert named in message


@pytest.mark.parametrize(("properties", "named"), CHECKED)
def test_a_value_that_the_rules_forbid_is_refused_with_its_line(properties: str, named: str) -> None:
    message = refused(domain(f"<property name='debug'>True</property>\n{properties}"))
    assert message.startswith(f"line 10: property '{properties.split(chr(39))[1]}' of alone: ")
    assert named in message


@pytest.mark.parametrize("value", ["default_netvm'>alone", "stats_interval'>0", "default_qrexec_timeout'>86401"])
def test_a_global_value_that_the_rules_forbid_is_refused(value: str) -> None:
    properties = f"<properties>\n\n<property name='{value}</property></properties></qubes>"
    assert refused(domain().replace("</qubes>", properties)).startswith("line ")


@pytest.mark.parametrize(
    ("rest", "line"),
    [
        ("<features><feature name='a'/>\n<feature name='a'>1</feature></features>", 11),
        ("<features><feature name='a'/></features>\n<features>\n<feature name='a'/></features>", 12),
        ("<features>\n<feature>1</feature></features>", 11),
        ("<features>\n<feature name=''>1</feature></features>", 11),
        (f"<features>\n<feature name='a'>{'x' * 65537}</feature></features>", 11),
        ("<tags>\n<tag name='a'/>\n<tag name='a.b'/></tags>", 12),
        ("<tags>\n<tag/></tags>", 11),
        (f"<tags>\n<tag name='{'a' * 256}'/></tags>", 11),
        ("<volume-config>\n<volume name='root'/></volume-config>", 11),
        ("<volume-config>\n<volume name='root' pool='p'/></volume-config>", 11),
        ("<volume-config>\n<volume pool='p' vid='v'/></volume-config>", 11),
        ("<volume-config>\n<volume name='r' pool='p' vid='v' size='large'/></volume-config>", 11),
        ("<volume-config>\n<volume name='r' pool='p' vid='v' size='-1'/></volume-config>", 11),
        ("<volume-config>\n<volume name='r' pool='p' vid='v' rw='perhaps'/></volume-config>", 11),
        ("<volume-config><volume name='r' pool='p' vid='v'/>\n<volume name='r' pool='p' vid='w'/></volume-config>", 11),
        ("<properties><property name='memory'>400</property>\n<property name='memory'>400</property></properties>", 11),
        ("<properties>\n<property name='guivm'/>\n<property name='guivm'/></properties>", 12),
        ("<properties>\n<property name='qid'>5</property></properties>", 11),
    ],
)
def test_a_part_that_makes_no_sense_or_is_there_twice_is_refused(rest: str, line: int) -> None:
    assert refused(domain(rest=rest)).startswith(f"line {line}: ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("<labels><label id='9' color='#000000'>a</label>\n<label id='8' color='#999999'>a</label></labels>", "2"),
        ("<labels><label id='9' color='#000000'>a</label>\n<label id='09' color='#999999'>b</label></labels>", "2"),
        ("<pools><pool name='a' driver='a'/>\n<pool name='a' driver='b'/></pools>", "2"),
        ("<labels/>\n<labels/>", "[12]"),
        ("<pools/>\n<pools/>", "[12]"),
        ("<domains/>\n<domains/>", "[12]"),
        ("<properties><property name='clockvm'/>\n<property name='clockvm'/></properties>", "2"),
        ("<properties/>\n<properties/>", "[12]"),
        ("<domains><domain id='domain-0' class='AdminVM'/>\n<domain id='domain-0' class='AdminVM'/></domains>", "2"),
        ("<domains><domain id='domain-0' class='AdminVM'/>\n<domain id='a' class='AdminVM'/></domains>", "2"),
    ],
)  # fmt: skip
def test_what_is_there_twice_is_refused(text: str, line: str) -> None:
    with pytest.raises(StorageError, match=f"^line {line}: "):
        read(f"<qubes>{text}</qubes>")


def two_vms(**changes: str) -> str:
    """Return a file with VMs `alone` and `other`, the latter in line 12, with changes from one text to another."""
    one = domain()
    other = one[one.index("<domain id") : one.index("</domains>")]
    for old, new in ((">alone<", ">other<"), ("0001", "0002"), (">5<", ">6<"), ('"domain-5"', '"domain-6"')):
        other = other.replace(old, changes.get(old, new))
    return one.replace("</domains>", other + "</domains>")


@pytest.mark.parametrize("shared", [">alone<", "0001", ">5<", '"domain-5"'])
def test_two_vms_with_one_identity_are_refused(shared: str) -> None:
    assert len(read(two_vms())) == 3
    assert refused(two_vms(**{shared: shared})).startswith("line 12: ")


@pytest.mark.parametrize("name", ["../../x", "", "none", "default", "dom0", "Domain-0", "a" * 32, "1a", "a b", "a-dm"])
def test_a_name_that_no_vm_may_have_is_refused(name: str) -> None:
    assert refused(domain().replace(">alone<", f">{name}<")).startswith("line 3: ")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("StandaloneVM", "AppVM"),
        ("StandaloneVM", "DispVM"),
        ("StandaloneVM", "AdminVM"),
        (">5<", ">-3<"),
        (">5<", ">0<"),
        (">5<", f">{2**31}<"),
        (">00000000-0000-4000-8000-000000000001<", ">x/../../y<"),
        (">00000000-0000-4000-8000-000000000001<", "><"),
        (">00000000-0000-4000-8000-000000000001<", ">{00000000-0000-4000-8000-000000000001}<"),
        (">00000000-0000-4000-8000-000000000001<", ">0000000000004000800000000000000a<"),
        (">00000000-0000-4000-8000-000000000001<", ">00000000-0000-4000-8000-00000000000A<"),
        (">00000000-0000-4000-8000-000000000001<", ">00000000-0000-0000-0000-000000000000<"),
        ('<property name="name">alone</property>', ""),
    ],
)
def test_an_identity_that_no_vm_has_is_refused(old: str, new: str) -> None:
    assert content(read(domain()))
    assert refused(domain().replace(old, new)).startswith("line 3: ")


@pytest.mark.parametrize("ident", ["", "domain-", "domain-x", "domain-\u00b2", f"domain-{'9' * 5000}", "domain-0"])
def test_a_vm_without_a_number_is_refused(ident: str) -> None:
    text = domain().replace('<property name="qid">5</property>', "").replace('id="domain-5"', f'id="{ident}"')
    assert refused(text).startswith("line 3: ")


def test_a_number_and_a_uuid_that_are_not_there_follow_from_the_rest() -> None:
    text = domain().replace('<property name="qid">5</property>', "")
    text = text.replace('<property name="uuid">00000000-0000-4000-8000-000000000001</property>', "")
    vm, same = read(text).find_vm("alone"), read(text).find_vm("alone")
    assert vm.qid == 5
    assert vm.uuid == same.uuid
    assert again(read(text)).find_vm("alone").uuid == vm.uuid
    assert read(text.replace("domain-5", "domain-6")).find_vm("alone").uuid != vm.uuid


PROVIDES = '<property name="provides_network">True</property>'


def chain(length: int, prop: str, more: str = "") -> str:
    """Return a file of VMs each of which names the next one in a property, and the last one the first."""
    vms = [
        f'<domain id="domain-{number}" class="StandaloneVM"><properties><property name="name">vm{number}</property>'
        f'{more}\n<property name="{prop}">vm{number % length + 1}</property></properties></domain>'
        for number in range(1, length + 1)
    ]
    return f"<qubes><domains>{''.join(vms)}</domains></qubes>"


@pytest.mark.parametrize("length", [1, 2, 3, 50])
def test_networks_in_a_circle_are_refused(length: int) -> None:
    with pytest.raises(StorageError, match=r"^line \d+: .*networks have no loops"):
        read(chain(length, "netvm", PROVIDES))
    assert len(read(network(length))) == length + 1


@pytest.mark.parametrize("length", [1, 2, 3, 50])
@pytest.mark.parametrize("prop", ["guivm", "audiovm"])
def test_vms_that_show_each_other_are_read_and_do_no_harm(length: int, prop: str) -> None:
    """Other systems allow that; a user of ours cannot make it so."""
    registry = read(chain(length, prop))
    assert content(again(registry)) == content(registry)
    assert all(vm.describe_all() for vm in registry)
    vm = registry.find_vm("vm1")
    with pytest.raises(ValueRefusedError, match="itself"):
        vm.set(prop, registry.find_vm(f"vm{length}"))


def test_a_netvm_that_provides_no_network_is_refused() -> None:
    with pytest.raises(StorageError, match=r"^line 2: property 'netvm' of vm1: vm2 provides no network"):
        read(chain(2, "netvm"))


@pytest.mark.parametrize("template", ["alone", "other", "dom0"])
@pytest.mark.parametrize("klass", ["AppVM", "DispVM"])
def test_templates_in_a_circle_are_refused(template: str, klass: str) -> None:
    first, second = two_vms().replace("StandaloneVM", klass).split("</properties>", 1)
    text = f"{first}<property name='template'>{template}</property></properties>" + second.replace(
        "</properties>", "<property name='template'>alone</property></properties>"
    )
    assert refused(text).startswith("line ")


# Whatever the bytes are.

BOMB = (
    "<!DOCTYPE qubes [<!ENTITY a0 'aaaaaaaaaa'>"
    + "".join(f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 12))
    + "]>\n<qubes version='3.0'><labels><label id='label-9' color='0x0'>&a11;</label></labels></qubes>"
)
UTF16 = "<?xml version='1.0' encoding='UTF-16'?>"


def vm_with(rest: str) -> bytes:
    return domain(rest=rest).encode()


def attributes(count: int, prefix: str = "a") -> str:
    return " ".join([f"{prefix}{number}='1'" for number in range(count)])


def broad() -> bytes:
    names = [a + b for a in string.ascii_letters for b in string.ascii_letters][:1000]
    one = f"<feature {' '.join([f'{name}=_1_' for name in names])}/>".replace("_", "'")
    return vm_with(f"<features>{one * (63 * 2**20 // len(one))}</features>")


def network(count: int) -> bytes:
    """Return VMs that get their network each from the next one."""
    return chain(count, "netvm", PROVIDES).replace('"netvm">vm1<', '"netvm"><').encode()


REFUSED: dict[str, Callable[[], bytes]] = {
    "entities that multiply": lambda: BOMB.encode("utf-8"),
    "the same in UTF-16": lambda: (UTF16 + BOMB).encode("utf-16"),
    "the same in an attribute": lambda: BOMB.replace("'0x0'", "'&a11;'").encode(),
    "one large entity many times": lambda: (
        b"<!DOCTYPE qubes [<!ENTITY a '%b'>]>\n<qubes><a b='%b'/></qubes>" % (b"x" * 100_000, b"&a;" * 100_000)
    ),
    "entities of the DTD that multiply": lambda: (
        BOMB.replace("ENTITY a", "ENTITY % a").replace("&a", "&#37;a").replace("]>", "%a11;]>").encode()
    ),
    "a DTD of the host": lambda: b"<!DOCTYPE qubes SYSTEM 'file:///dev/zero'>\n<qubes/>",
    "a text of 10 MB": lambda: b"<qubes><labels><label>" + b"x" * 10_000_001 + b"</label></labels></qubes>",
    "a feature of 9 MB": lambda: vm_with(f"<features><feature name='a'>{'x' * 9_000_000}</feature></features>"),
    "a tag of 9 MB": lambda: vm_with(f"<tags><tag name='{'x' * 9_000_000}'/></tags>"),
    "a file of 65 MiB": lambda: b"<qubes>" + b" " * (65 * 2**20) + b"</qubes>",
    "100,000 levels": lambda: b"<qubes>" + b"<a>" * 100_000 + b"</a>" * 100_000 + b"</qubes>",
    "100,000 levels in a VM": lambda: vm_with("<a>" * 100_000 + "</a>" * 100_000),
    "4,000,000 elements": lambda: b"<qubes>" + b"<x/>" * 4_000_000 + b"</qubes>",
    "1,000,000 properties": lambda: vm_with("<properties>" + "<property name='netvm'/>" * 1_000_000 + "</properties>"),
    "control characters": lambda: vm_with("<a>" + "\x02" * 1_000_000 + "</a>"),
}
READ: dict[str, Callable[[], bytes]] = {
    "1,000,000 unknown elements": lambda: b"<qubes>" + b"<x/>" * 1_000_000 + b"</qubes>",
    "500,000 unknown elements in a VM": lambda: vm_with("<x/>" * 500_000),
    "200,000 kinds of devices in a VM": lambda: vm_with("<devices/>" * 200_000),
    "300,000 times the same tag": lambda: vm_with("<tags>" + "<tag name='a'/>" * 300_000 + "</tags>"),
    "100,000 attributes of an unknown element": lambda: vm_with(f"<x {attributes(100_000)}/>"),
    "2,000 VMs in a chain of networks": lambda: network(2000),
}


@pytest.mark.parametrize(
    "data",
    [
        (UTF16 + "<qubes/>").encode("utf-16"),
        "<qubes/>".encode("utf-16"),
        "<qubes/>".encode("utf-16-le"),
        "<qubes/>".encode("utf-16-be"),
        "<qubes/>".encode("utf-32"),
        "<?xml version='1.0' encoding='IBM037'?><qubes/>".encode("cp037"),
        b"<?xml version='1.0' encoding='UTF-7'?><qubes/>",
        *[
            pytest.param(data)
            for data in (
                b"<?xml version='1.0'%b encoding='UTF-7'?>+ADwAIQ-DOCTYPE qubes [+ADwAIQ-ENTITY a 'x'>]><qubes/>"
                % (b" " * 300),
                b"<?xml version='1.0'%b encoding\n=\n'gb18030'?><qubes/>" % (b"\n" * 300),
            )
        ],
        b"<?xml version='1.0' encoding='nonsense'?><qubes/>",
    ],
)
def test_an_encoding_in_which_costs_cannot_be_counted_is_refused(data: bytes) -> None:
    assert refused(data).startswith("line ")


def measure(make: Callable[[], bytes], seconds: int) -> str:
    """Return what becomes of a document in a process of its own, after checking what it costs."""
    process = start(load_and_measure(make, seconds))
    try:
        report = process.read_line()
        assert process.wait() == 0, f"it took more than {seconds} s of CPU time, or more memory than there is"
    finally:
        process.close()
    spent, grown, outcome = report.split(" ", 2)
    assert float(spent) < seconds
    assert float(grown) < 1500
    return outcome


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_hostile_file_is_refused_at_little_cost(name: str) -> None:
    outcome = measure(REFUSED[name], 5)
    assert outcome.startswith(("line ", "it "))


@pytest.mark.parametrize("entity", ["ENTITY x", "ENTITY % x"])
def test_no_file_of_the_host_is_opened(tmp_path: Path, entity: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("precious")
    os.mkfifo(tmp_path / "pipe")  # whoever opened it would wait for ever
    for name in ("secret", "pipe"):
        use = "%x;]>\n" if "%" in entity else "]>\n"
        text = f"<!DOCTYPE qubes [<!{entity} SYSTEM 'file://{tmp_path}/{name}'>{use}<qubes a='b'><c>&x;</c></qubes>"
        message = refused(text)
        assert message.startswith("line ")
        assert "precious" not in message


@pytest.mark.parametrize("name", sorted(READ))
def test_an_odd_file_is_read_at_little_cost(name: str) -> None:
    assert measure(READ[name], 5) == "read"


COSTLY: dict[str, tuple[int, Callable[[], bytes]]] = {
    "100,000 attributes of the root": (2, lambda: b"<qubes %b/>" % attributes(100_000).encode()),
    "100,000 attributes of a device": (
        2,
        lambda: vm_with(f"<devices class='a'><device {attributes(100_000)}/></devices>"),
    ),
    "20,000 attributes in a DTD": (
        1,
        lambda: (
            b"<!DOCTYPE qubes [<!ATTLIST qubes %b>]>\n<qubes/>" % attributes(20_000).replace("=", " CDATA ").encode()
        ),
    ),
    "1,000 namespaces and 1,000 elements": (
        1,
        lambda: b"<qubes %b>%b</qubes>" % (attributes(1000, "xmlns:a").encode(), b"<x/>" * 1000),
    ),
    "9,000,000 attributes": (2, broad),
    "4,000 VMs in a chain of networks": (1, lambda: network(4000)),
}


@pytest.mark.parametrize("name", sorted(COSTLY))
def test_a_costly_file_is_read_or_refused_at_little_cost(name: str) -> None:
    """lxml, libxml2 and the rules take quadratic time for some of these, and others fill the memory."""
    seconds, make = COSTLY[name]
    assert measure(make, seconds)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_refused_with_a_storage_error(data: bytes) -> None:
    with pytest.raises(StorageError):
        read(data)


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_file_is_read_or_refused_with_a_storage_error(data: st.DataObject) -> None:
    registry = full_registry()
    registry.dom0.set("label", registry.find_label("black"))
    registry.find_vm("work").foreign = {"": ("<odd/>",), "@": ("odd=1",)}
    damaged = bytearray(write(registry))
    start_, length = data.draw(st.integers(0, len(damaged) - 1)), data.draw(st.integers(0, 30))
    damaged[start_ : start_ + length] = data.draw(
        st.binary(max_size=5) | st.sampled_from([b"<x/>", b"domain-0", b"0", b"red", b"dom0", b"work", b"debian"])
    )
    try:
        registry = read(bytes(damaged))
    except StorageError as error:
        assert str(error).startswith("line ")  # noqa: PT017 - what was drawn decides whether there is an error
        return
    assert content(again(registry)) == content(registry)
    assert all(vm.describe(name) for vm in registry for name in vm.declared())


def test_a_file_that_cannot_be_read(store: FileStore) -> None:
    Path(store.path).mkdir()
    with pytest.raises(StorageError, match="cannot be read"):
        store.load()


# Files that were changed behind our back.


def by_another_process(store: FileStore) -> None:
    other = FileStore(store.path, store.kernels_folder)
    registry = other.load()
    registry.set("stats_interval", 77)
    other.save(registry)


def in_place(store: FileStore) -> None:
    data = Path(store.path).read_bytes()
    Path(store.path).write_bytes(data.replace(b">512<", b">513<"))
    os.utime(store.path, ns=(0, os.stat(store.path).st_mtime_ns + 4_000_000))  # the clock's tick


def made_longer(store: FileStore) -> None:
    status = os.stat(store.path)
    with open(store.path, "ab") as file:
        file.write(b"\n")
    os.utime(store.path, ns=(status.st_atime_ns, status.st_mtime_ns))


def copied_over(store: FileStore) -> None:
    data, status = Path(store.path).read_bytes(), os.stat(store.path)
    Path(store.path + ".copy").write_bytes(data)
    os.utime(store.path + ".copy", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(store.path + ".copy", store.path)


def deleted(store: FileStore) -> None:
    os.unlink(store.path)


def link_to_another(store: FileStore) -> None:
    other = Path(store.path + ".other")
    other.write_bytes(Path(store.path).read_bytes())
    os.unlink(store.path)
    os.symlink(other, store.path)


def link_to_nothing(store: FileStore) -> None:
    os.unlink(store.path)
    os.symlink(store.path + ".nothing", store.path)


def folder_instead(store: FileStore) -> None:
    os.unlink(store.path)
    os.mkdir(store.path)


def everything_below(folder: Path) -> dict[str, bytes]:
    """Return the content of all files, links by where they lead to, but not the lock, which says who was last."""
    paths = [path for path in folder.rglob("*") if not path.name.endswith(".lock")]
    return {
        str(path): os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        for path in paths
    }


CHANGED = [by_another_process, in_place, made_longer, copied_over, deleted, link_to_another, link_to_nothing,
           folder_instead]  # fmt: skip


@pytest.mark.parametrize("change", CHANGED)
@pytest.mark.parametrize("is_loaded", [False, True])
def test_a_file_that_was_changed_behind_our_back_is_not_overwritten(
    store: FileStore, change: Callable[[FileStore], None], is_loaded: bool
) -> None:
    registry = full_registry()
    store.save(registry)
    if is_loaded:
        registry = store.load()
    change(store)
    before = everything_below(Path(store.path).parent)
    memory = content(registry)
    for _ in range(2):
        with pytest.raises(StorageError, match=r"the store .*qubes.xml was written by another program"):
            Editor(registry, store).set_property(registry.find_vm("work"), "memory", "600")
        assert everything_below(Path(store.path).parent) == before
        assert content(registry) == memory


@pytest.mark.parametrize("change", [by_another_process, in_place, made_longer])
def test_a_fault_does_not_make_a_changed_file_ours(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, change: Callable[[FileStore], None]
) -> None:
    registry = full_registry()
    store.save(registry)
    change(store)
    old = Path(store.path).read_bytes()
    real, calls = os.stat, 0

    def fail_once(path: str, *arguments: object, **more: object) -> os.stat_result:
        nonlocal calls
        calls += path == store.path
        if calls == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *arguments, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", fail_once)
        with pytest.raises(StorageError, match=os.strerror(errno.EIO)):
            store.save(registry)
    with pytest.raises(StorageError, match="another program"):
        store.save(registry)
    assert Path(store.path).read_bytes() == old


def test_a_file_that_came_to_be_behind_our_back_is_not_overwritten(store: FileStore) -> None:
    store.load()
    by_another_process(store)
    old = Path(store.path).read_bytes()
    with pytest.raises(StorageError, match="another program"):
        store.save(full_registry())
    assert Path(store.path).read_bytes() == old


def test_a_change_while_it_is_written_is_found(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is looked at again right before it is replaced: an editor does not take the lock."""
    store.save(full_registry())
    old = Path(store.path).read_bytes()
    sync = os.fsync

    def change_meanwhile(descriptor: int) -> None:
        sync(descriptor)
        made_longer(store)

    monkeypatch.setattr(os, "fsync", change_meanwhile)
    with pytest.raises(StorageError, match="another program"):
        store.save(new_registry())
    assert Path(store.path).read_bytes() == old + b"\n"
    assert sorted(os.listdir(Path(store.path).parent)) == ["kernels", "qubes.xml", "qubes.xml.lock"]


def test_after_loading_anew_it_can_be_saved_again(store: FileStore) -> None:
    store.save(full_registry())
    by_another_process(store)
    registry = store.load()
    registry.set("default_shutdown_timeout", 78)
    store.save(registry)
    loaded = FileStore(store.path, store.kernels_folder).load()
    assert (loaded.get("stats_interval"), loaded.get("default_shutdown_timeout")) == (77, 78)


def test_a_file_without_changes_may_have_been_touched_by_us_only(store: FileStore) -> None:
    registry = full_registry()
    for number in range(5):
        registry.set("stats_interval", number + 1)
        store.save(registry)
    assert FileStore(store.path, store.kernels_folder).load().get("stats_interval") == 5


@pytest.mark.parametrize("suffix", [".new", ".old"])
def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(store: FileStore, tmp_path: Path, suffix: str) -> None:
    registry = full_registry()
    store.save(registry)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    Path(store.path + suffix).symlink_to(victim)
    try:
        store.save(new_registry())
    except StorageError:
        assert Path(store.path).read_bytes() == write(registry)
    assert victim.read_text() == "precious"
    store.save(new_registry())
    assert not os.path.lexists(store.path + suffix)


# Former versions.


def saved(store: FileStore, numbers: range) -> Iterator[bytes]:
    """Save a number after the other and yield the bytes of each."""
    registry = counting_registry(0, 3)
    for number in numbers:
        count_to(registry, number)
        store.save(registry)
        yield Path(store.path).read_bytes()


def kept(store: FileStore) -> list[bytes]:
    return [Path(version.path).read_bytes() for version in store.history.versions()]


def test_former_versions_are_kept_in_their_order(store: FileStore) -> None:
    files = list(saved(store, range(6)))
    assert kept(store) == files[:-1]
    assert [version.number for version in store.history.versions()] == [1, 2, 3, 4, 5]
    assert [version.size for version in store.history.versions()] == [len(data) for data in files[:-1]]
    times = [version.written for version in store.history.versions()]
    assert times == sorted(times)
    assert os.stat(store.path).st_nlink == 1
    assert store.history.read(2) == files[1]


@pytest.mark.parametrize("keep", [1, 2, 5, pytest.param(history.KEEP, id="default")])
def test_the_last_versions_are_kept_and_no_more(store: FileStore, keep: int) -> None:
    store.history = History(store.history.folder, keep)
    files = []
    for data in saved(store, range(keep + 5)):
        files.append(data)
        assert kept(store) == files[:-1][-keep:]
    assert [version.number for version in store.history.versions()] == list(range(5, keep + 5))


def test_a_version_that_is_not_there(store: FileStore) -> None:
    with pytest.raises(NotFoundError, match="there: none yet"):
        store.history.find(1)
    list(saved(store, range(4)))
    with pytest.raises(NotFoundError, match=r"there is no version 7 of the store \(there: 1 to 3\)"):
        store.history.read(7)


def test_a_version_can_be_gone_back_to(store: FileStore) -> None:
    files = list(saved(store, range(4)))
    data = store.history.read(2)
    store.parse(data, store.history.find(2).path)
    store.replace(data)
    assert Path(store.path).read_bytes() == files[1]
    assert counters(store.load()) == {1}
    assert kept(store) == files


def test_a_version_that_is_broken_is_named(store: FileStore) -> None:
    list(saved(store, range(2)))
    path = store.history.find(1).path
    Path(path).write_text("<nonsense/>")
    with pytest.raises(StorageError, match=f"{path} cannot be used: line 1: "):
        store.parse(store.history.read(1), path)
    os.unlink(path)
    os.mkdir(path)
    with pytest.raises(StorageError, match="version 1 of the store cannot be read"):
        store.history.read(1)


def test_what_a_crash_left_is_taken_into_the_history(store: FileStore) -> None:
    """A crash right after the rename leaves the former version as `.old`; the next save must not lose it."""
    files = list(saved(store, range(3)))
    os.rename(store.history.find(2).path, store.path + ".old")
    Path(store.path + ".new").write_text("half a fi")
    files += saved(FileStore(store.path, store.kernels_folder), range(0))
    registry = store.load()
    count_to(registry, 9)
    store.save(registry)
    assert kept(store) == files
    assert counters(store.load()) == {9}
    assert sorted(os.listdir(Path(store.path).parent)) == ["history", "kernels", "qubes.xml", "qubes.xml.lock"]


def test_a_second_name_that_a_crash_left_is_no_version_of_its_own(store: FileStore) -> None:
    """A crash right before the rename leaves `.old` as a second name of the file that is still the present one."""
    files = list(saved(store, range(3)))
    os.link(store.path, store.path + ".old")
    store.save(store.load())
    assert kept(store) == files


def block_by_file(folder: str) -> None:
    Path(folder).write_text("no folder")


def block_by_link(folder: str) -> None:
    os.symlink("/nowhere/at/all", folder)


@pytest.mark.parametrize("block", [block_by_file, block_by_link])
def test_a_history_that_cannot_be_written_stops_no_change(
    store: FileStore, caplog: pytest.LogCaptureFixture, block: Callable[[str], None]
) -> None:
    block(store.history.folder)
    with caplog.at_level(logging.WARNING):
        for number, _ in enumerate(saved(store, range(3))):
            assert counters(FileStore(store.path, store.kernels_folder).load()) == {number}
            assert sorted(os.listdir(Path(store.path).parent)) == ["history", "kernels", "qubes.xml", "qubes.xml.lock"]
    assert [record.getMessage() for record in caplog.records] == [
        f"a former version of the store could not be kept: {os.strerror(errno.EEXIST)}"
    ] * 2


@pytest.mark.parametrize(
    "name", ["notes.txt", "x.xml", ".xml", "00000009.xml.bak", "-1.xml", "\u0663.xml",
             "\u00b2.xml"]
)  # fmt: skip
def test_other_files_in_the_history_do_no_harm(store: FileStore, name: str) -> None:
    os.mkdir(store.history.folder)
    Path(store.history.folder, name).write_text("mine")
    files = list(saved(store, range(3)))
    assert Path(store.history.folder, name).read_text() == "mine"
    assert set(kept(store)) >= set(files[:-1])


# Notes.


def test_notes_come_back_and_go(store: FileStore) -> None:
    assert store.notes("x") == ""
    store.save_notes("x", "line\r\n\ttabbed \u20ac")
    assert store.notes("x") == "line\n\ttabbed \u20ac"
    store.save_notes("x", "")
    store.save_notes("x", "")
    assert store.notes("x") == ""
    assert os.listdir(Path(store.path).parent / "notes") == []


def test_notes_cannot_deceive_a_terminal(store: FileStore) -> None:
    store.save_notes("x", "a\x1b[2Jb\u202ec\ud800d\x00e\u2028f\rg")
    assert store.notes("x") == "a_[2Jb_c_d_e_f_g"


def test_notes_that_are_too_long_are_refused(store: FileStore) -> None:
    store.save_notes("x", "\u20ac" * 85333)
    with pytest.raises(ValueRefusedError, match="256002 bytes"):
        store.save_notes("x", "\u20ac" * 85334)
    assert store.notes("x") == "\u20ac" * 85333


def test_errors_of_the_store_are_errors_of_ours(store: FileStore) -> None:
    Path(store.path).write_text("<qubes>")
    for action in (store.load, lambda: store.save(new_registry()), lambda: store.history.read(1)):
        with pytest.raises(CrannogError):
            action()
