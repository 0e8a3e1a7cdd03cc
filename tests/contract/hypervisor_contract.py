"""What every Hypervisor keeps to (ports.hypervisor), QEMU behind libvirt, libvirt's test driver, and the fake alike.

A module that wants these tests imports them all, and has fixtures `hypervisor` and `spec`, a domain that runs for ever.
"""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from crannog.core.domain import DomainInfo, DomainSpec, DomainState, MemoryFiles
from crannog.errors import HypervisorError
from crannog.ports.hypervisor import Hypervisor

RUNNING, PAUSED, ABSENT = DomainState.RUNNING, DomainState.PAUSED, DomainState.ABSENT


async def own(hypervisor: Hypervisor, spec: DomainSpec) -> list[DomainInfo]:
    """Return the domains but for those that the driver has by itself."""
    return [info for info in await hypervisor.domains() if info.uuid == spec.uuid or info.name == spec.name]


async def until(is_true: Callable[[], bool]) -> None:
    for _ in range(3000):
        if is_true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within 30 s")


def listen(hypervisor: Hypervisor, spec: DomainSpec) -> list[DomainState]:
    """Return the states that will be told, without repetitions, and without the one on the way to an end."""
    told: list[DomainState] = []

    def take(uuid: str, state: DomainState) -> None:
        if uuid == spec.uuid and state is not DomainState.DYING and told[-1:] != [state]:
            told.append(state)

    hypervisor.listen(take)
    return told


async def test_contract_life_of_a_domain(hypervisor: Hypervisor, spec: DomainSpec) -> None:
    told = listen(hypervisor, spec)
    made = await hypervisor.create_paused(spec)
    assert (made.uuid, made.name, made.state) == (spec.uuid, spec.name, PAUSED)
    assert made.xid > 0
    assert await own(hypervisor, spec) == [made]
    await hypervisor.resume(spec.uuid)
    assert await own(hypervisor, spec) == [replace(made, state=RUNNING)]
    await hypervisor.pause(spec.uuid)
    assert await own(hypervisor, spec) == [made]
    await hypervisor.resume(spec.uuid)
    await hypervisor.destroy(spec.uuid)
    assert await own(hypervisor, spec) == []
    await until(lambda: told[-1:] == [ABSENT])
    # How a creation is told differs: with stopped processors at once, or a moment later.
    assert told[-4:] == [RUNNING, PAUSED, RUNNING, ABSENT]


async def test_contract_absent_domains(hypervisor: Hypervisor) -> None:
    uuid = str(uuid4())
    await hypervisor.destroy(uuid)
    await hypervisor.press_power_button(uuid)
    assert await hypervisor.usage(uuid) is None
    with pytest.raises(HypervisorError):
        await hypervisor.enlarge_disk(uuid, "/no/disk", 2**20)
    for refused in (hypervisor.resume, hypervisor.pause, hypervisor.console, hypervisor.screenshot):
        with pytest.raises(HypervisorError):
            await refused(uuid)


async def test_contract_a_name_is_taken_once(hypervisor: Hypervisor, spec: DomainSpec) -> None:
    made = await hypervisor.create_paused(spec)
    with pytest.raises(HypervisorError, match=f"{spec.name} could not be started"):
        await hypervisor.create_paused(replace(spec, uuid=str(uuid4())))
    assert await own(hypervisor, spec) == [made]


async def test_contract_what_the_host_has(hypervisor: Hypervisor) -> None:
    facts = await hypervisor.host_facts()
    assert facts is None or (facts.memory > 100 and facts.processors > 0)


async def test_contract_usage(hypervisor: Hypervisor, spec: DomainSpec) -> None:
    await hypervisor.create_paused(spec)
    usage = await hypervisor.usage(spec.uuid)
    assert usage
    assert usage.memory_max == spec.memory << 10
    before = time.monotonic()
    found = {stats.uuid: stats for stats in await hypervisor.statistics()}
    assert before <= found[spec.uuid].measured_at <= time.monotonic()


async def test_contract_a_domain_that_is_ended_twice(hypervisor: Hypervisor, spec: DomainSpec) -> None:
    told = listen(hypervisor, spec)
    await hypervisor.create_paused(spec)
    await hypervisor.resume(spec.uuid)
    await asyncio.gather(*[hypervisor.destroy(spec.uuid) for _ in range(3)])
    assert await own(hypervisor, spec) == []
    await until(lambda: told[-1:] == [ABSENT])
    again = await hypervisor.create_paused(spec)
    await hypervisor.resume(spec.uuid)
    assert await own(hypervisor, spec) == [replace(again, state=RUNNING)]
    await until(lambda: told[-1:] == [RUNNING])


