"""Xen, through libvirt's libxl driver (libvirt, drvxen page): a class for each way to virtualise.

What a guest sees is Xen's own: disks, console and channels on Xen's buses, no virtio, and a balloon always. Xenconsoled
keeps the consoles' logs (/var/log/xen/console), libvirt's <log> has no meaning there.
"""

from collections.abc import Iterable
from dataclasses import replace

from crannog.adapters.libvirt.xml import elements
from crannog.adapters.libvirt.xml.elements import Element, element
from crannog.adapters.libvirt.xml.machine import Machine
from crannog.core.domain import Boot, Channel, Disk
from crannog.errors import HypervisorError

_NAMESPACE = "http://libvirt.org/schemas/domain/xen/1.0"
"""Elements that only libvirt's Xen driver knows (libvirt, drvxen page, "Passing command line arguments to QEMU")."""


class XenMachine(Machine):
    """What the modes have in common. `guest` and `machine` are the names that libvirt's capabilities list."""

    kind = "xen"
    guest = ""
    machine = ""

    def domain_type(self) -> str:
        """Return `xen`."""
        return "xen"

    def firmware(self) -> Iterable[Element]:
        """Yield <os>, with the kernel from the host."""
        yield element("os", self._type(), *elements.kernel(self.spec))

    def _type(self) -> Element:
        return element("type", text=self.guest, arch="x86_64", machine=self.machine)

    def processor(self) -> Iterable[Element]:
        """Yield nothing: the guest has the host's processor, as far as Xen shows it."""
        return ()

    def devices(self) -> Iterable[Element]:
        """Yield all devices."""
        if self.capabilities.emulator:
            yield element("emulator", text=self.capabilities.emulator)
        yield from map(self._disk, self.spec.disks)
        yield from self._console()
        yield from map(self._channel, self.spec.channels)

    @staticmethod
    def _disk(disk: Disk) -> Element:
        # dom0's kernel hands a block device to the guest, a QEMU does an image file (xl-disk-configuration(5)). QEMU's
        # disks on Xen refuse to be read-only ("Block node is read-only", 7.2): a raw file is then the kernel's as well,
        # through a loop device that Xen's hotplug script makes and unmakes.
        is_direct = disk.is_block or (disk.is_readonly and disk.format == "raw" and disk.device == "disk")
        if not is_direct and disk.device == "disk":
            # Any other image is a layer that is made for one start and dropped after it: nothing is lost when it is
            # written to.
            disk = replace(disk, is_readonly=False)
        return elements.disk(disk, element("driver", name="phy" if is_direct else "qemu", type=disk.format))

    @staticmethod
    def _console() -> Iterable[Element]:
        yield element("console", element("target", type="xen", port="0"), type="pty")

    @staticmethod
    def _channel(channel: Channel) -> Element:
        source = element("source", mode="bind", path=channel.path)
        return element("channel", source, element("target", type="xen", name=channel.name), type="unix")


class XenPv(XenMachine):
    """Paravirtual."""

    virt_modes = ("pv",)
    guest = "linux"
    machine = "xenpv"


class XenPvh(XenMachine):
    """Paravirtual in a hardware container."""

    virt_modes = ("pvh",)
    guest = "xenpvh"
    machine = "xenpvh"

    def processor(self) -> Iterable[Element]:
        """Yield what else the guest would have to find out by trial."""
        yield element("features", element("acpi"), element("apic"), element("pae"))


class XenHvm(XenPvh):
    """A full machine. Its firmware knows first disk and CD-ROM, no order of single disks."""

    virt_modes = ("hvm",)
    guest = "hvm"
    machine = "xenfv"

    def firmware(self) -> Iterable[Element]:
        """Yield <os> with Xen's firmware. Raises HypervisorError where the host has none."""
        if not self.capabilities.loader:
            raise HypervisorError(
                f"{self.spec.name} could not be started: this host's Xen has no firmware for HVMs (hvmloader); "
                f"install Xen's tools completely"
            )
        loader = element("loader", text=self.capabilities.loader, type="rom")
        yield element("os", self._type(), loader, *self._boot())

    def _boot(self) -> Iterable[Element]:
        if self.spec.boot is Boot.KERNEL:
            return elements.kernel(self.spec)
        first = next((disk.device for disk in self.spec.disks if disk.boots_first), "disk")
        order = ("cdrom", "hd") if first == "cdrom" else ("hd", "cdrom")
        return (element("boot", dev=device) for device in order)

    def describe(self) -> Element:
        """Return <domain>, with the screen on a unix socket.

        libxl knows VNC on TCP only, where every user of the host could watch. It says `-vnc none`, and QEMU takes
        another one beside it.
        """
        domain = super().describe()
        if self.spec.has_display and self.spec.display_socket:
            path = self.spec.display_socket.replace(",", ",,")  # a comma begins QEMU's next option
            domain.append(elements.command_line("xen", _NAMESPACE, "-vnc", f"unix:{path}"))
        return domain

    def devices(self) -> Iterable[Element]:
        """Yield all devices, and the screen."""
        yield from super().devices()
        if self.spec.has_display:
            yield element("video", elements.video_model(self.spec))

    @staticmethod
    def _console() -> Iterable[Element]:
        yield element("serial", element("target", port="0"), type="pty")
