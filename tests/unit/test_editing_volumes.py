"""Tokens for copies, VMs that are held or busy, and volumes that cannot be changed because of what goes on."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from crannog.core.vms import LocalVM
from crannog.editing.hold import check_free, hold_all
from crannog.editing.tokens import MAX_AGE, MAX_TOKENS, Tokens
from crannog.errors import StateError, TokenNotFoundError, VMNotFoundError, VMNotHaltedError
from tests.fakes import Inside, add_vm, build_inside, new_registry


def test_a_token_stands_for_what_it_was_made_for_once() -> None:
    tokens = Tokens()
    made = [tokens.make(f"uuid-{number}", "root") for number in range(3)]
    assert len(set(made)) == 3
    assert (tokens.take(made[1]).uuid, tokens.take(made[0]).volume) == ("uuid-1", "root")
    for text in (made[1], "", "x" * 32, made[2].upper() + "x"):
        with pytest.raises(TokenNotFoundError, match="no such token"):
            tokens.take(text)
    assert tokens.take(made[2]).uuid == "uuid-2"


def test_old_tokens_are_void() -> None:
    now = 1000.0
    tokens = Tokens(lambda: now)
    first = tokens.make("a", "root")
    now += MAX_AGE - 1
    second = tokens.make("b", "root")
    assert tokens.take(first).uuid == "a"
    now += MAX_AGE
    with pytest.raises(TokenNotFoundError):
        tokens.take(second)


def test_there_are_never_too_many_tokens() -> None:
    tokens = Tokens()
    made = [tokens.make(str(number), "root") for number in range(MAX_TOKENS + 2)]
    for text in made[:2]:
        with pytest.raises(TokenNotFoundError):
            tokens.take(text)
    assert [tokens.take(text).uuid for text in made[2:]] == [str(number) for number in range(2, MAX_TOKENS + 2)]


async def test_vms_are_held_in_one_order_each_once() -> None:
    registry = new_registry()
    vms = [add_vm(registry, "StandaloneVM", name) for name in ("b", "a", "c")]
    locks = {vm.uuid: asyncio.Lock() for vm in vms}
    order: list[str] = []

    def hold(uuid: str) -> asyncio.Lock:
        order.append(uuid)
        return locks[uuid]

    async with hold_all(hold, vms[2], vms[0], vms[2]):
        assert [lock.locked() for lock in locks.values()] == [True, False, True]
    assert not any(lock.locked() for lock in locks.values())
    assert order == sorted({vms[0].uuid, vms[2].uuid})


def test_a_busy_vm_is_named_with_what_goes_on() -> None:
    vm = add_vm(new_registry(), "StandaloneVM", "alone")
    check_free({}, vm, "be moved")
    with pytest.raises(StateError, match=r"^alone cannot be moved: a thing goes on$"):
        check_free({vm.uuid: "a thing goes on"}, vm, "be moved")


@pytest.fixture
async def inside(tmp_path: Path) -> Inside:
    inside = build_inside(tmp_path)
    for name in ("alone", "other"):
        vm = add_vm(inside.registry, "StandaloneVM", name)
        await inside.pool.create(tuple(vm.volumes.values()))
    return inside


def find(inside: Inside, name: str) -> LocalVM:
    vm = inside.registry.find_vm(name)
    assert isinstance(vm, LocalVM)
    return vm


async def test_a_vm_that_is_starting_refuses_at_once(inside: Inside) -> None:
    """Its start can take a minute, and holds it: nobody waits for that only to be told that it runs."""
    vm = find(inside, "alone")
    async with inside.machines.lock(vm.uuid), asyncio.timeout(30):
        inside.machines.begin(vm.uuid, "Transient")
        with pytest.raises(VMNotHaltedError, match="Transient"):
            await inside.inventory.volumes.clear(vm, "root")
        inside.machines.finish(vm.uuid)


async def test_a_vm_that_goes_while_it_is_waited_for(inside: Inside) -> None:
    vm = find(inside, "alone")
    async with inside.machines.lock(vm.uuid):
        waiting = asyncio.ensure_future(inside.inventory.volumes.clear(vm, "root"))
        await asyncio.sleep(0)
        inside.registry.remove(vm)
    with pytest.raises(VMNotFoundError):
        await waiting


async def test_a_vm_that_starts_while_it_is_waited_for(inside: Inside) -> None:
    vm = find(inside, "alone")
    async with inside.machines.lock(vm.uuid):
        waiting = asyncio.ensure_future(inside.inventory.volumes.begin_import(vm, "root", None))
        await asyncio.sleep(0)
        inside.machines.begin(vm.uuid, "Transient")
    with pytest.raises(VMNotHaltedError):
        await waiting
    assert inside.machines.busy == {}


async def test_a_start_that_waits_for_the_end_of_an_import_finds_it_done(inside: Inside) -> None:
    vm = find(inside, "alone")
    _, path = await inside.inventory.volumes.begin_import(vm, "root", 4096)
    Path(path).write_bytes(b"i" * 4096)
    await inside.inventory.volumes.end_import(vm, "root", success=True)
    assert (inside.machines.busy, vm.volumes["root"].size) == ({}, 4096)


async def test_a_vm_that_is_renamed_during_an_import_ends_it_all_the_same(inside: Inside) -> None:
    vm = find(inside, "alone")
    await inside.inventory.volumes.begin_import(vm, "root", 4096)
    inside.inventory.editor.set_property(vm, "name", "later")
    await inside.inventory.volumes.end_import(vm, "root", success=True)
    assert inside.reloaded().find_vm("later").volumes["root"].size == 4096


async def test_a_cancelled_beginning_leaves_nothing(inside: Inside) -> None:
    vm = find(inside, "alone")
    async with inside.machines.lock(vm.uuid):
        waiting = asyncio.ensure_future(inside.inventory.volumes.begin_import(vm, "root", None))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert inside.machines.busy == {}
    assert list(Path(inside.pool.folder).rglob("*.new")) == []


async def test_a_driver_that_keeps_one_content_has_it_copied_of_a_halted_vm_only(inside: Inside) -> None:
    """B12: what a running VM writes could not be told apart from what is copied, also where revisions are kept."""
    volumes = inside.inventory.volumes
    source, target = find(inside, "other"), find(inside, "alone")
    source.volumes["root"] = replace(source.volumes["root"], revisions_to_keep=2)
    for shares_live in (True, False):
        inside.pool.shares_live = shares_live
        await volumes.copy(target, "root", volumes.offer(source, "root"))
        inside.machines.begin(source.uuid, "Transient")
        if shares_live:
            await volumes.copy(target, "root", volumes.offer(source, "root"))
        else:
            with pytest.raises(
                VMNotHaltedError, match="other cannot have its volume root copied while it is Transient"
            ):
                await volumes.copy(target, "root", volumes.offer(source, "root"))
        inside.machines.finish(source.uuid)
