"""The registry: creation, names, removal of what is in use."""

import pytest

from crannog.core.registry import Registry
from crannog.core.vms import ADMIN_UUID, StandaloneVM
from crannog.errors import CrannogError, InUseError, ValueRefusedError, VMNotFoundError
from tests.fakes import add_vm, new_registry, template_and_app


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
