"""The editor: what was changed is saved, and only then told; what cannot be saved has never happened."""

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crannog.adapters.store import qubes_xml
from crannog.adapters.store.file import FileStore
from crannog.adapters.store.r4_writer import R4Writer
from crannog.core.events import Event
from crannog.core.registry import Registry
from crannog.core.vms import CLASSES, QubeBase
from crannog.editing.editor import Editor
from crannog.errors import (
    ColorRefusedError,
    CrannogError,
    DeniedError,
    FeatureNotFoundError,
    InUseError,
    LabelExistsError,
    LabelInUseError,
    LabelNotFoundError,
    LabelRefusedError,
    PropertyNotFoundError,
    PropertyRefusedError,
    ProtocolError,
    StorageError,
    TagNotFoundError,
    TagRefusedError,
    VMExistsError,
    VMNotFoundError,
    VMNotHaltedError,
)
from tests.fakes import KERNEL, add_vm, new_registry, template_and_app

Told = tuple[str, str, dict[str, str]]


class MemoryStore:
    """A store in memory. `failure` is what the next saves raise."""

    def __init__(self) -> None:
        self.data = b""
        self.texts: dict[str, str] = {}
        self.failure: BaseException | None = None
        self._writer = R4Writer()

    def _fail(self) -> None:
        if self.failure:
            raise self.failure

    def load(self) -> Registry:
        return qubes_xml.from_bytes(self.data, {KERNEL}).registry

    def save(self, registry: Registry) -> None:
        data = self._writer.to_bytes(registry)
        self._fail()
        self.data = data

    def notes(self, uuid: str) -> str:
        return self.texts.get(uuid, "")

    def save_notes(self, uuid: str, text: str) -> None:
        self._fail()
        self.texts[uuid] = text

    def firewall(self, uuid: str) -> str | None:
        return self.texts.get(f"firewall {uuid}")

    def save_firewall(self, uuid: str, text: str | None) -> None:
        self._fail()
        self.texts[f"firewall {uuid}"] = text or ""


class World:
    """An editor over a saved registry with VMs of all kinds, and what it has told."""

    def __init__(self) -> None:
        self.registry = new_registry()
        template, work = template_and_app(self.registry)
        dvm = add_vm(self.registry, "AppVM", "dvm", template)
        dvm.set("template_for_dispvms", value=True)
        add_vm(self.registry, "DispVM", "disp", dvm)
        for name in ("net", "gui"):
            add_vm(self.registry, "StandaloneVM", name).set("provides_network", value=True)
        self.registry.create("RemoteVM", "far", "00000000-0000-4000-8000-000000000009", None)
        work.features["f"] = "old"
        work.tags |= {"mine", "guivm-dom0", "audiovm-dom0"}
        self.store = MemoryStore()
        self.store.save(self.registry)
        self.editor = Editor(self.registry, self.store)
        self.told: list[Told] = []
        self.editor.listen(lambda event: self.told.append((event.subject, event.name, event.arguments)))

    def vm(self, name: str) -> QubeBase:
        return self.registry.find_vm(name)

    def snapshot(self) -> object:
        return self.registry.state(), [vm.state() for vm in self.registry], self.store.data, dict(self.store.texts)


@pytest.fixture
def world() -> World:
    return World()


def changes(subject: str, what: str, /, *kinds: str, **arguments: str) -> list[Told]:
    return [(subject, f"{kind}:{what}", arguments) for kind in kinds]


def was_set(subject: str, name: str, new: str, old: str) -> list[Told]:
    kinds = ("property-pre-set", "property-set")
    return changes(subject, name, *kinds, name=name, newvalue=new, oldvalue=old)


def was_reset(subject: str, name: str, old: str) -> list[Told]:
    kinds = ("property-pre-reset", "property-pre-del", "property-reset", "property-del")
    return changes(subject, name, *kinds, name=name, oldvalue=old)


