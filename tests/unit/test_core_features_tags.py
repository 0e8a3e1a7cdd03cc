"""Features and the five look-ups; tags, and those that follow from who created a VM and who shows it (section 6)."""

import pytest

from crannog.core.features import check_feature, check_feature_is_free, find_feature, require
from crannog.core.kinds import MAX_TEXT
from crannog.core.registry import Registry
from crannog.core.tags import check_tag, check_tag_is_free, creation_tags, following_tags
from crannog.core.vms import QubeBase
from crannog.errors import DeniedError, FeatureNotFoundError, ProtocolError, TagRefusedError
from tests.fakes import add_vm, new_registry, template_and_app

LOOKUPS = {
    "Get": ("", False),
    "CheckWithTemplate": ("template", False),
    "CheckWithNetvm": ("netvm", False),
    "CheckWithAdminVM": ("", True),
    "CheckWithTemplateAndAdminVM": ("template", True),
}
# Who is asked, in this order: `disp` starts from `work`, that from `debian`; `disp` goes online by `fw`, that by `net`.
ASKED = {
    "Get": ["disp"],
    "CheckWithTemplate": ["disp", "work", "debian"],
    "CheckWithNetvm": ["disp", "fw", "net"],
    "CheckWithAdminVM": ["disp", "dom0"],
    "CheckWithTemplateAndAdminVM": ["disp", "work", "debian", "dom0"],
}


@pytest.fixture
def registry() -> Registry:
    registry = new_registry()
    _, work = template_and_app(registry)
    work.set("template_for_dispvms", value=True)
    disp = add_vm(registry, "DispVM", "disp", work)
    fw, net = add_vm(registry, "StandaloneVM", "fw"), add_vm(registry, "StandaloneVM", "net")
    for vm in (fw, net):
        vm.set("provides_network", value=True)
    fw.set("netvm", net)
    disp.set("netvm", fw)
    return registry


def look_up(registry: Registry, lookup: str, vm: str = "disp") -> str | None:
    via, with_admin = LOOKUPS[lookup]
    return find_feature(registry.find_vm(vm), "f", via=via, with_admin=with_admin)


@pytest.mark.parametrize("lookup", LOOKUPS)
def test_who_is_asked_for_a_feature(registry: Registry, lookup: str) -> None:
    for vm in registry:
        vm.features = {"f": f"of {vm.name}", "g": "other"}
        assert look_up(registry, lookup) == (f"of {vm.name}" if vm.name in ASKED[lookup] else None)
        vm.features = {}


@pytest.mark.parametrize("lookup", LOOKUPS)
def test_the_nearest_answer_counts_the_empty_one_too(registry: Registry, lookup: str) -> None:
    for value in ("text", ""):
        for vm in registry:
            vm.features["f"] = f"of {vm.name}"
        for name in ASKED[lookup]:
            registry.find_vm(name).features["f"] = value
            assert look_up(registry, lookup) == value
            del registry.find_vm(name).features["f"]
        assert look_up(registry, lookup) is None


@pytest.mark.parametrize("lookup", LOOKUPS)
@pytest.mark.parametrize("name", ["dom0", "far", "debian"])
def test_who_has_neither_template_nor_netvm_is_asked_alone(registry: Registry, lookup: str, name: str) -> None:
    registry.create("RemoteVM", "far", "00000000-0000-4000-8000-000000000009", None)
    assert look_up(registry, lookup, name) is None
    registry.find_vm(name).features["f"] = "own"
    assert look_up(registry, lookup, name) == "own"


def test_a_chain_of_netvms_may_be_long(registry: Registry) -> None:
    first = previous = add_vm(registry, "StandaloneVM", "hop0")
    for number in range(1, 50):
        vm = add_vm(registry, "StandaloneVM", f"hop{number}")
        vm.set("provides_network", value=True)
        previous.set("netvm", vm)
        previous = vm
    previous.features["f"] = "far away"
    assert find_feature(first, "f", via="netvm") == "far away"


def test_a_loop_ends(registry: Registry) -> None:
    """The rules make none; should a file bring one in, a look-up ends all the same."""
    fw, net = registry.find_vm("fw"), registry.find_vm("net")
    net.values["netvm"] = fw
    assert find_feature(registry.find_vm("disp"), "f", via="netvm") is None


def test_what_is_not_found_is_named() -> None:
    vm = new_registry().dom0
    assert require(vm, "f", "") == ""
    with pytest.raises(FeatureNotFoundError, match="dom0 has no feature 'fff"):
        require(vm, "f" * 500, None)


@pytest.mark.parametrize("name", ["f", "service.x", "vm-config.A_b", "0", "x" * 255, "..", "-"])
def test_names_of_features(name: str) -> None:
    check_feature(name, "")


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a:b", "caf\u00e9", "a\n", "x" * 256, "a+b"])
def test_names_that_no_feature_has(name: str) -> None:
    with pytest.raises(ProtocolError, match="the name of a feature holds letters"):
        check_feature(name, "")


