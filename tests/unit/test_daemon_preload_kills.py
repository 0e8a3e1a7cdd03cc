"""crannogd is killed at each transition of a disposable that is started in advance: the next one adopts it, or ends it.

What a kill leaves is what is on the disk at that moment, and the domains: both are copied there, and the next daemon's
inside is made of the copies. None is handed out twice, and in the end nothing is left that is nobody's.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from crannog.core.preload import Stage
from tests.fakes import Inside, short_folder
from tests.unit.api_world import until
from tests.unit.life_world import soon
from tests.unit.preload_world import Remains, Reserve, come_back, cut, preloading, remember, running

WARMING = {
    "created, not in the store": ("pool", "claim", False),
    "in the store": ("pool", "claim", True),
    "before the domain": ("hypervisor", "create_paused", False),
    "domain created": ("hypervisor", "create_paused", True),
    "runs": ("hypervisor", "resume", True),
    "agent answers": ("agents", "exercise", False),
    "before the pause": ("hypervisor", "pause", False),
    "paused": ("hypervisor", "pause", True),
}
CLAIMS = {
    "before it is marked": ("world", "mark", False),
    "marked": ("world", "mark", True),
    "before it is saved": ("store", "save", False),
    "saved": ("store", "save", True),
    "before it runs": ("hypervisor", "resume", False),
    "runs": ("hypervisor", "resume", True),
}


@pytest.mark.parametrize("point", WARMING)
async def test_killed_while_one_starts(point: str) -> None:
    with short_folder() as folder:
        async with preloading() as world:
            moment = cut(world.inside, folder / "h", *WARMING[point])
            world.want(1)
            remains = await soon(moment)
        await nobody_has_it(remains)


async def test_killed_while_one_is_ready_it_is_adopted() -> None:
    with short_folder() as folder:
        async with preloading() as world:
            world.want(1)
            (name,) = await world.ready(1)
            remains = remember(world.inside, folder / "h")
        inside = await come_back(remains)
        async with running(inside):
            later = Reserve(inside)
            assert later.names(Stage.READY) == {name}
            vm = await soon(later.take())
            assert vm
            assert (vm.name, vm.power_state) == (name, "Running")
            assert await later.take() is None or later.names(Stage.CLAIMED) != {name}


async def test_what_changed_while_no_daemon_ran_is_not_handed_out() -> None:
    with short_folder() as folder:
        async with preloading() as world:
            world.want(1)
            (name,) = await world.ready(1)
            world.inside.registry.find_vm("work").set("memory", 700)
            world.inside.store.save(world.inside.registry)
            remains = remember(world.inside, folder / "h")
        inside = await come_back(remains)
        assert await Reserve(inside).take() is None
        async with running(inside):
            await until(lambda: name not in Reserve(inside).disposables())


@pytest.mark.parametrize("point", CLAIMS)
async def test_killed_while_one_is_handed_out(point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with short_folder() as folder:
        async with preloading() as world:
            world.inside.registry.dom0.features["preload-dispvm-delay"] = "-1"
            world.want(1)
            (name,) = await world.ready(1)
            owner, method, after = CLAIMS[point]
            if owner == "world":
                moment = cut_mark(world.inside, folder / "h", monkeypatch, after=after)
            else:
                moment = cut(world.inside, folder / "h", owner, method, after)
            assert await soon(world.take())
            remains = await soon(moment)
        inside = await come_back(remains)
        later = Reserve(inside)
        if point == "before it is marked":  # nothing had happened yet
            assert later.names(Stage.READY) == {name}
        else:
            await until(lambda: name not in later.disposables())
            assert later.names(Stage.READY) == set()
        await nothing_is_left(inside)


def cut_mark(
    inside: Inside, folder: Path, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> "asyncio.Future[Remains]":
    """Remember what is left when a claim is marked: the world is frozen, so that its class is changed."""
    kind = type(inside.lifecycle.world)
    mark = kind.mark_claim
    moment: asyncio.Future[Remains] = asyncio.get_running_loop().create_future()

    def wrapped(self: Any, uuid: str) -> None:  # noqa: ANN401
        if after:
            mark(self, uuid)
        moment.set_result(remember(inside, folder))
        mark(self, uuid)

    monkeypatch.setattr(kind, "mark_claim", wrapped)
    return moment


async def test_killed_after_one_was_handed_out_it_is_its_users() -> None:
    with short_folder() as folder:
        async with preloading() as world:
            world.inside.registry.dom0.features["preload-dispvm-delay"] = "-1"
            world.want(1)
            await world.ready(1)
            vm = await soon(world.take())
            assert vm
            remains = remember(world.inside, folder / "h")
        inside = await come_back(remains)
        later = Reserve(inside)
        assert later.vm(vm.name).power_state == "Running"
        assert later.names() == set()
        assert await later.take() is None


async def nobody_has_it(remains: Remains) -> None:
    """Check that the next daemon has nothing ready that was half-made, and can fill the pool anew."""
    inside = await come_back(remains)
    later = Reserve(inside)
    await until(lambda: not later.disposables())
    assert later.names() == set()
    async with running(inside):
        await later.ready(1)
    await nothing_is_left(inside)


async def nothing_is_left(inside: Inside) -> None:
    """Check that all of it goes when no disposable is wanted any more."""
    later = Reserve(inside)
    async with running(inside):
        later.want(0)
        await later.none_is_left()
