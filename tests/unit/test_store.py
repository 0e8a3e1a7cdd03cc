"""The store: what is written comes back, what is broken is refused, and no failure harms the old file."""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crannog.adapters.store import qubes_xml
from crannog.adapters.store.file import FileStore
from crannog.core.registry import Registry
from crannog.core.vms import LocalVM
from crannog.errors import CrannogError, StorageError
from tests.fakes import KERNEL, add_vm, new_registry, template_and_app
from tests.mounts import small_file_system

KERNELS = {KERNEL}
DOMAIN = """<qubes version="3.0">
<domains>
<domain id="domain-5" class="StandaloneVM">
<properties>
<property name="name">alone</property>
<property name="uuid">00000000-0000-4000-8000-000000000001</property>
<property name="qid">5</property>
{properties}
</properties>
{rest}
</domain>
</domains>
</qubes>
"""


def content(registry: Registry) -> object:
    """Return everything that a registry holds, as plain values that can be compared."""

    def plain(values: dict[str, object]) -> dict[str, str]:
        return {name: f"{type(value).__name__} {value}" for name, value in values.items()}

    vms = [(vm.klass, plain(vm.values), vm.features, vm.tags, vm.volumes) for vm in registry]
    return plain(registry.values), registry.labels, sorted(vms, key=lambda vm: vm[1]["qid"])


def again(registry: Registry) -> Registry:
    return qubes_xml.from_bytes(qubes_xml.to_bytes(registry), KERNELS)


def full_registry() -> Registry:
    registry = new_registry()
    template, app = template_and_app(registry)
    registry.set("default_template", template)
    app.set("memory", 512)
    app.set("debug", value=True)
    app.set("label", registry.find_label("green"))
    app.features.update({"qrexec": "1", "empty": "", "odd": "<&>\"' "})
    app.tags.add("created-by-dom0")
    return registry


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


def test_the_file_is_private_and_has_no_companion(store: FileStore) -> None:
    store.save(full_registry())
    assert Path(store.path).stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(os.path.dirname(store.path))) == ["kernels", "qubes.xml"]


def test_a_reference_may_point_forward() -> None:
    registry = new_registry()
    _, app = template_and_app(registry)
    app.set("template", add_vm(registry, "TemplateVM", "later"))
    loaded = again(registry)
    assert loaded.find_vm("work").template is loaded.find_vm("later")


Change = Callable[[Registry, LocalVM, int], object]
CHANGES: dict[str, Change] = {
    "template": lambda registry, _vm, number: add_vm(registry, "TemplateVM", f"t{number}"),
    "app": lambda registry, vm, number: add_vm(registry, "AppVM", f"a{number}", vm),
    "alone": lambda registry, _vm, n: add_vm(registry, "StandaloneVM", f"s{n}", mode=("pv", "pvh", "hvm")[n % 3]),
    "rename": lambda registry, vm, number: registry.rename(vm, f"r{number}"),
    "memory": lambda _registry, vm, number: vm.set("memory", number),
    "feature": lambda _registry, vm, number: vm.features.update({f"f{number % 5}": f" {chr(0x20 + number % 95)}"}),
    "tag": lambda _registry, vm, number: vm.tags.add(f"t{number}"),
    "label": lambda registry, vm, number: vm.set("label", list(registry.labels.values())[number % 8]),
    "remove": lambda registry, vm, _number: registry.remove(vm),
    "default": lambda registry, vm, number: registry.set("default_template", vm if number % 2 else None),
}
# Each: the name of a change, an index that chooses a VM, a number.
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, 20), st.integers(0, 2**16)), max_size=25
)