def was_retagged(subject: str, old: str, new: str) -> list[Told]:
    gone = changes(subject, old, "domain-tag-delete", tag=old)
    return gone + changes(subject, new, "domain-tag-add", tag=new)


FEATURE = ("domain-feature-pre-set", "domain-feature-set")
ICON: list[Told] = [("work", "property-reset:icon", {"name": "icon"})]
Act = Callable[[World], object]


def set_property(name: str, key: str, text: str) -> Act:
    return lambda world: world.editor.set_property(world.vm(name) if name else world.registry, key, text)


def reset_property(name: str, key: str) -> Act:
    return lambda world: world.editor.reset_property(world.vm(name) if name else world.registry, key)


def both(first: Act, second: Act) -> Act:
    return lambda world: (first(world), second(world))


@dataclass
class Case:
    """What is done, everything that is told of it (section 9), and what was done before."""

    act: Act
    told: list[Told]
    before: Act = lambda _world: None

    def prepare(self, world: World) -> None:
        self.before(world)
        world.told.clear()


def add_pink(world: World) -> None:
    world.editor.create_label("pink", "0xff00ff")


CASES: dict[str, Case] = {
    "set": Case(set_property("work", "memory", "800"), was_set("work", "memory", "800", "400")),
    "set to the same": Case(set_property("work", "memory", "400"), was_set("work", "memory", "400", "400")),
    "set a bool": Case(set_property("work", "debug", "on"), was_set("work", "debug", "True", "False")),
    "set a vm": Case(set_property("work", "netvm", "net"), was_set("work", "netvm", "net", "None")),
    "set no vm": Case(
        set_property("work", "netvm", ""),
        was_set("work", "netvm", "None", "net"),
        before=set_property("work", "netvm", "net"),
    ),
    "set what is brought into a form": Case(
        set_property("work", "mac", "00:16:3E:00:00:AA"),
        was_set("work", "mac", "00:16:3e:00:00:aa", "00:16:3e:5e:6c:00"),
    ),
    "set what had no value": Case(
        set_property("work", "stubdom_mem", "128"),
        changes("work", "stubdom_mem", "property-pre-set", "property-set", name="stubdom_mem", newvalue="128"),
    ),
    "set of dom0": Case(
        set_property("dom0", "keyboard_layout", "de++"), was_set("dom0", "keyboard_layout", "de++", "us++")
    ),
    "set globally": Case(set_property("", "stats_interval", "9"), was_set("", "stats_interval", "9", "3")),
    "set label": Case(set_property("work", "label", "green"), was_set("work", "label", "green", "red") + ICON),
    "reset label": Case(
        reset_property("work", "label"),
        was_reset("work", "label", "green") + ICON,
        before=set_property("work", "label", "green"),
    ),
    "set a vm globally": Case(set_property("", "clockvm", "net"), was_set("", "clockvm", "net", "None")),
    "set no vm where there was none": Case(set_property("work", "netvm", ""), was_set("work", "netvm", "None", "None")),
    "set guivm": Case(
        set_property("work", "guivm", "gui"),
        was_set("work", "guivm", "gui", "dom0") + was_retagged("work", "guivm-dom0", "guivm-gui"),
    ),
    "set audiovm": Case(
        set_property("work", "audiovm", ""),
        was_set("work", "audiovm", "None", "dom0")
        + changes("work", "audiovm-dom0", "domain-tag-delete", tag="audiovm-dom0"),
    ),
    "reset": Case(
        reset_property("work", "memory"),
        was_reset("work", "memory", "800"),
        before=set_property("work", "memory", "800"),
    ),
    "reset globally": Case(reset_property("", "default_kernel"), was_reset("", "default_kernel", KERNEL)),
    "reset guivm": Case(
        reset_property("work", "guivm"),
        was_reset("work", "guivm", "gui") + was_retagged("work", "guivm-gui", "guivm-dom0"),
        before=set_property("work", "guivm", "gui"),
    ),
    "feature": Case(
        lambda world: world.editor.set_feature(world.vm("work"), "g", "1"),
        changes("work", "g", *FEATURE, feature="g", value="1"),
    ),
    "feature again": Case(
        lambda world: world.editor.set_feature(world.vm("work"), "f", ""),
        changes("work", "f", *FEATURE, feature="f", value="", oldvalue="old"),
    ),
    "features": Case(
        lambda world: world.editor.set_features(world.vm("work"), {"f": "1", "g": ""}),
        changes("work", "f", *FEATURE, feature="f", value="1", oldvalue="old")
        + changes("work", "g", *FEATURE, feature="g", value=""),
    ),
    "no feature": Case(
        lambda world: world.editor.remove_feature(world.vm("work"), "f"),
        changes("work", "f", "domain-feature-pre-delete", "domain-feature-delete", feature="f"),
    ),
    "tag": Case(
        lambda world: world.editor.add_tag(world.vm("work"), "new"),
        changes("work", "new", "domain-tag-add", tag="new"),
    ),
    "no tag": Case(
        lambda world: world.editor.remove_tag(world.vm("work"), "mine"),
        changes("work", "mine", "domain-tag-delete", tag="mine"),
    ),
    "label": Case(add_pink, []),
    "no label": Case(lambda world: world.editor.remove_label("pink"), [], before=add_pink),
    "notes": Case(lambda world: world.editor.set_notes(world.vm("work"), "text"), []),
    "new name": Case(
        set_property("gui", "name", "sys-gui"),
        [
            *was_set("gui", "name", "sys-gui", "gui"),
            ("", "domain-delete", {"vm": "gui"}),
            ("", "domain-add", {"vm": "sys-gui"}),
            *was_retagged("work", "guivm-gui", "guivm-sys-gui"),
        ],
        before=set_property("work", "guivm", "gui"),
    ),
    "new name that no tag tells": Case(
        set_property("far", "name", "farther"),
        [
            *was_set("far", "name", "farther", "far"),
            ("", "domain-delete", {"vm": "far"}),
            ("", "domain-add", {"vm": "farther"}),
        ],
    ),
    "provides network": Case(
        set_property("work", "provides_network", "True"),
        was_set("work", "provides_network", "True", "False") + was_set("work", "netvm", "None", "net"),
        before=set_property("", "default_netvm", "net"),
    ),
    "provides network no longer": Case(
        reset_property("gui", "provides_network"),
        was_reset("gui", "provides_network", "True") + was_set("gui", "netvm", "net", "None"),
        before=set_property("", "default_netvm", "net"),
    ),
    "provides network without a default": Case(
        set_property("work", "provides_network", "True"), was_set("work", "provides_network", "True", "False")
    ),
    "provides network with a netvm of its own": Case(
        set_property("work", "provides_network", "True"),
        was_set("work", "provides_network", "True", "False"),
        before=both(set_property("", "default_netvm", "net"), set_property("work", "netvm", "gui")),
    ),
    "global netvm": Case(
        set_property("", "default_netvm", "gui"),
        [
            *was_set("", "default_netvm", "gui", "net"),
            *was_set("work", "netvm", "gui", "net"),
            *was_set("dvm", "netvm", "gui", "net"),
            *was_set("disp", "netvm", "gui", "net"),
        ],
        before=set_property("", "default_netvm", "net"),
    ),
    "no global netvm": Case(
        reset_property("", "default_netvm"),
        [
            *was_reset("", "default_netvm", "net"),
            *was_set("work", "netvm", "None", "net"),
            *was_set("dvm", "netvm", "None", "net"),
            *was_set("disp", "netvm", "None", "net"),
        ],
        before=set_property("", "default_netvm", "net"),
    ),
    "global netvm that stays": Case(
        set_property("", "default_netvm", "net"),
        was_set("", "default_netvm", "net", "net"),
        before=set_property("", "default_netvm", "net"),
    ),
}


