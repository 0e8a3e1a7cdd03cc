"""The Hypervisor port on libvirt: what each of its questions and commands is in libvirt's words."""

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from crannog.adapters.libvirt import console, driver, failures, orphans
from crannog.adapters.libvirt.accel import find_emulator
from crannog.adapters.libvirt.consolelogs import ConsoleLogs
from crannog.adapters.libvirt.domain_xml import build_domain_xml
from crannog.adapters.libvirt.endings import Endings
from crannog.adapters.libvirt.hosts.host import Place, find_host
from crannog.adapters.libvirt.recount import Recount
from crannog.adapters.libvirt.roots import choose_root
from crannog.adapters.libvirt.saving import Saving
from crannog.adapters.libvirt.screenshot import take_screenshot
from crannog.adapters.libvirt.session import Session
from crannog.adapters.libvirt.strays import end_strays
from crannog.config import Paths, Settings
from crannog.core.domain import DomainInfo, DomainSpec, DomainState, DomainStats, HostCapabilities
from crannog.core.runtime import HostFacts
from crannog.errors import HypervisorError
from crannog.ports.hypervisor import StateListener

if TYPE_CHECKING:
    import libvirt


class LibvirtHypervisor:
    """One libvirt: in our own process, or a libvirtd. Implements ports.hypervisor.Hypervisor."""

    def __init__(self, paths: Paths, settings: Settings) -> None:
        self._settings = settings
        self._overrides = paths.overrides
        self._root = choose_root(paths, settings)
        self.is_shared = self._root.is_shared
        self._session = Session(self._root, self._hear, self._look_again)
        self._host = find_host(Place(self._session, self._root, settings, paths.cache))
        self._saving = Saving(self._session, self._host, paths.overrides)
        self.saves_memory = self._host.saves_memory
        self.machine_key = self._saving.machine_key
        self.save_memory = self._saving.save
        self._listeners: list[StateListener] = []
        self._endings = Endings(self._tell)
        self._logs = ConsoleLogs()
        self._held = contextlib.ExitStack()
        self._recount = Recount(self.domains, self._logs.uuids, self._hear)
        self._keeper: asyncio.Task[None] | None = None
        self._looks: asyncio.Task[None] | None = None

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
        self._keeper = asyncio.create_task(self._logs.keep())

    async def _adopt_orphans(self) -> None:
        # Without QEMU there will be no orphans, and whoever starts a VM is told so. A libvirtd sees to its own.
        if not self._root.is_embedded:
            return
        with contextlib.suppress(HypervisorError):
            emulator = find_emulator(self._settings.emulator)
            if not await asyncio.to_thread(orphans.is_init_prompt):
                orphans.adopt_emulators(os.path.basename(emulator))
                self._held.callback(orphans.release)

    async def _adopt_domains(self) -> None:
        found = await self.domains()
        for domain in found:
            path = await self._session.ask(domain.uuid, f"reading the console of {domain.name}", console.find_console)
            self._logs.add(domain.uuid, path or "", self._root.log(domain.name))
        if found:
            self._recount_on({domain.uuid: domain.state for domain in found})

    async def _look_again(self) -> None:
        """Tell everything that is there after the connection came back, and go on looking for a while."""
        self._recount_on(await self._recount.look({}))

    def _recount_on(self, told: dict[str, DomainState]) -> None:
        if self._looks:
            self._looks.cancel()
        self._looks = asyncio.create_task(self._recount.go_on(told))

    async def close(self) -> None:
        """Disconnect. Domains go on running."""
        for task in filter(None, (self._keeper, self._looks)):
            task.cancel()
        self._keeper = self._looks = None
        self._held.close()
        await self._session.close()

    def listen(self, listener: StateListener) -> None:
        """Have `listener` called, in the event loop, whenever a domain changes its state or ends."""
        self._listeners.append(listener)

    def _hear(self, uuid: str, state: DomainState) -> None:
        """Take libvirt's news of a domain."""
        self._recount.note(uuid)
        if not self._endings.is_old(uuid, state):
            self._tell(uuid, state)

    def _tell(self, uuid: str, state: DomainState) -> None:
        if state is DomainState.ABSENT:
            self._logs.drop(uuid)
        for listener in tuple(self._listeners):
            listener(uuid, state)

    # -- the host

    async def capabilities(self) -> HostCapabilities:
        """Return what the host can run. The first call on a host takes seconds: QEMU and KVM are tried out.

        Raises HypervisorError when QEMU is missing.
        """
        return await self._host.capabilities()

    async def host_facts(self) -> HostFacts | None:
        """Return what there is for all VMs where our kernel sees only its own share of it; elsewhere None."""
        return await self._host.facts()

    async def diagnose(self) -> list[str]:
        """Return what this host can and cannot do, a sentence each."""
        return await self._host.diagnose()

    # -- domains

    async def domains(self) -> list[DomainInfo]:
        """Return all domains."""
        found = await self._session.query("listing the domains", self._host.list_domains)
        return [domain for domain in found if domain.state is not DomainState.ABSENT]

    async def end_strays(self, ours: frozenset[str]) -> list[str]:
        """End the QEMUs of our VMs that have no domain; return a sentence for each."""
        there = frozenset(info.uuid for info in await self.domains())
        return await asyncio.to_thread(end_strays, ours, there, self._root.path)

    async def create_paused(self, spec: DomainSpec) -> DomainInfo:
        """Create a domain with its CPUs stopped.

        Raises HypervisorError with QEMU's reason; then nothing is left of the domain. A caller that stops waiting
        leaves no domain behind either.
        """
        host = await self._host.describe()
        xml = await self._session.run(build_domain_xml, spec, host, self._overrides)
        job = asyncio.ensure_future(self._session.call(lambda connection: self._create(connection, spec, xml)))
        try:
            async with asyncio.timeout(self._session.answer_seconds):
                domain = await asyncio.shield(job)
        except (asyncio.CancelledError, TimeoutError) as error:
            # Ending a domain that is just being created makes libvirt give up on it; one that is created goes as well.
            await self.destroy(spec.uuid)
            await asyncio.wait({job})
            await self.destroy(spec.uuid)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise HypervisorError(
                f"{spec.name} could not be started: QEMU did not answer within {self._session.answer_seconds:g} s: "
                f"read QEMU's log {self._root.log(spec.name)}"
            ) from error
        self._logs.add(spec.uuid, spec.console_log, self._root.log(spec.name))
        return domain

    def _create(self, connection: "libvirt.virConnect", spec: DomainSpec, xml: str) -> DomainInfo:
        import libvirt

        try:
            self._host.start_log(spec)
            domain = self._host.create(connection, xml)
            if spec.memory_files and spec.memory_files.is_saved:
                self._saving.load(domain, spec.memory_files)
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
        """End the domain at once, and return when it is gone. An absent domain is no error."""

        async def destroy() -> None:
            await self._session.ask(uuid, f"destroying {uuid}", lambda domain: domain.destroy(), is_patient=True)

        await self._endings.end(uuid, destroy, is_whole=uuid in self._logs.uuids())

    async def enlarge_disk(self, uuid: str, path: str, size: int) -> None:
        """Make a disk larger, `size` in bytes. Raises HypervisorError, also when the domain is absent."""
        import libvirt

        def enlarge(domain: "libvirt.virDomain") -> bool:
            domain.blockResize(path, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
            return True

        if not await self._session.ask(uuid, f"making {path} larger", enlarge):
            raise HypervisorError(
                f"{path} cannot be made larger: its domain has ended; resize it while the VM is halted"
            )

    async def press_power_button(self, uuid: str) -> None:
        """Send the ACPI power button. An absent domain is no error."""
        await self._session.ask(uuid, f"the power button of {uuid}", self._host.press_power_button)

    async def usage(self, uuid: str) -> DomainStats | None:
        """Return what the domain uses; None when it is absent."""
        return await self._session.ask(uuid, f"reading the usage of {uuid}", driver.measure)

    async def statistics(self) -> list[DomainStats]:
        """Return what all domains use."""
        return await self._session.query("reading the statistics of all domains", self._host.read_statistics)

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
