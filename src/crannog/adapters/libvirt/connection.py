"""The Hypervisor port on libvirt.

libvirt's calls block, so each runs in a small pool of threads; the event loop never waits for one. A handle to a
domain lives for one call: it is looked up, used and dropped, and a domain that is gone by then is an answer, not a
failure, wherever the port says so (design.md, B3).
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from crannog.adapters.libvirt import console, driver, failures, orphans
from crannog.adapters.libvirt.accel import AccelChoice, check_emulator, choose_accel, find_emulator
from crannog.adapters.libvirt.domain_xml import build_domain_xml
from crannog.adapters.libvirt.embed import URI, EmbeddedRoot, isolation_gaps
from crannog.adapters.libvirt.screenshot import take_screenshot
from crannog.config import Paths, Settings
from crannog.core.domain import DomainInfo, DomainSpec, DomainState, DomainStats, DomainUsage, HostCapabilities
from crannog.errors import HypervisorError
from crannog.ports.hypervisor import StateListener

if TYPE_CHECKING:
    import libvirt

Result = TypeVar("Result")

_THREADS = 4
_LOG_SECONDS = 5.0
_CREATE_SECONDS = 60.0
"""How long QEMU may take until it answers; libvirt itself waits for ever. A big one may take some seconds."""


class LibvirtHypervisor:
    """A connection to libvirt's in-process QEMU driver. Implements ports.hypervisor.Hypervisor."""

    def __init__(self, paths: Paths, settings: Settings) -> None:
        self._settings = settings
        self._cache = paths.cache
        self._root = EmbeddedRoot(paths.home, paths.cache)
        self._listeners: list[StateListener] = []
        self._logs: dict[str, tuple[str, ...]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._connection: libvirt.virConnect | None = None
        self._subscription = 0
        self._held = contextlib.ExitStack()
        self._host: tuple[str, AccelChoice] | None = None
        self._host_lock = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None

    # -- connection

    async def open(self) -> None:
        """Connect, and take over the domains that an earlier process left running.

        Raises HypervisorError, or InUseError when another process uses this home's hypervisor.
        """
        if self._settings.libvirt_uri != URI:
            raise HypervisorError(f"libvirt_uri = '{self._settings.libvirt_uri}' is not supported: use '{URI}'")
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="libvirt")
        try:
            adoption = asyncio.create_task(self._adopt_orphans())
            try:
                await self._run(self._connect, asyncio.get_running_loop())
            finally:
                await adoption
            await self._adopt_domains()
        except BaseException:
            await self.close()
            raise
        self._keeper = asyncio.create_task(self._keep_logs_short())

    def _connect(self, loop: asyncio.AbstractEventLoop) -> None:
        uri = self._root.prepare()
        driver.load_libvirt(self._root.path + "/log/libvirt.log")
        import libvirt

        def tell(uuid: str, state: DomainState) -> None:
            # A loop that is closed has nobody left to be told.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._tell, uuid, state)

        try:
            connection = driver.connect(uri)
            self._subscription = driver.subscribe(connection, tell)
            self._connection = connection
        except libvirt.libvirtError as error:
            raise failures.open_failure(uri, error, self._root.owner()) from error

    async def _adopt_orphans(self) -> None:
        # Without QEMU there will be no orphans, and whoever starts a VM is told so.
        with contextlib.suppress(HypervisorError):
            emulator = find_emulator(self._settings.emulator)
            if not await self._run(orphans.is_init_prompt):
                orphans.adopt_emulators(os.path.basename(emulator))
                self._held.callback(orphans.release)

    async def _adopt_domains(self) -> None:
        for domain in await self.domains():
            path = await self._ask(domain.uuid, f"reading the console of {domain.name}", console.find_console)
            self._logs[domain.uuid] = (path or "", self._root.log(domain.name))

    async def close(self) -> None:
        """Disconnect. Domains go on running."""
        if self._keeper:
            self._keeper.cancel()
            self._keeper = None
        self._held.close()
        connection, self._connection = self._connection, None
        if connection:
            await self._run(driver.unsubscribe, connection, self._subscription)
        if self._pool:
            self._pool.shutdown(wait=False)
            self._pool = None

    def listen(self, listener: StateListener) -> None:
        """Have `listener` called, in the event loop, whenever a domain changes its state or ends."""
        self._listeners.append(listener)

    def _tell(self, uuid: str, state: DomainState) -> None:
        if state is DomainState.ABSENT:
            self._logs.pop(uuid, None)
        for listener in tuple(self._listeners):
            listener(uuid, state)

    async def _keep_logs_short(self) -> None:
        while True:
            await asyncio.sleep(_LOG_SECONDS)
            for path in [path for logs in self._logs.values() for path in logs]:
                with contextlib.suppress(OSError):
                    await self._run(console.shorten_log, path)

    # -- calls in the pool

    async def _run(self, function: Callable[..., Result], *arguments: object) -> Result:
        if self._pool is None:
            raise HypervisorError("the connection to libvirt is closed: open it first")
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def _opened(self) -> "libvirt.virConnect":
        if self._connection is None:
            raise HypervisorError("the connection to libvirt is closed: open it first")
        return self._connection

    async def _ask(self, uuid: str, what: str, call: "Callable[[libvirt.virDomain], Result]") -> Result | None:
        """Return what `call` says about the domain; None when it is absent. `what` starts the error's sentence."""

        def ask() -> Result | None:
            import libvirt

            try:
                return call(self._opened().lookupByUUIDString(uuid))
            except libvirt.libvirtError as error:
                if failures.is_absent(error):
                    return None
                raise failures.call_failure(what, error) from error

        return await self._run(ask)

    # -- the host

    async def _find_host(self) -> tuple[str, AccelChoice]:
        async with self._host_lock:
            if self._host is None:
                emulator = find_emulator(self._settings.emulator)
                if self._settings.emulator:
                    await check_emulator(emulator)
                choice = await choose_accel(self._settings.accel, emulator, self._cache)
                self._host = emulator, choice
            return self._host

    async def capabilities(self) -> HostCapabilities:
        """Return what the host can run. The first call on a host takes seconds: QEMU and KVM are tried out.

        Raises HypervisorError when QEMU is missing.
        """
        emulator, choice = await self._find_host()

        def ask() -> bool:
            import libvirt

            virt_type = "kvm" if choice.accel == "kvm" else "qemu"
            try:
                self._opened().getDomainCapabilities(emulator, "x86_64", "q35", virt_type)
            except libvirt.libvirtError:
                return False
            self._root.share_capabilities()
            return True

        return HostCapabilities(choice.accel, await self._run(ask), emulator)

    async def diagnose(self) -> list[str]:
        """Return what this host can and cannot do, a sentence each."""
        capabilities = await self.capabilities()
        _, choice = await self._find_host()
        sentences = [f"VMs run with {choice.accel}: {choice.reason}."]
        can = "can" if capabilities.has_hvm else "cannot"
        sentences.append(f"This host {can} run HVMs; the emulator is {capabilities.emulator}.")
        return sentences + [f"Isolation: {gap}." for gap in isolation_gaps()]

    # -- domains

    async def domains(self) -> list[DomainInfo]:
        """Return all domains, in one bulk call."""

        def ask() -> list[DomainInfo]:
            import libvirt

            try:
                found = self._opened().getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0)
            except libvirt.libvirtError as error:
                raise failures.call_failure("listing the domains", error) from error
            return [
                driver.describe(domain, statistics["state.state"], statistics["state.reason"])
                for domain, statistics in found
            ]

        return [domain for domain in await self._run(ask) if domain.state is not DomainState.ABSENT]

    async def create_paused(self, spec: DomainSpec) -> DomainInfo:
        """Create a domain with its CPUs stopped.

        Raises HypervisorError with QEMU's reason; then nothing is left of the domain. A caller that stops waiting
        leaves no domain behind either.
        """
        emulator, choice = await self._find_host()
        xml = build_domain_xml(spec, choice.accel, emulator)
        job = asyncio.ensure_future(self._run(self._create, spec, xml))
        try:
            async with asyncio.timeout(_CREATE_SECONDS):
                domain = await asyncio.shield(job)
        except (asyncio.CancelledError, TimeoutError) as error:
            # Ending a domain that is just being created makes libvirt give up on it; one that is created goes as well.
            await self.destroy(spec.uuid)
            await asyncio.wait({job})
            await self.destroy(spec.uuid)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise HypervisorError(
                f"{spec.name} could not be started: QEMU did not answer within {_CREATE_SECONDS:.0f} s: "
                f"read QEMU's log {self._root.log(spec.name)}"
            ) from error
        self._logs[spec.uuid] = (spec.console_log, self._root.log(spec.name))
        return domain

    def _create(self, spec: DomainSpec, xml: str) -> DomainInfo:
        import libvirt

        try:
            console.start_log(spec.console_log)
            domain = self._opened().createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)
        except OSError as error:
            raise HypervisorError(f"{spec.name}: no console log at {spec.console_log}: {error.strerror}") from error
        except libvirt.libvirtError as error:
            raise failures.start_failure(spec.name, error, self._root.log(spec.name)) from error
        self._root.share_capabilities()
        return driver.describe(domain, libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)

    async def resume(self, uuid: str) -> None:
        """Let the CPUs run. Raises HypervisorError, also when the domain is absent."""

        def resume(domain: "libvirt.virDomain") -> bool:
            domain.resume()
            return True

        if not await self._ask(uuid, f"resuming {uuid}", resume):
            raise HypervisorError(f"{uuid} cannot be resumed: it has no domain (any more); start the VM again")

    async def pause(self, uuid: str) -> None:
        """Stop the CPUs. Raises HypervisorError, also when the domain is absent."""

        def pause(domain: "libvirt.virDomain") -> bool:
            domain.suspend()
            return True

        if not await self._ask(uuid, f"pausing {uuid}", pause):
            raise HypervisorError(f"{uuid} cannot be paused: it has no domain (any more); start the VM again")

    async def destroy(self, uuid: str) -> None:
        """End the domain at once. An absent domain is no error."""
        await self._ask(uuid, f"destroying {uuid}", lambda domain: domain.destroy())

    async def press_power_button(self, uuid: str) -> None:
        """Send the ACPI power button. An absent domain is no error."""
        import libvirt

        button = libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN
        await self._ask(uuid, f"the power button of {uuid}", lambda domain: domain.shutdownFlags(button))

    async def usage(self, uuid: str) -> DomainUsage | None:
        """Return what the domain uses; None when it is absent."""

        def measure(domain: "libvirt.virDomain") -> DomainUsage:
            _, memory_max, memory, _, cpu_time = domain.info()
            return DomainUsage(memory, memory_max, cpu_time)

        return await self._ask(uuid, f"reading the usage of {uuid}", measure)

    async def statistics(self) -> list[DomainStats]:
        """Return what all domains use, in one bulk call."""
        return await self._run(lambda: driver.read_statistics(self._opened()))

    async def console(self, uuid: str) -> str:
        """Return the path of the domain's console. Raises HypervisorError, also for an absent domain."""
        path = await self._ask(uuid, f"the console of {uuid}", console.find_terminal)
        if not path:
            raise HypervisorError(f"{uuid} has no console: it has no domain (any more), or was started without one")
        return path

    async def screenshot(self, uuid: str) -> bytes:
        """Return the picture of the emulated screen as PPM. Raises HypervisorError, also for an absent domain."""
        picture = await self._ask(
            uuid, f"the screenshot of {uuid}", lambda domain: take_screenshot(self._opened(), domain)
        )
        if picture is None:
            raise HypervisorError(f"{uuid} has no screen: it has no domain (any more); start the VM first")
        return picture