@pytest.mark.parametrize("key", CASES)
def test_what_is_told_of_a_change(world: World, key: str) -> None:
    case = CASES[key]
    case.prepare(world)
    case.act(world)
    assert world.told == case.told
    assert [list(arguments) for _, _, arguments in world.told] == [list(arguments) for _, _, arguments in case.told]


@pytest.mark.parametrize("key", CASES)
def test_a_change_is_saved(world: World, key: str) -> None:
    case = CASES[key]
    case.prepare(world)
    before = world.snapshot()
    case.act(world)
    assert (world.snapshot() == before) is (key == "global netvm that stays")
    assert world.store.data == R4Writer().to_bytes(world.registry) == R4Writer().to_bytes(world.store.load())


@pytest.mark.parametrize("key", [key for key, case in CASES.items() if case.told])
def test_a_change_is_saved_before_it_is_told(world: World, key: str) -> None:
    case = CASES[key]
    case.prepare(world)
    seen: list[tuple[bytes, bytes]] = []
    world.editor.listen(lambda _event: seen.append((world.store.data, R4Writer().to_bytes(world.registry))))
    case.act(world)
    assert set(seen) == {(world.store.data, world.store.data)}
    assert len(seen) == len(case.told)


FAILURES = [StorageError("the disk is full"), OSError(errno.EIO, "on purpose"), KeyboardInterrupt()]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("key", CASES)
def test_what_cannot_be_saved_has_never_happened(world: World, key: str, failure: BaseException) -> None:
    case = CASES[key]
    case.prepare(world)
    before = world.snapshot()
    world.store.failure = failure
    with pytest.raises(type(failure)) as caught:
        case.act(world)
    assert caught.value is failure
    assert (world.snapshot(), world.told) == (before, [])
    world.store.failure = None
    case.act(world)
    assert len(world.told) == len(case.told)


