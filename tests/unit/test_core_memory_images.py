"""Memory images, the pure part: what a restore's plan is, which machines are the same, and when an image is made."""

from dataclasses import replace

import pytest

from crannog.core.domain import MemoryFiles
from crannog.core.memory_images import (
    COLD_STARTS,
    FEATURE,
    RESTORE_TIMEOUT,
    RETRY_FIRST,
    RETRY_MOST,
    Nursery,
    Prospect,
    make_key,
    may_restore,
    restored,
    spec_of,
    with_memory,
    without_names,
)
from crannog.core.plan import AwaitAgent, CreatePaused, Plan, PrepareVolume, Renew, Resume
from crannog.core.registry import Registry
from crannog.core.renewal_order import RenewOrder
from crannog.core.startup import StartRequest, plan_start
from crannog.core.vms import LocalVM
from tests.fakes import add_vm, halted_facts, new_registry, template_and_app

FILES = MemoryFiles("/images/memory", "/images/state", is_saved=True)
LAYERS = {name: f"/images/{name}" for name in ("root", "private", "volatile")}
ONE = Prospect("u", "r", wanted=1, ready=1)


def world() -> tuple[Registry, LocalVM]:
    registry = new_registry()
    _, app = template_and_app(registry)
    app.set("template_for_dispvms", value=True)
    return registry, app


def plan_of(vm: LocalVM, wait: bool | None = True) -> Plan:
    facts = halted_facts(channel_path=f"/run/{vm.uuid}.sock", console_log=f"/log/{vm.name}", screen_path="/run/s")
    return plan_start(vm, StartRequest(wait=wait), facts)


def nameless(vm: LocalVM, plan: Plan | None = None):  # type: ignore[no-untyped-def]  # noqa: ANN201
    chosen = plan or plan_of(vm)
    own = frozenset(f"/pool/{step.volume.vid}" for step in chosen if isinstance(step, PrepareVolume))
    return without_names(spec_of(chosen), own)


def test_two_disposables_are_the_same_machine_but_for_their_names() -> None:
    registry, app = world()
    one, other = (add_vm(registry, "DispVM", name, app) for name in ("disp1", "disp2345"))
    assert nameless(one) == nameless(other)
    text = repr(nameless(one))
    for vm in (one, other):
        assert vm.uuid not in text
        assert vm.uuid.replace("-", "") not in text
        assert vm.name not in text


@pytest.mark.parametrize("change", [{"memory": 700}, {"vcpus": 3}, {"kernelopts": "single"}, {"debug": True}])
def test_another_setting_is_another_machine(change: dict[str, object]) -> None:
    registry, app = world()
    one, other = (add_vm(registry, "DispVM", name, app) for name in ("disp1", "disp2"))
    for name, value in change.items():
        other.set(name, value)
    assert nameless(one) != nameless(other)


def test_a_drive_is_another_machine() -> None:
    registry, app = world()
    one = add_vm(registry, "DispVM", "disp1", app)
    plan = plan_of(one)
    spec = spec_of(plan)
    more = replace(spec, disks=(*spec.disks, replace(spec.disks[0], path="/tmp/cd.iso", target="vdz")))
    assert nameless(one, tuple(CreatePaused(more) if isinstance(s, CreatePaused) else s for s in plan)) != nameless(one)


def test_a_key_says_content_and_machine_apart() -> None:
    assert len({make_key("a", "bc"), make_key("ab", "c"), make_key("a", "bd"), make_key("b", "bc")}) == 4


@pytest.mark.parametrize("wait", [True, False, None])
def test_a_restore_is_a_start_that_always_ends_with_an_identity(wait: bool | None) -> None:
    registry, app = world()
    vm = add_vm(registry, "DispVM", "disp1", app)
    plan = restored(plan_of(vm, wait), FILES, LAYERS, 60)
    assert spec_of(plan).memory_files == FILES
    assert {s.volume.name: s.copy_of for s in plan if isinstance(s, PrepareVolume)} == LAYERS
    assert [type(step) for step in plan[-3:]] == [Resume, AwaitAgent, Renew]
    waits = [step for step in plan if isinstance(step, AwaitAgent)]
    assert [step.timeout for step in waits] == [RESTORE_TIMEOUT]
    assert "restored from /images/memory" in "".join(step.describe() for step in plan)


