"""Ending domains quickly: QEMU is told to end first, and libvirt, which is slow at that, finds it gone.

libvirt sends the same signal, but looks only every 0.2 s whether the process has gone (its virProcessKillPainfully),
and counts one that its parent has not buried as there. Whoever wants a VM ended can be told of the end as soon as the
process has ended: the kernel says so at once (pidfd_open(2)). What libvirt says of that domain later is no news.
"""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from crannog.core.domain import DomainState
from crannog.hostprocesses import find_emulators, is_emulator, signal_process

_PATIENCE = 2.0
"""Seconds that QEMU gets to write out what it holds and end; libvirt then uses force."""
_NEWS_SECONDS = 5.0
"""After so many seconds libvirt's own news of an end are not waited for any more."""


@dataclass
class _Ending:
    """One domain's end. `is_told`: it was told already, before libvirt said so. `heard`: libvirt has said so."""

    is_told: bool = False
    heard: asyncio.Event = field(default_factory=asyncio.Event)


class Endings:
    """The domains that are just being ended, by UUID."""

    def __init__(self, tell: Callable[[str, DomainState], None]) -> None:
        self._tell = tell
        self._going: dict[str, _Ending] = {}

    def is_old(self, uuid: str, state: DomainState) -> bool:
        """Take note of what libvirt says, and tell whether it is of a domain whose end was told already."""
        ending = self._going.get(uuid)
        if ending is None:
            return False
        if state is DomainState.ABSENT:
            ending.heard.set()
        return ending.is_told

    async def end(self, uuid: str, destroy: Callable[[], Awaitable[object]], *, is_whole: bool) -> None:
        """End the QEMU of a domain, tell it, and have libvirt `destroy` what is left of it.

        Returns when nothing more comes of that domain. One that is not `is_whole`, as its creation goes on, is
        libvirt's to end: it may never tell of it. Raises what `destroy` raises.
        """
        if uuid in self._going or not is_whole:
            await destroy()
            return
        ending = self._going[uuid] = _Ending()
        try:
            if await asyncio.to_thread(end_emulator, uuid) and not ending.heard.is_set():
                ending.is_told = True
                self._tell(uuid, DomainState.ABSENT)
            await destroy()
            if ending.is_told:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ending.heard.wait(), _NEWS_SECONDS)
        finally:
            del self._going[uuid]


def end_emulator(uuid: str, seconds: float = _PATIENCE) -> bool:
    """End this user's QEMU of a VM; return whether it has ended, by itself, within that time. Blocks.

    It is asked (SIGTERM), so that it writes out what it holds of images. False also when there is none.
    """
    process = find_emulators(frozenset((uuid,))).get(uuid)
    return bool(process and signal_process(process, signal.SIGTERM, lambda words: is_emulator(words, uuid), seconds))
