"""The Hypervisor port on libvirt: what each of its questions and commands is in libvirt's words."""

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from crannog.adapters.libvirt import console, driver, failures, orphans
from crannog.adapters.libvirt.accel import AccelChoice, check_emulator, choose_accel, find_emulator
from crannog.adapters.libvirt.domain_xml import build_domain_xml
from crannog.adapters.libvirt.embed import isolation_gaps
from crannog.adapters.libvirt.roots import choose_root
from crannog.adapters.libvirt.screenshot import take_screenshot
from crannog.adapters.libvirt.session import Session
from crannog.config import Paths, Settings
from crannog.core.domain import DomainInfo, DomainSpec, DomainState, DomainStats, DomainUsage, HostCapabilities
from crannog.errors import HypervisorError
from crannog.ports.hypervisor import StateListener

if TYPE_CHECKING:
    import libvirt

_LOG_SECONDS = 5.0
_LOOKS = (0.0, 0.2, 1.0, 5.0)
"""Pauses in seconds before each look at the domains after the connection came back."""
_CREATE_SECONDS = 60.0
"""How long QEMU may take until it answers; libvirt itself waits for ever. A big one may take some seconds."""


class LibvirtHypervisor:
    """One libvirt: in our own process, or a libvirtd. Implements ports.hypervisor.Hypervisor."""

    def __init__(self, paths: Paths, settings: Settings) -> None:
        self._settings = settings
        self._cache = paths.cache
        self._overrides = paths.overrides
        self._root = choose_root(paths, settings)
        self.is_shared = self._root.is_shared
        self._session = Session(self._root, self._tell, self._look_again)
        self._listeners: list[StateListener] = []
        self._logs: dict[str, tuple[str, ...]] = {}
        """The logs of the domains that are there, by UUID."""
        self._held = contextlib.ExitStack()
        self._host: tuple[str, AccelChoice] | None = None
        self._host_lock = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None

    # -- connection

    async def open(self) -> None:
        """Connect, and take over the domains that an earlier process left running.

        Raises HypervisorError, or InUseError when another process uses this home's hypervisor.
        """
        try:
            adoption = asyncio.create_task(self._adopt_orphans())
            try:
                await self._session.open()
            finally:
                await adoption
            await self._adopt_domains()
        except BaseException:
            await self.close()
            raise
        self._keeper = asyncio.create_task(self._keep_logs_short())

    async def _adopt_orphans(self) -> None:
        # Without QEMU there will be no orphans, and whoever starts a VM is told so. A libvirtd sees to its own.
        if self.is_shared:
            return
        with contextlib.suppress(HypervisorError):
            emulator = find_emulator(self._settings.emulator)
            if not await asyncio.to_thread(orphans.is_init_prompt):
                orphans.adopt_emulators(os.path.basename(emulator))
                self._held.callback(orphans.release)

    async def _adopt_domains(self) -> None:
        for domain in await self.domains():
            path = await self._session.ask(domain.uuid, f"reading the console of {domain.name}", console.find_console)
            self._logs[domain.uuid] = (path or "", self._root.log(domain.name))

    async def _look_again(self) -> None:
        """Tell what is there after a time without news: as it is now, and what is there no more.

        One look is not enough: libvirtd lists a domain as it was last saved before it has found its QEMU again, and
        tells nobody when it then does not find it.
        """
        told: dict[str, DomainState] = {}
        for pause in _LOOKS:
            await asyncio.sleep(pause)
            there = {domain.uuid: domain.state for domain in await self.domains()}
            for uuid in set(self._logs) - set(there):
                self._tell(uuid, DomainState.ABSENT)
            for uuid, state in there.items():
                if told.get(uuid) is not state:
                    self._tell(uuid, state)
            told = there

    async def close(self) -> None:
        """Disconnect. Domains go on running."""
        if self._keeper:
            self._keeper.cancel()
            self._keeper = None
        self._held.close()
        await self._session.close()

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
                    await self._session.run(console.shorten_log, path)

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

        def ask(connection: "libvirt.virConnect") -> bool:
            import libvirt

            virt_type = "kvm" if choice.accel == "kvm" else "qemu"
            try:
                connection.getDomainCapabilities(emulator, "x86_64", "q35", virt_type)
            except libvirt.libvirtError:
                return False
            self._root.share_capabilities()
            return True

        return HostCapabilities(choice.accel, await self._session.call(ask), emulator)

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

        def ask(connection: "libvirt.virConnect") -> list[DomainInfo]:
            import libvirt

            found = connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0)
            return [
                driver.describe(domain, statistics["state.state"], statistics["state.reason"])
                for domain, statistics in found
            ]

        found = await self._session.query("listing the domains", ask)
        return [domain for domain in found if domain.state is not DomainState.ABSENT]

    async def create_paused(self, spec: DomainSpec) -> DomainInfo:
        """Create a domain with its CPUs stopped.

        Raises HypervisorError with QEMU's reason; then nothing is left of the domain. A caller that stops waiting
        leaves no domain behind either.
        """
        emulator, choice = await self._find_host()
        host = HostCapabilities(choice.accel, has_hvm=True, emulator=emulator, runs_as=self._root.runs_as())
        xml = await self._session.run(build_domain_xml, spec, host, self._overrides)
        job = asyncio.ensure_future(self._session.call(lambda connection: self._create(connection, spec, xml)))
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

    def _create(self, connection: "libvirt.virConnect", spec: DomainSpec, xml: str) -> DomainInfo:
        import libvirt

        try:
            console.start_log(spec.console_log)
            domain = connection.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)
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

        if not await self._session.ask(uuid, f"resuming {uuid}", resume):
            raise HypervisorError(f"{uuid} cannot be resumed: it has no domain (any more); start the VM again")

    async def pause(self, uuid: str) -> None:
        """Stop the CPUs. Raises HypervisorError, also when the domain is absent."""

        def pause(domain: "libvirt.virDomain") -> bool:
            domain.suspend()
            return True

        if not await self._session.ask(uuid, f"pausing {uuid}", pause):
            raise HypervisorError(f"{uuid} cannot be paused: it has no domain (any more); start the VM again")

    async def destroy(self, uuid: str) -> None:
        """End the domain at once. An absent domain is no error."""
        await self._session.ask(uuid, f"destroying {uuid}", lambda domain: domain.destroy())

    async def press_power_button(self, uuid: str) -> None:
        """Send the ACPI power button. An absent domain is no error."""
        import libvirt

        button = libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN
        await self._session.ask(uuid, f"the power button of {uuid}", lambda domain: domain.shutdownFlags(button))

    async def usage(self, uuid: str) -> DomainUsage | None:
        """Return what the domain uses; None when it is absent."""

        def measure(domain: "libvirt.virDomain") -> DomainUsage:
            _, memory_max, memory, _, cpu_time = domain.info()
            return DomainUsage(memory, memory_max, cpu_time)

        return await self._session.ask(uuid, f"reading the usage of {uuid}", measure)

    async def statistics(self) -> list[DomainStats]:
        """Return what all domains use, in one bulk call."""
        return await self._session.query("reading the statistics of all domains", driver.read_statistics)

    async def console(self, uuid: str) -> str:
        """Return the path of the domain's console. Raises HypervisorError, also for an absent domain."""
        path = await self._session.ask(uuid, f"the console of {uuid}", console.find_terminal)
        if not path:
            raise HypervisorError(f"{uuid} has no console: it has no domain (any more), or was started without one")
        return path

    async def screenshot(self, uuid: str) -> bytes:
        """Return the picture of the emulated screen as PPM. Raises HypervisorError, also for an absent domain."""
        picture = await self._session.ask(
            uuid, f"the screenshot of {uuid}", lambda domain: take_screenshot(self._session.opened(), domain)
        )
        if picture is None:
            raise HypervisorError(f"{uuid} has no screen: it has no domain (any more); start the VM first")
        return picture
