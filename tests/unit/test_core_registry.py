"""The registry: creation, names, removal of what is in use."""

from collections.abc import Callable

import pytest

from crannog.core import rules
from crannog.core.devices import Assignment
from crannog.core.features import GUARDED
from crannog.core.labels import BUILT_IN, Label
from crannog.core.pools import BUILT_IN_POOLS, PoolConfig
from crannog.core.registry import Registry
from crannog.core.vms import ADMIN_UUID, LocalVM, QubeBase, StandaloneVM
from crannog.core.volumes import GIB, Volume
from crannog.errors import (
    CrannogError,
    InUseError,
    LabelInUseError,
    LabelNotFoundError,
    ValueRefusedError,
    VMNotFoundError,
)
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
    vids = [volume.vid for vm in registry.local_vms() for volume in vm.pool_volumes()]
    assert len(set(vids)) == len(vids) == 9


@pytest.mark.parametrize("klass", ["TemplateVM", "AppVM", "StandaloneVM", "DispVM"])
def test_the_volumes_that_are_alike_in_each_class(klass: str) -> None:
    registry = new_registry()
    dvm = allow_disposables(registry)
    vm = registry.draft(klass, "new", UUID, {"AppVM": dvm.template, "DispVM": dvm}.get(klass))
    volatile, kernel = vm.volumes["volatile"], vm.volumes["kernel"]
    assert list(vm.volumes) == ["root", "private", "volatile", "kernel"]
    assert volatile == Volume("volatile", "vm-pool", "new-00000000/volatile", 10 * GIB)
    assert kernel == Volume("kernel", "linux-kernel", "", 0, rw=False)
    assert (volatile.is_volatile, kernel.is_volatile, kernel.is_kernel) == (True, False, True)


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


def draft_of(registry: Registry) -> QubeBase:
    """Return a draft that refers to a label, a netvm and a template for disposables that can all go meanwhile."""
    dvm = allow_disposables(registry)
    net = add_vm(registry, "StandaloneVM", "net")
    net.set("provides_network", value=True)
    registry.labels["pink"] = Label(9, "pink", "0xff00ff")
    dvm.set("label", registry.labels["pink"])
    dvm.set("netvm", net)
    vm = registry.draft("DispVM", "disp", UUID, dvm, dispid=1)
    for name in ("label", "netvm", "default_dispvm"):
        dvm.reset(name)
    return vm


def lose_label(registry: Registry) -> None:
    del registry.labels["pink"]


def lose_network(registry: Registry) -> None:
    registry.find_vm("net").set("provides_network", value=False)


def lose_disposables(registry: Registry) -> None:
    registry.find_vm("dvm").set("template_for_dispvms", value=False)


@pytest.mark.parametrize(
    ("happens", "kind", "words"),
    [
        (lose_label, LabelNotFoundError, "there is no label 'pink'"),
        (lose_network, ValueRefusedError, "net provides no network"),
        (lambda registry: registry.remove(registry.find_vm("net")), VMNotFoundError, "there is no VM 'uuid:"),
        (lambda registry: registry.rename(registry.find_vm("net"), "disp"), InUseError, "'disp' exists already"),
        (lose_disposables, ValueRefusedError, "which dvm is not"),
    ],
)  # fmt: skip
def test_what_has_happened_since_the_draft_counts(
    happens: Callable[[Registry], None], kind: type[CrannogError], words: str
) -> None:
    registry = new_registry()
    vm = draft_of(registry)
    happens(registry)
    before = registry.state()
    with pytest.raises(kind, match=words):
        registry.add(vm)
    assert registry.state() == before


def test_a_number_that_was_taken_since_the_draft_is_exchanged() -> None:
    registry = new_registry()
    vm = draft_of(registry)
    other = registry.create("DispVM", "other", UUID[:-1] + "2", registry.find_vm("dvm"), dispid=1)
    registry.add(vm)
    assert other.get("dispid") == 1 != vm.get("dispid")


def test_a_label_that_was_made_anew_since_the_draft_cannot_be_removed_from_under_the_vm() -> None:
    registry = new_registry()
    vm = draft_of(registry)
    registry.labels["pink"] = Label(9, "pink", "0x123456")
    try:
        registry.add(vm)
    except CrannogError:
        return
    with pytest.raises(LabelInUseError):
        rules.label_removal(registry, registry.labels["pink"])


def test_when_nothing_has_happened_since_the_draft_it_is_added() -> None:
    registry = new_registry()
    registry.add(draft_of(registry))
    assert registry.find_vm("disp").describe("netvm") == "default=False type=vm net"


