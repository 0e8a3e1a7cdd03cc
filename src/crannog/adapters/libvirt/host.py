"""What a Xen host can run, read from libvirt's capabilities (https://libvirt.org/formatcaps.html)."""

from lxml import etree

from crannog.core.domain import HostCapabilities

_WIDTH = "x86_64"


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