def test_a_volume_without_a_copy_is_no_restore() -> None:
    registry, app = world()
    vm = add_vm(registry, "DispVM", "disp1", app)
    with pytest.raises(LookupError):
        restored(plan_of(vm), FILES, {"root": "/images/root"}, 60)


def test_a_seedling_is_a_cold_start_with_its_memory_in_a_file() -> None:
    registry, app = world()
    vm = add_vm(registry, "DispVM", "disp1", app)
    files = replace(FILES, is_saved=False)
    plan = plan_of(vm)
    saved = with_memory(plan, files)
    assert spec_of(saved).memory_files == files
    assert [s for s in saved if not isinstance(s, CreatePaused)] == [s for s in plan if not isinstance(s, CreatePaused)]


@pytest.mark.parametrize(
    ("own", "common", "may"),
    [(None, None, True), ("", None, False), ("0", None, False), ("1", "", True), (None, "", False), (None, "1", True)],
)
def test_a_feature_switches_it_off(own: str | None, common: str | None, may: bool) -> None:
    registry, app = world()
    for vm, value in ((app, own), (registry.dom0, common)):
        if value is not None:
            vm.features[FEATURE] = value
    assert may_restore(app) is may


# -- when one is made


def test_cold_starts_make_an_image_worth_it() -> None:
    nursery = Nursery()
    lone = replace(ONE, wanted=0, ready=0)
    for _ in range(COLD_STARTS):
        assert not nursery.is_due(lone, 0)
        nursery.note_cold("u", "r")
    assert nursery.is_due(lone, 0)
    assert not nursery.is_due(replace(lone, recipe="other"), 0)  # counted anew: what was started is not there any more
    assert not nursery.is_due(replace(lone, uuid="other"), 0)


def test_a_pool_has_its_first_vm_before_the_image() -> None:
    nursery = Nursery()
    assert not nursery.is_due(replace(ONE, ready=0), 0)
    assert nursery.is_due(ONE, 0)
    assert not nursery.is_due(replace(ONE, is_blocked=True), 0)


def test_failures_make_it_wait_ever_longer_until_something_changes() -> None:
    nursery, now, pauses = Nursery(), 0.0, []
    for _ in range(12):
        nursery.note_failure("u", "r", now)
        assert not nursery.is_due(ONE, now)
        pause = nursery.due(now)
        assert pause
        pauses.append(pause)
        now += pause
        assert nursery.is_due(ONE, now)
    assert pauses[0] == RETRY_FIRST
    assert pauses[-1] == RETRY_MOST
    assert pauses == sorted(pauses)
    nursery.note_failure("u", "r", now)
    assert nursery.is_due(replace(ONE, recipe="other"), now)


def test_what_can_have_none_is_not_tried_again_until_it_changes() -> None:
    nursery = Nursery()
    nursery.give_up("u", "r")
    assert not nursery.is_due(ONE, 1e9)
    assert nursery.due(0) is None
    assert nursery.is_due(replace(ONE, recipe="other"), 0)


def test_templates_that_are_gone_are_forgotten() -> None:
    nursery = Nursery()
    nursery.note_cold("u", "r")
    nursery.note_cold("v", "r")
    nursery.forget(frozenset("v"))
    nursery.note_cold("u", "r")
    assert not nursery.is_due(replace(ONE, wanted=0), 0)
    nursery.note_cold("v", "r")
    assert nursery.is_due(replace(ONE, uuid="v", wanted=0), 0)


def test_an_order_is_words() -> None:
    order = RenewOrder("12ab", "0f8fad5b-d9cb-469f-a165-70867728950e", "disp7", 17, b"\x00\xff")
    assert order.encode() == b"12ab 0f8fad5b-d9cb-469f-a165-70867728950e disp7 17 00ff"
