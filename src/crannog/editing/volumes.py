"""What is done to the volumes of VMs that exist: other content, another size, other settings."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from crannog.core import events
from crannog.core.pools import check_ephemeral, check_revisions
from crannog.core.templates import origin
from crannog.core.vms import QubeBase
from crannog.core.volumes import Volume, check_size
from crannog.editing.editor import Editor
from crannog.editing.hold import Busy, Hold, check_free, hold_all, hold_nothing
from crannog.editing.places import check_steady, find_pool, is_steady
from crannog.editing.tokens import Tokens
from crannog.editing.volume_facts import VolumeFacts
from crannog.errors import StateError, ValueRefusedError
from crannog.ports.storage import Kernels, Pool

Enlarge = Callable[[str, str, int], Awaitable[None]]
"""Makes a disk of a running VM larger: UUID, path of the image or device, size in bytes (ports.hypervisor)."""

_WITH_DISKS = ("Running", "Paused")
"""Power states in which a VM has disks that can become larger."""


class Volumes(VolumeFacts):
    """The volumes of one registry's VMs. Volumes are named; methods raise KeyError for one that the VM does not have.

    What changes a volume raises VMNotHaltedError while its VM runs, StateError while something else goes on with it,
    ValueRefusedError where that kind of volume cannot be changed so, StorageError.
    """

    def __init__(
        self,
        editor: Editor,
        pools: Mapping[str, Pool],
        hold: Hold = hold_nothing,
        *,
        kernels: Kernels,
        enlarge: Enlarge | None = None,
        busy: Busy | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        super().__init__(pools, kernels)
        self._editor = editor
        self._hold = hold
        self._enlarge = enlarge
        self._busy: Busy = {} if busy is None else busy
        self._tokens = tokens or Tokens()
        self._imports: dict[tuple[str, str], int] = {}
        """Sizes of what is being imported, by UUID and volume."""

    # -- content

    async def import_file(self, vm: QubeBase, name: str, path: str) -> None:
        """Make the raw image at `path` the content of a volume."""
        async with self._working(vm, name, "get another image") as (pool, volume):
            self._keep_size(vm, await pool.import_file(volume, path))

    async def clear(self, vm: QubeBase, name: str) -> None:
        """Make the content of a volume all zeros."""
        async with self._working(vm, name, "be cleared") as (pool, volume):
            self._editor.tell(events.import_began(vm.name, name, volume.size))
            is_done = False
            try:
                await pool.clear(volume)
                is_done = True
            finally:
                self._editor.tell(events.import_ended(vm.name, name, success=is_done))

    async def revert(self, vm: QubeBase, name: str, revision: str) -> None:
        """Go back to a revision; raises NotFoundError when there is no such one."""
        async with self._working(vm, name, "go back to a revision") as (pool, volume):
            self._keep_size(vm, await pool.revert(volume, revision))

    def offer(self, vm: QubeBase, name: str) -> str:
        """Return a token with which a volume's content can be copied; raises ValueRefusedError where none lasts."""
        if not origin(vm, name)[1].save_on_stop:
            raise ValueRefusedError(f"volume {name} of {vm.name} has no content that could be copied")
        return self._tokens.make(vm.uuid, vm.volumes[name].name)

    async def copy(self, vm: QubeBase, name: str, text: str) -> None:
        """Copy what a token stands for into a volume. The token is void from here on; raises NotFoundError."""
        token = self._tokens.take(text)
        source = self._editor.registry.find_vm(f"uuid:{token.uuid}")
        owner, held = origin(source, token.volume)
        beside = () if is_steady(held, self._pools) else (owner,)
        async with self._working(vm, name, "get other content", beside=beside) as (pool, volume):
            if (held.pool, held.vid) == (volume.pool, volume.vid):
                raise ValueRefusedError(f"volume {name} of {vm.name} cannot be copied onto itself")
            check_free(self._busy, owner, "be copied")
            check_steady(self._editor, source, token.volume, self._pools)
            self._keep_size(vm, await pool.clone(held, volume, find_pool(self._pools, held)))

    # -- content from another program

    async def begin_import(self, vm: QubeBase, name: str, size: int | None) -> tuple[int, str]:
        """Make a file for new content of a volume; return its size and path. The VM cannot start until the end."""
        others = self._imports_of(vm)
        is_beside = bool(others) and name not in others
        async with self._working(vm, name, "get another image", may_be_busy=is_beside) as (pool, volume):
            wanted = check_size(volume.size if size is None else size)
            if name in self._imports_of(vm):
                check_free(self._busy, vm, "get another image")
            path = await pool.begin_import(volume, wanted)
            self._imports[vm.uuid, name] = wanted
            self._note_imports(vm)
            self._editor.tell(events.import_began(vm.name, name, wanted))
        return wanted, path

    async def end_import(self, vm: QubeBase, name: str, *, success: bool) -> None:
        """Take over what was written, or forget it; raises ValueRefusedError when nothing was begun."""
        size = self._imports.pop((vm.uuid, name), None)
        if size is None:
            raise ValueRefusedError(f"no import into volume {name} of {vm.name} was begun")
        is_done = False
        try:
            async with self._hold(vm.uuid):
                await self._end_import(vm, name, size if success else None)
                is_done = success
        finally:
            self._note_imports(vm)
            self._editor.tell(events.import_ended(vm.name, name, success=is_done))

    def _imports_of(self, vm: QubeBase) -> list[str]:
        return [name for uuid, name in self._imports if uuid == vm.uuid]

    def _note_imports(self, vm: QubeBase) -> None:
        """Have the VM be busy while anything is imported into it."""
        names = self._imports_of(vm)
        if names:
            self._busy[vm.uuid] = (
                f"an import into its volume {names[0]} goes on; wait until it is over, or give it up with "
                "'crannog daemon stop'"
            )
        else:
            self._busy.pop(vm.uuid, None)

    async def _end_import(self, vm: QubeBase, name: str, size: int | None) -> None:
        volume = vm.volumes[name]
        pool = find_pool(self._pools, volume)
        if size is None:
            await pool.give_up_import(volume)
        else:
            self._keep_size(vm, await pool.finish_import(volume, size))

    # -- settings

    async def resize(self, vm: QubeBase, name: str, size: int) -> None:
        """Make a volume larger. A layer of a halted VM is as large at its next start; one of a running VM stays."""
        if self._enlarge and vm.volumes[name].save_on_stop and vm.power_state in _WITH_DISKS:
            await self._resize_live(vm, name, size, self._enlarge)
            return
        async with self._working(vm, name, "get a volume of another size", own=False) as (pool, volume):
            _check_larger(vm, volume, size)
            self._keep_size(vm, await pool.resize(volume, check_size(size)))

    async def _resize_live(self, vm: QubeBase, name: str, size: int, enlarge: Enlarge) -> None:
        """Make a volume larger that a running VM writes to; its guest is told by its disk controller."""
        async with self._hold(vm.uuid):
            volume = vm.volumes[name]
            _check_larger(vm, volume, size)
            if vm.power_state not in _WITH_DISKS:
                raise StateError(f"volume {name} of {vm.name} keeps its size: the VM has just ended; try again")
            pool = find_pool(self._pools, volume)
            size = await pool.make_room(volume, check_size(size))
            await enlarge(vm.uuid, pool.locate(volume).path, size)
            self._keep_size(vm, replace(volume, size=size))

    async def set_rw(self, vm: QubeBase, name: str, *, value: bool) -> None:
        """Say whether a halted VM may write to a volume."""
        async with self._working(vm, name, "get a volume with other rights", own=False) as (_, volume):
            self._keep(vm, replace(volume, rw=value))

    async def set_revisions_to_keep(self, vm: QubeBase, name: str, count: int) -> None:
        """Say how many revisions a volume keeps; more than are kept are deleted. -1 and 0: it is written in place.

        A running VM writes either in place or not: that is changed of a halted one only.
        """
        if vm.volumes[name].is_kernel or vm.volumes[name].is_volatile:
            raise ValueRefusedError(
                f"volume {name} of {vm.name} keeps no revisions: {_describe_origin(vm, vm.volumes[name])}"
            )
        changed = replace(vm.volumes[name], revisions_to_keep=check_revisions(count))
        if changed.is_in_place is not vm.volumes[name].is_in_place:
            async with self._working(vm, name, "begin or cease to keep revisions", own=False) as (pool, volume):
                self._keep(vm, replace(volume, revisions_to_keep=count))
                await pool.trim(vm.volumes[name])
        else:
            pool = find_pool(self._pools, changed)
            self._keep(vm, changed)
            await pool.trim(changed)

    def set_ephemeral(self, vm: QubeBase, name: str, *, value: bool) -> None:
        """Say that what is written need not be unreadable later; raises NotYetError for the contrary."""
        check_ephemeral(value=value)
        self._keep(vm, vm.volumes[name].without_ephemeral())

    # -- how

    @asynccontextmanager
    async def _working(
        self,
        vm: QubeBase,
        name: str,
        purpose: str,
        *,
        own: bool = True,
        may_be_busy: bool = False,
        beside: tuple[QubeBase, ...] = (),
    ) -> AsyncIterator[tuple[Pool, Volume]]:
        """Hold a halted VM, and others beside it, and give out a volume of it; with `own`, one that is no layer."""
        busy: Busy = {} if may_be_busy else self._busy
        self._editor.check_halted(vm, purpose)  # one that is starting would be waited for
        check_free(busy, vm, purpose)
        async with hold_all(self._hold, vm, *beside):
            self._editor.registry.find_vm(f"uuid:{vm.uuid}")  # it may have been removed meanwhile
            self._editor.check_halted(vm, purpose)
            check_free(busy, vm, purpose)
            volume = vm.volumes[name]
            if (own and not volume.save_on_stop) or volume.is_kernel:
                refused = purpose if own else "be changed"  # the VM is what the other purposes are about
                raise ValueRefusedError(f"volume {name} of {vm.name} cannot {refused}: {_describe_origin(vm, volume)}")
            yield find_pool(self._pools, volume), volume

    def _keep_size(self, vm: QubeBase, volume: Volume) -> None:
        """Keep the size that a volume has now; its settings may have changed while its content was made."""
        self._keep(vm, replace(vm.volumes[volume.name], size=volume.size))

    def _keep(self, vm: QubeBase, volume: Volume) -> None:
        """Keep a volume as it is now, if anything of it has changed."""
        if vm.volumes[volume.name] != volume:
            with self._editor.change(vm):
                vm.volumes[volume.name] = volume


def _check_larger(vm: QubeBase, volume: Volume, size: int) -> None:
    if size < volume.size:
        raise ValueRefusedError(
            f"volume {volume.name} of {vm.name} has {volume.size} bytes and cannot get fewer, as what is behind them "
            f"would be lost; by hand: make its file system smaller in the VM, copy the volume's beginning to a "
            f"file, and import that with 'qvm-volume import'"
        )


def _describe_origin(vm: QubeBase, volume: Volume) -> str:
    """Return where what is in a volume comes from that nobody can give other content."""
    if volume.is_kernel:
        return f"it belongs to the kernel, which 'qvm-prefs {vm.name} kernel' chooses and 'crannog kernel add' adds"
    if volume.is_volatile:
        return "it is empty at each start"
    return "it is made anew from the template at each start; create the VM with '--class StandaloneVM' instead"
