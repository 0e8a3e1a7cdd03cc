"""The host's devices, from folders that look as Linux shows them."""

from pathlib import Path

import pytest

from crannog.adapters.hostdevices.sysfs import SysfsDevices
from crannog.core.device_text import Device


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


@pytest.fixture
def host(tmp_path: Path) -> SysfsDevices:
    return SysfsDevices(str(tmp_path))


@pytest.mark.parametrize("devclass", ["pci", "block", "usb", "mic", "other"])
def test_a_host_without_sysfs_has_nothing(host: SysfsDevices, devclass: str) -> None:
    assert host.available(devclass) == []
    assert SysfsDevices("/nowhere").available(devclass) == []


def test_pci(host: SysfsDevices, tmp_path: Path) -> None:
    pci = tmp_path / "bus/pci/devices"
    write(pci / "0000:00:1f.2", vendor="0x8086\n", device="0x1e20\n", **{"class": "0x040300\n"})
    write(pci / "10000:e1:00.0", vendor="0x144D\n", device="0xa80a\n", **{"class": "0x10802\n"})
    write(pci / "0000:00:02.0", vendor="0x8086\n", device="what\n", **{"class": "0x030000\n"})
    write(pci / "0000:00:03.0", vendor="0x8086\n")
    write(pci / "strange", vendor="0x8086\n", device="0x1e20\n", **{"class": "0x040300\n"})
    (pci / "0000:00:04.0").write_text("a file")
    assert host.available("pci") == [
        Device("pci", "00_1f.2", "0x8086:0x1e20::p040300", "p040300", (("vendor", "0x8086"), ("product", "0x1e20"))),
        Device(
            "pci", "10000_e1_00.0", "0x144d:0xa80a::p010802", "p010802", (("vendor", "0x144d"), ("product", "0xa80a"))
        ),
    ]


def test_block(host: SysfsDevices, tmp_path: Path) -> None:
    block = tmp_path / "block"
    write(block / "sda", size="1000\n", ro="0\n", device__model="SSD 870 EVO     \n")
    write(block / "sr0", size="8\n", ro="1\n")
    write(block / "loop0", size="0\n", ro="0\n")
    write(block / "loop1", size="2\n", ro="0\n")
    write(block / "zram0", size="1000\n", ro="0\n")
    write(block / "ram0", size="1000\n", ro="0\n")
    write(block / "dm-0", size="1000\n", ro="0\n")
    write(block / "sdb", ro="0\n")
    write(block / "sdc", size="\u00b2\n", ro="0\n")
    ident = "0000:0000::b******"
    assert host.available("block") == [
        Device("block", "loop1", ident, "b******", (), options=(("size", "1024"), ("ro", "no"))),
        Device(
            "block", "sda", ident, "b******", (("name", "SSD 870 EVO"),), options=(("size", "512000"), ("ro", "no"))
        ),
        Device("block", "sr0", ident, "b******", (), options=(("size", "4096"), ("ro", "yes"))),
    ]


def test_usb(host: SysfsDevices, tmp_path: Path) -> None:
    usb = tmp_path / "bus/usb/devices"
    write(usb / "usb1", idVendor="1d6b\n", idProduct="0002\n")
    write(
        usb / "1-2.3", idVendor="046d\n", idProduct="c31c\n", manufacturer="Logi\n", product="K120\n", serial="a b:1\n"
    )
    for number, code in (("1.1", "00"), ("1.0", "01")):
        write(
            usb / f"1-2.3/1-2.3:{number}",
            bInterfaceClass="03\n", bInterfaceSubClass=f"{code}\n", bInterfaceProtocol="01\n",
        )  # fmt: skip
    write(usb / "1-2.3:1.0", bInterfaceClass="03\n")
    write(usb / "2-1", idVendor="1234\n", idProduct="5678\n")
    assert host.available("usb") == [
        Device(
            "usb", "1-2.3", "046d:c31c:a_b_1:u030101u030001", "u030101u030001",
            (("vendor", "046d"), ("product", "c31c"), ("manufacturer", "Logi"), ("name", "K120"), ("serial", "a b:1")),
        ),
        Device("usb", "2-1", "1234:5678::?******", "?******", (("vendor", "1234"), ("product", "5678"))),
    ]  # fmt: skip


def test_this_host_can_be_asked() -> None:
    for devclass in ("pci", "block", "usb", "mic"):
        for device in SysfsDevices().available(devclass):
            assert device.devclass == devclass
