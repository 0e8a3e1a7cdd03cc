"""What a Xen host says of itself."""

from crannog.adapters.libvirt.hosts.xen import read_xen_capabilities
from crannog.core.domain import HostCapabilities

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
