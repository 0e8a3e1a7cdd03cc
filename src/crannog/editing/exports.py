"""Volumes that are read from outside: their content stays as it is until whoever reads it has gone."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Mapping
from urllib.parse import quote

from crannog.core.events import Event, Listener
from crannog.core.templates import origin
from crannog.core.vms import QubeBase
from crannog.core.volumes import Location, Volume
from crannog.editing.editor import Editor
from crannog.editing.hold import Busy, check_free
from crannog.editing.places import check_steady, find_pool, is_steady
from crannog.errors import CrannogError, ValueRefusedError
from crannog.ports.storage import Pool

READY, FAILED = "export-ready", "export-failed"
"""Names of the events that tell where the content is, or why it cannot be had."""


class Exports:
    """Gives out where the newest finished content of volumes is, for as long as somebody reads it.

    Methods raise KeyError for a volume that the VM does not have, VMNotHaltedError while its VM writes to the content,
    StateError while something else goes on with that VM, StorageError.
    """

    def __init__(self, editor: Editor, pools: Mapping[str, Pool], *, busy: Busy | None = None) -> None:
        self._editor = editor
        self._pools = pools
        self._busy: Busy = {} if busy is None else busy
        self._going: Counter[str] = Counter()
        """How many volumes of a VM, by its UUID, are read that its VM would write to."""
        self._readers: set[asyncio.Task[None]] = set()

    async def locate(self, vm: QubeBase, name: str) -> Location:
        """Return where the content is. It may change at once, unless nobody else works with the store."""
        _, held = self._check(vm, name)
        async with find_pool(self._pools, held).reading(held.vid) as location:
            return location

    def follow(self, vm: QubeBase, name: str, listener: Listener) -> Callable[[], None]:
        """Tell `listener` where the content is, as an event; return what ends that.

        Until then it stays as it is, and a VM that would write to it does not start.
        """
        owner, held = self._check(vm, name)
        pool = find_pool(self._pools, held)
        is_free = is_steady(held, self._pools)
        ended = asyncio.Event()
        reader = asyncio.ensure_future(self._read(vm.name, pool, held, listener, ended))
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        if not is_free:
            self._begin(owner, name)

        def leave() -> None:
            ended.set()
            if not is_free:
                self._end(owner)

        return leave

    def _check(self, vm: QubeBase, name: str) -> tuple[QubeBase, Volume]:
        """Return the volume that holds what a VM's volume shows, with its VM, if it can be read now."""
        owner, held = origin(vm, name)
        if not held.save_on_stop:
            raise ValueRefusedError(f"volume {name} of {vm.name} has no content that could be exported")
        check_steady(self._editor, vm, name, self._pools)
        if not self._going[owner.uuid]:
            check_free(self._busy, owner, "have a volume exported")
        return owner, held

    def _begin(self, owner: QubeBase, name: str) -> None:
        self._going[owner.uuid] += 1
        self._busy[owner.uuid] = f"its volume {name} is being exported; wait until that is over, or end it"

    def _end(self, owner: QubeBase) -> None:
        self._going[owner.uuid] -= 1
        if not self._going[owner.uuid]:
            del self._going[owner.uuid]
            self._busy.pop(owner.uuid, None)

    @staticmethod
    async def _read(vm: str, pool: Pool, held: Volume, listener: Listener, ended: asyncio.Event) -> None:
        """Hold the content until the end, once it was told where it is."""
        try:
            async with pool.reading(held.vid) as location:
                listener(Event(vm, READY, {"place": describe_place(location)}))
                await ended.wait()
        except CrannogError as error:
            listener(Event(vm, FAILED, {"kind": type(error).__name__, "reason": str(error)}))


def describe_place(location: Location) -> str:
    """Return format and path of some content as text; the path as in a URL, as it may hold any bytes."""
    return f"{location.format} {quote(os.fsencode(location.path))}"
