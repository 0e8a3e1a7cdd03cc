"""Disposables that are started in advance, in a daemon's inside: what is done when, and what goes wrong."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from crannog.core.announcement import AgentStatus
from crannog.core.domain import DomainState
from crannog.core.preload import Stage
from crannog.core.preload_wishes import COMPLETED, IN_PROGRESS, NAMES, THRESHOLD
from crannog.core.startup import StartRequest
from crannog.errors import HypervisorError, MemoryRefusedError, StateError, StorageError, ValueRefusedError
from tests.unit.api_world import until
from tests.unit.life_world import Gate, begin, soon
from tests.unit.preload_world import DVM, preloading

QUIETLY = StartRequest(wait=False)


async def test_a_pool_is_filled_with_paused_vms_that_are_told_apart() -> None:
    async with preloading() as world:
        world.want(2)
        for name in await world.ready(2):
            vm = world.vm(name)
            assert (vm.power_state, vm.get("is_preload"), vm.features["internal"]) == ("Paused", True, "1")
            assert vm.uuid in world.inside.agents.exercised
            system = world.inside.inventory.policy.system
            assert (system.find(name), system.find(f"uuid:{vm.uuid}")) == (None, None)
            assert name not in {known.name for known in system}
        await until(lambda: set(world.dvm.features[NAMES].split()) == world.names())
        assert {vm.name for vm in world.inside.reloaded() if vm.is_disposable and vm.get("is_preload")} == world.names()


async def test_a_claim_gets_one_that_runs_and_is_its_users() -> None:
    async with preloading() as world:
        world.want(1)
        (name,) = await world.ready(1)
        world.inside.registry.dom0.features["preload-dispvm-delay"] = "-1"
        vm = await world.take("other")
        assert vm
        assert (vm.name, vm.power_state, vm.get("is_preload")) == (name, "Running", False)
        assert world.inside.agents.clocks[0][0] == vm.uuid
        assert world.inside.inventory.policy.system.find(name)
        assert {"created-by-other", "disp-created-by-other"} <= vm.tags
        assert "created-by-dom0" not in vm.tags
        saved = world.inside.reloaded().find_vm(name)
        assert not saved.features.keys() & {COMPLETED, IN_PROGRESS, "internal"}
        assert saved.tags == vm.tags
        assert NAMES not in world.inside.reloaded().find_vm(DVM).features
        assert await world.take() is None


async def test_what_was_claimed_is_replaced_in_the_background() -> None:
    async with preloading() as world:
        world.want(1)
        (first,) = await world.ready(1)
        await world.take()
        await until(lambda: bool(world.names(Stage.READY) - {first}))


@pytest.mark.parametrize("sizes", [["1"], ["0", "1"]], ids=["again", "emptied between two looks"])
async def test_a_size_that_is_set_once_more_fills_what_is_not_replaced(sizes: list[str]) -> None:
    async with preloading() as world:
        world.inside.registry.dom0.features["preload-dispvm-delay"] = "-1"
        world.want(1)
        (first,) = await world.ready(1)
        await world.take()
        for size in sizes:
            world.want(size)
        await until(lambda: bool(world.names(Stage.READY) - {first}))


async def test_the_size_of_dom0_fills_the_pool_of_the_default() -> None:
    async with preloading() as world:
        editor, dom0 = world.inside.inventory.editor, world.inside.registry.dom0
        dom0.features["preload-dispvm-delay"] = "-1"
        editor.set_property(world.inside.registry, "default_dispvm", DVM)
        editor.set_feature(dom0, "preload-dispvm-max", "1")
        await until(lambda: bool(world.names(Stage.READY)))
        first = await world.take()
        assert first
        editor.set_feature(dom0, "preload-dispvm-max", "1")
        await until(lambda: bool(world.names(Stage.READY) - {first.name}))


async def test_many_claims_at_once_get_each_vm_once_and_the_others_none() -> None:
    async with preloading() as world:
        world.inside.registry.dom0.features["preload-dispvm-delay"] = "-1"
        world.want(3)
        await world.ready(3)
        taken = await soon(asyncio.gather(*(world.take() for _ in range(8))))
        names = [vm.name for vm in taken if vm]
        assert len(names) == len(set(names)) == 3
        assert taken[3:] == [None] * 5  # first come, first served


async def test_one_that_is_claimed_while_it_starts_is_never_paused() -> None:
    async with preloading() as world:
        gate = Gate(world.inside.hypervisor.resume)
        world.inside.hypervisor.resume = gate  # type: ignore[method-assign, assignment, unused-ignore]
        world.inside.registry.dom0.features["preload-dispvm-delay"] = "-1"
        world.want(1)
        await soon(gate.reached.wait())
        vm = await soon(world.take())
        assert vm
        gate.opened.set()
        await until(lambda: vm.uuid in world.inside.agents.exercised)
        await until(lambda: vm.power_state == "Running")
        assert not vm.get("is_preload")
        assert world.inside.machines.domain_state(vm.uuid) is DomainState.RUNNING


async def test_one_that_is_claimed_while_it_is_paused_runs_again() -> None:
    async with preloading() as world:
        gate = Gate(world.inside.hypervisor.pause)
        world.inside.hypervisor.pause = gate  # type: ignore[method-assign, assignment, unused-ignore]
        world.inside.registry.dom0.features["preload-dispvm-delay"] = "-1"
        world.want(1)
        await soon(gate.reached.wait())
        vm = await soon(world.take())
        gate.opened.set()
        assert vm
        await until(lambda: bool(world.inside.hypervisor.domain_states))
        await until(lambda: vm.power_state == "Running" and not vm.get("is_preload"))


async def test_nothing_is_started_while_another_vm_starts() -> None:
    async with preloading() as world:
        gate = Gate(world.inside.hypervisor.create_paused)
        world.inside.hypervisor.create_paused = gate  # type: ignore[method-assign, assignment, unused-ignore]
        start = begin(world.inside.lifecycle.start(world.vm("other"), QUIETLY))
        await soon(gate.reached.wait())
        world.want(1)
        steps = await world.inside.inventory.preloading.decide()
        assert steps == []
        assert world.disposables() == set()
        gate.opened.set()
        await soon(start)
        await world.ready(1)


async def test_a_change_of_the_template_during_its_start_makes_another_one() -> None:
    async with preloading() as world:
        gate = Gate(world.inside.hypervisor.resume)
        world.inside.hypervisor.resume = gate  # type: ignore[method-assign, assignment, unused-ignore]
        world.want(1)
        await soon(gate.reached.wait())
        (old,) = world.disposables()
        world.inside.inventory.editor.set_property(world.dvm, "memory", "500")
        gate.opened.set()
        await until(lambda: bool(world.names(Stage.READY) - {old}))
        assert world.disposables() == world.names(Stage.READY)
        assert world.vm(world.names().pop()).get("memory") == 500


@pytest.mark.parametrize("change", ["own setting", "below", "tag", "firewall", "root", "private", "global"])
async def test_whatever_changes_below_ends_what_was_made_before(change: str) -> None:
    async with preloading() as world:
        world.want(1)
        (old,) = await world.ready(1)
        inventory = world.inside.inventory
        if change == "own setting":
            inventory.editor.set_feature(world.dvm, "service.cups", "1")
        elif change == "below":
            inventory.editor.set_property(world.vm("debian"), "kernelopts", "quiet")
        elif change == "tag":
            inventory.editor.add_tag(world.dvm, "bank")
        elif change == "firewall":
            inventory.editor.set_firewall(world.dvm, "action=drop\n")
        elif change == "global":
            world.vm("other").set("provides_network", True)
            inventory.editor.set_property(world.inside.registry, "default_netvm", "other")
        else:
            owner = world.vm("debian" if change == "root" else DVM)
            path = Path(world.inside.pool.newest(owner.volumes[change].vid).path)
            path.write_bytes(b"another content")
        assert await world.take() is None  # also before anybody has looked
        inventory.preloading._wake.set()
        await until(lambda: old not in world.disposables())


async def test_one_that_does_not_start_is_removed_and_tried_again_later() -> None:
    async with preloading() as world:
        world.inside.hypervisor.failing.add("resume")
        world.want(1)
        await until(lambda: world.inside.inventory.preloading.reserve.due(0) is not None)
        await world.none_is_left()
        world.inside.hypervisor.failing.clear()
        world.inside.inventory.editor.set_property(world.dvm, "memory", "410")  # now it may work
        await world.ready(1)


async def test_a_guest_that_never_gets_ready_is_given_up() -> None:
    async with preloading() as world:
        world.dvm.set("qrexec_timeout", 1)

        async def keep_silent(uuid: str, name: str, default_user: str) -> None:
            del name, default_user
            world.inside.agents.running.add(uuid)
            world.inside.agents.statuses[uuid] = AgentStatus()

        world.inside.agents.start = keep_silent  # type: ignore[method-assign, assignment, unused-ignore]
        world.want(1)
        await until(lambda: world.inside.inventory.preloading.reserve.due(0) is not None)
        await world.none_is_left()


async def test_one_that_dies_while_it_waits_is_replaced() -> None:
    async with preloading() as world:
        world.want(1)
        (old,) = await world.ready(1)
        await world.inside.hypervisor.destroy(world.vm(old).uuid)
        await until(lambda: bool(world.names(Stage.READY) - {old}))
        await until(lambda: old not in world.disposables())


async def test_one_that_cannot_be_let_run_is_not_handed_out() -> None:
    async with preloading() as world:
        world.inside.registry.dom0.features["preload-dispvm-delay"] = "-1"
        world.want(2)
        first, second = await world.ready(2)
        resume = world.inside.hypervisor.resume
        refused: list[str] = []

        async def refuse_once(uuid: str) -> None:
            if not refused:
                refused.append(uuid)
                raise HypervisorError("QEMU is gone")
            await resume(uuid)

        world.inside.hypervisor.resume = refuse_once  # type: ignore[method-assign, assignment, unused-ignore]
        vm = await soon(world.take())
        assert vm
        await until(lambda: world.disposables() == {vm.name})
        assert {first, second} - {vm.name}


async def test_a_claim_that_cannot_be_saved_hands_out_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with preloading() as world:
        world.inside.registry.dom0.features["preload-dispvm-delay"] = "-1"
        world.want(1)
        await world.ready(1)
        with monkeypatch.context() as patched:
            patched.setattr(world.inside.inventory.editor._store, "save", _no_space)
            with pytest.raises(StorageError):
                await soon(world.take())
        world.want(0)
        await world.none_is_left()


def _no_space(*_arguments: Any) -> None:  # noqa: ANN401
    raise StorageError("no space left")


async def test_who_lets_one_run_by_hand_has_it() -> None:
    async with preloading() as world:
        world.inside.registry.dom0.features["preload-dispvm-delay"] = "-1"
        world.want(1)
        (name,) = await world.ready(1)
        await world.inside.inventory.power.unpause(world.vm(name))
        await until(lambda: not world.vm(name).get("is_preload"))
        assert await world.take() is None


async def test_memory_that_somebody_needs_is_given_up() -> None:
    async with preloading() as world:
        world.want(2)
        await world.ready(2)
        world.inside.registry.dom0.features["preload-dispvm-delay"] = "-1"
        memory = world.inside.host_memory
        need = world.inside.lifecycle.ledger._promises[world.vm(next(iter(world.names()))).uuid].total
        memory.free = 2 * need + 200 + need // 2  # too little for a third one
        await soon(world.inside.lifecycle.start(world.vm("other"), QUIETLY))
        assert world.vm("other").power_state == "Running"
        assert len(world.disposables()) == 1


async def test_who_needs_more_than_all_of_them_have_is_refused_and_ends_none() -> None:
    async with preloading() as world:
        world.want(1)
        (name,) = await world.ready(1)
        need = world.inside.lifecycle.ledger._promises[world.vm(name).uuid].total
        world.inside.host_memory.free = 200 + need + need // 2  # nothing is short, and too little for a second one
        world.inside.inventory.editor.set_property(world.vm("other"), "memory", str(2 * need))
        with pytest.raises(MemoryRefusedError):
            await soon(world.inside.lifecycle.start(world.vm("other"), QUIETLY))
        assert await world.ready(1) == [name]


async def test_memory_below_the_threshold_ends_them_one_by_one() -> None:
    async with preloading() as world:
        world.want(2)
        await world.ready(2)
        world.inside.host_memory.free = 300
        world.inside.inventory.editor.set_feature(world.inside.registry.dom0, THRESHOLD, "500")
        await world.none_is_left()
        assert await world.inside.inventory.preloading.decide() == []


async def test_the_template_itself_can_start_and_go() -> None:
    async with preloading() as world:
        world.want(1)
        await world.ready(1)
        await soon(world.inside.lifecycle.start(world.dvm, QUIETLY))
        assert world.dvm.power_state == "Running"
        await world.inside.inventory.preloading.decide()
        assert world.disposables() == set()  # none is added while it runs
        await world.inside.lifecycle.kill(world.dvm)
        await world.ready(1)
        await soon(world.inside.inventory.population.remove(world.dvm))
        assert world.disposables() == set()


async def test_the_template_of_the_template_can_start_beside_them() -> None:
    async with preloading() as world:
        world.want(1)
        (name,) = await world.ready(1)
        await soon(world.inside.lifecycle.start(world.vm("debian"), QUIETLY))
        assert name in world.names(Stage.READY)


async def test_what_is_not_to_be_a_template_any_more_has_none() -> None:
    async with preloading() as world:
        world.want(1)
        await world.ready(1)
        world.inside.inventory.editor.set_property(world.dvm, "template_for_dispvms", "False")
        await world.none_is_left()


async def test_more_are_asked_for_up_to_what_is_wanted() -> None:
    async with preloading() as world:
        with pytest.raises(StateError, match="has 0 of 0 disposables ready"):
            await world.inside.inventory.power.preload(world.dvm)
        world.inside.registry.dom0.features["preload-dispvm-delay"] = "-1"
        world.want(1)
        await world.ready(1)
        await world.take()
        vm = await world.inside.inventory.power.preload(world.dvm)
        assert vm.get("is_preload")
        await world.ready(1)


async def test_the_systems_own_number_counts_for_its_default_template() -> None:
    async with preloading() as world:
        inventory = world.inside.inventory
        world.want(3)
        inventory.editor.set_property(world.inside.registry, "default_dispvm", DVM)
        inventory.editor.set_feature(world.inside.registry.dom0, "preload-dispvm-max", "1")
        await until(lambda: len(world.names(Stage.READY)) == 1 and len(world.names()) == 1)
        inventory.editor.set_feature(world.inside.registry.dom0, "preload-dispvm-max", "")
        await world.none_is_left()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max", "x"),
        ("max", "-1"),
        ("max", "101"),
        ("max", "1 1"),
        ("threshold", "-1"),
        ("delay", ".2."),
        ("delay", "a"),
    ],
)
async def test_values_that_cannot_be_are_refused(name: str, value: str) -> None:
    async with preloading() as world:
        with pytest.raises(ValueRefusedError, match=f"preload-dispvm-{name}"):
            world.inside.inventory.editor.set_feature(world.dvm, f"preload-dispvm-{name}", value)


async def test_a_disposable_ends_with_the_connection_of_its_user() -> None:
    async with preloading() as world:
        world.want(1)
        await world.ready(1)
        vm = await world.take()
        assert vm
        world.want(0)
        end = world.inside.inventory.power.lease(vm, lambda _event: None)
        end()
        await world.none_is_left()


async def test_a_disposable_that_never_ran_goes_too() -> None:
    async with preloading() as world:
        vm = await world.inside.inventory.population.create_disposable(world.dvm, created_by="dom0")
        world.inside.inventory.power.lease(vm, lambda _event: None)()
        await world.none_is_left()


async def test_only_what_was_made_for_one_use_is_ended_so() -> None:
    async with preloading() as world:
        with pytest.raises(ValueRefusedError, match="other is no disposable"):
            world.inside.inventory.power.lease(world.vm("other"), lambda _event: None)


async def test_a_daemon_that_ends_leaves_disposables_in_use_alone() -> None:
    async with preloading() as world:
        world.want(1)
        await world.ready(1)
        vm = await world.take()
        assert vm
        end = world.inside.inventory.power.lease(vm, lambda _event: None)
        world.inside.inventory.leases.close()
        end()
        assert vm.power_state == "Running"