async def test_contract_readers_never_fail(hypervisor: Hypervisor, spec: DomainSpec) -> None:
    """B3: absent is an answer, also between two calls."""

    async def come_and_go() -> None:
        for _ in range(3):
            await hypervisor.create_paused(spec)
            await hypervisor.resume(spec.uuid)
            await hypervisor.destroy(spec.uuid)

    changes = asyncio.create_task(come_and_go())
    reads = 0
    while not changes.done():
        await asyncio.gather(hypervisor.domains(), hypervisor.usage(spec.uuid), hypervisor.statistics())
        await asyncio.sleep(0)
        reads += 1
    await changes
    assert reads > 0
    assert await own(hypervisor, spec) == []


async def test_contract_no_strays_among_domains(hypervisor: Hypervisor, spec: DomainSpec) -> None:
    made = await hypervisor.create_paused(spec)
    assert await hypervisor.end_strays(frozenset((spec.uuid,))) == []
    assert await own(hypervisor, spec) == [made]


async def test_contract_a_disk_that_a_domain_does_not_have(hypervisor: Hypervisor, spec: DomainSpec) -> None:
    await hypervisor.create_paused(spec)
    with pytest.raises(HypervisorError):
        await hypervisor.enlarge_disk(spec.uuid, "/no/disk", 2**20)


async def test_contract_what_cannot_be_saved_has_no_key(hypervisor: Hypervisor, spec: DomainSpec) -> None:
    key = await hypervisor.machine_key(spec, spec.name)
    assert bool(key) is hypervisor.saves_memory
    assert await hypervisor.machine_key(spec, spec.name) == key
    assert not key or await hypervisor.machine_key(replace(spec, vcpus=spec.vcpus + 1), spec.name) != key


async def test_contract_only_what_was_made_for_it_is_saved(hypervisor: Hypervisor, tmp_path: Path) -> None:
    files = MemoryFiles(str(tmp_path / "memory"), str(tmp_path / "state"))
    with pytest.raises(HypervisorError):
        await hypervisor.save_memory(str(uuid4()), files)
    assert not Path(files.state).exists()


def make_memory(spec: DomainSpec, folder: Path) -> MemoryFiles:
    """Make the file for the memory of a domain that is to be saved."""
    files = MemoryFiles(str(folder / "memory"), str(folder / "state"))
    Path(files.memory).touch(0o600)
    os.truncate(files.memory, spec.memory << 20)
    return files


async def test_contract_a_domain_goes_on_where_another_was_saved(
    hypervisor: Hypervisor, spec: DomainSpec, tmp_path: Path
) -> None:
    if not hypervisor.saves_memory:
        return
    files = make_memory(spec, tmp_path)
    # Several are there at the same time, with one disk that none of them writes to.
    spec = replace(spec, channels=(), disks=tuple(replace(disk, is_readonly=True) for disk in spec.disks))
    await hypervisor.create_paused(replace(spec, memory_files=files))
    await hypervisor.resume(spec.uuid)
    await asyncio.sleep(0.5)
    await hypervisor.pause(spec.uuid)
    await hypervisor.save_memory(spec.uuid, files)
    await hypervisor.destroy(spec.uuid)
    before = Path(files.memory).stat().st_mtime_ns
    saved = replace(files, is_saved=True)
    others = [replace(spec, uuid=str(uuid4()), name=name, memory_files=saved) for name in ("one", "two")]
    for other in others:
        assert (await hypervisor.create_paused(other)).state is PAUSED
    for other in others:
        await hypervisor.resume(other.uuid)
    states = {info.uuid: info.state for info in await hypervisor.domains()}
    assert [states[other.uuid] for other in others] == [RUNNING, RUNNING]
    await asyncio.sleep(0.3)
    for other in others:
        await hypervisor.destroy(other.uuid)
    assert Path(files.memory).stat().st_mtime_ns == before  # nobody has written to it


async def test_contract_a_state_that_is_damaged_leaves_no_domain(
    hypervisor: Hypervisor, spec: DomainSpec, tmp_path: Path
) -> None:
    if not hypervisor.saves_memory:
        return
    files = replace(make_memory(spec, tmp_path), is_saved=True)
    for text in (None, b"", b"no state"):
        if text is not None:
            Path(files.state).write_bytes(text)
        with pytest.raises(HypervisorError):
            await hypervisor.create_paused(replace(spec, memory_files=files))
        assert await own(hypervisor, spec) == []
    await hypervisor.create_paused(spec)