def test_a_disposable_is_as_its_template_is() -> None:
    registry = new_registry()
    dvm = allow_disposables(registry)
    vm = registry.draft("DispVM", "disp", UUID, dvm, dispid=42)
    assert set(vm.values) == COPIED | IDENTITY | {"template", "dispid"}
    assert {name: vm.values[name] for name in COPIED} == {name: dvm.values[name] for name in COPIED}
    assert (vm.template, vm.get("dispid"), vm.label_name) == (dvm, 42, "blue")
    assert (vm.features, vm.tags, vm.devices) == (dvm.features, {"mine"}, dvm.devices)
    assert [name for name, volume in vm.volumes.items() if volume.snap_on_start] == ["root", "private"]
    assert not any(volume.save_on_stop for volume in vm.volumes.values())


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


@pytest.mark.parametrize("klass", ["AppVM", "StandaloneVM", "DispVM"])
def test_what_is_of_one_vm_only_is_not_copied(klass: str) -> None:
    """Books of the system, and tags that say who made the VM and who serves it: the copy gets its own."""
    registry = new_registry()
    dvm = allow_disposables(registry)
    free = dvm.features | {"preload-dispvm-max": "2", "service.x": "1"}
    dvm.features.update(free | dict.fromkeys(sorted(GUARDED), "disp1"))
    dvm.tags.update({"guivm-dom0", "audiovm-other", "created-by-x", "guivm", "x-guivm-y"})
    if klass == "DispVM":
        vm = registry.draft("DispVM", "disp", UUID, dvm)
        twice = registry.draft_clone(vm, "other", UUID)
    else:
        vm = registry.draft_clone(dvm, "other", UUID, klass)
        twice = registry.draft_clone(vm, "another", UUID)
    for copy in (vm, twice):
        assert (copy.features, copy.tags) == (free, {"mine", "guivm", "x-guivm-y"})


FROM_TEMPLATE: dict[str, object] = {
    "virt_mode": "hvm", "kernel": "", "kernelopts": "quiet", "memory": 900, "maxmem": 1800, "vcpus": 3,
    "default_user": "anna", "qrexec_timeout": 5, "shutdown_timeout": 6,
}  # fmt: skip


@pytest.mark.parametrize("klass", ["StandaloneVM", "TemplateVM"])
@pytest.mark.parametrize("name", ["work", "disp"])
def test_a_clone_that_has_no_template_keeps_what_came_from_it(name: str, klass: str) -> None:
    registry = new_registry()
    template, work = template_and_app(registry)
    dvm = add_vm(registry, "AppVM", "dvm", template)
    dvm.set("template_for_dispvms", value=True)
    add_vm(registry, "DispVM", "disp", dvm)
    for key, value in FROM_TEMPLATE.items():
        template.set(key, value)
    template.set("management_dispvm", dvm)
    template.features.update({"qrexec": "1", "os": "Linux", "service.meminfo-writer": "1", "f": "of debian"})
    template.features["preload-dispvm"] = "disp1"
    for owner in (work, dvm):
        owner.features.update({"f": f"of {owner.name}", "qrexec": ""})
    source = registry.find_vm(name)
    before = source.state()
    vm = registry.draft_clone(source, "free", UUID, klass)
    for key, value in (FROM_TEMPLATE | {"management_dispvm": dvm}).items():
        assert vm.get(key) == source.get(key), key
        assert vm.get(key) == value or (name, key) == ("disp", "maxmem"), key
    assert vm.template is None
    features = {
        "qrexec": "",
        "os": "Linux",
        "service.meminfo-writer": "1",
        "f": f"of {'work' if name == 'work' else 'dvm'}",
    }
    assert vm.features == features
    assert source.state() == before


def test_what_a_clone_without_a_template_would_have_anyway_is_not_set() -> None:
    registry = new_registry()
    _, work = template_and_app(registry)
    vm = registry.draft_clone(work, "free", UUID, "StandaloneVM")
    assert set(vm.values) == {"name", "uuid", "label"}


def test_the_most_memory_of_such_a_clone_goes_on_following_its_memory() -> None:
    registry = new_registry()
    template, work = template_and_app(registry)
    template.features["os"] = "Linux"
    work.set("memory", 800)
    vm = registry.draft_clone(work, "free", UUID, "StandaloneVM")
    assert (vm.get("maxmem"), vm.is_default("maxmem")) == (8000, True)


def test_such_a_clone_keeps_its_boot_mode() -> None:
    registry = new_registry()
    template, work = template_and_app(registry)
    template.set("appvm_default_bootmode", "rescue")
    vm = registry.draft_clone(work, "free", UUID, "StandaloneVM")
    assert vm.get("bootmode") == work.get("bootmode") == "rescue"


def test_the_own_settings_of_the_source_come_before_those_of_its_template() -> None:
    registry = new_registry()
    template, work = template_and_app(registry)
    template.set("memory", 900)
    template.set("kernelopts", "quiet")
    work.set("memory", 800)
    work.set("kernelopts", "")
    vm = registry.draft_clone(work, "free", UUID, "StandaloneVM")
    assert (vm.get("memory"), vm.get("kernelopts")) == (800, "")


