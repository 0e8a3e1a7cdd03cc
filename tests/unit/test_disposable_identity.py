"""What each disposable has of its own: numbers from its own one, and what its guest makes of what it is told."""

import os
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

    def run(self, *arguments: str, code: int = 0) -> None:
        script = re.sub(
            r"(?<![\w/])/(proc|sys|etc|dev|var|run)/", rf"{self.folder}/\1/", read_file("fresh-identity").decode()
        )
        environment = os.environ | {"PATH": f"{self.folder}/bin:{os.environ['PATH']}"}
        command = ["/bin/sh", "-c", script, "fresh-identity", *arguments]
        done = subprocess.run(command, capture_output=True, check=False, timeout=60, env=environment)
        assert (done.returncode, done.stderr) == (code, b"")

    def save(self) -> None:
        """Be a guest that was saved: its kernel and firmware say who it was."""
        self.write("proc/cmdline", f"quiet systemd.machine_id={'e' * 32} crannog.disposable crannog.name=disp1 last")
        self.write("etc/machine-id", "e" * 32)
        self.write("sys/class/dmi/id/product_uuid", "eeeeeeee-eeee-4eee-8eee-eeeeeeeeeeee")
        self.write("sys/class/dmi/id/chassis_serial", "disp1")
        (self.folder / "proc/sys/kernel/random").mkdir()
        self.write("proc/sys/kernel/random/boot_id", "the boot of the other")
        self.write("proc/sys/kernel/random/uuid", "another boot")
        (self.folder / "bin").mkdir()
        # What mount(8) does with a table of binds, but that nothing is mounted.
        self.write(
            "bin/mount",
            '#!/bin/sh\n[ "$1 $2" = "-a -T" ] && while read -r new old _; do cat "$new" >"$old"; done <"$3"',
        )
        (self.folder / "bin/mount").chmod(0o755)


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
        guest.write("sys/class/dmi/id/chassis_serial", "disp7")
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


@pytest.mark.parametrize(
    ("cmdline", "tag", "name"),
    [
        ("quiet crannog.name=work", "", "work"),
        ("quiet crannog.disposable crannog.name=disp9", "", "disp9"),
        ("quiet crannog.name=told crannog.name=last", "crannog.disposable", "last"),
        ("quiet", "crannog.disposable", "disp8"),
        ("quiet", "", "disp7"),
        ("quiet", "another vendor's", "disp7"),
    ],
)
def test_the_name_is_what_the_host_says(guest: Guest, cmdline: str, tag: str, name: str) -> None:
    """By the kernel's command line, or as the chassis' serial number of a disposable; else it is the system's own."""
    guest.write("proc/cmdline", cmdline)
    guest.write("sys/class/dmi/id/chassis_asset_tag", tag)
    guest.write("sys/class/dmi/id/chassis_serial", "disp8")
    guest.run()
    assert guest.read("proc/sys/kernel/hostname") == f"{name}\n"


# -- one that was restored from memory


def test_a_restored_one_is_told_who_it_is(guest: Guest) -> None:
    before = make_keys(guest)
    guest.save()
    guest.write("var/lib/urandom/random-seed", "seed")
    guest.run(UUID, "disp7")
    assert guest.read("etc/machine-id") == f"{HEX}\n"
    assert guest.read("proc/sys/kernel/hostname") == "disp7\n"
    assert not set(keys(guest).values()) & set(before.values())
    assert all(text.endswith(" root@disp7\n") for name, text in keys(guest).items() if name.endswith(".pub"))
    assert not (guest.folder / "var/lib/urandom/random-seed").exists()


def test_what_kernel_and_firmware_say_is_covered(guest: Guest) -> None:
    guest.save()
    guest.run(UUID, "disp7")
    assert guest.read("proc/cmdline").split() == [
        "quiet", f"systemd.machine_id={HEX}", "crannog.disposable", "crannog.name=disp7", "last",
    ]  # fmt: skip
    assert guest.read("proc/sys/kernel/random/boot_id") == "another boot\n"
    assert guest.read("sys/class/dmi/id/product_uuid") == f"{UUID}\n"
    assert guest.read("sys/class/dmi/id/chassis_serial") == "disp7\n"
    modes = {path.name: path.stat().st_mode & 0o777 for path in (guest.folder / "run/crannog/restored").iterdir()}
    assert (modes["product_uuid"], modes["chassis_serial"], modes["cmdline"] & 0o444) == (0o600, 0o600, 0o444)


def test_a_guest_without_firmware_tables_needs_no_cover_for_them(guest: Guest) -> None:
    guest.save()
    for name in ("product_uuid", "chassis_serial"):
        (guest.folder / "sys/class/dmi/id" / name).unlink()
    guest.run(UUID, "disp7")
    assert guest.read("etc/machine-id") == f"{HEX}\n"


@pytest.mark.parametrize("missing", ["the mount", "the machine-id"])
def test_half_an_identity_is_a_failure(guest: Guest, missing: str) -> None:
    """The agent then announces nothing, and the host ends this guest."""
    guest.save()
    if missing == "the mount":
        guest.write("bin/mount", "#!/bin/sh\nexit 32")
    else:
        (guest.folder / "etc/machine-id").unlink()
        (guest.folder / "etc/machine-id").mkdir()
    guest.run(UUID, "disp7", code=1)
