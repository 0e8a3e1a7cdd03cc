"""Elements that are the same on every hypervisor, one function each. lxml alone escapes; no XML is made of text."""

from collections.abc import Iterable

from lxml import etree

from crannog.core.clock import Basis, Clock
from crannog.core.domain import Disk, DomainSpec

Element = etree._Element


def element(tag: str, *children: Element, text: str | None = None, **attributes: str) -> Element:
    """Return an element; raises ValueError for text that no XML can hold (zero bytes, control characters)."""
    made = etree.Element(tag, attributes)
    made.text = text
    made.extend(children)
    return made


def identity(spec: DomainSpec) -> Iterable[Element]:
    """Yield <name>, <uuid>, the memory and <vcpu>.

    <memory> is the most that the guest may ever have, <currentMemory> what it has at its start.
    """
    yield element("name", text=spec.name)
    yield element("uuid", text=spec.uuid)
    yield element("memory", text=str(spec.maxmem if spec.can_grow else spec.memory), unit="MiB")
    if spec.can_grow:
        yield element("currentMemory", text=str(spec.memory), unit="MiB")
    yield element("vcpu", text=str(spec.vcpus), placement="static")


def video_model(spec: DomainSpec) -> Element:
    """Return the card with one screen (libvirt, "Video devices"); the old ones are told their memory, in KiB."""
    memory = {"vram": "16384"} if spec.video_model in ("vga", "cirrus", "bochs") else {}
    return element("model", type=spec.video_model, **memory, heads="1", primary="yes")


def kernel(spec: DomainSpec) -> Iterable[Element]:
    """Yield <kernel>, <initrd> and <cmdline>, those that there are."""
    parts = (("kernel", spec.kernel), ("initrd", spec.initrd), ("cmdline", spec.kernelopts))
    return (element(tag, text=value) for tag, value in parts if value)


def clock(value: Clock) -> Element:
    """Return <clock>. With `variable`, the guest's own changes of its clock last while it runs, resets included."""
    if value.offset:
        return element("clock", offset="variable", adjustment=str(value.offset), basis=Basis.UTC)
    return element("clock", offset=value.basis)


def lifecycle() -> Iterable[Element]:
    """Yield what happens when the guest ends. No crashed guest is kept, in debug mode neither: none could start it."""
    yield element("on_poweroff", text="destroy")
    yield element("on_reboot", text="restart")
    yield element("on_crash", text="destroy")


def disk(value: Disk, driver: Element, *extra: Element) -> Element:
    """Return <disk> with the hypervisor's own <driver>, and what it adds at the end."""
    made = element("disk", driver, type="block" if value.is_block else "file", device=value.device)
    if value.path:
        made.append(element("source", **{"dev" if value.is_block else "file": value.path}))
    made.append(element("target", dev=value.target, bus=value.bus))
    if value.is_readonly or value.device == "cdrom":
        made.append(element("readonly"))
    made.extend(extra)
    return made


def command_line(prefix: str, namespace: str, *words: str) -> Element:
    """Return a driver's own <commandline>, which gives words to QEMU after all others."""
    made = etree.Element(f"{{{namespace}}}commandline", nsmap={prefix: namespace})
    for word in words:
        etree.SubElement(made, f"{{{namespace}}}arg", value=word)
    return made
