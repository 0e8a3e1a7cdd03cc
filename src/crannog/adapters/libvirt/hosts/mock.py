"""libvirt's test driver: domains that are names and states in this process's memory, without any guest.

It is for trying out the daemon and its clients where nothing may or can run. Its domains end with the process.
"""

from typing import TYPE_CHECKING

from crannog.adapters.libvirt.hosts.host import Host
from crannog.core.domain import HostCapabilities

if TYPE_CHECKING:
    import libvirt


class MockHost(Host):
    """A host that runs nothing, and says that it runs everything."""

    scheme = "test"

    async def capabilities(self) -> HostCapabilities:
        """Return that all is there."""
        return HostCapabilities("none", has_hvm=True, emulator="", kind="test")

    async def diagnose(self) -> list[str]:
        """Return what it is."""
        return ["VMs are states of libvirt's test driver: no guest runs, and nothing is isolated."]

    def create(self, connection: "libvirt.virConnect", xml: str) -> "libvirt.virDomain":
        """Create a domain and stop it at once: this driver knows no start with stopped processors."""
        domain = connection.createXML(xml, 0)
        domain.suspend()
        return domain

    def press_power_button(self, domain: "libvirt.virDomain") -> None:
        """End the domain: this driver has no button, and its guests always obey."""
        domain.shutdown()
