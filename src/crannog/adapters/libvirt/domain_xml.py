"""A DomainSpec as libvirt's domain XML (https://libvirt.org/formatdomain.html), for QEMU on x86.

One function makes one element. The machine is small on purpose, because a guest's kernel spends its first second on
finding devices: q35 with every virtio device directly on PCI bus 0 (no PCIe root port for each, which libvirt would
add for a device without an address), no USB, no balloon.
"""

from collections.abc import Iterable

from lxml import etree

from crannog.core.domain import Boot, Channel, Disk, DomainSpec
from crannog.errors import HypervisorError

_SLOT_VIDEO = 0x01
_SLOT_CHANNELS = 0x02
_SLOT_RANDOM = 0x03
_SLOT_FIRST_DISK = 0x04
_SLOT_LAST_DISK = 0x1E
"""0x1f is the chipset itself: LPC, SATA and SMBus (QEMU, hw/i386/pc_q35.c)."""

_BOOT_ORDER = {Boot.DISK: ("hd", "cdrom"), Boot.CDROM: ("cdrom", "hd")}

Element = etree._Element


def _element(tag: str, *children: Element, text: str | None = None, **attributes: str) -> Element:
    element = etree.Element(tag, attributes)
    element.text = text
    element.extend(children)
    return element


def _address(slot: int) -> Element:
    return _element("address", type="pci", domain="0x0000", bus="0x00", slot=f"0x{slot:02x}", function="0x0")


def _os(spec: DomainSpec) -> Element:
    element = _element("os", _element("type", text="hvm", arch="x86_64", machine="q35"))
    element.append(_element("smbios", mode="sysinfo"))
    if spec.boot is Boot.KERNEL:
        parts = (("kernel", spec.kernel), ("initrd", spec.initrd), ("cmdline", spec.kernelopts))
        element.extend(_element(tag, text=value) for tag, value in parts if value)
    else:
        element.extend(_element("boot", dev=device) for device in _BOOT_ORDER[spec.boot])
    return element


def _sysinfo(spec: DomainSpec) -> Element:
    # The guest learns its name from its chassis' serial number: firmware hands over no kernel command line.
    serial = _element("entry", text=spec.name, name="serial")
    return _element("sysinfo", _element("chassis", serial), type="smbios")


def _features() -> Element:
    # Without ACPI a guest halts instead of powering off, and never sees the power button.
    return _element("features", _element("acpi"), _element("apic"))


def _cpu(accel: str) -> Element:
    # With KVM the guest has the host's processor. Without, everything that the emulator can do: programs that are
    # built for newer processors than QEMU's default one (x86-64-v2 and up) run.
    if accel == "kvm":
        return _element("cpu", mode="host-passthrough", check="none", migratable="off")
    return _element("cpu", mode="maximum", check="none", migratable="on")


def _disk(disk: Disk, slot: int | None) -> Element:
    driver = _element("driver", name="qemu", type=disk.format, discard="unmap")
    element = _element("disk", driver, type="file", device=disk.device)
    if disk.path:
        element.append(_element("source", file=disk.path))
    element.append(_element("target", dev=disk.target, bus=disk.bus))
    if disk.is_readonly or disk.device == "cdrom":
        element.append(_element("readonly"))
    if slot is not None:
        element.append(_address(slot))
    return element


def _disks(spec: DomainSpec) -> Iterable[Element]:
    slot = _SLOT_FIRST_DISK
    for disk in spec.disks:
        if disk.bus != "virtio":
            yield _disk(disk, None)
            continue
        if slot > _SLOT_LAST_DISK:
            most = _SLOT_LAST_DISK - _SLOT_FIRST_DISK + 1
            raise HypervisorError(f"{spec.name} has more than {most} virtio disks: detach one, then start it")
        yield _disk(disk, slot)
        slot += 1


def _controllers() -> Iterable[Element]:
    yield _element("controller", type="usb", model="none")
    yield _element("controller", _address(_SLOT_CHANNELS), type="virtio-serial", index="0")


def _console(spec: DomainSpec) -> Element:
    # Appending, so that the log can be shortened while the guest writes (console.py); it is emptied before a start.
    log = _element("log", file=spec.console_log, append="on")
    return _element("serial", log, _element("target", port="0"), type="pty")


def _channel(channel: Channel) -> Element:
    source = _element("source", mode="bind", path=channel.path)
    return _element("channel", source, _element("target", type="virtio", name=channel.name), type="unix")


def _random() -> Element:
    # Without it a guest waits about a second for its first random number.
    backend = _element("backend", text="/dev/urandom", model="random")
    return _element("rng", backend, _address(_SLOT_RANDOM), model="virtio")


def _display(spec: DomainSpec) -> Iterable[Element]:
    if not spec.has_display:
        return
    if spec.display_socket:
        yield _element("graphics", type="vnc", socket=spec.display_socket)
    model = _element("model", type="vga", vram="16384", heads="1", primary="yes")
    yield _element("video", model, _address(_SLOT_VIDEO))


def _devices(spec: DomainSpec, emulator: str) -> Element:
    element = _element("devices", _element("emulator", text=emulator))
    element.extend(_disks(spec))
    element.extend(_controllers())
    element.append(_console(spec))
    element.extend(_channel(channel) for channel in spec.channels)
    element.extend(_display(spec))
    element.append(_element("memballoon", model="none"))
    element.append(_random())
    return element


def _identity(spec: DomainSpec) -> Iterable[Element]:
    yield _element("name", text=spec.name)
    yield _element("uuid", text=spec.uuid)
    yield _element("memory", text=str(spec.memory), unit="MiB")
    yield _element("vcpu", text=str(spec.vcpus), placement="static")


def _lifecycle() -> Iterable[Element]:
    yield _element("clock", offset="utc")
    yield _element("on_poweroff", text="destroy")
    yield _element("on_reboot", text="restart")
    yield _element("on_crash", text="destroy")


def build_domain_xml(spec: DomainSpec, accel: str, emulator: str) -> str:
    """Return the XML of the domain `spec`, run by the program `emulator` with `accel` (`kvm` or `tcg`).

    Raises HypervisorError when the spec cannot be said in XML or needs more devices than the machine has.
    """
    try:
        domain = _element("domain", *_identity(spec), type="kvm" if accel == "kvm" else "qemu")
        domain.extend((_sysinfo(spec), _os(spec), _features(), _cpu(accel)))
        domain.extend(_lifecycle())
        domain.append(_devices(spec, emulator))
    except ValueError as error:
        raise HypervisorError(f"{spec.name!r} cannot be described to libvirt: {error}") from error
    return etree.tostring(domain, encoding="unicode", pretty_print=True)
