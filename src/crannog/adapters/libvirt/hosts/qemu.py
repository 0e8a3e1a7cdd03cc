"""QEMU: whether KVM really runs guests here is tried out, and libvirt is asked what the emulator can do."""

import asyncio
from typing import TYPE_CHECKING

from crannog.adapters.libvirt import memory
from crannog.adapters.libvirt.accel import AccelChoice, check_emulator, choose_accel, find_emulator
from crannog.adapters.libvirt.embed import isolation_gaps
from crannog.adapters.libvirt.hosts.host import Host, Place
from crannog.core.domain import HostCapabilities, MemoryFiles

if TYPE_CHECKING:
    import libvirt


class QemuHost(Host):
    """This host with QEMU, whether libvirt runs in this process or is a libvirtd."""

    scheme = "qemu"
    saves_memory = True

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._found: tuple[str, AccelChoice] | None = None
        self._turn = asyncio.Lock()

    async def _find(self) -> tuple[str, AccelChoice]:
        """Return emulator and accelerator. The first call on a host takes seconds. Raises HypervisorError."""
        settings = self._place.settings
        async with self._turn:
            if self._found is None:
                emulator = find_emulator(settings.emulator)
                if settings.emulator:
                    await check_emulator(emulator)
                self._found = emulator, await choose_accel(settings.accel, emulator, self._place.cache)
            return self._found

    async def describe(self) -> HostCapabilities:
        """Return what a domain's XML depends on. A start was checked for HVMs before."""
        emulator, choice = await self._find()
        return HostCapabilities(choice.accel, has_hvm=True, emulator=emulator, runs_as=self._place.root.runs_as())

    async def capabilities(self) -> HostCapabilities:
        """Return what the emulator can run. Raises HypervisorError when QEMU is missing."""
        emulator, choice = await self._find()

        def ask(connection: "libvirt.virConnect") -> bool:
            import libvirt

            virt_type = "kvm" if choice.accel == "kvm" else "qemu"
            try:
                connection.getDomainCapabilities(emulator, "x86_64", "q35", virt_type)
            except libvirt.libvirtError:
                return False
            self._place.root.share_capabilities()
            return True

        return HostCapabilities(choice.accel, await self._place.session.call(ask), emulator)

    def machine_key(self, xml: str) -> str:
        """Return what the saved memory depends on: QEMU, and the processor that a guest may have found."""
        return memory.machine_key(self._found[0], xml) if self._found else ""

    def load(self, domain: "libvirt.virDomain", files: MemoryFiles) -> None:
        """Have QEMU read the state of the saved machine."""
        memory.load(domain, files)

    def save(self, domain: "libvirt.virDomain", files: MemoryFiles) -> None:
        """Have QEMU write the state of the machine; its memory is in its file already."""
        memory.save(domain, files)

    async def diagnose(self) -> list[str]:
        """Return accelerator, HVMs, and what of a guest's isolation is missing."""
        capabilities = await self.capabilities()
        _, choice = await self._find()
        sentences = [f"VMs run with {choice.accel}: {choice.reason}."]
        can = "can" if capabilities.has_hvm else "cannot"
        sentences.append(f"This host {can} run HVMs; the emulator is {capabilities.emulator}.")
        return sentences + [f"Isolation: {gap}." for gap in isolation_gaps()]
