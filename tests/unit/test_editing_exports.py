"""Exports: where the content is, that it stays as it is meanwhile, and that nobody is kept away for longer."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

from crannog.api.server import Server
from crannog.core.events import Event
from crannog.core.vms import LocalVM
from crannog.core.volumes import Location
from crannog.editing.exports import FAILED, READY, Exports, describe_place
from crannog.errors import StateError, StorageError, ValueRefusedError, VMNotHaltedError
from tests.contract.benches import session
from tests.unit.api_world import Client, until
from tests.unit.life_world import QUIETLY, Life, living


@pytest.fixture
async def life() -> AsyncIterator[Life]:
    async with living() as life:
        yield life


@pytest.fixture
async def alone(life: Life) -> LocalVM:
    """Return a StandaloneVM, which writes to its volumes in place."""
    (alone,) = await life.add("alone")
    return alone


class Reader:
    """Follows one export."""

    def __init__(self, exports: Exports, vm: LocalVM, name: str) -> None:
        self.told: list[Event] = []
        self.leave = exports.follow(vm, name, self.told.append)

    async def place(self) -> str:
        await until(lambda: bool(self.told))
        (event,) = self.told
        assert event.name == READY
        format_, _, quoted = event.arguments["place"].partition(" ")
        return f"{format_} {os.fsdecode(unquote_to_bytes(quoted))}"


async def test_a_vm_that_would_write_to_it_does_not_start_meanwhile(life: Life, alone: LocalVM) -> None:
    exports = life.inside.inventory.exports
    readers = [Reader(exports, alone, name) for name in ("root", "private", "root")]
    paths = [life.inside.pool.newest(alone.volumes[name].vid).path for name in ("root", "private", "root")]
    assert [await reader.place() for reader in readers] == [f"raw {path}" for path in paths]
    for reader in readers:
        with pytest.raises(StateError, match=r"alone cannot be started: its volume .* is being exported; wait until"):
            await life.power.start(alone, QUIETLY)
        with pytest.raises(StateError, match="is being exported"):
            await life.inside.inventory.volumes.begin_import(alone, "root", None)
        reader.leave()
    await life.power.start(alone, QUIETLY)
    with pytest.raises(VMNotHaltedError):
        exports.follow(alone, "root", lambda _event: None)
    assert life.inside.machines.busy == {}
    await life.power.kill(alone)
    await life.settle()


async def test_what_goes_on_already_is_named(life: Life, alone: LocalVM) -> None:
    volumes, exports = life.inside.inventory.volumes, life.inside.inventory.exports
    await volumes.begin_import(alone, "private", None)
    with pytest.raises(StateError, match="alone cannot have a volume exported: an import into its volume private"):
        exports.follow(alone, "root", lambda _event: None)
    await volumes.end_import(alone, "private", success=False)
    reader = Reader(exports, alone, "root")
    await reader.place()
    reader.leave()
    await life.settle()
    assert life.inside.machines.busy == {}


async def test_former_content_is_read_while_its_vm_runs_and_stays(life: Life) -> None:
    template, pool = life.vm("debian"), life.inside.pool
    root = template.volumes["root"]
    for letter in "ab":
        await session(pool, root, letter)
    path = pool.newest(root.vid).path
    reader = Reader(life.inside.inventory.exports, life.work, "root")
    assert await reader.place() == f"qcow2 {path}"
    for letter in "cdef":
        await session(pool, root, letter)
    assert os.path.exists(path)
    reader.leave()
    await life.settle()
    await pool.trim(root)


async def test_an_image_that_cannot_be_opened_safely_is_told(life: Life) -> None:
    template, pool = life.vm("debian"), life.inside.pool
    await session(pool, template.volumes["root"], "a")
    Path(pool.newest(template.volumes["root"].vid).path).write_bytes(b"nonsense")
    reader = Reader(life.inside.inventory.exports, template, "root")
    await until(lambda: bool(reader.told))
    assert reader.told[0].name == FAILED
    assert reader.told[0].arguments["reason"].endswith("root.2.qcow2 cannot be read: Image is not in qcow2 format")
    reader.leave()
    with pytest.raises(StorageError, match="not in qcow2 format"):
        await life.inside.inventory.exports.locate(template, "root")


async def test_what_has_no_content(life: Life) -> None:
    exports = life.inside.inventory.exports
    with pytest.raises(KeyError):
        exports.follow(life.work, "none", lambda _event: None)
    for name, volume in life.work.volumes.items():
        if not volume.save_on_stop and not volume.snap_on_start:
            with pytest.raises(ValueRefusedError, match=f"volume {name} of work has no content"):
                exports.follow(life.work, name, lambda _event: None)


async def test_a_reader_that_is_killed_keeps_nobody_away(life: Life, alone: LocalVM) -> None:
    server = Server(life.inside.inventory, life.inside.paths.daemon_socket)
    await server.start()
    request = b"crannog.vm.volume.Export+private dom0 name alone\0"
    with Client(life.inside.paths.daemon_socket, request) as client:
        client.end_request()
        data = b""
        while b"export-ready" not in data:
            data += await client.receive()
        assert alone.uuid in life.inside.machines.busy
    await until(lambda: alone.uuid not in life.inside.machines.busy)
    await server.stop()


def test_a_path_may_hold_any_bytes() -> None:
    path = os.fsdecode(b"/a b/\xff\xc3\xbc%+\n")
    text = describe_place(Location(path, "raw"))
    assert text.isascii()
    assert text.isprintable()
    assert os.fsdecode(unquote_to_bytes(text.partition(" ")[2])) == path
