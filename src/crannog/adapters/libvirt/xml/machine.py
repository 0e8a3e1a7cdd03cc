"""The registry of machines: what writes the XML of one kind of hypervisor for one way to virtualise.

A machine is a class that names its kind (core.hypervisor_kinds) and the virt_modes that it serves; defining it in a
module that `domain_xml` imports registers it.
"""

from collections.abc import Iterable
from typing import ClassVar

from crannog.adapters.libvirt.xml import elements
from crannog.adapters.libvirt.xml.elements import Element, element
from crannog.core.domain import DomainSpec, HostCapabilities
from crannog.errors import HypervisorError

_machines: dict[tuple[str, str], type["Machine"]] = {}


class Machine:
    """One domain on one host, as XML. What subclasses do not say is left out."""

    kind: ClassVar[str] = ""
    virt_modes: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        """Register the class for what it serves."""
        _machines.update({(cls.kind, mode): cls for mode in cls.virt_modes})

    def __init__(self, spec: DomainSpec, capabilities: HostCapabilities) -> None:
        self.spec = spec
        self.capabilities = capabilities

    def describe(self) -> Element:
        """Return <domain>.

        Raises HypervisorError when the machine cannot be so, ValueError for a text that no XML can hold.
        """
        domain = element("domain", *elements.identity(self.spec), type=self.domain_type())
        domain.extend(self.firmware())
        domain.extend(self.processor())
        domain.append(elements.clock(self.spec.clock))
        domain.extend(elements.lifecycle())
        domain.append(element("devices", *self.devices()))
        domain.extend(self.security())
        return domain

    def domain_type(self) -> str:
        """Return the type of the domain, as libvirt calls it."""
        raise NotImplementedError

    def firmware(self) -> Iterable[Element]:
        """Yield <os>, and what tells firmware or guest who they are."""
        raise NotImplementedError

    def processor(self) -> Iterable[Element]:
        """Yield <features> and <cpu>."""
        raise NotImplementedError

    def security(self) -> Iterable[Element]:
        """Yield <seclabel>, if any."""
        return ()

    def devices(self) -> Iterable[Element]:
        """Yield all devices, and the emulator among them."""
        raise NotImplementedError


def find_machine(spec: DomainSpec, capabilities: HostCapabilities) -> Machine:
    """Return the machine for a domain on this host; raises HypervisorError when there is none."""
    machine = _machines.get((capabilities.kind, spec.virt_mode))
    if machine is None:
        raise HypervisorError(
            f"{spec.name} could not be started: virt_mode {spec.virt_mode} is not known on hypervisor "
            f"'{capabilities.kind}'; change it with 'qvm-prefs {spec.name} virt_mode'"
        )
    return machine(spec, capabilities)
