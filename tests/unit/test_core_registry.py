"""The registry: creation, names, removal of what is in use."""

import pytest

from crannog.core.devices import Assignment
from crannog.core.pools import BUILT_IN_POOLS, PoolConfig
from crannog.core.registry import Registry
from crannog.core.vms import ADMIN_UUID, LocalVM, StandaloneVM
from crannog.core.volumes import GIB
from crannog.errors import CrannogError, InUseError, ValueRefusedError, VMNotFoundError
from tests.fakes import add_vm, new_registry, template_and_app

UUID = "00000000-0000-4000-8000-000000000001"


def names(registry: Registry) -> list[str]:
    return [vm.name for vm in registry]


def test_a_new_registry_holds_dom0_only() -> None:
    registry = Registry()
    assert names(registry) == ["dom0"]
    assert registry.find_vm(f"uuid:{ADMIN_UUID}") is registry.find_uuid(ADMIN_UUID) is registry.find_vm("dom0")
    assert registry.local_vms() == []


def test_a_new_vm_is_found_by_name_and_uuid() -> None:
    registry = new_registry()
    vm = add_vm(registry, "StandaloneVM", "alone")
    assert registry.find_vm("alone") is registry.find_vm(f"uuid:{vm.uuid}") is registry.find_uuid(vm.uuid) is vm
    assert registry.local_vms() == [vm]


@pytest.mark.parametrize(
    ("klass", "name", "kind"),
    [
        ("AdminVM", "x", ValueRefusedError),
        ("QubeBase", "x", ValueRefusedError),
        ("LocalVM", "x", ValueRefusedError),
        ("", "x", ValueRefusedError),
        ("DispVM", "x", ValueRefusedError),
        ("StandaloneVM", "dom0", ValueRefusedError),
        ("StandaloneVM", "../x", ValueRefusedError),
        ("StandaloneVM", "debian", InUseError),
        ("AppVM", "x", ValueRefusedError),
    ],
)
def test_a_refused_creation_adds_nothing(klass: str, name: str, kind: type[CrannogError]) -> None:
    registry = new_registry()
    template_and_app(registry)
    before = names(registry)
    with pytest.raises(kind):
        registry.create(klass, name, "00000000-0000-4000-8000-000000000001", None)
    assert names(registry) == before
    assert registry.find_uuid("00000000-0000-4000-8000-000000000001") is None


def test_qids_are_never_used_twice() -> None:
    registry = new_registry()
    first = add_vm(registry, "StandaloneVM", "one")
    second = add_vm(registry, "StandaloneVM", "two")
    registry.remove(first)
    third = add_vm(registry, "StandaloneVM", "three")
    assert 0 < first.qid < second.qid < third.qid


def test_volumes_of_each_class() -> None:
    registry = new_registry()
    template, app = template_and_app(registry)
    root, private = app.volumes["root"], app.volumes["private"]
    assert (root.snap_on_start, root.save_on_stop, root.revisions_to_keep) == (True, False, 0)
    assert (private.snap_on_start, private.save_on_stop) == (False, True)
    assert template.volumes["root"].revisions_to_keep == 1
    assert add_vm(registry, "StandaloneVM", "alone").volumes["root"].revisions_to_keep == 0
    vids = [volume.vid for vm in registry for volume in vm.volumes.values()]
    assert len(set(vids)) == len(vids)


def test_the_volumes_of_a_vm_that_took_over_a_name_are_new() -> None:
    registry = new_registry()
    old = add_vm(registry, "StandaloneVM", "alone")
    registry.rename(old, "older")
    new = add_vm(registry, "StandaloneVM", "alone")
    assert old.volumes["root"].vid != new.volumes["root"].vid


@pytest.mark.parametrize("name", ["template", "default_template"])
def test_a_vm_in_use_is_not_removed_and_its_user_is_named(name: str) -> None:
    registry = new_registry()
    template, app = template_and_app(registry)
    if name == "default_template":
        registry.remove(app)
        registry.set("default_template", template)
    with pytest.raises(InUseError, match=name):
        registry.remove(template)
    assert registry.find_vm("debian") is template