# What is done, the error, and its words.
REFUSED: list[tuple[Act, type[CrannogError], str]] = [
    (set_property("work", "nonsense", "1"), PropertyNotFoundError, "work has no property 'nonsense'"),
    (set_property("dom0", "memory", "1"), PropertyNotFoundError, "dom0 has no property 'memory'"),
    (reset_property("", "memory"), PropertyNotFoundError, "dom0 has no property 'memory'"),
    (set_property("work", "memory", "much"), PropertyRefusedError, "property 'memory' of work was not set: 'much'"),
    (set_property("work", "memory", "1"), PropertyRefusedError, "property 'memory' of work was not set: 1 is out of"),
    (set_property("work", "debug", ""), PropertyRefusedError, "property 'debug' of work was not set: ''"),
    (set_property("work", "kernelopts", "\u00e9"), PropertyRefusedError, "was not set: the value must be printable"),
    (set_property("work", "ip", "1"), PropertyRefusedError, "was not set: '1' is not an IPv4 address"),
    (set_property("work", "xid", "1"), PropertyRefusedError, "property 'xid' of work is read-only"),
    (set_property("disp", "dispid", "7"), PropertyRefusedError, "property 'dispid' of disp was set once"),
    (set_property("dom0", "name", "host"), PropertyRefusedError, "'name' of dom0 is read-only"),
    (set_property("work", "name", "a b"), PropertyRefusedError, "'name' of work was not set: 'a b' cannot be"),
    (set_property("work", "netvm", "disp"), PropertyRefusedError, "'netvm' of work was not set: disp provides no"),
    (set_property("", "default_pool", "big"), PropertyRefusedError, "'default_pool' of dom0 was not set: there is no"),
    (set_property("work", "guivm", "work"), PropertyRefusedError, "'guivm' of work was not set: work cannot be the"),
    (set_property("work", "template", "gui"), PropertyRefusedError, "'template' of work was not set: work: gui is a"),
    (set_property("work", "netvm", "nobody"), VMNotFoundError, "there is no VM 'nobody'"),
    (set_property("work", "label", "pink"), LabelNotFoundError, "there is no label 'pink'"),
    (set_property("work", "name", "net"), VMExistsError, "a VM called 'net' exists already"),
    (set_property("dvm", "template_for_dispvms", "no"), InUseError, "dvm is the template for disposables of disp"),
    (reset_property("work", "name"), PropertyRefusedError, "property 'name' of work has no default"),
    (reset_property("disp", "dispid"), PropertyRefusedError, "property 'dispid' of disp has no default"),
    (reset_property("work", "icon"), PropertyRefusedError, "property 'icon' of work has no default"),
    (reset_property("dvm", "template_for_dispvms"), InUseError, "dvm is the template for disposables of disp"),
    (lambda w: w.editor.set_feature(w.vm("work"), "a b", ""), ProtocolError, "the name of a feature"),
    (lambda w: w.editor.set_feature(w.vm("work"), "a", "\n"), ProtocolError, "the value of a feature"),
    (lambda w: w.editor.set_feature(w.vm("work"), "preload-dispvm", ""), DeniedError, "is kept by the system"),
    (lambda w: w.editor.remove_feature(w.vm("work"), "preload-dispvm"), DeniedError, "is kept by the system"),
    (lambda w: w.editor.remove_feature(w.vm("work"), "g"), FeatureNotFoundError, "work has no feature 'g'"),
    (lambda w: w.editor.add_tag(w.vm("work"), "a.b"), TagRefusedError, "a tag holds"),
    (lambda w: w.editor.add_tag(w.vm("work"), "created-by-x"), DeniedError, "says who created a VM"),
    (lambda w: w.editor.remove_tag(w.vm("work"), "created-by-x"), DeniedError, "says who created a VM"),
    (lambda w: w.editor.remove_tag(w.vm("work"), "none"), TagNotFoundError, "work has no tag 'none'"),
    (lambda w: w.editor.create_label("a b", "0xff00ff"), LabelRefusedError, "cannot be the name of a label"),
    (lambda w: w.editor.create_label("pink", "pink"), ColorRefusedError, "'pink' is not a colour"),
    (lambda w: w.editor.create_label("red", "0xff00ff"), LabelExistsError, "a label called 'red' exists already"),
    (lambda w: w.editor.remove_label("red"), ProtocolError, "label 'red' is built in"),
    (lambda w: w.editor.remove_label("pink"), LabelNotFoundError, "there is no label 'pink'"),
]


