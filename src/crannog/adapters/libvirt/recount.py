"""Looking at the domains again after a time without news: after a start of ours, or of libvirtd's.

One look is not enough: libvirt lists a domain as it was last saved before it has found its QEMU again, and tells
nobody when it then does not find it, or finds it paused.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from crannog.core.domain import DomainInfo, DomainState
from crannog.errors import HypervisorError

log = logging.getLogger(__name__)

LOOKS = (0.2, 1.0, 5.0, 30.0)
"""Pauses in seconds before each look."""


class Recount:
    """Tells what looks at the domains show that events did not tell."""

    def __init__(
        self,
        list_domains: Callable[[], Awaitable[list[DomainInfo]]],
        known: Callable[[], set[str]],
        tell: Callable[[str, DomainState], None],
    ) -> None:
        """`known` returns the UUIDs of the domains that should be there; `tell` hears what is."""
        self._list = list_domains
        self._known = known
        self._tell = tell
        self._heard: set[str] = set()

    def note(self, uuid: str) -> None:
        """Take note of an event: what a look that went on meanwhile says of that domain may be older."""
        self._heard.add(uuid)

    async def look(self, told: dict[str, DomainState]) -> dict[str, DomainState]:
        """Look once, tell what differs from `told`, and return what was seen. Raises HypervisorError."""
        known = self._known()
        self._heard.clear()
        there = {info.uuid: info.state for info in await self._list()}
        gone = {uuid: DomainState.ABSENT for uuid in known & self._known() if uuid not in there}
        for uuid, state in (there | gone).items():
            if told.get(uuid) is not state and uuid not in self._heard:
                self._tell(uuid, state)
        return there

    async def go_on(self, told: dict[str, DomainState]) -> None:
        """Look some more times, over half a minute. A look that fails is left out."""
        for pause in LOOKS:
            await asyncio.sleep(pause)
            try:
                told = await self.look(told)
            except HypervisorError as error:
                log.warning("the domains could not be looked at again: %s", error)