def test_all_users_are_named() -> None:
    registry = new_registry()
    template, _ = template_and_app(registry)
    add_vm(registry, "AppVM", "desk", template)
    with pytest.raises(InUseError, match=r"debian is in use by work \(template\), desk \(template\)"):
        registry.remove(template)


def test_removal_forgets_name_uuid_and_qid() -> None:
    registry = new_registry()
    template, app = template_and_app(registry)
    registry.remove(app)
    registry.remove(template)
    assert names(registry) == ["dom0"]
    assert registry.find_uuid(app.uuid) is None
    with pytest.raises(VMNotFoundError):
        registry.find_vm("work")
    registry.adopt(app)
    assert registry.find_vm("work") is app


def test_dom0_is_neither_removed_nor_renamed() -> None:
    registry = new_registry()
    dom0 = registry.find_vm("dom0")
    with pytest.raises(InUseError):
        registry.remove(dom0)
    with pytest.raises(CrannogError):
        registry.rename(dom0, "other")
    assert registry.find_vm("dom0") is dom0
    assert dom0.name == "dom0"


def test_rename_moves_the_name_and_keeps_the_rest() -> None:
    registry = new_registry()
    template, app = template_and_app(registry)
    registry.rename(template, "trixie")
    assert registry.find_vm("trixie") is template is app.template is registry.find_uuid(template.uuid)
    with pytest.raises(VMNotFoundError):
        registry.find_vm("debian")


@pytest.mark.parametrize("name", ["work", "dom0", "", "a b", "x-dm", "../x"])
def test_a_refused_rename_changes_nothing(name: str) -> None:
    registry = new_registry()
    template, _ = template_and_app(registry)
    with pytest.raises(CrannogError):
        registry.rename(template, name)
    assert names(registry) == ["dom0", "debian", "work"]
    assert template.name == "debian"


@pytest.mark.parametrize("shared", ["name", "uuid", "qid"])
def test_adopt_refuses_a_vm_that_shares_an_identity(shared: str) -> None:
    registry = new_registry()
    _, app = template_and_app(registry)
    other = StandaloneVM(registry)
    other.values.update(name="other", uuid="00000000-0000-4000-8000-000000000001", qid=77)
    other.values[shared] = app.values[shared]
    with pytest.raises(ValueRefusedError, match="shares its name, UUID or qid"):
        registry.adopt(other)
    assert names(registry) == ["dom0", "debian", "work"]


def test_features_come_from_the_template_too() -> None:
    template, app = template_and_app(new_registry())
    template.features["qrexec"] = "1"
    assert app.feature("qrexec") == "1"
    app.features["qrexec"] = ""
    assert app.feature("qrexec") == ""
    assert template.feature("qrexec") == "1"
    assert app.feature("nothing") is None


def allow_disposables(registry: Registry) -> LocalVM:
    """Return an AppVM with settings of all kinds that disposables may start from."""
    template, _ = template_and_app(registry)
    vm = add_vm(registry, "AppVM", "dvm", template)
    vm.set("template_for_dispvms", value=True)
    vm.set("label", registry.find_label("blue"))
    vm.set("memory", 777)
    vm.set("default_dispvm", vm)
    vm.values.update(ip="10.0.0.1", ip6="fd00::1", mac="00:16:3e:00:00:01", installed_by_rpm=True, backup_timestamp=5)
    vm.features.update({"f": "1", "empty": ""})
    vm.tags.update({"mine", "created-by-dom0"})
    vm.devices = (Assignment("block", (("backend-domain", "dom0"), ("id", "sda"))),)
    return vm


COPIED = {"label", "memory", "default_dispvm"}
IDENTITY = {"name", "uuid"}


def test_a_draft_is_in_no_list_until_it_is_added() -> None:
    registry = new_registry()
    before = registry.state()
    vm = registry.draft("StandaloneVM", "alone", UUID, None)
    assert registry.state() == before
    assert "qid" not in vm.values
    registry.add(vm)
    assert registry.find_vm("alone") is registry.find_uuid(UUID) is registry.find_qid(vm.qid) is vm


