"""Exact bytes of the methods about devices and firewall rules (Admin API, sections 7 and 8)."""

import pytest

from crannog.core.device_names import DEVCLASSES
from tests.unit.bytes_world import (
    EXPECTED_ARGUMENT,
    EXPECTED_PAYLOAD,
    NOT_DOM0,
    ONLY_DOM0,
    UNEXPECTED_ARGUMENT,
    UNEXPECTED_PAYLOAD,
    Talk,
    absent,
    check,
    elsewhere,
    error,
    in_use,
    not_yet,
    ok,
    protocol,
    refused,
    say,
    talk,
)

SDA = "sys-net+sda+0000+0000++b______"
DISK = "device_id='0000:0000::b******' port_id='sda' devclass='block' backend_domain='sys-net'"
AVAILABLE = {
    "pci": "00_1f.2:0x8086:0x1e20::p020000 device_id='0x8086:0x1e20::p020000' port_id='00_1f.2' devclass='pci' "
    "backend_domain='dom0' vendor='0x8086' product='0x1e20' interfaces='p020000'\n",
    "block": "sda:0000:0000::b****** device_id='0000:0000::b******' port_id='sda' devclass='block' "
    "backend_domain='dom0' name='Acme' interfaces='b******' _size='8192' _ro='no'\n",
    "usb": "1-2:0951:1666:50_:u080650 device_id='0951:1666:50_:u080650' port_id='1-2' devclass='usb' "
    r"backend_domain='dom0' vendor='0951' product='1666' name='It\'s' serial='50%' interfaces='u080650'" + "\n",
    "mic": "",
}
PORTS = {"pci": "00_1f.2", "block": "sda", "usb": "1-2", "mic": "mic"}
MODES = {
    "pci": ("required", "required"),
    "block": ("required", "auto-attach"),
    "usb": ("auto-attach", "ask-to-attach"),
    "mic": ("ask-to-attach", "auto-attach"),
}
NO_MODE = protocol("'50%%' is no mode; the modes are manual, ask-to-attach, auto-attach, required")
NO_DEVICE = protocol("'sys%%net' names no device; it is BACKEND+PORT or BACKEND+PORT+DEVICEID")
NEITHER = protocol("'sys-net+_+_' names neither a port nor a device")
OTHER_DEVICE = protocol("the payload is about another device or VM than the call")


def not_assigned(what: str) -> bytes:
    return error("DeviceNotAssigned", "DeviceNotAssignedError", f"{what} is not assigned to work")


def every_method(devclass: str) -> Talk:
    """Return what is said to the methods of one class of devices."""
    prefix, port = f"admin.vm.device.{devclass}", PORTS[devclass]
    first, second = MODES[devclass]
    line = (
        f"sys-net+{port}:* device_id='*' port_id='{port}' devclass='{devclass}' backend_domain='sys-net' "
        "mode='{}' frontend_domain='work'\n"
    )
    cannot = f"{devclass} device sys-net:{port} cannot be {{}} work: this version of Crannog only assigns"
    return talk(
        f"devices of class {devclass}",
        say(f"{prefix}.Available+ dom0", ok(AVAILABLE[devclass])),
        say(f"{prefix}.Available+{port} dom0", ok(AVAILABLE[devclass])),
        say(f"{prefix}.Available+other dom0", ok()),
        say(f"{prefix}.Available+ sys-net", ok()),
        say(f"{prefix}.Assigned+ work", ok()),
        say(f"{prefix}.Assign+sys-net+{port}+_ work", ok(), f"mode='{first}'".encode()),
        say(f"{prefix}.Assigned+ work", ok(line.format(first))),
        say(f"{prefix}.Assigned+sys-net+{port} work", ok(line.format(first))),
        say(f"{prefix}.Assigned+sys-net+other work", ok()),
        say(f"{prefix}.Set.assignment+sys-net+{port}+_ work", ok(), second.encode()),
        say(f"{prefix}.Assigned+ work", ok(line.format(second))),
        say(f"{prefix}.Attached+ work", ok()),
        say(f"{prefix}.Attach+sys-net+{port}+_ work", not_yet(cannot.format("attached to"))),
        say(f"{prefix}.Detach+sys-net+{port}+_ work", not_yet(cannot.format("detached from"))),
        say(f"{prefix}.Unassign+sys-net+{port}+_ work", ok()),
        say(f"{prefix}.Assigned+ work", ok()),
        say(f"{prefix}.Unassign+sys-net+{port}+_ work", not_assigned(f"{devclass} device sys-net:{port}:*")),
        say(f"{prefix}.Set.assignment+sys-net+{port}+_ work", not_assigned(f"{devclass} device sys-net:{port}:*"),
            first.encode()),
        say(f"{prefix}.Available+a%b dom0", protocol("'a%%b' is no port of a device")),
        say(f"{prefix}.Assigned+50% work", protocol("'50%%' names no port; it is BACKEND+PORT")),
        say(f"{prefix}.Attached+50% work", protocol("'50%%' names no port; it is BACKEND+PORT")),
        say(f"{prefix}.Attach+sys%net work", NO_DEVICE),
        say(f"{prefix}.Detach+ work", EXPECTED_ARGUMENT),
        say(f"{prefix}.Unassign+ work", EXPECTED_ARGUMENT),
        say(f"{prefix}.Assign+sys-net+{port}+_ work", EXPECTED_PAYLOAD),
        say(f"{prefix}.Set.assignment+sys-net+{port}+_ work", EXPECTED_PAYLOAD),
        say(f"{prefix}.Available+ nobody", absent("nobody")),
        say(f"{prefix}.Set.required+sys-net+{port}+_ work", protocol(f"no such method: '{prefix}.Set.required'")),
    )  # fmt: skip


