"""The methods about devices, byte for byte, what is told, and what the file says afterwards."""

import errno
import os
from pathlib import Path

import pytest

from crannog.adapters.store import file as store_file
from crannog.adapters.store.file import FileStore
from crannog.api.framing import Request
from crannog.api.methods import METHODS, answer
from crannog.core.devices import Assignment
from crannog.errors import (
    CrannogError,
    DeviceAssignedError,
    DeviceNotAssignedError,
    InUseError,
    NotYetError,
    PropertyNotFoundError,
    ProtocolError,
    StorageError,
    ValueRefusedError,
    VMNotFoundError,
)
from crannog.offline.backend import OfflineBackend
from tests.fakes import Inside, add_vm, build_inside, template_and_app

SDA = "sys-net+sda+0000+0000++b______"
SDA_LINE = (
    "sys-net+sda:0000:0000::b****** device_id='0000:0000::b******' port_id='sda' devclass='block' "
    "backend_domain='sys-net' mode='{}' frontend_domain='work'{}\n"
)
NIC = "dom0+00_1f.2+0x8086+0x1e20++p020000"
Told = list[tuple[str, str, dict[str, str]]]


@pytest.fixture
def inside(tmp_path: Path) -> Inside:
    inside = build_inside(tmp_path)
    template_and_app(inside.registry)
    add_vm(inside.registry, "StandaloneVM", "sys-net")
    inside.registry.create("RemoteVM", "far", "00000000-0000-4000-8000-000000000009", None)
    inside.store.save(inside.registry)
    return inside


async def call(inside: Inside, method: str, vm: str = "work", argument: str = "", payload: str = "") -> str:
    name = method if method.startswith("admin.") else f"admin.vm.device.{method}"
    return (await answer(inside.inventory, Request(name, argument, "dom0", vm, payload.encode()))).decode()


def listen(inside: Inside) -> Told:
    told: Told = []
    inside.inventory.editor.listen(lambda event: told.append((event.subject, event.name, event.arguments)))
    return told


def on_disk(inside: Inside) -> tuple[Assignment, ...]:
    """Return what the file says of `work`, which is also what is in memory."""
    kept = inside.reloaded().find_vm("work").devices
    assert kept == inside.registry.find_vm("work").devices
    return kept


def write_device(inside: Inside, folder: str, **files: str) -> None:
    path = Path(inside.paths.home, "sys", folder)
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(text)


async def test_classes(inside: Inside) -> None:
    assert await call(inside, "admin.deviceclass.List", "dom0") == "pci\nblock\nusb\nmic\n"
    for name in ("pci", "block", "usb", "mic"):
        kinds = ("Available", "Assigned", "Attached", "Assign", "Unassign", "Set.assignment", "Attach", "Detach")
        assert {f"admin.vm.device.{name}.{kind}" for kind in kinds} <= set(METHODS)


async def test_assign_and_unassign(inside: Inside) -> None:
    told = listen(inside)
    payload = (
        "device_id='0000:0000::b******' port_id='sda' devclass='block' backend_domain='sys-net' mode='required' "
        "frontend_domain='work' _read-only='yes'"
    )
    assert await call(inside, "block.Assign", argument=SDA, payload=payload) == ""
    device = "sys-net:sda:0000:0000::b******"
    arguments = {"device": device, "options": "{'read-only': 'yes'}"}
    assert told == [
        ("work", "device-pre-assign:block", arguments),
        ("work", "device-assign:block", arguments),
    ]
    assert await call(inside, "block.Assigned") == SDA_LINE.format("required", " _read-only='yes'")
    assert await call(inside, "block.Attached") == ""
    assert await call(inside, "usb.Assigned") == ""
    (kept,) = on_disk(inside)
    assert kept.attributes == (
        ("backend-domain", "sys-net"), ("id", "sda"), ("mode", "required"), ("identity", "0000:0000::b******")
    )  # fmt: skip
    told.clear()
    assert await call(inside, "block.Unassign", argument=SDA) == ""
    assert told == [("work", "device-unassign:block", {"device": device})]
    assert (await call(inside, "block.Assigned"), on_disk(inside)) == ("", ())


