"""The host's devices in sysfs (Linux: Documentation/ABI/testing/sysfs-bus-pci, sysfs-bus-usb, stable/sysfs-block).

What the devices say of themselves comes from outside as well: it is cut, and cleaned where it becomes text.
"""

import os
import re
from collections.abc import Callable, Iterator

from crannog.core.device_names import UNIDENTIFIED
from crannog.core.device_text import Device

_SECTOR = 512
"""Bytes: the unit of `size`, whatever the disk's own sectors are."""

_MAX_TEXT = 256
_PCI = re.compile(r"([0-9a-f]{4,6}):([0-9a-f]{2}):([0-9a-f]{2}\.[0-7])")
_USB = re.compile(r"[0-9]+-[0-9]+(\.[0-9]+)*")
_HEX = re.compile(r"(0x)?[0-9a-f]{1,6}", re.IGNORECASE)
_NOT_IN_IDENT = re.compile(r"[^A-Za-z0-9_.-]")
_NO_DISKS = ("ram", "zram", "dm-")
"""Names of block devices that are memory, or parts of others. A loop device can be given: it stands for a file."""


class SysfsDevices:
    """Implements `ports.hostdevices.HostDevices`. `root` is where sysfs is mounted."""

    def __init__(self, root: str = "/sys") -> None:
        self._root = root
        self._readers: dict[str, Callable[[], Iterator[Device]]] = {
            "pci": self._pci,
            "block": self._block,
            "usb": self._usb,
        }

    def available(self, devclass: str) -> list[Device]:
        """Return the devices of a class; none of a class that the host does not offer."""
        reader = self._readers.get(devclass)
        return list(reader()) if reader else []

    def _pci(self) -> Iterator[Device]:
        for name, folder in self._list("bus/pci/devices"):
            address = _PCI.fullmatch(name)
            vendor, product, code = (_read_hex(folder, file) for file in ("vendor", "device", "class"))
            if address and vendor and product and code:
                interfaces = f"p{code.removeprefix('0x').zfill(6)[:6]}"
                domain, bus, function = address.groups()
                port = f"{bus}_{function}" if domain == "0000" else f"{domain}_{bus}_{function}"
                details = (("vendor", vendor), ("product", product))
                yield Device("pci", port, f"{vendor}:{product}::{interfaces}", interfaces, details)

    def _block(self) -> Iterator[Device]:
        for name, folder in self._list("block"):
            sectors = _read(folder, "size")
            if name.startswith(_NO_DISKS) or not sectors.isdecimal() or int(sectors) == 0:
                continue
            options = (("size", str(int(sectors) * _SECTOR)), ("ro", "no" if _read(folder, "ro") == "0" else "yes"))
            model = _read(folder, "device/model")
            details = (("name", model),) if model else ()
            ident = UNIDENTIFIED.replace("?", "b")
            yield Device("block", name, ident, "b******", details, options=options)

    def _usb(self) -> Iterator[Device]:
        for name, folder in self._list("bus/usb/devices"):
            vendor, product = _read_hex(folder, "idVendor"), _read_hex(folder, "idProduct")
            if not (_USB.fullmatch(name) and vendor and product):
                continue  # an interface of a device, or a controller's root hub
            serial = _read(folder, "serial")
            interfaces = "".join(self._usb_interfaces(name, folder)) or "?******"
            said = (("manufacturer", _read(folder, "manufacturer")), ("name", _read(folder, "product")))
            details = (("vendor", vendor), ("product", product), *said, ("serial", serial))
            ident = f"{vendor}:{product}:{_NOT_IN_IDENT.sub('_', serial)}:{interfaces}"
            yield Device("usb", name, ident, interfaces, tuple(pair for pair in details if pair[1]))

    @staticmethod
    def _usb_interfaces(name: str, folder: str) -> Iterator[str]:
        """Yield the interface codes of a device: class, subclass and protocol of each, which are below it."""
        for entry in sorted(_names(folder)):
            if entry.startswith(f"{name}:"):
                parts = ("bInterfaceClass", "bInterfaceSubClass", "bInterfaceProtocol")
                code = "".join(_read_hex(f"{folder}/{entry}", part).zfill(2) for part in parts)
                if len(code) == 6:
                    yield f"u{code}"

    def _list(self, folder: str) -> Iterator[tuple[str, str]]:
        path = os.path.join(self._root, folder)
        for name in sorted(_names(path)):
            yield name, os.path.join(path, name)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []  # no such bus on this host, or a device that has just gone


def _read(folder: str, file: str) -> str:
    """Return what a file of sysfs says, empty when it is not there or cannot be read."""
    try:
        with open(os.path.join(folder, file), "rb") as stream:
            return stream.read(_MAX_TEXT).decode("ascii", "replace").strip()
    except OSError:
        return ""


def _read_hex(folder: str, file: str) -> str:
    text = _read(folder, file).lower()
    return text if _HEX.fullmatch(text) else ""