DEVICES = (
    talk(
        "classes of devices",
        say("admin.deviceclass.List+ dom0", ok("pci\nblock\nusb\nmic\n")),
        say("admin.deviceclass.List+ work", ONLY_DOM0),
        say("admin.deviceclass.List+x dom0", UNEXPECTED_ARGUMENT),
    ),
    *(every_method(devclass) for devclass in DEVCLASSES),
    talk(
        "an assignment with all that a client says",
        say(
            f"admin.vm.device.block.Assign+{SDA} work",
            ok(),
            f"{DISK} mode='required' frontend_domain='work' _ro='yes' _name='It\\'s 50%'".encode(),
        ),
        say(
            "admin.vm.device.block.Assigned+ work",
            ok(
                f"sys-net+sda:0000:0000::b****** {DISK} mode='required' frontend_domain='work' _ro='yes' "
                "_name='It\\'s 50%'\n"
            ),
        ),
        say(
            f"admin.vm.device.block.Assign+{SDA} work",
            error(
                "DeviceAlreadyAssigned",
                "DeviceAssignedError",
                "block device sys-net:sda:0000:0000::b****** is assigned to work already; its mode can be changed, "
                "other options need it to be unassigned first",
            ),
            b"mode='required'",
        ),
        say("admin.vm.property.Set+netvm work", ok()),
        say("admin.vm.Remove+ sys-net",
            in_use("sys-net is in use by work (device); change or remove that first")),
        say(f"admin.vm.device.block.Unassign+{SDA} work", ok()),
        say("admin.vm.Remove+ sys-net", ok()),
    ),
    talk(
        "refused assignments",
        say("admin.vm.device.block.Assign+sys%net work", NO_DEVICE, b"mode='required'"),
        say("admin.vm.device.block.Assign+sys-net+_+_ work", NEITHER, b"mode='required'"),
        say("admin.vm.device.block.Assign+nobody+sda+_ work", absent("nobody"), b"mode='required'"),
        say("admin.vm.device.block.Assign+sys-net+sda+_ work", NO_MODE, b"mode='50%'"),
        say("admin.vm.device.block.Set.assignment+sys-net+sda+_ work", NO_MODE, b"50%"),
        say("admin.vm.device.block.Assign+sys-net+sda+_ work", OTHER_DEVICE, b"mode='required' port_id='sdc'"),
        say("admin.vm.device.block.Assign+sys-net+sda+_ work", protocol("'odd' is no property of an assignment"),
            b"mode='required' odd='1'"),
        say("admin.vm.device.block.Assign+sys-net+sda+_ work",
            protocol("the payload is not made of KEY='VALUE', each key once, near '50%%'"), b"50%"),
        say(
            "admin.vm.device.pci.Assign+dom0+00_1f.2+_ work",
            refused("pci devices cannot be assigned in mode auto-attach; use required"),
            b"mode='auto-attach'",
        ),
        say(
            "admin.vm.device.usb.Assign+sys-net+1-2+_ work",
            refused("usb devices cannot be assigned in mode required; use ask-to-attach or auto-attach"),
            b"mode='required'",
        ),
        say("admin.vm.device.block.Assign+work+sda+_ work",
            refused("the device is work's own; it can be assigned to other VMs only"), b"mode='required'"),
        say(
            "admin.vm.device.block.Assign+sys-net+sda+_ dom0",
            refused("dom0 is of class AdminVM and is not given devices; only VMs that run on this host are"),
            b"mode='required'",
        ),
    ),
    talk(
        "denied interfaces",
        say("admin.vm.device.denied.List+ work", ok()),
        say("admin.vm.device.denied.Add+ work", ok(), b"u03****b******"),
        say("admin.vm.device.denied.Add+ work", ok()),
        say("admin.vm.device.denied.List+ work", ok("u03****\nb******")),
        say("admin.vm.property.Get+devices_denied work", ok("default=False type=str u03****b******")),
        say("admin.vm.device.denied.Remove+ work", ok(), b"b******"),
        say("admin.vm.device.denied.List+ work", ok("u03****")),
        say("admin.vm.device.denied.Remove+ work", ok(), b"all"),
        say("admin.vm.device.denied.List+ work", ok()),
        say("admin.vm.device.denied.Add+ work",
            protocol("'50%%' is no interface code; it is one of p u b m ? and six of 0-9 a-f *"), b"50%"),
        say("admin.vm.device.denied.Add+ work", refused("an interface code is there twice"), b"b******b******"),
        say("admin.vm.device.denied.Remove+ work",
            protocol("'odd' is no interface code; it is one of p u b m ? and six of 0-9 a-f *"), b"odd"),
        say("admin.vm.device.denied.List+x work", UNEXPECTED_ARGUMENT),
        say(
            "admin.vm.device.denied.List+ far",
            error(
                "QubesNoSuchPropertyError",
                "PropertyNotFoundError",
                "far has no property 'devices_denied'; the properties are listed by the command without a name",
            ),
        ),
    ),
)  # fmt: skip