@pytest.mark.parametrize("value", ["", " ", "~", "a=b;<&>\"'", "x" * MAX_TEXT])
def test_values_of_features(value: str) -> None:
    check_feature("f", value)


@pytest.mark.parametrize("value", ["\n", "a\0", "\x1f", "\x7f", "\x80", "caf\u00e9", "x" * (MAX_TEXT + 1)])
def test_values_that_no_feature_has(value: str) -> None:
    with pytest.raises(ProtocolError, match=f"printable ASCII of at most {MAX_TEXT}"):
        check_feature("f", value)


GUARDED = ["preload-dispvm", "preload-dispvm-completed", "preload-dispvm-in-progress", "deferred-netvm-original"]


@pytest.mark.parametrize("name", GUARDED)
def test_features_that_the_system_keeps(name: str) -> None:
    with pytest.raises(DeniedError, match=f"feature '{name}' is kept by the system"):
        check_feature_is_free(name)


@pytest.mark.parametrize("name", ["preload-dispvm-max", "preload-dispvm-delay", "service.preload-dispvm", "Preload"])
def test_features_beside_them_are_free(name: str) -> None:
    check_feature_is_free(name)


@pytest.mark.parametrize("tag", ["a", "A-b_9", "-", "x" * 255, "created-by-dom0"])
def test_tags(tag: str) -> None:
    assert check_tag(tag) == tag


@pytest.mark.parametrize("tag", ["", "a b", "a.b", "a:b", "@tag", "caf\u00e9", "a\n", "x" * 256])
def test_what_is_no_tag(tag: str) -> None:
    with pytest.raises(TagRefusedError, match="a tag holds letters, digits, _ and - only"):
        check_tag(tag)


@pytest.mark.parametrize("tag", ["created-by-", "created-by-dom0", "created-by-" + "x" * 500])
def test_who_created_a_vm_is_not_changed_by_hand(tag: str) -> None:
    with pytest.raises(DeniedError, match="says who created a VM and cannot be changed by hand") as caught:
        check_tag_is_free(tag)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("tag", ["created", "Created-by-dom0", "created_by-dom0", "x-created-by-dom0"])
def test_tags_beside_them_are_free(tag: str) -> None:
    check_tag_is_free(tag)


@pytest.mark.parametrize(
    ("feature", "more"),
    [
        (None, set()),
        ("", set()),
        ("  ", set()),
        ("one", {"one"}),
        ("one  two three ", {"one", "two", "three"}),
        ("a.b ok @x \u00e9", {"ok"}),
    ],
)
def test_the_tags_of_a_new_vm_tell_who_created_it(registry: Registry, feature: str | None, more: set[str]) -> None:
    creator = registry.find_vm("work")
    if feature is not None:
        creator.features["tag-created-vm-with"] = feature
    assert creation_tags(creator) == {"created-by-work"} | more
    assert creation_tags(registry.dom0) == {"created-by-dom0"}


def test_a_creator_cannot_pretend_to_be_another(registry: Registry) -> None:
    creator = registry.find_vm("work")
    creator.features["tag-created-vm-with"] = "created-by-dom0 ok"
    assert creation_tags(creator) == {"created-by-work", "ok"}


def test_only_the_creators_own_feature_counts(registry: Registry) -> None:
    registry.find_vm("debian").features["tag-created-vm-with"] = "one"
    assert creation_tags(registry.find_vm("work")) == {"created-by-work"}


def rename(vm: QubeBase, name: str) -> QubeBase:
    vm.registry.rename(vm, name)
    return vm


def test_dots_in_a_name_are_no_part_of_a_tag(registry: Registry) -> None:
    gui = rename(registry.find_vm("net"), "sys.gui_2-x")
    registry.find_vm("work").set("guivm", gui)
    assert creation_tags(gui) == {"created-by-sys_gui_2-x"}
    assert following_tags(registry.find_vm("work")) == {"guivm-sys_gui_2-x", "audiovm-dom0"}


def test_tags_that_follow_from_who_shows_a_vm(registry: Registry) -> None:
    work, net, fw = (registry.find_vm(name) for name in ("work", "net", "fw"))
    assert following_tags(work) == {"guivm-dom0", "audiovm-dom0"}
    work.set("guivm", net)
    assert following_tags(work) == {"guivm-net", "audiovm-dom0"}
    registry.set("default_audiovm", fw)
    assert following_tags(work) == {"guivm-net", "audiovm-fw"}
    work.set("guivm", None)
    work.set("audiovm", None)
    assert following_tags(work) == set()


def test_vms_that_nobody_shows_have_no_such_tags(registry: Registry) -> None:
    far = registry.create("RemoteVM", "far", "00000000-0000-4000-8000-000000000009", None)
    assert following_tags(registry.dom0) == following_tags(far) == set()
