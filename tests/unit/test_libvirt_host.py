"""What a Xen host says of itself."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import libvirt
import pytest

from crannog.adapters.libvirt.hosts import xen
from crannog.adapters.libvirt.hosts.host import Place
from crannog.adapters.libvirt.hosts.xen import XenHost, find_files, read_xen_capabilities
from crannog.core.domain import DomainInfo, DomainSpec, DomainState, DomainStats, HostCapabilities

EMULATOR = "/usr/libexec/xen-qemu-system-i386"
LOADER = "/usr/lib/xen-4.17/boot/hvmloader"


def guest(kind: str, arch: str = "x86_64", loader: str = "") -> str:
    firmware = f"<loader>{loader}</loader>" if loader else ""
    return (
        f"<guest><os_type>{kind}</os_type><arch name='{arch}'><wordsize>64</wordsize>"
        f"<emulator>{EMULATOR}</emulator>{firmware}<machine>m</machine><domain type='xen'/></arch></guest>"
    )


def capabilities(*guests: str) -> str:
    host = "<host><cpu><arch>x86_64</arch></cpu></host>"
    return f"<?xml version='1.0'?><capabilities>{host}{''.join(guests)}</capabilities>"


def test_a_host_with_hvm_support() -> None:
    xml = capabilities(guest("xen"), guest("hvm", "i686", "/32bit"), guest("hvm", loader=LOADER), guest("xenpvh"))
    assert read_xen_capabilities(xml) == HostCapabilities("xen", True, EMULATOR, "xen", LOADER)


def test_a_host_without_hvm_support() -> None:
    """B14: the answer comes from the capabilities."""
    assert read_xen_capabilities(capabilities(guest("xen"))) == HostCapabilities("xen", False, EMULATOR, "xen")


def test_a_host_that_runs_nothing() -> None:
    assert read_xen_capabilities(capabilities()) == HostCapabilities("xen", False, "", "xen")


def stated(
    emulator: str = "/usr/lib/xen/bin/qemu-system-i386", loader: str = "/usr/lib/xen/boot/hvmloader"
) -> HostCapabilities:
    return HostCapabilities("xen", True, emulator, "xen", loader)


def make_files(root: Path, *names: str, version: str = "4.17") -> None:
    major, minor = version.split(".")
    folder = root / "sys/hypervisor/version"
    folder.mkdir(parents=True)
    (folder / "major").write_text(f"{major}\n")
    (folder / "minor").write_text(f"{minor}\n")
    for name in names:
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_files_that_a_distribution_has_elsewhere_are_found(tmp_path: Path) -> None:
    make_files(tmp_path, EMULATOR, LOADER)
    assert find_files(stated(), str(tmp_path)) == stated(EMULATOR, LOADER)


def test_files_that_are_where_libvirt_says_are_used(tmp_path: Path) -> None:
    make_files(tmp_path, EMULATOR, LOADER, stated().emulator, stated().loader)
    assert find_files(stated(), str(tmp_path)) == stated()


def test_firmware_of_another_xen_is_not_used(tmp_path: Path) -> None:
    make_files(tmp_path, LOADER, version="4.18")
    assert find_files(stated(), str(tmp_path)) == stated(), "what is nowhere stays as libvirt says it"


def test_a_host_without_hvms_needs_no_firmware(tmp_path: Path) -> None:
    make_files(tmp_path, LOADER)
    assert find_files(stated(loader=""), str(tmp_path)).loader == ""


class Gone(libvirt.libvirtError):  # type: ignore[misc]  # the binding has no types
    """libvirt's error for a domain that has ended."""

    def __init__(self) -> None:
        Exception.__init__(self, "Domain not found")

    def get_error_code(self) -> int:
        return int(libvirt.VIR_ERR_NO_DOMAIN)


class Domain:
    """A domain as the Xen driver shows it."""

    def __init__(self, number: int, *, is_gone: bool = False) -> None:
        self.number, self.is_gone = number, is_gone

    def ID(self) -> int:  # noqa: N802 - libvirt's names
        return self.number

    def name(self) -> str:
        return f"vm{self.number}"

    def UUIDString(self) -> str:  # noqa: N802
        return f"uuid-{self.number}"

    def state(self) -> list[int]:
        if self.is_gone:
            raise Gone
        return [3, 0]

    def info(self) -> list[int]:
        if self.is_gone:
            raise Gone
        return [1, 800, 400, 2, 7]


class Connection:
    """dom0, a guest, and one that ends between the two questions."""

    def listAllDomains(self, _flags: int) -> list[Domain]:  # noqa: N802
        return [Domain(0), Domain(3), Domain(4, is_gone=True)]


def xen_host() -> XenHost:
    return XenHost(cast("Place", None))


def test_dom0_is_no_vm_and_one_that_vanishes_is_left_out() -> None:
    connection = cast("libvirt.virConnect", Connection())
    assert xen_host().list_domains(connection) == [DomainInfo("uuid-3", "vm3", DomainState.PAUSED, 3)]
    before = time.monotonic()
    (stats,) = xen_host().read_statistics(connection)
    assert before <= stats.measured_at <= time.monotonic()
    assert stats == DomainStats("uuid-3", 400, 800, 7, 2, stats.measured_at)


def test_the_console_log_is_xenconsoleds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "guest-work.log"
    kept.write_text("of the start before")
    monkeypatch.setattr(xen, "_CONSOLE", str(tmp_path / "guest-{name}.log"))
    spec = cast("DomainSpec", SimpleNamespace(name="work", console_log=str(tmp_path / "log/console-work.log")))
    for _ in range(2):
        xen_host().start_log(spec)
    with kept.open("a") as file:
        file.write("now")
    assert (tmp_path / "log/console-work.log").read_text() == "now"