@settings(deadline=None)
@given(OPERATIONS)
def test_any_sequence_of_operations_comes_back(operations: list[tuple[str, int, int]]) -> None:
    registry = new_registry()
    template_and_app(registry)
    for name, index, number in operations:
        vms = registry.local_vms()
        if vms:
            with contextlib.suppress(CrannogError):
                CHANGES[name](registry, vms[index % len(vms)], number)
    assert content(again(registry)) == content(registry)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("nonsense", 1),
        ("<qubes version='3.0'>\n<labels>\n</qubes>", 3),
        ("<qubes version='3.0'>\n\n", 3),
        ("<other version='3.0'/>", 1),
        ("<qubes version='2.0'/>", 1),
        ("<qubes/>", 1),
        ("<qubes version='3.0'>\x01</qubes>", 1),
        ("<!DOCTYPE qubes [<!ENTITY a 'x'>]>\n<qubes version='3.0'/>", 2),
        ("<!DOCTYPE qubes SYSTEM 'file:///etc/passwd'>\n<qubes version='3.0'/>", 2),
        ("<qubes version='3.0'>\n<labels>\n<label id='label-x' color='0x0'>odd</label></labels></qubes>", 3),
        ("<qubes version='3.0'>\n<pools/></qubes>", 2),
        ("<qubes version='3.0'>\n<properties>\n<property name='nonsense'>1</property></properties></qubes>", 3),
        ("<qubes version='3.0'>\n<domains>\n<domain class='DispVM'/></domains></qubes>", 3),
        ("<qubes version='3.0'>\n<domains>\n<domain class='StandaloneVM'/></domains></qubes>", 3),
    ],
)
def test_a_broken_file_is_refused_with_its_line_and_left_alone(store: FileStore, text: str, line: int) -> None:
    Path(store.path).write_text(text)
    with pytest.raises(StorageError, match=f"line {line}:") as caught:
        store.load()
    assert store.path in str(caught.value)
    assert Path(store.path).read_text() == text
    assert not Path(store.path + ".new").exists()


@pytest.mark.parametrize(
    ("properties", "rest", "named"),
    [
        ("<property name='nonsense'>1</property>", "", "nonsense"),
        ("<property name='memory'>lots</property>", "", "whole number"),
        ("<property name='memory'>-5</property>", "", "-5"),
        ("<property name='debug'>perhaps</property>", "", "perhaps"),
        ("<property name='label'>pink</property>", "", "pink"),
        ("<property name='virt_mode'>xen</property>", "", "xen"),
        ("<property name='template'>debian</property>", "", "template"),
        ("", "<devices class='pci'/>", "devices"),
    ],
)
def test_a_vm_that_makes_no_sense_is_refused(properties: str, rest: str, named: str) -> None:
    data = DOMAIN.format(properties=properties, rest=rest).encode()
    with pytest.raises(StorageError, match=r"line \d+: ") as caught:
        qubes_xml.from_bytes(data, KERNELS)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "volume",
    ["name='root'", "name='root' pool='p' vid='a/b' size='large'", "name='root' pool='p' vid='a/b' size='1' odd='1'"],
)
def test_a_volume_that_makes_no_sense_is_refused(volume: str) -> None:
    data = DOMAIN.format(properties="", rest=f"<volume-config><volume {volume}/></volume-config>").encode()
    with pytest.raises(StorageError, match=r"line \d+: "):
        qubes_xml.from_bytes(data, KERNELS)


@pytest.mark.parametrize("name", ["../../x", "", "none", "a" * 40])
def test_a_name_that_no_vm_may_have_is_refused(name: str) -> None:
    data = DOMAIN.format(properties="", rest="").replace(">alone<", f">{name}<").encode()
    with pytest.raises(StorageError, match=r"line \d+: "):
        qubes_xml.from_bytes(data, KERNELS)


def test_two_vms_with_one_identity_are_refused() -> None:
    one = DOMAIN.format(properties="", rest="")
    domain = one[one.index("<domain id") : one.index("</domains>")]
    with pytest.raises(StorageError, match="shares its name, UUID or qid"):
        qubes_xml.from_bytes(one.replace("</domains>", domain + "</domains>").encode(), KERNELS)


@pytest.mark.parametrize("template", ["alone", "other"])
def test_templates_in_a_circle_are_refused(template: str) -> None:
    one = DOMAIN.format(properties=f"<property name='template'>{template}</property>", rest="")
    other = one[one.index("<domain id") : one.index("</domains>")]
    for old, new in (("alone", "third"), ("other", "alone"), ("third", "other"), ("0001", "0002"), (">5<", ">6<")):
        other = other.replace(old, new)
    data = one.replace("</domains>", other + "</domains>").replace("StandaloneVM", "AppVM")
    with pytest.raises(StorageError, match=r"line \d+: "):
        qubes_xml.from_bytes(data.encode(), KERNELS)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("StandaloneVM", "AppVM"),
        ("StandaloneVM", "AdminVM"),
        (">5<", ">-3<"),
        (">00000000-0000-4000-8000-000000000001<", ">x/../../y<"),
        (">00000000-0000-4000-8000-000000000001<", "><"),
        ("</properties>", "<property name='klass'>AppVM</property></properties>"),
        ("</properties>", "<property name='xid'>7</property></properties>"),
    ],
)
def test_an_identity_that_no_vm_has_is_refused(old: str, new: str) -> None:
    text = DOMAIN.format(properties="", rest="")
    assert content(qubes_xml.from_bytes(text.encode(), KERNELS))
    with pytest.raises(StorageError, match=r"line \d+: "):
        qubes_xml.from_bytes(text.replace(old, new).encode(), KERNELS)