def test_a_clone_of_another_class_has_what_that_class_has() -> None:
    registry = new_registry()
    dvm = allow_disposables(registry)
    vm = registry.draft_clone(dvm, "other", UUID, "StandaloneVM")
    assert set(vm.values) == COPIED | IDENTITY
    assert (vm.template, vm.get("default_dispvm"), vm.get("klass")) == (None, dvm, "StandaloneVM")
    assert [volume.snap_on_start for volume in vm.volumes.values()] == [False] * 4
    assert [name for name, volume in vm.volumes.items() if volume.save_on_stop] == ["root", "private"]


def test_the_volumes_of_a_clone_are_as_large_as_those_of_its_source() -> None:
    registry = new_registry()
    _, app = template_and_app(registry)
    for name, volume in app.volumes.items():
        app.volumes[name] = volume.with_source("", 7 * GIB)
    vm = registry.draft_clone(app, "other", UUID)
    assert [volume.size for volume in vm.pool_volumes()] == [7 * GIB] * 3
    assert [volume.source for volume in vm.volumes.values()] == [""] * 4


def test_a_clone_of_a_vm_from_before_there_were_volatile_volumes_gets_one() -> None:
    registry = new_registry()
    _, app = template_and_app(registry)
    for name in ("volatile", "kernel"):
        del app.volumes[name]
    vm = registry.draft_clone(app, "other", UUID)
    assert vm.volumes["volatile"] == Volume("volatile", "vm-pool", "other-00000000/volatile", 10 * GIB)
    assert vm.volumes["kernel"].pool == "linux-kernel"


def test_the_clone_of_a_disposable_gets_a_number_of_its_own() -> None:
    registry = new_registry()
    dvm = allow_disposables(registry)
    first = registry.create("DispVM", "disp", UUID, dvm, dispid=1)
    assert registry.draft_clone(first, "other", UUID[:-1] + "2").get("dispid") == 2
    assert registry.draft_clone(first, "other", UUID[:-1] + "2", dispid=42).get("dispid") == 42


@pytest.mark.parametrize("klass", ["StandaloneVM", "TemplateVM"])
def test_a_vm_on_another_host_has_no_volumes_to_copy(klass: str) -> None:
    registry = new_registry()
    far = registry.create("RemoteVM", "far", UUID, None)
    before = registry.state()
    words = f"near: a {klass} has a volume root, and far, a RemoteVM, has none to copy"
    with pytest.raises(ValueRefusedError, match=words):
        registry.draft_clone(far, "near", UUID[:-1] + "2", klass)
    assert registry.state() == before
    assert registry.draft_clone(far, "farther", UUID[:-1] + "2").volumes == {}


def test_a_local_vm_can_go_to_another_host() -> None:
    registry = new_registry()
    vm = registry.draft_clone(allow_disposables(registry), "far", UUID, "RemoteVM")
    assert (set(vm.values), vm.volumes) == ({"name", "uuid", "label"}, {})


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
    assert [volume.pool for volume in vm.volumes.values()] == ["big", "vm-pool", "vm-pool", "linux-kernel"]
    registry.set("default_pool_volatile", "big")
    vm = add_vm(registry, "StandaloneVM", "other")
    assert [volume.pool for volume in vm.volumes.values()] == ["big", "vm-pool", "big", "linux-kernel"]


def test_pools_have_names_of_their_own() -> None:
    registry = new_registry()
    assert list(registry.pools.values()) == list(BUILT_IN_POOLS)
    before = registry.state()
    with pytest.raises(InUseError, match="a pool called 'vm-pool' exists already"):
        registry.add_pool(PoolConfig("vm-pool", "other"))
    assert registry.state() == before


def test_labels_of_a_store_that_has_its_own() -> None:
    """A file can have other labels in the place of `red` and `black`."""
    registry = new_registry()
    assert (registry.default_label(), registry.default_label("black")) == (BUILT_IN[0], registry.labels["black"])
    first, second = Label(1, "crimson", "0xcc0000"), Label(8, "ink", "0x000000")
    registry.labels = {label.name: label for label in (first, second)}
    assert registry.default_label() is registry.default_label("black") is first
    vm = add_vm(registry, "StandaloneVM", "alone")
    assert (vm.get("label"), registry.dom0.get("label")) == (first, first)
    del vm.values["label"]
    assert (vm.label_name, vm.get("icon"), registry.dom0.label_name) == ("crimson", "standalonevm-crimson", "crimson")


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
    for vm in vms[:-1]:  # as from a file: `add` looks at all others each time
        vm.values["qid"] = 1000 + int(vm.get("dispid"))
        registry.adopt(vm)
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
    before = registry.state()
    with pytest.raises(VMNotFoundError, match=f"there is no VM 'uuid:{vm.uuid}'"):
        registry.remove(vm)
    other = add_vm(registry, "StandaloneVM", "alone")
    with pytest.raises(VMNotFoundError):
        registry.remove(vm)
    assert registry.find_vm("alone") is other
    registry.remove(other)
    assert registry.state() == {**before, "_next_qid": other.qid + 1}


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
