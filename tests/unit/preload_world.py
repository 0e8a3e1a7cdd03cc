"""A daemon's inside that starts disposables in advance, and the next daemon over what one has left."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crannog.adapters.display.headless import HeadlessDisplays
from crannog.adapters.storage.qcow2 import Qcow2Pool
from crannog.adapters.store.file import FileStore
from crannog.config import Paths
from crannog.core.pools import DEFAULT_POOL
from crannog.core.preload import Stage
from crannog.core.preload_wishes import MAX, NAMES
from crannog.core.vms import LocalVM
from crannog.daemon.adoption import Adoption
from crannog.daemon.machines import Machines
from tests.fakes import (
    DomainInfo,
    FakeAgents,
    FakeHypervisor,
    Inside,
    add_vm,
    build_inside,
    short_folder,
    template_and_app,
)
from tests.unit.api_world import until
from tests.unit.life_world import READY

DVM = "work"
"""The disposable template."""


@dataclass
class Reserve:
    """What the tests look at."""

    inside: Inside

    @property
    def dvm(self) -> LocalVM:
        return self.vm(DVM)

    def vm(self, name: str) -> LocalVM:
        vm = self.inside.registry.find_vm(name)
        assert isinstance(vm, LocalVM)
        return vm

    def want(self, count: int | str) -> None:
        """Ask for so many disposables in advance."""
        self.inside.inventory.editor.set_feature(self.dvm, MAX, str(count))

    def names(self, stage: Stage | None = None) -> set[str]:
        members = self.inside.inventory.preloading.reserve.members.values()
        found = [self.inside.registry.find_uuid(m.uuid) for m in members if stage in (None, m.stage)]
        return {vm.name for vm in found if vm}

    async def ready(self, count: int) -> list[str]:
        """Return the names of those that are ready, once there are so many and that is written down."""
        await until(lambda: len(self.names(Stage.READY)) == count == len(self.dvm.features.get(NAMES, "").split()))
        return sorted(self.names(Stage.READY))

    def disposables(self) -> set[str]:
        return {vm.name for vm in self.inside.registry.local_vms() if vm.is_disposable}

    async def take(self, source: str = "dom0") -> LocalVM | None:
        return await self.inside.inventory.power.take_preloaded(self.dvm, source)

    async def none_is_left(self) -> None:
        """Return when there is no disposable, no domain, no process and no mark."""
        await until(lambda: not self.disposables())
        await until(lambda: not self.inside.hypervisor.domain_states and not self.inside.agents.running)
        folders = [p.name for p in Path(self.inside.pool.folder).iterdir()]
        assert not [name for name in folders if name.startswith("disp")]
        assert not [p for p in Path(self.inside.paths.run).iterdir() if p.name.startswith(("claiming-", "starting-"))]


def make_agents_answer(inside: Inside) -> None:
    """Have the agent of each VM that starts answer at once."""
    start = inside.agents.start

    async def answer(uuid: str, name: str, default_user: str) -> None:
        await start(uuid, name, default_user)
        inside.agents.statuses[uuid] = READY

    inside.agents.start = answer  # type: ignore[method-assign]


@asynccontextmanager
async def running(inside: Inside) -> AsyncIterator[None]:
    """Run what fills the pools."""
    loop = asyncio.ensure_future(inside.inventory.preloading.run())
    try:
        yield
    finally:
        loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop
        await inside.lifecycle.abandon_starts()


@asynccontextmanager
async def preloading() -> AsyncIterator[Reserve]:
    """Make a daemon's inside with a disposable template; its agents answer at once."""
    with short_folder() as home:
        inside = build_inside(home)
        for vm in template_and_app(inside.registry):
            await inside.pool.create(tuple(vm.pool_volumes()))
        add_vm(inside.registry, "StandaloneVM", "other")
        await inside.pool.create(tuple(inside.registry.find_vm("other").pool_volumes()))
        inside.registry.find_vm(DVM).set("template_for_dispvms", True)
        inside.registry.dom0.features["preload-dispvm-delay"] = "0"
        make_agents_answer(inside)
        problems: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: problems.append(context))
        async with running(inside):
            yield Reserve(inside)
        assert problems == []


@dataclass
class Remains:
    """What a daemon that is killed at this moment leaves: its files, and the domains."""

    home: Path
    domains: dict[str, DomainInfo]


def remember(inside: Inside, folder: Path) -> Remains:
    """Return what would be left now."""
    # Holes stay holes: the volumes are tens of gigabytes of them.
    subprocess.run(["cp", "-a", "--sparse=always", inside.paths.home, str(folder)], check=True)
    return Remains(folder, {uuid: replace(info) for uuid, info in inside.hypervisor.domain_states.items()})


def cut(inside: Inside, folder: Path, owner: str, method: str, after: bool) -> "asyncio.Future[Remains]":
    """Remember what is left at the first call of a method of one of the inside's parts, before it or after it."""
    part = getattr(inside, owner)
    call = getattr(part, method)
    moment: asyncio.Future[Remains] = asyncio.get_running_loop().create_future()

    def look() -> None:
        if not moment.done():
            moment.set_result(remember(inside, folder))

    def wrapped(*arguments: Any, **words: Any) -> Any:  # noqa: ANN401
        if not after:
            look()
        result = call(*arguments, **words)
        if isinstance(result, Awaitable):
            return _then(result, look if after else lambda: None)
        if after:
            look()
        return result

    setattr(part, method, wrapped)
    return moment


async def _then(work: Awaitable[Any], look: Callable[[], None]) -> Any:  # noqa: ANN401
    result = await work
    look()
    return result


async def come_back(remains: Remains) -> Inside:
    """Return the inside of the daemon that comes after a kill, once it has looked at what there is."""
    first = build_from(remains.home)
    first.hypervisor.domain_states = dict(remains.domains)
    make_agents_answer(first)
    await first.pool.recover(frozenset(v.vid for vm in first.registry for v in vm.volumes.values()))
    await Adoption(first.inventory.lifecycle).adopt()
    await first.inventory.preloading.vms.adopt()
    return first


def build_from(home: Path) -> Inside:
    """Return an inside over a home that is there already."""
    paths = Paths(str(home), str(home / "cache"))
    store = FileStore(paths.store, paths.kernels)
    pool = Qcow2Pool(DEFAULT_POOL, f"{paths.pools}/{DEFAULT_POOL}")
    registry = store.load()
    return Inside(paths, store, pool, FakeHypervisor(), FakeAgents(), Machines(), registry, displays=HeadlessDisplays())