@pytest.mark.parametrize(("act", "kind", "words"), REFUSED, ids=[words for _, _, words in REFUSED])
def test_what_a_check_refuses_has_never_happened(world: World, act: Act, kind: type[CrannogError], words: str) -> None:
    before = world.snapshot()
    with pytest.raises(kind, match=re.escape(words)) as caught:
        act(world)
    assert type(caught.value) is kind
    assert (world.snapshot(), world.told) == (before, [])


def test_a_reset_that_a_rule_refuses_has_never_happened(world: World) -> None:
    for act in (
        set_property("work", "guivm", ""),
        set_property("", "default_guivm", "gui"),
        set_property("gui", "guivm", "work"),
    ):
        act(world)
    world.told.clear()
    before = world.snapshot()
    words = (
        "property 'guivm' of work was not reset: gui cannot be the guivm of work: work would serve itself in the end"
    )
    with pytest.raises(PropertyRefusedError, match=f"^{words}$"):
        reset_property("work", "guivm")(world)
    assert (world.snapshot(), world.told) == (before, [])


def test_a_label_that_a_vm_has_is_not_removed(world: World) -> None:
    assert world.editor.create_label("pink", "0xff00ff").index == 9
    world.editor.set_property(world.vm("work"), "label", "pink")
    before = world.snapshot()
    with pytest.raises(LabelInUseError, match="label 'pink' is in use by work"):
        world.editor.remove_label("pink")
    assert world.snapshot() == before


def test_a_tag_that_is_there_is_not_told_again(world: World) -> None:
    world.editor.add_tag(world.vm("work"), "mine")
    assert (world.told, "mine" in world.vm("work").tags) == ([], True)


