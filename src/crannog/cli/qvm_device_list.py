"""qvm-device list and info: which devices there are, and who uses them."""

from __future__ import annotations

from crannog.cli.qvm_device_text import ANY, Device, parse_line
from crannog.cli.server_text import fetch, list_vms, print_table
from crannog.cli.tool import escape, say
from crannog.errors import NotFoundError, VMNotFoundError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from crannog.cli.request import Caller

    Pairs = dict[str, str]
    Use = tuple[Device, str, str]
    """What is attached or assigned, to which VM, and how that is shown."""

_KINDS = {
    "b": "Disk", "m": "Microphone", "u01": "Audio", "u02": "Network", "u03": "Input", "u030101": "Keyboard",
    "u030102": "Mouse", "u06": "Camera", "u07": "Printer", "u08": "Storage", "u09": "Hub", "u0b": "Smart card",
    "u0e": "Camera", "ue0": "Wireless", "ue001": "Bluetooth", "p01": "Storage", "p02": "Network", "p03": "Display",
    "p04": "Multimedia", "p0403": "Audio", "p05": "Memory", "p06": "Bridge", "p07": "Communication", "p08": "System",
    "p09": "Input", "p0c": "Serial bus", "p0c03": "USB controller", "p0c05": "SMBus", "p0d": "Wireless",
}  # fmt: skip
"""What the beginning of an interface's code says; the codes are those of USB (usb.org, Defined Class Codes) and PCI."""
_CODE_LENGTH = 7


def list_devices(client: Caller, devclass: str, vms: Sequence[str]) -> None:
    """Print the devices of a class with their users; with VMs, only those that one of them has or uses."""
    names = list_vms(client)
    for vm in vms:
        if vm not in names:
            raise VMNotFoundError(f"there is no VM '{vm}'; qvm-ls lists the VMs that there are")
    devices: list[tuple[Device, Pairs]] = []
    uses: list[Use] = []
    for vm in names:
        try:
            devices += fetch_devices(client, devclass, "Available", vm)
            uses += _fetch_uses(client, devclass, vm)
        except VMNotFoundError:
            continue  # somebody has just removed it
    for line in format_rows(_rows(devices, uses, set(vms))):
        say(line)


def fetch_devices(client: Caller, devclass: str, what: str, vm: str, port: str = "") -> list[tuple[Device, Pairs]]:
    """Return what a VM has (`Available`), gets by itself (`Assigned`) or has got (`Attached`), with all that is known.

    Raises DaemonError for an answer that is no list of devices.
    """
    method = f"admin.vm.device.{devclass}.{what}"
    return [parse_line(method, devclass, line) for line in fetch(client, method, vm, port).splitlines()]


def _fetch_uses(client: Caller, devclass: str, vm: str) -> list[Use]:
    uses = []
    for device, pairs in fetch_devices(client, devclass, "Attached", vm):
        uses.append((device, vm, f"{vm} (attached{_options(pairs)})"))
    for device, pairs in fetch_devices(client, devclass, "Assigned", vm):
        uses.append((device, vm, f"*{vm} ({pairs.get('mode', 'assigned')}{_options(pairs)})"))
    return uses


def _options(pairs: Pairs) -> str:
    return "".join(f", {key[1:]}={value}" for key, value in pairs.items() if key.startswith("_"))


def _rows(devices: list[tuple[Device, Pairs]], uses: list[Use], vms: set[str]) -> list[list[str]]:
    """Return the rows of the list: devices, then what is assigned but not there."""
    rows = []
    for device, pairs in devices:
        mine = [use for use in uses if use[0].covers(device)]
        if not vms or device.backend in vms or vms & {vm for _, vm, _ in mine}:
            users = ", ".join(text for _, _, text in mine)
            rows.append([f"{device.backend}:{device.port}", describe(pairs), users])
    for used, vm, text in uses:
        is_there = any(used.covers(device) for device, _ in devices)
        if not is_there and (not vms or vms & {vm, used.backend}):
            rows.append([str(used), "(not there)", text])
    return rows


def format_rows(rows: list[list[str]]) -> list[str]:
    """Return rows as lines with columns, without a heading, as scripts expect them of this tool."""
    shown = [[escape(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]


def describe(pairs: Pairs) -> str:
    """Return what kind of device it is, who made it and how it is called, as far as that is known."""
    codes = pairs.get("interfaces", "")
    kinds = [find_kind(codes[start : start + _CODE_LENGTH]) for start in range(0, len(codes), _CODE_LENGTH)]
    kind = ", ".join(dict.fromkeys(kind for kind in kinds if kind))
    maker = pairs.get("vendor") or pairs.get("manufacturer") or ""
    name = " ".join(part for part in (maker, pairs.get("product") or pairs.get("name") or "") if part)
    serial = f" ({pairs['serial']})" if pairs.get("serial") else ""
    return ": ".join(part for part in (kind, f"{name}{serial}".strip()) if part) or "unknown device"


def find_kind(code: str) -> str:
    """Return what an interface's code says; the longest beginning that is known counts."""
    for length in range(len(code), 0, -1):
        if code[:length] in _KINDS:
            return _KINDS[code[:length]]
    return ""


def find_present(client: Caller, device: Device) -> tuple[Device, Pairs]:
    """Return the device that is at a backend's port now; raises NotFoundError."""
    port = "" if device.port == ANY else device.port
    found = fetch_devices(client, device.devclass, "Available", device.backend, port)
    for present, pairs in found:
        if device.covers(present):
            return present, pairs
    raise NotFoundError(
        f"{device.backend} has no {device.devclass} device {str(device).partition(':')[2]}; "
        f"'qvm-device {device.devclass} list {device.backend}' lists those that it has"
    )


def show_device(client: Caller, device: Device) -> None:
    """Print all that is known of a device."""
    present, pairs = find_present(client, device)
    shown = {key.removeprefix("_"): value for key, value in pairs.items()}
    print_table([*shown.items(), ("description", describe(pairs))])
    uses = [use for vm in list_vms(client) for use in _fetch_uses(client, device.devclass, vm)]
    users = ", ".join(text for used, _, text in uses if used.covers(present))
    say(f"used by: {escape(users) or 'nobody'}")
