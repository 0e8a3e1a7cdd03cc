"""A daemon's inside whose VMs start and end, and what it told of them meanwhile."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crannog.core.announcement import AgentState, AgentStatus, Announcement
from crannog.core.events import Event
from crannog.core.startup import StartRequest
from crannog.core.vms import LocalVM
from crannog.daemon.news import News
from tests.fakes import DomainInfo, DomainState, Inside, add_vm, build_inside, short_folder, template_and_app
from tests.unit.api_world import PATIENCE, until

READY = AgentStatus(AgentState.READY, Announcement("1", "Linux", qrexec=True, gui=False, default_user=""))
SPAWNED = [
    "work domain-pre-start start_guid=GUID mem_required=419430400",
    "work domain-pre-spawn start_guid=GUID",
    "work domain-spawn start_guid=GUID",
]
RESUMED = ["work domain-pre-unpaused", "work domain-unpaused"]
STARTED = [*SPAWNED, *RESUMED, "work domain-start start_guid=GUID"]
ENDED = ["work domain-stopped", "work domain-shutdown"]
QUIETLY = StartRequest(wait=False)


@dataclass
class Life:
    """A daemon's inside, and what it told."""

    inside: Inside
    told: list[str] = field(default_factory=list)
    guids: list[str] = field(default_factory=list)
    problems: list[dict[str, Any]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def note(self, event: Event) -> None:
        words = [event.subject or "-", event.name]
        for key, value in event.arguments.items():
            if key == "start_guid" and value:
                self.guids.append(value)
            words.append(f"{key}={'GUID' if key == 'start_guid' and value else value}")
        self.told.append(" ".join(words))

    @property
    def work(self) -> LocalVM:
        return self.vm("work")

    @property
    def power(self) -> Any:  # noqa: ANN401 - its parts are given bad arguments as well
        return self.inside.inventory.power

    @property
    def news(self) -> News:
        return self.inside.lifecycle.news

    def vm(self, name: str) -> LocalVM:
        vm = self.inside.registry.find_vm(name)
        assert isinstance(vm, LocalVM)
        return vm

    async def add(self, *names: str) -> list[LocalVM]:
        """Add VMs with volumes of their own; each gets its network from the next, the last one has none."""
        registry = self.inside.registry
        vms = [add_vm(registry, "StandaloneVM", name) for name in names]
        for vm in vms:
            await self.inside.pool.create(tuple(vm.pool_volumes()))
        for vm, netvm in itertools.pairwise(vms):
            netvm.set("provides_network", True)
            vm.set("netvm", netvm)
        self.files = self.all_files()
        return vms

    def told_of(self, vm: str) -> list[str]:
        """Return the names of the events of one VM."""
        return [line.split()[1] for line in self.told if line.startswith(f"{vm} ")]

    def all_files(self) -> list[Path]:
        """Return what is in the pool, but for the seals: finished content gets one when it is used first."""
        return sorted(path for path in Path(self.inside.pool.folder).rglob("*") if path.suffix != ".seal")

    def hear(self, state: DomainState, vm: LocalVM | None = None) -> None:
        """Have the hypervisor tell of a VM's domain what nobody asked it for."""
        chosen = vm or self.work
        domains = self.inside.hypervisor.domain_states
        if state is DomainState.ABSENT:
            domains.pop(chosen.uuid, None)
        else:
            domains[chosen.uuid] = DomainInfo(chosen.uuid, chosen.name, state, 42)
        self.inside.hypervisor._listener(chosen.uuid, state)

    async def run(self, vm: LocalVM | None = None) -> None:
        """Start a VM, and forget what was told of it."""
        await self.power.start(vm or self.work, QUIETLY)
        self.told.clear()

    async def settle(self) -> None:
        """Return when all that goes on by itself is done."""
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
        await asyncio.sleep(0)  # what is called back when a task is done

    async def is_gone(self) -> None:
        """Check that nothing is left of any VM but what was there before."""
        await self.settle()
        inside = self.inside
        assert {vm.power_state for vm in inside.registry.local_vms()} == {"Halted"}
        assert (inside.hypervisor.domain_states, inside.agents.running) == ({}, set())
        assert (inside.machines.active(), inside.lifecycle.steps.starting) == (frozenset(), {})
        lifecycle = inside.lifecycle
        assert (lifecycle._starts, lifecycle.shutdowns._going, self.news._cleanups) == ({}, {}, {})
        assert (lifecycle.steps._endings, lifecycle.ledger._promises) == ({}, {})
        assert (self.news.ours, self.news._chores, inside.machines._waiting) == (set(), set(), {})
        assert self.all_files() == self.files
        assert self.problems == []


@asynccontextmanager
async def living() -> AsyncIterator[Life]:
    """Make a daemon's inside with a template `debian` and an AppVM `work` that could start."""
    with short_folder() as home:
        inside = build_inside(home)
        for vm in template_and_app(inside.registry):
            await inside.pool.create(tuple(vm.pool_volumes()))
        life = Life(inside)
        life.files = life.all_files()
        inside.inventory.editor.listen(life.note)
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: life.problems.append(context))
        yield life
        assert life.problems == []


def failing(error: Exception) -> Callable[..., Awaitable[Any]]:
    async def fail(*_arguments: object) -> None:
        raise error

    return fail


class Gate:
    """Takes the place of a call: says that it was reached, and lets it happen when it is opened."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self.call = call
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, *arguments: object) -> Any:  # noqa: ANN401
        self.reached.set()
        await self.opened.wait()
        return await self.call(*arguments)


def begin(work: Awaitable[Any]) -> "asyncio.Future[Any]":
    return asyncio.ensure_future(work)


async def soon(work: Awaitable[Any]) -> Any:  # noqa: ANN401
    return await asyncio.wait_for(work, PATIENCE)