def test_a_global_netvm_is_not_told_of_vms_with_one_of_their_own(world: World) -> None:
    set_property("work", "netvm", "")(world)
    world.told.clear()
    set_property("", "default_netvm", "net")(world)
    assert {subject for subject, _, _ in world.told} == {"", "dvm", "disp"}


def test_a_global_guivm_retags_those_that_follow_it(world: World) -> None:
    set_property("work", "guivm", "gui")(world)
    world.told.clear()
    set_property("", "default_guivm", "gui")(world)
    assert world.told[:2] == was_set("", "default_guivm", "gui", "dom0")
    retagged = {subject for subject, name, _ in world.told if name == "domain-tag-add:guivm-gui"}
    assert retagged == {"debian", "dvm", "disp", "net"}
    assert {subject for subject, _, _ in world.told} == {"", *retagged}
    assert all("guivm-gui" in world.vm(name).tags for name in retagged | {"work"})
    assert "guivm-dom0" not in world.vm("work").tags
    assert "guivm-gui" not in world.vm("gui").tags


@pytest.mark.parametrize("name", ["guivm", "audiovm"])
def test_who_serves_all_others_is_tagged_as_served_by_dom0(world: World, name: str) -> None:
    world.editor.add_tag(world.vm("gui"), f"{name}-dom0")
    set_property("net", name, "dom0")(world)
    set_property("gui", name, "net")(world)
    set_property("", f"default_{name}", "gui")(world)
    world.told.clear()
    reset_property("gui", name)(world)
    assert world.told == was_reset("gui", name, "net") + was_retagged("gui", f"{name}-net", f"{name}-dom0")
    assert world.vm("gui").tags == {"guivm-dom0", "audiovm-dom0"}
    world.told.clear()
    reset_property("net", name)(world)
    assert ("net", f"domain-tag-add:{name}-gui", {"tag": f"{name}-gui"}) in world.told
    assert {tag for tag in world.vm("net").tags if tag.startswith(name)} == {f"{name}-gui"}


def test_a_renamed_vm_is_found_in_the_file_by_its_new_name(world: World) -> None:
    CASES["new name"].prepare(world)
    gui = world.vm("gui")
    set_property("gui", "name", "sys-gui")(world)
    assert world.vm("sys-gui") is gui
    assert world.vm("work").tags == {"mine", "guivm-sys-gui", "audiovm-dom0"}
    assert world.store.load().find_vm("work").describe("guivm") == "default=False type=vm sys-gui"


def test_a_label_that_is_reset_changes_the_icon(world: World) -> None:
    set_property("work", "label", "green")(world)
    reset_property("work", "label")(world)
    assert world.told[-1] == ("work", "property-reset:icon", {"name": "icon"})


@pytest.mark.parametrize("failure", [CrannogError("x"), KeyError("x"), RuntimeError("x")])
def test_a_listener_that_fails_does_not_stop_the_others(
    world: World, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_event: Event) -> None:
        raise failure

    heard: list[Event] = []
    world.editor = Editor(world.registry, world.store)
    for listener in (fail, heard.append, fail):
        world.editor.listen(listener)
    set_property("work", "memory", "800")(world)
    assert [event.name for event in heard] == ["property-pre-set:memory", "property-set:memory"]
    assert world.store.load().find_vm("work").get("memory") == 800
    assert caplog.text.count("a listener failed at property-set:memory") == 2


def test_listeners_hear_in_the_order_of_the_changes(world: World) -> None:
    world.editor.listen(lambda event: world.told.append(("second", event.name, {})))
    set_property("work", "memory", "800")(world)
    names = ["property-pre-set:memory", "property-set:memory"]
    assert [(subject, name) for subject, name, _ in world.told] == [
        (subject, name) for name in names for subject in ("work", "second")
    ]


