"""Whatever goes wrong, the user gets one sentence and the documented exit code, and nothing is left over."""

import glob
import os
import resource
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounts import small_file_system
from tests.vm.home import Home, wait_until

LONG = "a" * 32


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """Return a home with the template debian-12 and its halted AppVM `work`; each test leaves it as it was."""
    home = Home()
    home.ok("crannog", "template", "build", "debian-12")
    home.ok("qvm-create", "work")
    yield home
    home.close()


@pytest.fixture(autouse=True)
def _nothing_is_left(home: Home) -> Iterator[None]:
    files, vms = home.files(), home.ok("qvm-ls")
    yield
    assert home.ok("qvm-ls") == vms
    home.settles(files | {name for name in home.files() if name.startswith("run/crannogd")})


NO_VM = "there is no VM 'nope'; qvm-ls lists"
HOST = "dom0 is this host itself"
HALTED = "work is not running; start it with 'qvm-start work'"
REFUSALS: tuple[tuple[int, str, str], ...] = (
    (3, "qvm-start nope", NO_VM),
    (3, "qvm-run nope true", NO_VM),
    (3, "qvm-ls nope", NO_VM),
    (3, "qvm-prefs nope", NO_VM),
    (3, "qvm-prefs nope memory 300", NO_VM),
    (3, "qvm-kill nope", NO_VM),
    (3, "qvm-shutdown nope", NO_VM),
    (3, "qvm-shutdown --wait nope", NO_VM),
    (3, "qvm-remove --force nope", NO_VM),
    (3, "qvm-create --template nope new", NO_VM),
    (2, "qvm-start dom0", HOST),
    (2, "qvm-kill dom0", HOST),
    (2, "qvm-shutdown dom0", HOST),
    (2, "qvm-remove --force dom0", HOST),
    (2, "qvm-run dom0 true", HOST),
    (2, f"qvm-create {LONG}", "it is longer than 31 characters"),
    (2, "qvm-create 1st", "it must start with a letter"),
    (2, "qvm-create -- -new", "it must start with a letter"),
    (2, "qvm-create a/b", "hold only letters, digits"),
    (2, "qvm-create neü", "use letters, digits"),
    (2, "qvm-create dom0", "it is reserved"),
    (2, "qvm-create none", "it is reserved"),
    (2, "qvm-create new-dm", "belong to device models"),
    (4, "qvm-create work", "a VM called 'work' exists already"),
    (4, "qvm-prefs work name debian-12", "a VM called 'debian-12' exists already"),
    (2, "qvm-prefs work name 1st", "cannot be the name of a VM"),
    (3, "qvm-create --label pink new", "there is no label 'pink'; use one of red"),
    (2, "qvm-create --class NoVM new", "the classes are AppVM, DispVM, RemoteVM, StandaloneVM, TemplateVM"),
    (2, "qvm-create --class AdminVM new", "the classes are AppVM, DispVM, RemoteVM, StandaloneVM, TemplateVM"),
    (2, "qvm-create --template work new", "work is of class AppVM and cannot be a template"),
    (2, "qvm-create --property memory=much new", "'much' is not a whole number"),
    (3, "qvm-create --property colour=red new", "no property 'colour'"),
    (2, "qvm-create --property memory new", "--property takes NAME=VALUE"),
    (2, "qvm-create --root-copy-from /etc/passwd new", "create the VM with '--class StandaloneVM'"),
    (9, "qvm-create --class StandaloneVM --root-copy-from /nope new", "No such file"),
    (3, "qvm-prefs work colour", "work has no property 'colour'"),
    (2, "qvm-prefs work memory 1", "property 'memory' of work was not set: 1 is out of range: 64 to"),
    (2, "qvm-prefs work xid 1", "is read-only"),
    (3, "qvm-prefs work label pink", "there is no label 'pink'"),
    (3, "qvm-prefs work template nope", NO_VM),
    (2, "qvm-prefs work kernel nope", "there is no kernel 'nope' in pool linux-kernel"),
    (2, "qvm-prefs work virt_mode nope", "use one of pv, pvh, hvm"),
    (5, "qvm-kill work", HALTED),
    (5, "qvm-shutdown work", HALTED),
    (5, "qvm-shutdown --wait work", HALTED),
    (2, "qvm-run -n work true", "start it with 'qvm-start --wait work'"),
    (4, "qvm-remove --force debian-12", "debian-12 is in use by work (template)"),
    (2, "qvm-remove work", "add --force"),
    (2, "qvm-start", "name the VMs to start"),
    (2, "qvm-start --cdrom /nope work", "is not a file"),
    (2, "qvm-start --hddisk /dev/null work", "is not a file"),
    (2, "qvm-start --drive floppy:/etc/passwd work", "takes cdrom:IMAGE or hd:IMAGE"),
)


