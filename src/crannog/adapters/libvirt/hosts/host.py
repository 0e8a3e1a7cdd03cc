"""The registry of hosts: what one of libvirt's drivers needs to be told, and to be asked, in its own way.

A host is a class that names the scheme of its URIs; defining it in a module that the package imports registers it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from crannog.adapters.libvirt import console, driver
from crannog.adapters.libvirt.roots import Root
from crannog.adapters.libvirt.session import Session
from crannog.config import Settings
from crannog.core.domain import DomainInfo, DomainSpec, DomainStats, HostCapabilities, MemoryFiles
from crannog.core.runtime import HostFacts
from crannog.errors import HypervisorError

if TYPE_CHECKING:
    import libvirt

_hosts: dict[str, type["Host"]] = {}


@dataclass(frozen=True)
class Place:
    """What a host works with: the connection, whose libvirt it is, the settings, and the folder of the cache."""

    session: Session
    root: Root
    settings: Settings
    cache: str


class Host:
    """One host, as one driver shows it."""

    scheme: ClassVar[str] = ""
    saves_memory: ClassVar[bool] = False
    """Whether it saves the memory of domains, and goes on from there."""

    def __init_subclass__(cls) -> None:
        """Register the class for its URIs."""
        _hosts[cls.scheme] = cls

    def __init__(self, place: Place) -> None:
        self._place = place

    async def describe(self) -> HostCapabilities:
        """Return what a domain's XML depends on; whether there are HVMs may be left open."""
        return await self.capabilities()

    async def capabilities(self) -> HostCapabilities:
        """Return what the host can run. Raises HypervisorError."""
        raise NotImplementedError

    async def facts(self) -> HostFacts | None:
        """Return what there is for all VMs where our kernel sees only its own share of it; elsewhere None."""
        return None

    async def diagnose(self) -> list[str]:
        """Return what the host can and cannot do, a sentence each. Raises HypervisorError."""
        raise NotImplementedError

    def start_log(self, spec: DomainSpec) -> None:
        """Have an empty log of the console where the spec wants it. Blocks; raises OSError."""
        console.start_log(spec.console_log)

    def create(self, connection: "libvirt.virConnect", xml: str) -> "libvirt.virDomain":
        """Return a new domain whose processors are stopped. Blocks; raises libvirtError."""
        import libvirt

        return connection.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)

    def machine_key(self, xml: str) -> str:
        """Return what of this host the saved memory of the domain `xml` depends on; empty: none can be saved."""
        del xml
        return ""

    def load(self, domain: "libvirt.virDomain", files: MemoryFiles) -> None:
        """Have a new domain, whose processors are stopped, be where a saved one was. Blocks; raises HypervisorError."""
        raise HypervisorError(f"{domain.name()} cannot be restored from {files.state}: this hypervisor knows no way")

    def save(self, domain: "libvirt.virDomain", files: MemoryFiles) -> None:
        """Save a paused domain. Blocks; raises HypervisorError."""
        raise HypervisorError(f"{domain.name()} cannot be saved in {files.state}: this hypervisor knows no way")

    def list_domains(self, connection: "libvirt.virConnect") -> list[DomainInfo]:
        """Return all domains, in one bulk call. Blocks; raises libvirtError."""
        return driver.list_domains(connection)

    def read_statistics(self, connection: "libvirt.virConnect") -> list[DomainStats]:
        """Return what all running domains use. Blocks, but not for a hypervisor that hangs; raises libvirtError."""
        return driver.ask_all(driver.list_active(connection), driver.measure)

    def press_power_button(self, domain: "libvirt.virDomain") -> None:
        """Ask the guest to power itself off. Blocks; raises libvirtError."""
        import libvirt

        domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)


def find_host(place: Place) -> Host:
    """Return the host behind the URI of the place's root, which `choose_root` has checked."""
    return _hosts[place.root.uri.partition(":")[0]](place)
