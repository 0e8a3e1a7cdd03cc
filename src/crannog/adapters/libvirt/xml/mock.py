"""Domains of libvirt's test driver: what it keeps of a VM."""

from collections.abc import Iterable

from crannog.adapters.libvirt.xml import elements
from crannog.adapters.libvirt.xml.elements import Element, element
from crannog.adapters.libvirt.xml.machine import Machine


class MockMachine(Machine):
    """Every mode: nothing of it is ever run."""

    kind = "test"
    virt_modes = ("pv", "pvh", "hvm")

    def domain_type(self) -> str:
        """Return `test`."""
        return "test"

    def firmware(self) -> Iterable[Element]:
        """Yield <os>, with the kernel from the host."""
        yield element("os", element("type", text="hvm"), *elements.kernel(self.spec))

    def processor(self) -> Iterable[Element]:
        """Yield nothing."""
        return ()

    def devices(self) -> Iterable[Element]:
        """Yield the disks, so that what would be attached can be looked at."""
        for disk in self.spec.disks:
            yield elements.disk(disk, element("driver", name="qemu", type=disk.format))