@pytest.mark.parametrize(("code", "command", "reason"), REFUSALS, ids=[row[1] for row in REFUSALS])
def test_refusals(home: Home, code: int, command: str, reason: str) -> None:
    complaint = home.fails(code, *command.split(" "))
    assert reason in complaint
    assert complaint.count("\n") == 1


def test_a_name_with_a_blank_is_refused(home: Home) -> None:
    assert "cannot be the name of a VM" in home.fails(2, "qvm-create", "a b")
    assert "cannot be the name of a VM" in home.fails(2, "qvm-create", "")


@pytest.mark.parametrize("lost", ["linux-kernel/*/vmlinux", "linux-kernel/*/initramfs", "vm-pool/work-*/private.img"])
def test_a_lost_file_is_named(home: Home, lost: str) -> None:
    path = glob.glob(f"{home.path}/pools/{lost}")[0]
    os.rename(path, f"{home.path}/aside")
    complaint = home.fails(9, "qvm-start", "work")
    os.rename(f"{home.path}/aside", path)
    assert os.path.dirname(path) in complaint
    assert home.state("work") == "Halted"


def test_a_template_without_any_root_image_is_named(home: Home) -> None:
    folder = glob.glob(f"{home.path}/pools/vm-pool/debian-12-*")[0]
    os.mkdir(f"{home.path}/aside")
    for path in glob.glob(f"{folder}/root.*"):
        os.rename(path, f"{home.path}/aside/{os.path.basename(path)}")
    complaint = home.fails(9, "qvm-start", "work")
    for name in os.listdir(f"{home.path}/aside"):
        os.rename(f"{home.path}/aside/{name}", f"{folder}/{name}")
    os.rmdir(f"{home.path}/aside")
    assert folder in complaint
    assert "does not exist" in complaint


def test_a_broken_layer_is_named(home: Home) -> None:
    layer = glob.glob(f"{home.path}/pools/vm-pool/debian-12-*")[0] + "/root.99.qcow2"
    Path(layer).write_bytes(b"no qcow2 header" * 1000)
    complaint = home.fails(9, "qvm-start", "work")
    os.unlink(layer)
    assert "root.99.qcow2" in complaint
    assert "not in qcow2 format" in complaint


@pytest.mark.vm
def test_an_empty_root_ends_the_start_with_the_guests_own_reason(home: Home) -> None:
    image = max(glob.glob(f"{home.path}/pools/vm-pool/debian-12-*/root.*.img"))
    os.rename(image, f"{home.path}/aside")
    Path(image).touch()
    complaint = home.fails(6, "qvm-start", "--wait", "work")
    os.replace(f"{home.path}/aside", image)
    assert "it stopped by itself before its agent answered" in complaint
    assert "/dev/vda cannot be mounted" in complaint


@pytest.mark.vm
def test_an_agent_that_does_not_come_is_told_with_the_console(home: Home) -> None:
    home.ok("qvm-prefs", "work", "kernelopts", "root=/dev/vda rw console=ttyS0 quiet init=/bin/sh")
    home.ok("qvm-prefs", "work", "qrexec_timeout", "5")
    complaint = home.fails(7, "qvm-start", "--wait", "work")
    assert "its agent did not answer within 5 s" in complaint
    assert "can't access tty" in complaint
    assert complaint.replace("\n", "").isprintable()
    assert home.state("work") == "Halted"
    home.ok("qvm-start", "--no-wait", "work")
    assert home.state("work") == "Running"
    home.ok("qvm-kill", "work")
    home.ok("qvm-prefs", "--default", "work", "kernelopts")
    home.ok("qvm-prefs", "--default", "work", "qrexec_timeout")