async def test_a_port_is_assigned_whatever_is_there(inside: Inside) -> None:
    told = listen(inside)
    await call(inside, "usb.Assign", argument="sys-net+1-2", payload="mode='auto-attach'")
    assert told[-1] == ("work", "device-assign:usb", {"device": "sys-net:1-2:*", "options": "{}"})
    assert await call(inside, "usb.Assigned") == (
        "sys-net+1-2:* device_id='*' port_id='1-2' devclass='usb' backend_domain='sys-net' mode='auto-attach' "
        "frontend_domain='work'\n"
    )
    with pytest.raises(DeviceAssignedError):
        await call(inside, "usb.Assign", argument="sys-net+1-2+_", payload="mode='ask-to-attach'")
    await call(inside, "usb.Unassign", argument="sys-net+1-2+_")
    assert on_disk(inside) == ()


async def test_lists_are_sorted_and_filtered(inside: Inside) -> None:
    for port in ("sdc", "sda", "sdb"):
        await call(inside, "block.Assign", argument=f"sys-net+{port}+_", payload="mode='ask-to-attach'")
    await call(inside, "block.Assign", argument="debian+sda+_", payload="mode='ask-to-attach'")
    lines = (await call(inside, "block.Assigned")).splitlines()
    assert [line.partition(" ")[0] for line in lines] == [
        "debian+sda:*",
        "sys-net+sda:*",
        "sys-net+sdb:*",
        "sys-net+sdc:*",
    ]
    assert await call(inside, "block.Assigned", argument="sys-net+sda") == lines[1] + "\n"
    assert await call(inside, "block.Assigned", argument="sys-net+sdz") == ""
    assert await call(inside, "block.Attached", argument="sys-net+sda") == ""


async def test_another_mode(inside: Inside) -> None:
    await call(inside, "block.Assign", argument=SDA, payload="mode='required' _ro='yes'")
    told = listen(inside)
    assert await call(inside, "block.Set.assignment", argument=SDA, payload="required") == ""
    assert told == []
    assert await call(inside, "block.Set.assignment", argument=SDA, payload="ask-to-attach") == ""
    device = {"device": "sys-net:sda:0000:0000::b******"}
    assert told == [
        ("work", "device-pre-assign:block", {**device, "options": "{'ro': 'yes'}"}),
        ("work", "device-assignment-changed:block", device),
    ]
    assert await call(inside, "block.Assigned") == SDA_LINE.format("ask-to-attach", " _ro='yes'")
    assert [kept.mode for kept in on_disk(inside)] == ["ask-to-attach"]