BOMB = (
    "<!DOCTYPE qubes [<!ENTITY a0 'aaaaaaaaaa'>"
    + "".join(f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 12))
    + "]>\n<qubes version='3.0'><labels><label id='label-9' color='0x0'>&a11;</label></labels></qubes>"
)
HOSTILE = {
    "entities that multiply": BOMB.encode(),
    "the same in UTF-16": ("<?xml version='1.0' encoding='UTF-16'?>" + BOMB).encode("utf-16"),
    "a text of 10 MB": b"<qubes version='3.0'><labels><label>" + b"x" * 10_000_001 + b"</label></labels></qubes>",
    "a file of 65 MiB": b"<qubes version='3.0'>" + b" " * (65 * 2**20) + b"</qubes>",
    "100,000 levels": b"<qubes version='3.0'>" + b"<a>" * 100_000 + b"</a>" * 100_000 + b"</qubes>",
    "a file of the host": (
        b"<!DOCTYPE qubes [<!ENTITY x SYSTEM 'file:///etc/hostname'>]>\n"
        b"<qubes version='3.0'><labels><label id='label-9' color='0x0'>&x;</label></labels></qubes>"
    ),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_file_is_refused_quickly(name: str) -> None:
    before = time.process_time()
    with pytest.raises(StorageError):
        qubes_xml.from_bytes(HOSTILE[name], KERNELS)
    assert time.process_time() - before < 1


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_refused_with_a_storage_error(data: bytes) -> None:
    with pytest.raises(StorageError):
        qubes_xml.from_bytes(data, KERNELS)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_damaged_file_is_read_or_refused_with_a_storage_error(data: st.DataObject) -> None:
    damaged = bytearray(qubes_xml.to_bytes(full_registry()))
    start = data.draw(st.integers(0, len(damaged) - 1))
    damaged[start : start + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=5))
    try:
        registry = qubes_xml.from_bytes(bytes(damaged), KERNELS)
    except StorageError:
        return
    assert content(again(registry)) == content(registry)
    assert all(str(vm.get(name)) is not None for vm in registry for name in vm.declared())


def test_a_file_that_cannot_be_read(store: FileStore) -> None:
    Path(store.path).mkdir()
    with pytest.raises(StorageError, match="cannot be read"):
        store.load()


def _fail(number: int) -> Callable[..., object]:
    def refuse(*_arguments: object, **_more: object) -> object:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize(
    ("function", "number"),
    [
        ("open", errno.EACCES),
        ("open", errno.EROFS),
        ("fsync", errno.EIO),
        ("fsync", errno.ENOSPC),
        ("replace", errno.EXDEV),
    ],
)
def test_a_failed_save_leaves_the_old_file(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, function: str, number: int
) -> None:
    store.save(full_registry())
    old = Path(store.path).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, function, _fail(number))
        with pytest.raises(StorageError, match=os.strerror(number)) as caught:
            store.save(new_registry())
    assert "intact" in str(caught.value)
    assert Path(store.path).read_bytes() == old
    assert not Path(store.path + ".new").exists()


def test_when_only_the_folder_cannot_be_synced_memory_and_file_agree(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rename is done by then: to say that nothing was changed would be wrong."""
    sync_file = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync_file(descriptor)

    store.save(new_registry())
    monkeypatch.setattr(os, "fsync", refuse_folders)
    store.save(full_registry())
    assert "work" in [vm.name for vm in store.load()]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 64 KiB."""
    with small_file_system(tmp_path / "tiny", "64k") as folder:
        yield folder


def test_a_save_on_a_full_disk_leaves_the_old_file(tiny_disk: Path) -> None:
    store = FileStore(str(tiny_disk / "qubes.xml"), str(tiny_disk / "kernels"))
    registry = full_registry()
    store.save(registry)
    old = (tiny_disk / "qubes.xml").read_bytes()
    registry.find_vm("work").features["large"] = "x" * 100_000
    with pytest.raises(StorageError, match="No space left"):
        store.save(registry)
    assert os.listdir(tiny_disk) == ["qubes.xml"]
    assert (tiny_disk / "qubes.xml").read_bytes() == old


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(store: FileStore, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    Path(store.path + ".new").symlink_to(victim)
    with pytest.raises(StorageError):
        store.save(full_registry())
    assert victim.read_text() == "precious"