@pytest.fixture
def memory(home: Home) -> Iterator[Callable[[int], None]]:
    """Return a function that gives `work` so many MiB; it has its default again afterwards."""

    def give(mib: int) -> None:
        home.ok("qvm-prefs", "work", "memory", str(mib))

    yield give
    home.ok("qvm-prefs", "--default", "work", "memory")


@pytest.mark.vm
def test_more_memory_than_there_is(home: Home, memory: Callable[[int], None]) -> None:
    memory(16000000)
    complaint = home.fails(6, "qvm-start", "work")
    assert "work needs 16000000 MiB" in complaint
    assert "MiB are free" in complaint
    assert home.state("work") == "Halted"


@pytest.mark.vm
def test_memory_that_the_host_does_not_give(home: Home, memory: Callable[[int], None]) -> None:
    memory(6000)
    _, hard = resource.prlimit(home.daemon(), resource.RLIMIT_AS)
    # A host may promise memory that it does not have; this limit, which QEMU inherits, is kept everywhere.
    resource.prlimit(home.daemon(), resource.RLIMIT_AS, (4 << 30, hard))
    complaint = home.fails(10, "qvm-start", "work")
    resource.prlimit(home.daemon(), resource.RLIMIT_AS, (hard, hard))
    assert "Cannot allocate memory" in complaint
    assert "give the VM less" in complaint


def use_emulator(home: Home, script: str) -> str:
    """Have the home's next daemon use a script as its emulator; return its path."""
    path = f"{home.path}/emulator"
    Path(path).write_text(f"#!/bin/sh\n{script}\n")
    os.chmod(path, stat.S_IRWXU)
    Path(home.path, "crannog.toml").write_text(f'emulator = "{path}"\n')
    home.ok("crannog", "daemon", "stop")
    return path


@pytest.fixture
def own_emulator(home: Home) -> Iterator[None]:
    yield
    for name in ("emulator", "crannog.toml", "never"):
        Path(home.path, name).unlink(missing_ok=True)
    home.ok("crannog", "daemon", "stop")


@pytest.mark.usefixtures("own_emulator")
class TestEmulator:
    @pytest.mark.parametrize(("script", "reason"), [("exit 1", "is not QEMU"), ("exec sleep 1000", "within 5 s")])
    def test_a_program_that_is_no_qemu(self, home: Home, script: str, reason: str) -> None:
        path = use_emulator(home, script)
        complaint = home.fails(10, "qvm-start", "work")
        assert f"the emulator {path} (setting 'emulator')" in complaint
        assert reason in complaint

    def test_a_program_that_is_not_there(self, home: Home) -> None:
        os.unlink(use_emulator(home, ""))
        assert "is not a program that can be run" in home.fails(10, "qvm-start", "work")

    @pytest.mark.vm
    def test_a_qemu_that_ends_at_once(self, home: Home) -> None:
        use_emulator(home, 'case "$*" in *guest=*) echo broken >&2; exit 3;; esac; exec qemu-system-x86_64 "$@"')
        complaint = home.fails(10, "qvm-start", "work")
        # libvirt quotes what QEMU said, unless its connection to QEMU breaks off before: then the log is named.
        log = Path(home.path, "vmm", "log", "qemu", "work.log")
        assert "broken" in complaint or (str(log) in complaint and "broken" in log.read_text())

    @pytest.mark.vm
    def test_a_qemu_that_hangs_can_be_killed(self, home: Home) -> None:
        os.mkfifo(f"{home.path}/never")
        use_emulator(home, f'case "$*" in *guest=*) read x < {home.path}/never; esac; exec qemu-system-x86_64 "$@"')
        start = home.popen("qvm-start", "work", stderr=subprocess.PIPE)
        wait_until(lambda: home.state("work") == "Transient", "the start has begun")
        wait_until(lambda: os.path.exists(f"{home.path}/vmm/run/qemu/work.pid"), "the emulator runs")
        home.ok("qvm-kill", "work")
        _, complaint = start.communicate(timeout=60)
        assert (start.returncode, complaint) == (6, b"qvm-start: work was killed while it started\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("accel = ", "Invalid value"),
        ("colour = 'red'", "'colour' is not a setting"),
        ("accel = 'fast'", "accel = 'fast' is not one of auto, kvm, tcg"),
    ],
)
def test_broken_settings_file(home: Home, text: str, reason: str) -> None:
    home.ok("crannog", "daemon", "stop")
    path = Path(home.path, "crannog.toml")
    path.write_text(text)
    complaint = home.fails(11, "qvm-ls")
    path.unlink()
    assert str(path) in complaint
    assert reason in complaint