@pytest.mark.parametrize(
    ("method", "argument", "payload", "kind"),
    [
        ("pci.Assign", NIC, "mode='auto-attach'", ValueRefusedError),
        ("pci.Assign", NIC, "mode='manual'", ValueRefusedError),
        ("pci.Assign", NIC, "_x='y'", ValueRefusedError),
        ("usb.Assign", "sys-net+1-1+_", "mode='required'", ValueRefusedError),
        ("mic.Assign", "dom0+mic+_", "mode='required'", ValueRefusedError),
        ("block.Assign", SDA, "mode='manual'", ValueRefusedError),
        ("block.Assign", SDA, "mode='x'", ProtocolError),
        ("block.Assign", SDA, "nonsense", ProtocolError),
        ("block.Assign", SDA, "mode='required' port_id='sdb'", ProtocolError),
        ("block.Assign", SDA, "mode='required' frontend_domain='debian'", ProtocolError),
        ("block.Assign", SDA, "mode='\u00e9'", ProtocolError),
        ("block.Assign", "sys-net", "mode='required'", ProtocolError),
        ("block.Assign", "nobody+sda+_", "mode='required'", VMNotFoundError),
        ("block.Assign", "work+sda+_", "mode='required'", ValueRefusedError),
        ("block.Unassign", SDA, "", DeviceNotAssignedError),
        ("block.Unassign", "sda", "", ProtocolError),
        ("block.Set.assignment", SDA, "required", DeviceNotAssignedError),
        ("block.Set.assignment", SDA, "manual", ValueRefusedError),
        ("block.Set.assignment", SDA, "x", ProtocolError),
        ("usb.Set.assignment", SDA, "required", ValueRefusedError),
        ("block.Assigned", "sda", "", ProtocolError),
        ("block.Attached", "sda", "", ProtocolError),
        ("block.Available", "a+b", "", ProtocolError),
        ("block.Attach", SDA, "mode='manual'", NotYetError),
        ("block.Attach", SDA, "", NotYetError),
        ("block.Detach", SDA, "", NotYetError),
        ("block.Detach", "sda", "", ProtocolError),
    ],
)
async def test_refusals_change_nothing(
    inside: Inside, method: str, argument: str, payload: str, kind: type[CrannogError]
) -> None:
    told = listen(inside)
    with pytest.raises(kind) as caught:
        await call(inside, method, argument=argument, payload=payload)
    assert type(caught.value) is kind
    assert (on_disk(inside), told) == ((), [])


async def test_what_is_assigned_is_not_assigned_again(inside: Inside) -> None:
    await call(inside, "block.Assign", argument=SDA, payload="mode='required'")
    before, told = on_disk(inside), listen(inside)
    with pytest.raises(
        DeviceAssignedError, match=r"block device sys-net:sda:0000:0000::b.* is assigned to work already"
    ):
        await call(inside, "block.Assign", argument=SDA, payload="mode='auto-attach'")
    assert (on_disk(inside), told) == (before, [])
    await call(inside, "block.Assign", "debian", SDA, "mode='required'")
    assert DeviceAssignedError("").wire_name == "DeviceAlreadyAssigned"
    assert DeviceNotAssignedError("").wire_name == "DeviceNotAssigned"


@pytest.mark.parametrize("vm", ["dom0", "far"])
async def test_who_is_given_no_devices(inside: Inside, vm: str) -> None:
    with pytest.raises(ValueRefusedError, match=f"{vm} is of class .* and is not given devices"):
        await call(inside, "block.Assign", vm, SDA, "mode='required'")
    assert await call(inside, "block.Assigned", vm) == ""
    with pytest.raises(DeviceNotAssignedError):
        await call(inside, "block.Unassign", vm, SDA)