FIREWALL = (
    talk(
        "firewall rules",
        say("admin.vm.firewall.Get+ work", ok("action=accept\n")),
        say(
            "admin.vm.firewall.Set+ work",
            ok(),
            b"action=accept proto=tcp dst4=1.2.3.4 dstports=80-80 comment=50% off\n"
            b"action=accept dsthost=example.com\naction=accept specialtarget=dns\n"
            b"icmptype=8 proto=icmp action=drop\naction=drop dst6=fd00::/8 expire=99999999999\n",
        ),
        say(
            "admin.vm.firewall.Get+ work",
            ok(
                "action=accept dst4=1.2.3.4/32 proto=tcp dstports=80-80 comment=50% off\n"
                "action=accept dsthost=example.com\naction=accept specialtarget=dns\n"
                "action=drop proto=icmp icmptype=8\naction=drop dst6=fd00::/8 expire=99999999999\n"
            ),
        ),
        say("admin.vm.firewall.Set+ work", ok(), b"action=drop expire=1\n"),
        say("admin.vm.firewall.Get+ work", ok()),
        say("admin.vm.firewall.Set+ work", ok()),
        say("admin.vm.firewall.Get+ work", ok()),
        say("admin.vm.firewall.Reload+ work", ok()),
    ),
    talk(
        "refused firewall rules",
        say(
            "admin.vm.firewall.Set+ work",
            refused("firewall rule 2 was refused: action cannot be '50%%'; it is accept or drop"),
            b"action=drop\naction=50%\n",
        ),
        say(
            "admin.vm.firewall.Set+ work",
            refused("firewall rule 1 was refused: it holds characters that are not printable ASCII"),
            b"action=drop\0",
        ),
        say("admin.vm.firewall.Get+ work", ok("action=accept\n")),
        say("admin.vm.firewall.Get+ dom0", NOT_DOM0),
        say("admin.vm.firewall.Set+ dom0", NOT_DOM0),
        say("admin.vm.firewall.Reload+ dom0", NOT_DOM0),
        say("admin.vm.firewall.Get+ far", elsewhere("far", "RemoteVM")),
        say("admin.vm.firewall.Get+x work", UNEXPECTED_ARGUMENT),
        say("admin.vm.firewall.Reload+ work", UNEXPECTED_PAYLOAD, b"x"),
        say("admin.vm.firewall.Get+ nobody", absent("nobody")),
    ),
)

TALKS = (*DEVICES, *FIREWALL)


@pytest.mark.parametrize("spoken", TALKS, ids=str)
async def test_exact_replies(spoken: Talk) -> None:
    await check(spoken)
