"""Xen: what its hosts can run is in libvirt's capabilities (https://libvirt.org/formatcaps.html).

Those name device model and firmware where libvirt was told at its compilation that they are; distributions put them
elsewhere, so what is not there is looked for where Debian has it.
"""

import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING

from lxml import etree

from crannog.adapters.libvirt import driver
from crannog.adapters.libvirt.hosts.host import Host
from crannog.core.domain import DomainInfo, DomainSpec, DomainStats, HostCapabilities
from crannog.core.runtime import HostFacts

if TYPE_CHECKING:
    import libvirt

_WIDTH = "x86_64"
_EMULATOR = "usr/libexec/xen-qemu-system-i386"
_LOADER = "usr/lib/xen-{major}.{minor}/boot/hvmloader"
_CONSOLE = "/var/log/xen/console/guest-{name}.log"
"""xenconsoled(8) with --log=guest."""

_VERSION = "sys/hypervisor/version"
"""The running Xen's version, a file for each number (Linux, Documentation/ABI/stable/sysfs-hypervisor-xen)."""


class XenHost(Host):
    """The dom0 of a Xen host, through libvirt's libxl driver."""

    scheme = "xen"

    async def capabilities(self) -> HostCapabilities:
        """Return what this Xen can run. Raises HypervisorError."""
        what = "reading what this Xen host can do"
        xml = await self._place.session.query(what, lambda connection: connection.getCapabilities())
        return find_files(read_xen_capabilities(xml))

    async def facts(self) -> HostFacts:
        """Return what Xen has; dom0's kernel knows its own memory and processors alone. Raises HypervisorError."""
        what = "reading how much memory this Xen host has"
        # virNodeInfo: model, memory in MiB (libvirt's Python says MB), logical processors, ...
        _, memory, processors, *_ = await self._place.session.query(what, lambda connection: connection.getInfo())
        return HostFacts(memory, processors)

    async def diagnose(self) -> list[str]:
        """Return whether there are HVMs."""
        capabilities = await self.capabilities()
        hvm = f"can run HVMs; their firmware is {capabilities.loader}" if capabilities.has_hvm else "cannot run HVMs"
        return [f"VMs run on Xen, which {hvm}."]

    def start_log(self, spec: DomainSpec) -> None:
        """Show xenconsoled's log where the spec wants one. It goes on appending to that file, so this is emptied."""
        kept, link = _CONSOLE.format(name=spec.name), spec.console_log + ".new"
        with contextlib.suppress(FileNotFoundError):
            os.truncate(kept, 0)
        os.makedirs(os.path.dirname(spec.console_log), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link)
        os.symlink(kept, link)
        os.replace(link, spec.console_log)

    def list_domains(self, connection: "libvirt.virConnect") -> list[DomainInfo]:
        """Return all domains but dom0: one call for all, then one for each, as this driver has no bulk calls."""
        return driver.ask_all(_list_guests(connection), _describe)

    def read_statistics(self, connection: "libvirt.virConnect") -> list[DomainStats]:
        """Return what all domains but dom0 use."""
        return driver.ask_all(_list_guests(connection), driver.measure)

    def press_power_button(self, domain: "libvirt.virDomain") -> None:
        """Ask the guest to power itself off, through XenStore; one without drivers for that gets the ACPI button."""
        import libvirt

        try:
            domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_PARAVIRT)
        except libvirt.libvirtError:
            super().press_power_button(domain)


def _list_guests(connection: "libvirt.virConnect") -> "list[libvirt.virDomain]":
    # The host itself is a domain here, with the UUID of zeros that dom0 has in the registry: it is nobody's to end.
    return [domain for domain in driver.list_active(connection) if domain.ID() != 0]


def _describe(domain: "libvirt.virDomain") -> DomainInfo:
    state, reason = domain.state()
    return driver.describe(domain, state, reason)


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


def find_files(stated: HostCapabilities, root: str = "/") -> HostCapabilities:
    """Return the capabilities with device model and firmware where they really are, below the folder `root`.

    A file that is nowhere stays as libvirt says it: whoever needs it is told that path.
    """
    loader = stated.loader
    if loader:
        loader = _choose(loader, _LOADER.format(major=_read(root, "major"), minor=_read(root, "minor")), root)
    return dataclasses.replace(stated, emulator=_choose(stated.emulator, _EMULATOR, root), loader=loader)


def _choose(stated: str, other: str, root: str) -> str:
    if os.path.exists(os.path.join(root, stated.lstrip("/"))) or not os.path.exists(os.path.join(root, other)):
        return stated
    return "/" + other


def _read(root: str, name: str) -> str:
    try:
        with open(os.path.join(root, _VERSION, name), encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
