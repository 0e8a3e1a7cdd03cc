"""QEMU on x86. One method makes one kind of element.

The machine is small on purpose, because a guest's kernel spends its first second on finding devices: q35 with every
virtio device directly on PCI bus 0 (no PCIe root port for each, which libvirt would add for a device without an
address), no USB, and a balloon only where the memory can grow.
"""

from collections.abc import Iterable

from lxml import etree

from crannog.adapters.libvirt.xml import elements
from crannog.adapters.libvirt.xml.elements import Element, element
from crannog.adapters.libvirt.xml.machine import Machine
from crannog.adapters.libvirt.xml.memory import NAMESPACE, memory_elements
from crannog.core.domain import Boot, Channel, Disk
from crannog.core.qga import PORT_NAME, qga_path
from crannog.errors import HypervisorError

_QGA_ALIAS = "ua-qemu-agent"
_QGA_STAND_IN = "org.crannog.qemu-agent.0"
"""What libvirt takes the name of that port for: with the right one it would be the agent's client itself, and a socket
has one client."""

_SLOT_VIDEO = 0x01
_SLOT_CHANNELS = 0x02
_SLOT_RANDOM = 0x03
_SLOT_FIRST_DISK = 0x04
_SLOT_LAST_DISK = 0x1D
_SLOT_BALLOON = 0x1E
"""0x1f is the chipset itself: LPC, SATA and SMBus (QEMU, hw/i386/pc_q35.c)."""

_SLOW_EMULATED = ("erms", "fsrm")
"""Promises of fast string moves, upon which kernels copy by `rep movsb`. Emulated, that takes three times as long as
the loops that they use otherwise."""


def _address(slot: int) -> Element:
    return element("address", type="pci", domain="0x0000", bus="0x00", slot=f"0x{slot:02x}", function="0x0")


def _rename_port(alias: str, name: str) -> Element:
    """Return <qemu:override>, which gives a device of QEMU a property that libvirt does not know of."""
    made = etree.Element(f"{{{NAMESPACE}}}override", nsmap={"qemu": NAMESPACE})
    device = etree.SubElement(made, f"{{{NAMESPACE}}}device", alias=alias)
    frontend = etree.SubElement(device, f"{{{NAMESPACE}}}frontend")
    etree.SubElement(frontend, f"{{{NAMESPACE}}}property", name="name", type="string", value=name)
    return made


