"""What each disposable has of its own: numbers from its own one, and what its guest makes of what it is told."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from lxml import etree

from crannog.adapters.libvirt.domain_xml import build_domain_xml
from crannog.core.network import MAC, default_mac
from crannog.core.plan import CreatePaused
from crannog.core.startup import StartRequest, plan_start
from crannog.core.vms import LocalVM
from crannog.images.guestfiles import read_file
from tests.fakes import add_vm, halted_facts, new_registry, template_and_app

UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
HEX = UUID.replace("-", "")


def disposable(mode: str = "pvh") -> LocalVM:
    registry = new_registry()
    _, app = template_and_app(registry, mode)
    app.set("template_for_dispvms", value=True)
    return add_vm(registry, "DispVM", "disp7", app)


def spec_of(vm: LocalVM):  # type: ignore[no-untyped-def]  # noqa: ANN201
    plan = plan_start(vm, StartRequest(), halted_facts())
    return next(step for step in plan if isinstance(step, CreatePaused)).spec


def test_no_two_disposables_share_a_mac_address() -> None:
    vm = disposable()
    addresses = set()
    for number in range(1, 10000):
        vm.values["dispid"] = number
        addresses.add(default_mac(vm))
    assert len(addresses) == 9999
    assert MAC not in addresses
    assert all(re.fullmatch("00:16:3e(:[0-9a-f]{2}){3}", address) for address in addresses)


def test_the_kernel_is_told() -> None:
    vm = disposable()
    words = spec_of(vm).kernelopts.split()
    assert "crannog.disposable" in words
    assert f"systemd.machine_id={vm.uuid.replace('-', '')}" in words
    assert "crannog.disposable" not in spec_of(vm.template).kernelopts  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["pvh", "hvm"])
def test_the_firmware_tells(mode: str) -> None:
    vm = disposable(mode)
    spec = spec_of(vm)
    capabilities = halted_facts().capabilities
    for one, told in ((spec, ["crannog.disposable"]), (replace(spec, is_disposable=False), [])):
        xml = etree.fromstring(build_domain_xml(one, capabilities))
        assert xml.xpath("sysinfo/chassis/entry[@name='asset']/text()") == told


class Guest:
    """A tree that the guest's script takes for its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("proc/sys/kernel", "sys/class/dmi/id", "sys/hypervisor", "etc/ssh", "dev", "var/lib/urandom"):
            (folder / name).mkdir(parents=True)
        self.write("proc/cmdline", "root=/dev/vda quiet")
        self.write("proc/sys/kernel/hostname", "disp7")
        self.write("dev/console", "")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text + "\n")

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def run(self) -> None:
        script = re.sub(
            r"(?<![\w/])/(proc|sys|etc|dev|var)/", rf"{self.folder}/\1/", read_file("fresh-identity").decode()
        )
        done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


@pytest.mark.parametrize("place", ["cmdline", "dmi", "xen"])
def test_the_machine_id_is_the_uuid(guest: Guest, place: str) -> None:
    guest.write("etc/machine-id", "f" * 32)
    if place == "cmdline":
        guest.write("proc/cmdline", f"quiet systemd.machine_id={HEX} crannog.disposable")
        guest.write("sys/class/dmi/id/product_uuid", "11111111-1111-1111-1111-111111111111")
    elif place == "dmi":
        guest.write("sys/class/dmi/id/product_uuid", UUID.upper())
    else:
        guest.write("sys/hypervisor/uuid", UUID)
    if place != "cmdline":
        guest.write("proc/cmdline", "crannog.disposable")
    guest.run()
    assert guest.read("etc/machine-id") == f"{HEX}\n"


@pytest.mark.parametrize("uuid", ["", "not-a-uuid", "0f8fad5b", f"{UUID}0", "../../../../etc/passwd", "g" * 32])
def test_nonsense_is_no_machine_id(guest: Guest, uuid: str) -> None:
    guest.write("etc/machine-id", "f" * 32)
    guest.write("proc/cmdline", "crannog.disposable")
    guest.write("sys/class/dmi/id/product_uuid", uuid)
    guest.run()
    assert guest.read("etc/machine-id") == "f" * 32 + "\n"


@pytest.mark.parametrize(("old", "new"), [("f" * 32, "f" * 32), ("", HEX), ("uninitialized", HEX), (None, HEX)])
def test_who_keeps_things_gets_a_machine_id_once(guest: Guest, old: str | None, new: str) -> None:
    if old is not None:
        guest.write("etc/machine-id", old)
    guest.write("sys/class/dmi/id/product_uuid", UUID)
    guest.run()
    assert guest.read("etc/machine-id") == f"{new}\n"


def make_keys(guest: Guest) -> dict[str, str]:
    for kind in ("ed25519", "ecdsa"):
        command = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", f"{guest.folder}/etc/ssh/ssh_host_{kind}_key"]
        subprocess.run(command, check=True)
    return keys(guest)


def keys(guest: Guest) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((guest.folder / "etc/ssh").iterdir())}


@pytest.mark.parametrize("how", ["cmdline", "chassis"])
def test_a_disposable_has_host_keys_of_its_own(guest: Guest, how: str) -> None:
    before = make_keys(guest)
    guest.write("var/lib/urandom/random-seed", "seed")
    if how == "cmdline":
        guest.write("proc/cmdline", "quiet crannog.disposable")
    else:
        guest.write("sys/class/dmi/id/chassis_asset_tag", "crannog.disposable")
    guest.run()
    after = keys(guest)
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    assert all(text.endswith(" root@disp7\n") for name, text in after.items() if name.endswith(".pub"))
    assert not (guest.folder / "var/lib/urandom/random-seed").exists()


@pytest.mark.parametrize("cmdline", ["quiet", "quiet crannog.disposable.not", "crannog.name=crannog.disposable"])
def test_who_keeps_things_keeps_its_keys(guest: Guest, cmdline: str) -> None:
    before = make_keys(guest)
    guest.write("proc/cmdline", cmdline)
    guest.run()
    assert keys(guest) == before