class Runs:
    """A runtime in which every VM runs."""

    def power_state(self, uuid: str) -> str:
        del uuid
        return "Running"

    def active_states(self) -> dict[str, str]:
        return {}

    def xid(self, uuid: str) -> int:
        del uuid
        return 7

    def stubdom_xid(self, uuid: str) -> int:
        del uuid
        return -1


NEEDS_HALTED = [("name", "other"), ("virt_mode", "pv"), ("kernel", ""), ("template", "debian")]


@pytest.mark.parametrize(("name", "text"), NEEDS_HALTED)
@pytest.mark.parametrize("vm", ["work", "disp"])
def test_what_needs_a_halted_vm_is_refused_while_it_runs(world: World, vm: str, name: str, text: str) -> None:
    world.registry.runtime = Runs()
    before = world.snapshot()
    for act in (set_property(vm, name, text), reset_property(vm, name)):
        with pytest.raises(VMNotHaltedError, match=f"{vm} cannot get another {name} while it is Running; shut it down"):
            act(world)
    assert (world.snapshot(), world.told) == (before, [])


def test_everything_else_may_change_while_a_vm_runs(world: World) -> None:
    declared = CLASSES["AppVM"].declared().values()
    assert {known.name for known in declared if known.needs_halted} == {name for name, _ in NEEDS_HALTED}
    world.registry.runtime = Runs()
    set_property("work", "memory", "800")(world)
    set_property("work", "netvm", "net")(world)
    set_property("far", "name", "farther")(world)
    world.editor.set_feature(world.vm("work"), "f", "1")
    assert world.vm("farther").power_state == "Running"


def test_notes(world: World) -> None:
    vm = world.vm("work")
    assert world.editor.notes(vm) == ""
    world.editor.set_notes(vm, "text")
    assert (world.editor.notes(vm), world.store.texts) == ("text", {vm.uuid: "text"})
    world.store.failure = StorageError("full")
    with pytest.raises(StorageError):
        world.editor.set_notes(vm, "other")
    assert world.editor.notes(vm) == "text"


def test_with_the_real_store_a_listener_finds_the_new_file(tmp_path: Path) -> None:
    (tmp_path / "kernels" / KERNEL).mkdir(parents=True)
    store = FileStore(str(tmp_path / "qubes.xml"), str(tmp_path / "kernels"))
    registry = store.load()
    _, work = template_and_app(registry)
    editor = Editor(registry, store)
    seen: list[tuple[str, Any]] = []

    def look(event: Event) -> None:
        data = Path(store.path).read_bytes()
        seen.append((event.name, store.parse(data, store.path).registry.find_vm("work").get("memory")))

    editor.listen(look)
    editor.set_property(work, "memory", "800")
    editor.reset_property(work, "memory")
    assert seen == [(f"property-{kind}:memory", 800) for kind in ("pre-set", "set")] + [
        (f"property-{kind}:memory", 400) for kind in ("pre-reset", "pre-del", "reset", "del")
    ]
    Path(store.path).write_bytes(Path(store.path).read_bytes() + b"\n")
    before = registry.state(), work.state()
    with pytest.raises(StorageError, match="was written by another program"):
        editor.set_property(work, "memory", "900")
    assert (registry.state(), work.state(), len(seen)) == (*before, 6)


NAMES = ("dom0", "debian", "work", "dvm", "disp", "net", "gui", "far")
ODD = st.sampled_from(["", "x", "a b", "-1", "<&>'\"\\ ", "\u00e9", "\n"])
BY_KIND = {
    "bool": st.sampled_from(["True", "no", "maybe"]),
    "int": st.sampled_from(["0", "7", "500", "16777216", "-1", ""]),
    "label": st.sampled_from(["green", "black", "pink", "none"]),
    "str": st.sampled_from(
        [
            "",
            "x",
            "other",
            "newname",
            "pv",
            "hvm",
            KERNEL,
            "us++",
            "10.0.0.9",
            "fd00::5",
            "00:16:3e:00:00:01",
            "vm-pool",
        ]
    ),
    "vm": st.sampled_from(["", *NAMES, "newname"]),
}
KINDS = {(name, key): p.kind.name for name in NAMES for key, p in World().vm(name).declared().items()}
GLOBAL_KINDS = {("", key): p.kind.name for key, p in Registry.declared().items()}