class QemuMachine(Machine):
    """Every mode: they differ in who finds the guest's first code, and in the screen."""

    kind = "qemu"
    virt_modes = ("pv", "pvh", "hvm")

    @property
    def _is_native(self) -> bool:
        return self.capabilities.accel == "kvm"

    def describe(self) -> Element:
        """Return <domain>, with the port of QEMU's guest agent named past libvirt."""
        domain = super().describe()
        if self.spec.channels:
            domain.append(_rename_port(_QGA_ALIAS, PORT_NAME))
        domain.extend(memory_elements(self.spec))
        return domain

    def domain_type(self) -> str:
        """Return `kvm`, or `qemu` when the processor is emulated."""
        return "kvm" if self._is_native else "qemu"

    def firmware(self) -> Iterable[Element]:
        """Yield the machine, and what the guest is told by its chassis: firmware passes no command line on.

        The serial number is the guest's name, the asset tag says that it is a disposable.
        """
        entries = [element("entry", text=self.spec.name, name="serial")]
        if self.spec.is_disposable:
            entries.append(element("entry", text="crannog.disposable", name="asset"))
        yield element("sysinfo", element("chassis", *entries), type="smbios")
        machine = element("type", text="hvm", arch="x86_64", machine="q35")
        started = elements.kernel(self.spec) if self.spec.boot is Boot.KERNEL else ()
        yield element("os", machine, element("smbios", mode="sysinfo"), *started)

    def processor(self) -> Iterable[Element]:
        """Yield the host's processor with KVM, else one that can do all that the emulator can.

        Programs built for newer processors than QEMU's default one (x86-64-v2 and up) run then.
        """
        # Without ACPI a guest halts instead of powering off, and never sees the power button.
        yield element("features", element("acpi"), element("apic"))
        if self._is_native:
            # What cannot be saved (invariant time stamps) is left out where that is to be.
            migratable = "on" if self.spec.memory_files else "off"
            yield element("cpu", mode="host-passthrough", check="none", migratable=migratable)
        else:
            slow = (element("feature", policy="disable", name=name) for name in _SLOW_EMULATED)
            yield element("cpu", *slow, mode="maximum", check="none", migratable="on")

    def devices(self) -> Iterable[Element]:
        """Yield all devices."""
        yield element("emulator", text=self.capabilities.emulator)
        yield from self._disks()
        yield element("controller", type="usb", model="none")
        yield element("controller", _address(_SLOT_CHANNELS), type="virtio-serial", index="0")
        yield self._console()
        yield from map(self._channel, self.spec.channels)
        yield from map(self._qga_channel, self.spec.channels[:1])
        yield from self._display()
        yield self._balloon()
        yield self._random()

    def security(self) -> Iterable[Element]:
        """Yield the user that QEMU runs as; who owns the files is our business."""
        if self.capabilities.runs_as:
            label = element("label", text=self.capabilities.runs_as)
            yield element("seclabel", label, type="static", model="dac", relabel="no")

    def _disks(self) -> Iterable[Element]:
        orders, slot = self._boot_orders(), _SLOT_FIRST_DISK
        for disk in self.spec.disks:
            extra = [element("boot", order=str(orders.index(disk) + 1))] if disk in orders else []
            if disk.bus == "virtio":
                extra.append(_address(self._check_slot(slot)))
                slot += 1
            driver = element("driver", name="qemu", type=disk.format, discard="unmap")
            yield elements.disk(disk, driver, *extra)

    def _boot_orders(self) -> list[Disk]:
        """Return the disks that the firmware tries: the drive that was named for this start, then the first disk."""
        if self.spec.boot is Boot.KERNEL:
            return []
        named = [disk for disk in self.spec.disks if disk.boots_first]
        return named + [disk for disk in self.spec.disks[:1] if disk not in named]

    def _check_slot(self, slot: int) -> int:
        if slot > _SLOT_LAST_DISK:
            most = _SLOT_LAST_DISK - _SLOT_FIRST_DISK + 1
            raise HypervisorError(f"{self.spec.name} has more than {most} virtio disks: detach one, then start it")
        return slot

    def _console(self) -> Element:
        # Appending, so that the log can be shortened while the guest writes (console.py); it is emptied before a start.
        log = element("log", file=self.spec.console_log, append="on")
        return element("serial", log, element("target", port="0"), type="pty")

    @staticmethod
    def _channel(channel: Channel) -> Element:
        source = element("source", mode="bind", path=channel.path)
        return element("channel", source, element("target", type="virtio", name=channel.name), type="unix")

    @classmethod
    def _qga_channel(cls, channel: Channel) -> Element:
        """Return the port of QEMU's guest agent; its socket is beside that of `channel`."""
        port = cls._channel(Channel(_QGA_STAND_IN, qga_path(channel.path)))
        port.append(element("alias", name=_QGA_ALIAS))
        return port

    def _display(self) -> Iterable[Element]:
        if not self.spec.has_display:
            return
        if self.spec.display_socket:
            yield element("graphics", type="vnc", socket=self.spec.display_socket)
        model = elements.video_model(self.spec)
        yield element("video", model, _address(_SLOT_VIDEO))

    def _balloon(self) -> Element:
        # libvirt adds a balloon to what does not say that it wants none.
        if not self.spec.can_grow:
            return element("memballoon", model="none")
        return element("memballoon", _address(_SLOT_BALLOON), model="virtio")

    @staticmethod
    def _random() -> Element:
        # Without it a guest waits about a second for its first random number.
        backend = element("backend", text="/dev/urandom", model="random")
        return element("rng", backend, _address(_SLOT_RANDOM), model="virtio")