@pytest.mark.parametrize(
    ("method", "argument", "payload", "text"),
    [
        ("admin.deviceclass.List", "x", "", "unexpected argument"),
        ("admin.deviceclass.List", "", "x", "unexpected payload"),
        ("admin.deviceclass.List", "", "", "expected destination to be AdminVM"),
        ("block.Available", "", "x", "unexpected payload"),
        ("block.Assigned", "", "x", "unexpected payload"),
        ("block.Attached", "", "x", "unexpected payload"),
        ("block.Assign", "", "mode='required'", "expected an argument"),
        ("block.Assign", SDA, "", "expected payload"),
        ("block.Unassign", "", "", "expected an argument"),
        ("block.Unassign", SDA, "x", "unexpected payload"),
        ("block.Set.assignment", "", "required", "expected an argument"),
        ("block.Set.assignment", SDA, "", "expected payload"),
        ("block.Attach", "", "", "expected an argument"),
        ("block.Detach", SDA, "x", "unexpected payload"),
        ("denied.List", "x", "", "unexpected argument"),
        ("denied.Add", "x", "", "unexpected argument"),
        ("cdrom.Available", "", "", "no such method"),
    ],
)
async def test_wrong_calls(inside: Inside, method: str, argument: str, payload: str, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        await call(inside, method, argument=argument, payload=payload)


async def test_an_assignment_that_cannot_be_saved_is_taken_back(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = listen(inside)

    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store_file, "write_whole", refuse)
    with pytest.raises(StorageError):
        await call(inside, "block.Assign", argument=SDA, payload="mode='required'")
    assert (on_disk(inside), told) == ((), [])


async def test_a_backend_that_gets_another_name(inside: Inside) -> None:
    await call(inside, "block.Assign", argument=SDA, payload="mode='required'")
    await call(inside, "admin.vm.property.Set", "sys-net", "name", "sys-wire")
    assert (await call(inside, "block.Assigned")) == SDA_LINE.format("required", "").replace("sys-net", "sys-wire")
    assert [kept.backend for kept in on_disk(inside)] == ["sys-wire"]
    with pytest.raises(DeviceNotAssignedError):
        await call(inside, "block.Unassign", argument=SDA)
    await call(inside, "block.Unassign", argument=SDA.replace("sys-net", "sys-wire"))


async def test_a_backend_in_use_stays(inside: Inside) -> None:
    await call(inside, "block.Assign", argument=SDA, payload="mode='required'")
    with pytest.raises(InUseError, match=r"sys-net is in use by work \(device\)"):
        await call(inside, "admin.vm.Remove", "sys-net")
    await call(inside, "block.Unassign", argument=SDA)
    inside.registry.find_vm("sys-net").volumes.clear()
    await call(inside, "admin.vm.Remove", "sys-net")


async def test_a_frontend_that_gets_another_name(inside: Inside) -> None:
    await call(inside, "block.Assign", argument=SDA, payload="mode='required'")
    await call(inside, "admin.vm.property.Set", "work", "name", "desk")
    expected = SDA_LINE.format("required", "").replace("'work'", "'desk'")
    assert await call(inside, "block.Assigned", "desk") == expected


async def test_a_file_of_another_version_goes_both_ways(inside: Inside) -> None:
    path = Path(inside.paths.store)
    old = (
        b'<devices class="pci"><device backend-domain="dom0" id="02_00.0"><option name="permissive">True</option>'
        b'</device></devices><devices class="usb"><device backend-domain="dom0" id="1-1" required="False">'
        b'<option name="identity">1:2::u030101</option></device></devices>'
    )
    tail = b"</domain>"
    head, _, rest = path.read_bytes().partition(b">work</property>")
    path.write_bytes(head + b">work</property>" + rest.replace(tail, old + tail, 1))
    backend = OfflineBackend(inside.paths, FileStore(inside.paths.store, inside.paths.kernels))
    assert await answer(backend, Request("admin.vm.device.pci.Assigned", "", "dom0", "work", b"")) == (
        b"dom0+02_00.0:* device_id='*' port_id='02_00.0' devclass='pci' backend_domain='dom0' mode='required' "
        b"frontend_domain='work' _permissive='True'\n"
    )
    request = Request("admin.vm.device.usb.Assigned", "", "dom0", "work", b"")
    assert await answer(backend, request) == (
        b"dom0+1-1:1:2::u030101 device_id='1:2::u030101' port_id='1-1' devclass='usb' backend_domain='dom0' "
        b"mode='auto-attach' frontend_domain='work'\n"
    )
    change = Request("admin.vm.device.usb.Set.assignment", "dom0+1-1+1+2++u030101", "dom0", "work", b"ask-to-attach")
    assert await answer(backend, change) == b""
    text = path.read_bytes()
    assert b'<device backend-domain="dom0" id="02_00.0"><option name="permissive">True</option></device>' in text
    assert (
        b'<device backend-domain="dom0" id="1-1" mode="ask-to-attach"><option name="identity">1:2::u030101</option>'
        in text
    )


async def test_devices_of_the_host(inside: Inside) -> None:
    assert [await call(inside, f"{name}.Available", "dom0") for name in ("pci", "block", "usb", "mic")] == [""] * 4
    for port, vendor in (("0000:00:1f.2", "0x8086"), ("0000:00:02.0", "0x1234")):
        write_device(
            inside, f"bus/pci/devices/{port}", vendor=f"{vendor}\n", device="0x1e20\n", **{"class": "0x020000\n"}
        )
    write_device(inside, "block/sda", size="1000\n", ro="1\n")
    lines = [
        f"{port}:{vendor}:0x1e20::p020000 device_id='{vendor}:0x1e20::p020000' port_id='{port}' devclass='pci' "
        f"backend_domain='dom0' vendor='{vendor}' product='0x1e20' interfaces='p020000'\n"
        for port, vendor in (("00_02.0", "0x1234"), ("00_1f.2", "0x8086"))
    ]
    assert await call(inside, "pci.Available", "dom0") == "".join(lines)
    assert await call(inside, "pci.Available", "dom0", "00_1f.2") == lines[1]
    assert await call(inside, "pci.Available", "dom0", "00_1f.3") == ""
    assert await call(inside, "block.Available", "dom0") == (
        "sda:0000:0000::b****** device_id='0000:0000::b******' port_id='sda' devclass='block' backend_domain='dom0' "
        "interfaces='b******' _size='512000' _ro='yes'\n"
    )
    assert await call(inside, "pci.Available", "sys-net") == ""
    await call(inside, "pci.Assign", argument=NIC, payload="mode='required' _no-strict-reset='True'")
    assert [str(kept.device) for kept in on_disk(inside)] == ["dom0:00_1f.2:0x8086:0x1e20::p020000"]


@pytest.mark.parametrize("vm", ["work", "dom0"])
async def test_denied_interfaces(inside: Inside, vm: str) -> None:
    told = listen(inside)
    assert await call(inside, "denied.List", vm) == ""
    await call(inside, "denied.Add", vm, payload="u03****b******")
    assert await call(inside, "denied.List", vm) == "u03****\nb******"
    assert inside.reloaded().find_vm(vm).get("devices_denied") == "u03****b******"
    assert {name for _, name, _ in told} == {"property-pre-set:devices_denied", "property-set:devices_denied"}
    told.clear()
    await call(inside, "denied.Add", vm, payload="b******")
    await call(inside, "denied.Add", vm)
    await call(inside, "denied.Remove", vm)
    await call(inside, "denied.Remove", vm, payload="m******")
    assert told == []
    await call(inside, "denied.Add", vm, payload="b******p02****")
    assert await call(inside, "denied.List", vm) == "u03****\nb******\np02****"
    await call(inside, "denied.Remove", vm, payload="b******m******")
    assert await call(inside, "denied.List", vm) == "u03****\np02****"
    await call(inside, "denied.Remove", vm, payload="all")
    assert await call(inside, "denied.List", vm) == ""
    assert inside.reloaded().find_vm(vm).get("devices_denied") == ""


async def test_denied_interfaces_that_are_refused(inside: Inside) -> None:
    for method in ("denied.Add", "denied.Remove"):
        for payload in ("u03", "x******", "u03****\n", "\u00e9", "ALL"):
            with pytest.raises(ProtocolError):
                await call(inside, method, payload=payload)
        with pytest.raises(ValueRefusedError, match="twice"):
            await call(inside, method, payload="u03****u03****")
        with pytest.raises(PropertyNotFoundError):
            await call(inside, method, "far", payload="u03****")


async def test_offline(inside: Inside) -> None:
    backend = OfflineBackend(inside.paths, FileStore(inside.paths.store, inside.paths.kernels))
    assign = Request("admin.vm.device.block.Assign", SDA, "dom0", "work", b"mode='required'")
    assert await answer(backend, assign) == b""
    listed = await answer(backend, Request("admin.vm.device.block.Assigned", "", "dom0", "work", b""))
    assert listed.decode() == SDA_LINE.format("required", "")
    assert len(inside.reloaded().find_vm("work").devices) == 1
    assert isinstance(await answer(backend, Request("admin.vm.device.pci.Available", "", "dom0", "dom0", b"")), bytes)