@pytest.mark.parametrize(
    ("text", "reason"),
    [("<qubes><domains>", "line 1"), ("", ""), ("<other/>", "line 1"), ('<qubes version="3.0"><domains/>\0', "line 1")],
)
def test_broken_store(home: Home, text: str, reason: str) -> None:
    home.ok("crannog", "daemon", "stop")
    path = Path(home.path, "qubes.xml")
    good = path.read_bytes()
    path.write_text(text)
    complaint = home.fails(11, "qvm-ls")
    assert path.read_text() == text
    path.write_bytes(good)
    assert f"the store {path} cannot be used" in complaint
    assert reason in complaint


def test_store_that_cannot_be_read(home: Home) -> None:
    home.ok("crannog", "daemon", "stop")
    path = Path(home.path, "qubes.xml")
    path.rename(f"{home.path}/aside")
    path.mkdir()
    complaint = home.fails(11, "qvm-ls")
    path.rmdir()
    Path(home.path, "aside").rename(path)
    assert f"the store {path} cannot be read: Is a directory" in complaint


@pytest.fixture
def full_home(tmp_path: Path) -> Iterator[Home]:
    """Return a home on a file system without any free space."""
    with small_file_system(tmp_path / "home", "400m") as folder:
        full = Home(str(folder))
        try:
            full.ok("crannog", "template", "build", "debian-12")
            full.ok("qvm-create", "work")
            fill(full)
            yield full
        finally:
            Path(full.path, "filler").unlink(missing_ok=True)
            full.run("qvm-kill", "work")
            full.ok("crannog", "daemon", "stop")
            wait_until(lambda: not full.processes(), "no process is left")


def fill(home: Home) -> None:
    with open(f"{home.path}/filler", "ab", buffering=0) as file:
        try:
            while file.write(bytes(1 << 20)):
                pass
        except OSError:
            return


def test_a_disk_that_runs_full_pauses_the_vm_until_there_is_space(full_home: Home) -> None:
    home = full_home
    os.unlink(f"{home.path}/filler")
    home.ok("qvm-start", "--wait", "work")
    fill(home)
    write = "head -c 30000000 /dev/urandom > big; sync; sha256sum < big | wc -l"
    with home.popen("qvm-run", "work", write, stdout=subprocess.PIPE) as writer:
        wait_until(lambda: home.state("work") == "Paused", "QEMU pauses the VM")
        assert "free some space" in home.fails(5, "qvm-shutdown", "work")
        home.kill_daemon()
        os.truncate(f"{home.path}/filler", os.stat(f"{home.path}/filler").st_size - (1 << 18))
        wait_until(lambda: home.state("work") == "Paused", "the VM is adopted, and still has no space")
        os.unlink(f"{home.path}/filler")
        wait_until(lambda: home.state("work") == "Running", "the VM goes on")
        assert writer.communicate(timeout=60)[0] == b"1\n"
    home.ok("qvm-kill", "work")


def test_full_disk(full_home: Home) -> None:
    home, files = full_home, full_home.files()
    store = Path(home.path, "qubes.xml").read_bytes()
    assert "No space left" in home.fails(9, "qvm-create", "new")
    assert "the change was not made" in home.fails(9, "qvm-prefs", "work", "memory", "500")
    assert home.ok("qvm-prefs", "work", "memory") == "400\n"
    assert "the change was not made" in home.fails(9, "qvm-remove", "--force", "work")
    assert "free some space" in home.fails(9, "qvm-start", "work")
    assert home.state("work") == "Halted"
    assert Path(home.path, "qubes.xml").read_bytes() == store
    home.settles(files)
    os.unlink(f"{home.path}/filler")
    home.ok("qvm-prefs", "work", "memory", "500")
    home.ok("qvm-create", "new")
