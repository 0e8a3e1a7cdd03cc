"""What a VM's start and stop do to its volumes, where contents are thin LVs.

LVs of a volume, by what the volume's flags say (core.volumes), and what their names end in:

- `-1`, `-2`, ...: contents. One of a volume that keeps revisions can only be read, and is active only while it is; of
  other volumes the newest one is written in place, and active while the VM runs;
- `-dirty`: a snapshot of the newest content of a volume that keeps revisions. A running VM writes to it; when it stops,
  that is the next content, so that VMs that started from an older one are not disturbed (design.md, B12);
- `-volatile`: a snapshot of the newest content of the template's volume (B1, one layer), or an empty LV. It is dropped
  when the VM stops, and at each start, unless it is kept (B2);
- `-import`: what another program writes new content to.
"""

import time
from collections.abc import Callable
from dataclasses import replace

from crannog.adapters.storage.lvm_commands import Place
from crannog.adapters.storage.lvm_content import ThinContent
from crannog.adapters.storage.lvm_names import DIRTY, VOLATILE, State, ThinVolume
from crannog.adapters.storage.lvm_report import Picture
from crannog.core.volumes import LayerState, Location, Volume


class ThinSessions(ThinContent):
    """Sessions of VMs with thin LVs (see ports.storage.Pool)."""

    def __init__(self, name: str, place: Place, home: str, clock: Callable[[], float] = time.time) -> None:
        super().__init__(name, place, home, clock)
        self._begun: set[str] = set()
        """Volumes whose sessions began here and can still be abandoned: what a crash left is never forgotten."""

    def locate(self, volume: Volume) -> Location:
        """Return where the volume is while its VM runs."""
        self._check(volume.vid)
        return self._group.locate(self._group.owner.name(volume.vid, self._role(volume)))

    def _role(self, volume: Volume) -> str | int:
        """Return what the name of the LV ends in that a session uses."""
        if not volume.save_on_stop:
            return VOLATILE
        if volume.revisions_to_keep > 0:
            return DIRTY
        picture = self._group.picture()
        dirty, finished = picture.dirty(volume.vid), picture.finished(volume.vid)
        if dirty:  # a start makes it the newest content first
            return dirty.number or picture.next_number(volume.vid)
        return finished[-1].number if finished else 1

    async def is_outdated(self, volume: Volume) -> bool:
        """Tell whether a layer that is there shows anything but the newest content of its source."""
        return await self.layer_state(volume) is LayerState.OUTDATED

    async def layer_state(self, volume: Volume) -> LayerState:
        """Return what there is of a layer."""
        picture = await self._group.seen()
        layer = self._find(picture, volume, VOLATILE)
        if not volume.snap_on_start or layer is None:
            return LayerState.ABSENT
        newest = self._newest(picture, volume.source)
        is_current = (layer.origin, layer.changed) == (newest.name, newest.changed)
        return LayerState.CURRENT if is_current else LayerState.OUTDATED

    def _find(self, picture: Picture, volume: Volume, role: str) -> ThinVolume | None:
        self._check(volume.vid)
        return picture.volumes.get(self._group.owner.name(volume.vid, role))

    async def start(self, volume: Volume) -> None:
        """Make the volume's LV for this session. A session that was never stopped is kept first."""
        if not volume.save_on_stop:
            await self._begin_volatile(volume)
            return
        await self.stop(volume)
        newest = self._newest(await self._group.seen(), volume.vid)
        if volume.revisions_to_keep > 0:
            await self._begin_revision(volume, newest)
        else:
            await self._begin_in_place(volume, newest)

    async def _begin_volatile(self, volume: Volume) -> None:
        """Make a layer or an empty LV, or go on with a layer that is kept."""
        if volume.keeps_layer and await self.layer_state(volume) is LayerState.CURRENT:
            layer = (await self._group.seen()).volumes[self._group.owner.name(volume.vid, VOLATILE)]
            await self._group.activate(self._purpose(volume), layer)
            await self._group.extend(self._purpose(volume), layer, volume.size)
            return
        await self._drop(volume, VOLATILE)
        content = self._newest(await self._group.seen(), volume.source) if volume.snap_on_start else None
        await self._begin(volume, VOLATILE, State.VOLATILE, content)

    async def _begin_revision(self, volume: Volume, newest: ThinVolume) -> None:
        # One that was written in place until now has become a revision.
        await self._group.alter(self._purpose(volume), newest, replace(newest, is_readonly=True))
        self._begun.add(volume.vid)
        await self._begin(volume, DIRTY, State.DIRTY, newest)

    async def _begin_in_place(self, volume: Volume, newest: ThinVolume) -> None:
        # A crash must not leave a note that it is empty: an empty content is not kept as a revision.
        mapped = newest.mapped or None
        await self._group.alter(self._purpose(volume), newest, replace(newest, is_readonly=False, mapped=mapped))
        await self._group.activate(self._purpose(volume), newest)

    async def _begin(self, volume: Volume, role: str, state: State, content: ThinVolume | None) -> None:
        """Make an active LV of the volume's size: a snapshot of some content, or empty."""
        purpose = self._purpose(volume)
        size = (await self._group.seen()).round_up(volume.size)
        new = ThinVolume(self._group.owner.name(volume.vid, role), volume.vid, state, size)
        if content:
            new = replace(new, size=content.size, origin=content.name, changed=content.changed)
        new = replace(new, is_readonly=state is State.VOLATILE and not volume.rw)
        try:
            await self._group.create(purpose, new, is_active=True)
            await self._group.extend(purpose, new, volume.size)
        except BaseException:
            await self._drop(volume, role)
            raise

    @staticmethod
    def _purpose(volume: Volume) -> str:
        return f"volume {volume.vid} cannot be started"

    async def stop(self, volume: Volume) -> None:
        """Drop what is not kept; make what a session wrote the next content, whatever the volume keeps by now."""
        if not volume.save_on_stop:
            await self._end_volatile(volume)
            return
        self._check(volume.vid)
        dirty = (await self._group.seen()).dirty(volume.vid)
        if dirty:
            purpose = f"the changes of volume {volume.vid} cannot be kept"
            await self._group.activate(purpose, dirty)  # where the host was started anew; it is looked at
            await self._publish(volume, purpose, dirty)
            self._begun.discard(volume.vid)
        else:
            await self._end_in_place(volume)

    async def abandon(self, volume: Volume) -> None:
        """Drop the session's LV, unless the volume is written in place."""
        if not volume.save_on_stop:
            await self._end_volatile(volume)
        elif volume.vid in self._begun:
            await self._drop(volume, DIRTY)
            self._begun.discard(volume.vid)
        else:
            await self._end_in_place(volume)

    async def _end_volatile(self, volume: Volume) -> None:
        layer = self._find(await self._group.seen(), volume, VOLATILE)
        if layer and volume.keeps_layer:
            await self._put_down(volume, layer, layer.changed)
        else:
            await self._drop(volume, VOLATILE)

    async def _end_in_place(self, volume: Volume) -> None:
        self._check(volume.vid)
        finished = (await self._group.seen()).finished(volume.vid)
        if finished and not finished[-1].is_readonly:
            await self._put_down(volume, finished[-1], self._now())

    async def _put_down(self, volume: Volume, held: ThinVolume, changed: str) -> None:
        """Deactivate an LV that is kept, and note how much it takes and when it was changed."""
        if self._group.is_active(held.name) and not self._in_use[held.name]:
            purpose = f"volume {volume.vid} cannot be stopped"
            mapped = await self._group.put_down(purpose, held)
            await self._group.alter(purpose, held, replace(held, mapped=mapped, changed=changed))

    async def _drop(self, volume: Volume, role: str) -> None:
        found = self._find(await self._group.seen(), volume, role)
        if found:
            await self._group.remove(f"{self._group.locate(found.name).path} cannot be deleted", [found])
