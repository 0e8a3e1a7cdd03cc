"""The connection to libvirt for as long as crannogd lives: opened once, found again when libvirtd was restarted.

libvirt's calls block, so each runs in a small pool of threads; the event loop never waits for one. A handle to a
domain lives for one call: it is looked up, used and dropped, and a domain that is gone by then is an answer, not a
failure, wherever the port says so (design.md, B3).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from crannog.adapters.libvirt import driver, failures
from crannog.adapters.libvirt.roots import Root
from crannog.core.domain import DomainState
from crannog.errors import HypervisorError

if TYPE_CHECKING:
    import libvirt

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_THREADS = 4
_PATIENCE = 10.0
"""Seconds that a call waits for a connection that was lost; libvirtd is back within two when it is restarted."""
ANSWER_SECONDS = 60.0
"""How long a QEMU may take until it answers; libvirt itself waits for ever. A big one may take some seconds."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two tries to connect again."""
_LEAVE_SECONDS = 5.0
"""How long calls that have processes made may go on when the connection is closed."""
_LOOK_SECONDS = 0.02


class Session:
    """Calls libvirt."""

    def __init__(
        self, root: Root, tell: Callable[[str, DomainState], None], on_return: Callable[[], Awaitable[None]]
    ) -> None:
        """`tell` hears of each change of a domain, in the event loop; `on_return` runs after each new connection."""
        self._root = root
        self._tell = tell
        self._on_return = on_return
        self._pool: ThreadPoolExecutor | None = None
        self._makers: set[object] = set()  # calls under way that may have libvirt begin processes
        self._connection: libvirt.virConnect | None = None
        self._subscription = 0
        self._is_there = asyncio.Event()
        self.answer_seconds = ANSWER_SECONDS
        self._return: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect. Raises HypervisorError, or InUseError when another process uses this home's hypervisor."""
        self._loop = asyncio.get_running_loop()
        self._open_pool()
        await self.run(self._connect)

    def _open_pool(self) -> None:
        """Begin with new threads. Those before end when they have done what they are at, which may be never."""
        if self._pool:
            self._pool.shutdown(wait=False)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="libvirt")

    def _connect(self) -> None:
        """Connect, in a thread of the pool."""
        uri = self._root.prepare()
        driver.load_libvirt(self._root.path + "/log/libvirt.log")
        import libvirt

        try:
            connection = driver.connect(uri, self._note_loss if self._root.is_shared else None)
            self._subscription = driver.subscribe(connection, self._pass_on)
            self._connection = connection
        except libvirt.libvirtError as error:
            raise failures.open_failure(uri, error, self._root.owner()) from error
        self._loop.call_soon_threadsafe(self._is_there.set)

    def _pass_on(self, uuid: str, state: DomainState) -> None:
        # A loop that is closed has nobody left to be told.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._tell, uuid, state)

    async def close(self) -> None:
        """Disconnect. Domains go on running."""
        if self._return:
            self._return.cancel()
            self._return = None
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        connection, self._connection = self._connection, None
        if connection:  # not in the pool, behind calls that hang
            await asyncio.to_thread(driver.disconnect, connection, self._subscription, self._root.is_shared)
        await self._leave()

    async def _leave(self) -> None:
        """End what libvirt has begun beside domains, until no call is under way that could begin more of it."""
        deadline = time.monotonic() + _LEAVE_SECONDS
        while self._makers and self._root.is_embedded and time.monotonic() < deadline:
            await asyncio.to_thread(self._root.leave)
            await asyncio.sleep(_LOOK_SECONDS)
        await asyncio.to_thread(self._root.leave)

    # -- a connection that is lost

    def _note_loss(self) -> None:
        """Hear of a lost connection, in libvirt's thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._begin_return)

    def _begin_return(self) -> None:
        if self._return is None and self._pool and self._connection:
            log.warning("the connection to libvirt is lost; VMs go on running")
            self._connection = None
            self._is_there.clear()
            self._return = asyncio.ensure_future(self._connect_again())

    async def _connect_again(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            await asyncio.sleep(pause)
            try:
                await self.run(self._connect)
                break
            except HypervisorError as error:
                log.info("libvirt is not back yet: %s", error)
            pause = min(2 * pause, _LONGEST_PAUSE)
        self._return = None
        log.warning("the connection to libvirt is back")
        try:
            await self._on_return()
        except HypervisorError as error:
            log.error("what happened meanwhile cannot be found out: %s", error)

    # -- calls

    async def run(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Return what a blocking function returns, run in the pool."""
        return await asyncio.wrap_future(self._threads().submit(function, *arguments))

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            raise HypervisorError("the connection to libvirt is closed: open it first")
        return self._pool

    async def call(self, function: Callable[["libvirt.virConnect"], Result]) -> Result:
        """Return what a blocking function makes of the connection. One that is lost is waited for a while.

        The function may have libvirt begin processes: closing waits for it. Raises HypervisorError when the connection
        does not come back, and what the function raises.
        """
        job = await self._put(function)
        self._makers.add(job)
        job.add_done_callback(self._makers.discard)
        return await asyncio.wrap_future(job)

    async def _put(self, function: Callable[["libvirt.virConnect"], Result]) -> Future[Result]:
        """Have a thread call the function with the connection, once that is there."""
        self._threads()
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._is_there.wait()
        except TimeoutError:
            raise HypervisorError(
                f"libvirt does not answer any more ({self._root.uri}): see whether libvirtd runs; VMs go on running"
            ) from None
        # Taken here and not in the thread: there it might be lost by then.
        return self._threads().submit(function, self.opened())

    def opened(self) -> "libvirt.virConnect":
        """Return the connection; raises HypervisorError while there is none."""
        if self._connection is None:
            raise HypervisorError("the connection to libvirt is lost and not back yet; try again in a moment")
        return self._connection

    async def query(self, what: str, function: Callable[["libvirt.virConnect"], Result]) -> Result:
        """Return what a function that may be called twice makes of the connection. `what` starts the error's sentence.

        A call during which the connection is lost is made once more when it is back. Raises HypervisorError.
        """

        def ask(connection: "libvirt.virConnect") -> Result:
            import libvirt

            try:
                return function(connection)
            except libvirt.libvirtError as error:
                if failures.is_lost(error):
                    raise _LostError from error
                raise failures.call_failure(what, error) from error

        try:
            return await asyncio.wrap_future(await self._put(ask))
        except _LostError:
            self._begin_return()
        try:
            return await asyncio.wrap_future(await self._put(ask))
        except _LostError as error:
            raise HypervisorError(f"{what} failed: the connection to libvirt was lost; try again") from error

    async def ask(
        self, uuid: str, what: str, function: "Callable[[libvirt.virDomain], Result]", *, is_patient: bool = False
    ) -> Result | None:
        """Return what `function` says about the domain; None when it is absent. The rest is as with `query`.

        No answer in time is a failure too, unless it `is_patient`. What was asked for may still be done later then,
        when QEMU goes on; events tell of that.
        """

        def ask(connection: "libvirt.virConnect") -> Result | None:
            import libvirt

            try:
                return function(connection.lookupByUUIDString(uuid))
            except libvirt.libvirtError as error:
                if failures.is_absent(error):
                    return None
                raise

        try:
            async with asyncio.timeout(None if is_patient else self.answer_seconds):
                return await self.query(what, ask)
        except TimeoutError:
            if self._pool:
                self._open_pool()  # a few VMs that hang would have all threads
            raise HypervisorError(
                f"{what} failed: it did not answer within {self.answer_seconds:g} s: see what it waits for, "
                "or end the VM with qvm-kill"
            ) from None


class _LostError(Exception):
    """The connection broke during a call."""