def test_two_drafts_of_one_name_do_not_both_get_in() -> None:
    registry = new_registry()
    first, second = (registry.draft("StandaloneVM", "alone", uuid, None) for uuid in (UUID, UUID[:-1] + "2"))
    registry.add(first)
    before = registry.state()
    with pytest.raises(InUseError, match="called 'alone' exists already"):
        registry.add(second)
    assert registry.state() == before


def test_a_disposable_is_as_its_template_is() -> None:
    registry = new_registry()
    dvm = allow_disposables(registry)
    vm = registry.draft("DispVM", "disp", UUID, dvm, dispid=42)
    assert set(vm.values) == COPIED | IDENTITY | {"template", "dispid"}
    assert {name: vm.values[name] for name in COPIED} == {name: dvm.values[name] for name in COPIED}
    assert (vm.template, vm.get("dispid"), vm.label_name) == (dvm, 42, "blue")
    assert (vm.features, vm.tags, vm.devices) == (dvm.features, {"mine"}, dvm.devices)
    assert all(volume.snap_on_start and not volume.save_on_stop for volume in vm.volumes.values())


def test_copies_are_changed_on_their_own() -> None:
    registry = new_registry()
    dvm = allow_disposables(registry)
    vm = registry.draft("DispVM", "disp", UUID, dvm)
    vm.features["f"] = "2"
    vm.tags.add("more")
    vm.set("memory", 888)
    assert (dvm.features["f"], dvm.tags, dvm.get("memory")) == ("1", {"mine", "created-by-dom0"}, 777)


def test_a_clone_has_what_its_source_has_but_no_identity_and_no_address() -> None:
    registry = new_registry()
    dvm = allow_disposables(registry)
    vm = registry.draft_clone(dvm, "other", UUID)
    assert set(vm.values) == COPIED | IDENTITY | {"template", "template_for_dispvms"}
    assert (vm.klass, vm.name, vm.template, vm.get("memory")) == ("AppVM", "other", dvm.template, 777)
    assert (vm.features, vm.tags, vm.devices) == (dvm.features, {"mine"}, dvm.devices)
    assert vm.volumes["private"].vid == "other-00000000/private"


def test_a_clone_of_another_class_has_what_that_class_has() -> None:
    registry = new_registry()
    dvm = allow_disposables(registry)
    vm = registry.draft_clone(dvm, "other", UUID, "StandaloneVM")
    assert set(vm.values) == COPIED | IDENTITY
    assert (vm.template, vm.get("default_dispvm"), vm.get("klass")) == (None, dvm, "StandaloneVM")
    assert [volume.snap_on_start for volume in vm.volumes.values()] == [False, False]


def test_the_volumes_of_a_clone_are_as_large_as_those_of_its_source() -> None:
    registry = new_registry()
    _, app = template_and_app(registry)
    for name, volume in app.volumes.items():
        app.volumes[name] = volume.with_source("", 7 * GIB)
    vm = registry.draft_clone(app, "other", UUID)
    assert [volume.size for volume in vm.volumes.values()] == [7 * GIB, 7 * GIB]
    assert [volume.source for volume in vm.volumes.values()] == ["", ""]


def test_the_clone_of_a_disposable_gets_a_number_of_its_own() -> None:
    registry = new_registry()
    dvm = allow_disposables(registry)
    first = registry.create("DispVM", "disp", UUID, dvm, dispid=1)
    assert registry.draft_clone(first, "other", UUID[:-1] + "2").get("dispid") == 2


@pytest.mark.parametrize(
    ("source", "klass", "words"),
    [
        ("debian", "AppVM", "AppVM needs a template"),
        ("dvm", "DispVM", "which debian is not"),
        ("dvm", "AdminVM", "VMs of class 'AdminVM' cannot be created"),
        ("dvm", "nonsense", "VMs of class 'nonsense' cannot be created"),
        ("dom0", "", "VMs of class 'AdminVM' cannot be created"),
    ],
)
def test_clones_that_are_refused(source: str, klass: str, words: str) -> None:
    registry = new_registry()
    allow_disposables(registry)
    before = registry.state()
    with pytest.raises(ValueRefusedError, match=words):
        registry.draft_clone(registry.find_vm(source), "other", UUID, klass)
    assert registry.state() == before


