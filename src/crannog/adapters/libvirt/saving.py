"""What the Hypervisor port asks of saved memory, in libvirt's words."""

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from crannog.adapters.libvirt.domain_xml import build_domain_xml
from crannog.adapters.libvirt.hosts.host import Host
from crannog.adapters.libvirt.session import Session
from crannog.core.domain import DomainSpec, MemoryFiles
from crannog.errors import HypervisorError

if TYPE_CHECKING:
    import libvirt


class Saving:
    """Saves domains, and has others go on from there, where the host can."""

    def __init__(self, session: Session, host: Host, overrides: str) -> None:
        """Save in a session of a host; `overrides` is the folder of what users have changed in single VMs' domains."""
        self._session = session
        self._host = host
        self._overrides = overrides

    def load(self, domain: "libvirt.virDomain", files: MemoryFiles) -> None:
        """Have a new domain be where a saved one was; one that cannot be is ended. Blocks; raises HypervisorError."""
        import libvirt

        try:
            self._host.load(domain, files)
        except BaseException:
            with contextlib.suppress(libvirt.libvirtError):  # it may be gone by now
                domain.destroy()
            raise

    async def machine_key(self, spec: DomainSpec, name: str) -> str:
        """Return what two domains have in common of which one can be restored from the memory of the other.

        None is that may grow, as its memory is given back past the file, or whose user has changed its XML.
        """
        host = await self._host.describe()
        if spec.can_grow or await asyncio.to_thread(os.path.exists, f"{self._overrides}/{name}.xml"):
            return ""
        xml = await self._session.run(build_domain_xml, spec, host)
        return await self._session.run(self._host.machine_key, xml)

    async def save(self, uuid: str, files: MemoryFiles) -> None:
        """Save a paused domain in its files. Raises HypervisorError, also when the domain is absent."""

        def save(domain: "libvirt.virDomain") -> bool:
            self._host.save(domain, files)
            return True

        if not await self._session.ask(uuid, f"saving {uuid}", save, is_patient=True):
            raise HypervisorError(f"{uuid} cannot be saved: it has no domain (any more)")
