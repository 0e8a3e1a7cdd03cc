"""Where the layers of template-based VMs are, by looking at the files while guests write (B1, B2)."""

import glob
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from crannog.images.digest import digest_sparse
from tests.vm.home import Home, wait_until

pytestmark = pytest.mark.vm

MIB = 2**20
WRITE = "dd if=/dev/urandom of=/usr/mark bs=1M count=24 status=none && sync"


class Files:
    """The files of one VM's volumes."""

    def __init__(self, home: Home, vm: str) -> None:
        (self.folder,) = [
            path
            for path in glob.glob(f"{home.path}/pools/vm-pool/{vm}-*")
            if len(os.path.basename(path)) == len(vm) + 9
        ]

    def names(self) -> set[str]:
        return set(os.listdir(self.folder))

    def allocated(self, name: str) -> int:
        return os.stat(f"{self.folder}/{name}").st_blocks * 512

    def digest(self, name: str) -> str:
        return digest_sparse(f"{self.folder}/{name}")

    def digests(self) -> dict[str, str]:
        return {name: self.digest(name) for name in sorted(self.names()) if name.endswith((".img", ".qcow2"))}


@pytest.fixture
def full(shared_home: Home) -> Iterator[str]:
    """Return the name of a halted AppVM that boots by itself."""
    shared_home.ok("qvm-create", "--template", "debian-12-hvm", "full")
    yield "full"
    shared_home.run("qvm-kill", "full")
    shared_home.ok("qvm-remove", "--force", "full")


def as_root(home: Home, vm: str, command: str) -> str:
    return home.ok("qvm-run", "--user", "root", vm, command)


def test_b1_pv_has_a_readonly_root_and_its_second_layer_in_the_guest(shared_home: Home, work: str) -> None:
    home, template = shared_home, Files(shared_home, "debian-12")
    before = template.digests()
    home.ok("qvm-start", "--wait", work)
    own = Files(home, work)
    layer = own.digest("root.volatile.qcow2")
    assert as_root(home, work, "cat /sys/block/vda/ro; findmnt -n -o SOURCE /") == "1\n/dev/mapper/crannog-root\n"
    assert as_root(home, work, "dmsetup table crannog-root").split()[2] == "snapshot"
    as_root(home, work, WRITE)
    assert own.digest("root.volatile.qcow2") == layer
    assert 24 * MIB <= own.allocated("volatile.img") < 80 * MIB
    assert template.digests() == before
    home.ok("qvm-shutdown", "--wait", work)
    wait_until(lambda: "volatile.img" not in own.names(), "what was on the volatile disk is gone")
    home.ok("qvm-start", "--wait", work)
    assert as_root(home, work, "test ! -e /usr/mark && dmsetup status crannog-root").split()[2] == "snapshot"
    home.ok("qvm-kill", work)


def test_b1_hvm_has_one_layer_on_the_host(shared_home: Home, full: str) -> None:
    home, template = shared_home, Files(shared_home, "debian-12-hvm")
    before = template.digests()
    home.ok("qvm-start", "--wait", full)
    own = Files(home, full)
    assert own.names() & {"volatile.img", "root-cow.img"} == set()
    small = own.allocated("root.volatile.qcow2")
    as_root(home, full, WRITE)
    assert own.allocated("root.volatile.qcow2") >= small + 24 * MIB
    assert as_root(home, full, "findmnt -n -o SOURCE /").startswith(("/dev/sda", "/dev/vda"))
    assert template.digests() == before
    home.ok("qvm-kill", full)
    home.ok("qvm-start", "--wait", full)
    as_root(home, full, "test ! -e /usr/mark")


def test_b1_what_a_killed_guest_wrote_is_gone(shared_home: Home, work: str) -> None:
    home = shared_home
    home.ok("qvm-start", "--wait", work)
    own = Files(home, work)
    as_root(home, work, WRITE)
    os.kill(home.qemu(work), signal.SIGKILL)
    wait_until(lambda: home.state(work) == "Halted", "the VM is halted")
    wait_until(lambda: own.names() & {"volatile.img", "root.volatile.qcow2"} == set(), "both layers are gone")


@pytest.mark.slow
def test_b1_pv_after_a_restart_of_the_daemon(shared_home: Home, work: str) -> None:
    """What a daemon that was killed has left is found, and dropped, when the VM ends."""
    home = shared_home
    home.ok("qvm-start", "--wait", work)
    home.kill_daemon()
    own = Files(home, work)
    as_root(home, work, WRITE)
    home.ok("qvm-kill", work)
    wait_until(lambda: own.names() & {"volatile.img", "root.volatile.qcow2"} == set(), "both layers are gone")


@pytest.mark.slow
def test_own_roots_are_written_on_the_host_and_have_swap_on_the_volatile_disk(shared_home: Home) -> None:
    home = shared_home
    home.ok("qvm-clone", "--class", "StandaloneVM", "debian-12", "alone")
    try:
        home.ok("qvm-start", "--wait", "alone")
        assert as_root(home, "alone", "cat /sys/block/vda/ro; findmnt -n -o SOURCE /") == "0\n/dev/vda\n"
        assert as_root(home, "alone", "sed 1d /proc/swaps").split()[0] == "/dev/vdc"
        as_root(home, "alone", "echo kept > /usr/mark; sync")
        home.ok("qvm-shutdown", "--wait", "alone")
        home.ok("qvm-start", "--wait", "alone")
        assert as_root(home, "alone", "cat /usr/mark") == "kept\n"
    finally:
        home.run("qvm-kill", "alone")
        home.ok("qvm-remove", "--force", "alone")


def test_the_kernels_modules_are_a_disk_of_their_own(shared_home: Home, running: str) -> None:
    home = shared_home
    release = home.ok("qvm-run", running, "uname -r").strip()
    size = home.ok("qvm-volume", "info", f"{running}:kernel", "size").strip()
    assert as_root(home, running, "blockdev --getsize64 /dev/vdd; blockdev --getro /dev/vdd") == f"{size}\n1\n"
    assert home.ok("qvm-volume", "info", f"{running}:kernel", "vid").startswith(release)


def test_b2_debug_mode_keeps_the_layer_until_the_templates_root_changes(shared_home: Home, full: str) -> None:
    home = shared_home
    home.ok("qvm-prefs", full, "debug", "True")
    assert "debug mode: a new layer, which is kept" in start_verbosely(home, full)
    as_root(home, full, "echo mine > /usr/mark; sync")
    home.ok("qvm-shutdown", "--wait", full)
    assert "the layer of its last start was kept" in start_verbosely(home, full)
    assert as_root(home, full, "cat /usr/mark") == "mine\n"
    home.ok("qvm-shutdown", "--wait", full)
    home.ok("qvm-start", "--wait", "debian-12-hvm")
    as_root(home, "debian-12-hvm", "echo new > /usr/in-template; sync")
    home.ok("qvm-shutdown", "--wait", "debian-12-hvm")
    assert "a new layer, as what is below the last one has changed" in start_verbosely(home, full)
    assert as_root(home, full, "test ! -e /usr/mark && cat /usr/in-template") == "new\n"
    home.ok("qvm-kill", full)


def start_verbosely(home: Home, vm: str) -> str:
    """Start a VM; return what its user is told."""
    done: subprocess.CompletedProcess[bytes] = home.run("qvm-start", "-v", "--wait", vm)
    assert done.returncode == 0, done.stderr
    return (done.stdout + done.stderr).decode()
