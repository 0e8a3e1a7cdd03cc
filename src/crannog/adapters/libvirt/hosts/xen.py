"""Xen: what its hosts can run is in libvirt's capabilities (https://libvirt.org/formatcaps.html)."""

from lxml import etree

from crannog.adapters.libvirt.hosts.host import Host
from crannog.core.domain import HostCapabilities

_WIDTH = "x86_64"


class XenHost(Host):
    """The dom0 of a Xen host, through libvirt's libxl driver."""

    scheme = "xen"

    async def capabilities(self) -> HostCapabilities:
        """Return what this Xen can run. Raises HypervisorError."""
        what = "reading what this Xen host can do"
        xml = await self._place.session.query(what, lambda connection: connection.getCapabilities())
        return read_xen_capabilities(xml)

    async def diagnose(self) -> list[str]:
        """Return whether there are HVMs."""
        capabilities = await self.capabilities()
        hvm = f"can run HVMs; their firmware is {capabilities.loader}" if capabilities.has_hvm else "cannot run HVMs"
        return [f"VMs run on Xen, which {hvm}."]


def read_xen_capabilities(xml: str) -> HostCapabilities:
    """Return what `virConnectGetCapabilities` of a xen:/// connection says, with emulator and firmware of its HVMs.

    A host without hardware virtualisation lists no guest of type `hvm` (design.md, B14); PV guests need no emulator.
    """
    # libvirt's own XML: no guest has a hand in it.
    root = etree.fromstring(xml.encode())
    hvm = root.find(f"guest[os_type='hvm']/arch[@name='{_WIDTH}']")
    any_guest = root.find(f"guest/arch[@name='{_WIDTH}']") if hvm is None else hvm
    return HostCapabilities(
        accel="xen",
        has_hvm=hvm is not None,
        emulator=_text(any_guest, "emulator"),
        kind="xen",
        loader=_text(hvm, "loader"),
    )


def _text(parent: etree._Element | None, tag: str) -> str:
    return "" if parent is None else parent.findtext(tag) or ""
