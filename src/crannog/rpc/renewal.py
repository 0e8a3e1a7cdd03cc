"""What guests are told that are saved, and later restored more than once: to sleep, and who they are from then on."""

import asyncio
import os
import time
import uuid as uuids
from collections.abc import Callable

from crannog.core.announcement import ASLEEP, AgentStatus
from crannog.core.guestdb import RENEW, SLEEP
from crannog.core.renewal_order import RenewOrder
from crannog.errors import RpcError

SLEEP_TIMEOUT = 20.0
"""Seconds that an agent has to stop the guest's other processes."""
SEED_SIZE = 64

TellOnce = Callable[[str, str, bytes], None]
"""Shows the agent of the VM with a UUID an entry of the guest DB; one that comes later does not hear of it."""


class Renewal:
    """Orders to agents, and what they say when they have carried them out. All that they say is `renewal`'s word."""

    def __init__(
        self,
        tell_once: TellOnce,
        find_status: Callable[[str], AgentStatus | None],
        now: Callable[[], int] = time.time_ns,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._tell_once = tell_once
        self._find_status = find_status
        self._now = now
        self._random = random
        self._changed: dict[str, asyncio.Event] = {}

    def note_status(self, uuid: str, _status: AgentStatus) -> None:
        """Look again at what a VM's agent says."""
        if uuid in self._changed:
            self._changed[uuid].set()

    async def put_to_sleep(self, uuid: str) -> None:
        """Have an agent stop the guest's other processes. Raises RpcError."""
        await self._order(uuid, SLEEP, b"1", ASLEEP, SLEEP_TIMEOUT, "put its processes to sleep")

    async def renew(self, uuid: str, name: str, timeout: float) -> None:  # noqa: ASYNC109
        """Have an agent make its guest the VM of that name. Raises RpcError."""
        order = RenewOrder(uuids.uuid4().hex, uuid, name, self._now(), self._random(SEED_SIZE))
        await self._order(uuid, RENEW, order.encode(), order.number, timeout, "given it an identity of its own")

    async def _order(self, uuid: str, path: str, value: bytes, done: str, seconds: float, what: str) -> None:
        """Tell an agent something, and return when it says `done`."""
        event = self._changed[uuid] = asyncio.Event()
        try:
            self._tell_once(uuid, path, value)
            async with asyncio.timeout(seconds):
                while self._find_word(uuid) != done:
                    await event.wait()
                    event.clear()
        except TimeoutError:
            raise RpcError(f"the guest's agent has not {what} within {seconds:.0f} s") from None
        finally:
            self._changed.pop(uuid, None)

    def _find_word(self, uuid: str) -> str:
        status = self._find_status(uuid)
        return status.announced.renewal if status and status.announced else ""