def test_new_volumes_are_in_the_default_pools() -> None:
    registry = new_registry()
    registry.add_pool(PoolConfig("big", "qcow2"))
    registry.set("default_pool_root", "big")
    vm = add_vm(registry, "StandaloneVM", "alone")
    assert [(volume.name, volume.pool) for volume in vm.volumes.values()] == [("root", "big"), ("private", "vm-pool")]


def test_pools_have_names_of_their_own() -> None:
    registry = new_registry()
    assert list(registry.pools.values()) == list(BUILT_IN_POOLS)
    before = registry.state()
    with pytest.raises(InUseError, match="a pool called 'vm-pool' exists already"):
        registry.add_pool(PoolConfig("vm-pool", "other"))
    assert registry.state() == before


def test_the_lowest_free_dispid_is_given() -> None:
    registry = new_registry()
    dvm = allow_disposables(registry)
    for dispid in (1, 2, 4):
        registry.create("DispVM", f"disp{dispid}", f"{UUID[:-1]}{dispid + 1}", dvm, dispid=dispid)
    assert registry.free_dispid() == 3


def test_there_are_9999_dispids() -> None:
    registry = new_registry()
    dvm = allow_disposables(registry)
    vms = [
        registry.draft("DispVM", f"disp{number}", f"x{number:035}", dvm, dispid=number) for number in range(1, 10000)
    ]
    for vm in vms[:-1]:
        registry.add(vm)
    assert registry.free_dispid() == 9999
    registry.add(vms[-1])
    with pytest.raises(InUseError, match="all 9999 numbers of disposables are in use"):
        registry.free_dispid()
    before = names(registry)
    with pytest.raises(InUseError):
        registry.draft("DispVM", "one-more", UUID, dvm)
    assert names(registry) == before


def test_who_uses_a_vm_and_by_what() -> None:
    registry = new_registry()
    template, app = template_and_app(registry)
    registry.set("default_template", template)
    app.set("audiovm", template)
    app.devices = (Assignment("block", (("backend-domain", "debian"), ("id", "sda"))),)
    template.set("guivm", None)
    template.values["default_dispvm"] = template
    users = [("work", "template"), ("work", "audiovm"), ("work", "device"), ("", "default_template")]
    assert registry.users_of(template) == users
    assert registry.users_of_template(template) == [app]
    assert (registry.users_of(app), registry.users_of_template(app)) == ([], [])


@pytest.mark.parametrize("missing", ["name", "uuid", "qid"])
def test_adopt_refuses_a_vm_that_lacks_an_identity(missing: str) -> None:
    registry = new_registry()
    vm = StandaloneVM(registry)
    vm.values.update(name="other", uuid=UUID, qid=77)
    del vm.values[missing]
    with pytest.raises(ValueRefusedError, match=f"a VM has no {missing}"):
        registry.adopt(vm)
    assert names(registry) == ["dom0"]


def test_an_adopted_number_is_not_given_again() -> None:
    registry = new_registry()
    vm = StandaloneVM(registry)
    vm.values.update(name="other", uuid=UUID, qid=77)
    registry.adopt(vm)
    assert registry.find_qid(77) is vm
    assert add_vm(registry, "StandaloneVM", "next").qid == 78
    assert registry.find_qid(79) is None


def test_a_vm_is_removed_once() -> None:
    registry = new_registry()
    vm = add_vm(registry, "StandaloneVM", "alone")
    registry.remove(vm)
    with pytest.raises(VMNotFoundError):
        registry.remove(vm)


def test_state_and_restore() -> None:
    registry = new_registry()
    template, app = template_and_app(registry)
    before, of_app = registry.state(), app.state()
    registry.rename(app, "other")
    registry.labels.clear()
    registry.kernels.clear()
    app.features["f"] = "1"
    app.tags.add("t")
    app.volumes.clear()
    assert app.state() != of_app
    assert registry.state() != before
    registry.restore(before)
    app.restore(of_app)
    assert (registry.state(), app.state()) == (before, of_app)
    assert [registry.find_vm(name) for name in ("dom0", "debian", "work")] == [registry.dom0, template, app]