def changes_of(kinds: dict[tuple[str, str], str]) -> st.SearchStrategy[tuple[str, str, str, str]]:
    """Return property changes: of each, a value that may be right, or one that seldom is."""
    kind, key = st.sampled_from(("set", "set", "reset")), st.sampled_from(sorted(kinds))
    return key.flatmap(lambda key: st.tuples(kind, st.just(key[0]), st.just(key[1]), BY_KIND[kinds[key]] | ODD))


VMS, LOCAL, NOTHING = st.sampled_from(NAMES), st.sampled_from(("work", "dvm", "net", "gui")), st.just("")
LEADING = ("default_netvm", "default_guivm", "default_audiovm", "default_dispvm", "management_dispvm", "clockvm")
STEPS = st.one_of(
    st.tuples(st.just("set"), LOCAL, st.sampled_from(("netvm", "guivm", "audiovm", "default_dispvm")), LOCAL | NOTHING),
    st.tuples(st.just("set"), NOTHING, st.sampled_from(LEADING), LOCAL),
    st.tuples(st.just("set"), LOCAL, st.sampled_from(("provides_network", "template_for_dispvms")), BY_KIND["bool"]),
    changes_of(KINDS),
    changes_of(GLOBAL_KINDS),
    st.tuples(st.sampled_from(("feature", "unfeature")), VMS, st.sampled_from(("f", "preload-dispvm", "a b")), ODD),
    st.tuples(st.sampled_from(("tag", "untag")), VMS, st.sampled_from(("mine", "guivm-dom0", "a.b")), NOTHING),
    st.tuples(st.sampled_from(("label", "unlabel")), NOTHING, st.sampled_from(("pink", "red")), st.just("0x123456")),
)


def take_step(editor: Editor, vms: dict[str, QubeBase], step: tuple[str, str, str, str]) -> None:
    kind, name, key, text = step
    vm = vms.get(name, editor.registry.dom0)
    if kind in ("set", "reset"):
        holder = vms[name] if name else editor.registry
        editor.set_property(holder, key, text) if kind == "set" else editor.reset_property(holder, key)
    else:
        acts: dict[str, Callable[[], object]] = {
            "feature": lambda: editor.set_feature(vm, key, text),
            "unfeature": lambda: editor.remove_feature(vm, key),
            "tag": lambda: editor.add_tag(vm, key),
            "untag": lambda: editor.remove_tag(vm, key),
            "label": lambda: editor.create_label(key, text),
            "unlabel": lambda: editor.remove_label(key),
        }
        acts[kind]()


FEW_FAILURES = st.sampled_from((*[None] * 9, *FAILURES))
SEQUENCES = st.lists(st.tuples(STEPS, FEW_FAILURES), min_size=15, max_size=30)


@settings(max_examples=40)
@given(SEQUENCES)
def test_whatever_is_done_the_registry_is_what_was_saved_last(
    steps: list[tuple[tuple[str, str, str, str], BaseException | None]],
) -> None:
    world = World()
    vms = {name: world.vm(name) for name in NAMES}
    for step, failure in steps:
        world.store.failure = failure
        saved = world.store.data
        world.told.clear()
        try:
            take_step(world.editor, vms, step)
        except (CrannogError, OSError, KeyboardInterrupt):
            assert (world.store.data, world.told) == (saved, [])
        assert R4Writer().to_bytes(world.registry) == world.store.data
    reloaded = world.store.load()
    assert R4Writer().to_bytes(reloaded) == world.store.data
    assert [vm.describe_all() for vm in reloaded] == [vm.describe_all() for vm in world.registry]
