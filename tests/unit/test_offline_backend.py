"""Offline mode (B7): the same API on the store alone, with no daemon, libvirt or hypervisor."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.adapters.store.lock import DAEMON, StoreLock
from crannog.config import Paths
from crannog.core.registry import Registry
from crannog.core.runtime import HostFacts
from crannog.errors import (
    CrannogError,
    DaemonError,
    FeatureNotFoundError,
    InUseError,
    OfflineError,
    PropertyRefusedError,
    ProtocolError,
    StorageError,
    VMNotFoundError,
    VMNotHaltedError,
)
from crannog.hostfacts import read_host_facts
from crannog.offline.client import OfflineClient
from crannog.offline.processes import LeftRunning
from tests.fakes import KERNEL, short_folder


@pytest.fixture
def paths() -> Iterator[Paths]:
    """Return the paths of a home that does not exist yet."""
    with short_folder() as folder:
        yield Paths(str(folder / "home"), str(folder / "cache"))


@pytest.fixture
def client(paths: Paths) -> Iterator[OfflineClient]:
    """Return a client of a home with one kernel, a template and an AppVM."""
    for file in ("vmlinuz", "initramfs"):
        Path(paths.kernels, KERNEL).mkdir(parents=True, exist_ok=True)
        Path(paths.kernels, KERNEL, file).touch()
    client = OfflineClient(paths, tool="a-test")
    client.text("admin.vm.Create.TemplateVM", payload="name=debian label=black")
    client.text("admin.vm.Create.AppVM", argument="debian", payload="name=work label=green")
    yield client
    client.close()


def reload(client: OfflineClient) -> Registry:
    """Return what another process would read now."""
    client.close()
    other = OfflineClient(client.paths)
    other.close()
    client.store.lock.acquire("a-test")
    return other.backend.registry


def uuid_of(client: OfflineClient, vm: str = "work") -> str:
    return client.text("admin.vm.property.Get", vm, "uuid").rpartition(" ")[2]


def test_the_home_is_made_and_holds_dom0(paths: Paths) -> None:
    client = OfflineClient(paths)
    listed = client.text("admin.vm.List")
    client.close()
    assert listed == "dom0 class=AdminVM state=Running uuid=00000000-0000-0000-0000-000000000000\n"
    assert Path(paths.home).stat().st_mode & 0o777 == 0o700
    assert not Path(paths.store).exists()


def test_no_libvirt_is_loaded(paths: Paths) -> None:
    code = (
        "import sys; from crannog.config import Paths; from crannog.offline.client import OfflineClient;"
        "client = OfflineClient(Paths(sys.argv[1], sys.argv[1]));"
        "client.text('admin.vm.Create.StandaloneVM', payload='name=alone label=red');"
        "print(client.text('admin.vm.List'), [name for name in sys.modules if name.startswith('libvirt')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, paths.home], capture_output=True, text=True, timeout=30, check=True
    )
    assert "alone class=StandaloneVM state=Halted" in done.stdout
    assert done.stdout.endswith(" []\n")


SETTINGS = [
    ("admin.vm.property.Set", "work", "memory", "800", ("admin.vm.property.Get", "default=False type=int 800")),
    ("admin.property.Set", "dom0", "stats_interval", "9", ("admin.property.Get", "default=False type=int 9")),
    ("admin.vm.feature.Set", "work", "f", "text", ("admin.vm.feature.Get", "text")),
    ("admin.vm.feature.Set", "debian", "f", "text", ("admin.vm.feature.CheckWithTemplate", "text")),
    ("admin.vm.tag.Set", "work", "mine", "", ("admin.vm.tag.Get", "1")),
    ("admin.label.Create", "dom0", "pink", "0xFF00FF", ("admin.label.Get", "0xff00ff")),
    ("admin.vm.notes.Set", "work", "", "caf\u00e9\n", ("admin.vm.notes.Get", "caf\u00e9\n")),
]


@pytest.mark.parametrize(("method", "vm", "argument", "payload", "shown"), SETTINGS)
def test_settings_are_changed_and_saved(
    client: OfflineClient, method: str, vm: str, argument: str, payload: str, shown: tuple[str, str]
) -> None:
    assert client.text(method, vm, argument, payload) == ""
    assert client.text(shown[0], vm, argument) == shown[1]
    client.close()
    other = OfflineClient(client.paths)
    assert other.text(shown[0], vm, argument) == shown[1]
    other.close()


def test_the_template_is_asked_for_a_feature(client: OfflineClient) -> None:
    client.text("admin.vm.feature.Set", "debian", "f", "text")
    assert client.text("admin.vm.feature.CheckWithTemplate", "work", "f") == "text"
    with pytest.raises(FeatureNotFoundError):
        client.text("admin.vm.feature.Get", "work", "f")


def test_vms_are_made_cloned_renamed_and_removed(client: OfflineClient) -> None:
    client.text("crannog.vm.Clone", "work", payload="copy")
    client.text("admin.vm.property.Set", "copy", "name", "other")
    names = [line.split()[0] for line in client.text("admin.vm.List").splitlines()]
    assert names == ["dom0", "debian", "other", "work"]
    assert {vm.name for vm in reload(client)} == set(names)
    folders = {path.name.rpartition("-")[0] for path in Path(client.paths.pools, "vm-pool").iterdir()}
    assert folders == {"debian", "work", "copy"}
    client.text("admin.vm.Remove", "other")
    assert {vm.name for vm in reload(client)} == {"dom0", "debian", "work"}
    assert {path.name.rpartition("-")[0] for path in Path(client.paths.pools, "vm-pool").iterdir()} == {
        "debian",
        "work",
    }


def test_kernels_and_images_are_taken_in(client: OfflineClient, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"t" * 4096)
    client.text("crannog.vm.volume.ImportFile", "debian", "root", str(image))
    assert "size=4096\n" in client.text("admin.vm.volume.Info", "debian", "root")
    client.text("crannog.kernel.Import", argument="7.0", payload=f"{client.paths.kernels}/{KERNEL}")
    assert client.text("admin.pool.volume.List", argument="linux-kernel") == f"{KERNEL}\n7.0\n"
    with pytest.raises(InUseError, match=r"kernel '7\.0' is in use by global property default_kernel"):
        client.text("crannog.kernel.Remove", argument="7.0")
    client.text("crannog.kernel.Remove", argument=KERNEL)
    assert client.text("admin.pool.volume.List", argument="linux-kernel") == "7.0\n"
    assert [path.name for path in Path(client.paths.kernels).iterdir()] == ["7.0"]


NEEDS_HYPERVISOR = [
    ("admin.vm.Start", "work", "", "a start of work"),
    ("crannog.vm.Start", "work", "wait", "a start of work"),
    ("crannog.vm.Start", "work", "dry-run", "the plan of a start of work"),
    ("admin.vm.Shutdown", "work", "wait", "a shutdown of work"),
    ("admin.vm.Kill", "work", "", "an end of work"),
    ("crannog.vm.Screenshot", "work", "", "a picture of the screen of work"),
    ("crannog.vm.Show", "work", "", "the displays of work"),
    ("admin.vm.CreateDisposable", "work", "preload", "a start of disposables of work"),
    ("crannog.Capabilities", "dom0", "", "what the hypervisor can do"),
    ("crannog.Diagnose", "dom0", "", "what the hypervisor can do"),
]


@pytest.mark.parametrize(("method", "vm", "argument", "what"), NEEDS_HYPERVISOR)
def test_what_needs_the_hypervisor_is_refused_by_name(
    client: OfflineClient, method: str, vm: str, argument: str, what: str
) -> None:
    before = Path(client.paths.store).read_bytes()
    with pytest.raises(OfflineError) as caught:
        client.call(method, vm, argument)
    sentence = f"{what} needs the hypervisor, which offline mode does without; leave out --offline"
    assert (str(caught.value), caught.value.exit_code) == (sentence, 14)
    assert Path(client.paths.store).read_bytes() == before


def test_refusals_are_those_of_the_daemon(client: OfflineClient) -> None:
    with pytest.raises(VMNotFoundError):
        client.call("admin.vm.Start", "nobody")
    with pytest.raises(PropertyRefusedError, match="'memory' of work was not set"):
        client.text("admin.vm.property.Set", "work", "memory", "1")
    with pytest.raises(ProtocolError, match=r"no such method: 'admin\.nonsense'"):
        client.call("admin.nonsense")
    with pytest.raises(ProtocolError, match="expected destination to not be AdminVM"):
        client.call("admin.vm.notes.Get", "dom0")
    with pytest.raises(ProtocolError, match="longer than 65536"):
        client.call("admin.vm.notes.Set", "work", payload=b"x" * 70000)


def test_the_hosts_memory_is_known(client: OfflineClient) -> None:
    facts = read_host_facts()
    assert facts.memory > 0
    assert client.text("admin.property.Get", argument="maxmem") == f"default=True type=int {facts.memory}"
    assert client.backend.registry.host == facts != HostFacts()


HOLD = """
import sys
from crannog.adapters.store.lock import StoreLock
StoreLock(sys.argv[1]).acquire(sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def daemon(client: OfflineClient) -> Iterator[subprocess.Popen[str]]:
    """Have another process hold the store's lock as crannogd does."""
    client.close()
    command = [sys.executable, "-c", HOLD, client.store.lock.path, DAEMON]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_while_a_daemon_runs_offline_mode_says_what_to_leave_out(
    client: OfflineClient, daemon: subprocess.Popen[str]
) -> None:
    with pytest.raises(DaemonError) as caught:
        OfflineClient(client.paths)
    for words in (f"crannogd (process {daemon.pid})", client.paths.home, "leave out --offline", "crannog daemon stop"):
        assert words in str(caught.value)


def test_a_tool_does_not_write_while_a_daemon_runs(client: OfflineClient, daemon: subprocess.Popen[str]) -> None:
    """The client let go of the lock, then the daemon took it."""
    before = Path(client.paths.store).read_bytes()
    with pytest.raises(DaemonError):
        client.text("admin.vm.property.Set", "work", "memory", "800")
    assert Path(client.paths.store).read_bytes() == before
    assert client.backend.registry.find_vm("work").get("memory") == 400
    assert daemon.poll() is None


def test_after_the_daemon_offline_mode_goes_on(client: OfflineClient, daemon: subprocess.Popen[str]) -> None:
    daemon.communicate(timeout=60)
    other = OfflineClient(client.paths)
    other.close()
    assert len(other.backend.registry) == 3


@pytest.fixture
def left_running(client: OfflineClient) -> Iterator[OfflineClient]:
    """Return a new client of the home, in which the QEMU of `work` still runs: any process with its UUID will do."""
    command = ["sh", "-c", "echo up; read -r _", "-name", "guest=work", "-uuid", uuid_of(client), "-S"]
    client.close()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        folder = Path(client.paths.pid_files)
        folder.mkdir(parents=True)
        (folder / "1-work.pid").write_text(f"{process.pid}\n")
        (folder / "debian.pid").write_text("99999999")
        (folder / "broken.pid").write_text("no number")
        (folder / "work.xml").write_text(f"{process.pid}")
        other = OfflineClient(client.paths)
        yield other
        other.close()


def test_a_vm_that_outlives_its_daemon_is_running(left_running: OfflineClient) -> None:
    lines = left_running.text("admin.vm.List").splitlines()
    states = [line.split()[0:3:2] for line in lines]
    assert states == [["dom0", "state=Running"], ["debian", "state=Halted"], ["work", "state=Running"]]
    assert left_running.text("admin.vm.property.Get", "work", "xid") == "default=True type=int -1"
    assert left_running.text("admin.vm.CurrentState", "debian").endswith(" power_state=Halted")
    with pytest.raises(OfflineError, match="what work uses needs the hypervisor"):
        left_running.text("admin.vm.CurrentState", "work")


@pytest.mark.parametrize(
    ("method", "argument", "payload"),
    [
        ("admin.vm.Remove", "", ""),
        ("crannog.vm.Clone", "", "copy"),
        ("crannog.vm.volume.ImportFile", "private", "/dev/null"),
        ("admin.vm.property.Set", "name", "other"),
        ("admin.vm.property.Set", "virt_mode", "pv"),
        ("admin.vm.property.Set", "kernel", ""),
        ("admin.vm.property.Set", "template", "debian"),
        ("admin.vm.property.Reset", "virt_mode", ""),
    ],
)
def test_nothing_is_pulled_from_under_a_running_vm(
    left_running: OfflineClient, method: str, argument: str, payload: str
) -> None:
    def files() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in Path(left_running.paths.pools).rglob("*"))

    before = Path(left_running.paths.store).read_bytes(), files()
    with pytest.raises(VMNotHaltedError, match="while it is Running; shut it down with 'qvm-shutdown work'"):
        left_running.text(method, "work", argument, payload)
    assert (Path(left_running.paths.store).read_bytes(), files()) == before


def test_other_settings_of_a_running_vm_may_change(left_running: OfflineClient) -> None:
    left_running.text("admin.vm.property.Set", "work", "memory", "800")
    assert left_running.text("admin.vm.property.Get", "work", "memory").endswith(" 800")


def test_without_pid_files_nothing_runs(tmp_path: Path) -> None:
    running = LeftRunning(str(tmp_path / "absent"))
    assert (running.power_state("x"), running.xid("x")) == ("Halted", -1)


def test_an_error_of_our_own_is_one_sentence(client: OfflineClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(client.backend.population, "create", fail)
    with pytest.raises(CrannogError) as caught:
        client.text("admin.vm.Create.StandaloneVM", payload="name=new")
    assert type(caught.value) is CrannogError
    assert str(caught.value) == "admin.vm.Create.StandaloneVM failed by an error of our own: KeyError: 'x'"
    assert isinstance(caught.value.__cause__, KeyError)
    assert client.text("admin.vm.property.Get", "work", "klass") == "default=True type=str AppVM"


@pytest.mark.parametrize("data", [b"", b"<qubes", b"<other/>", b"\0\1\2", b"<qubes version='9'/>"])
def test_a_broken_store_is_told_and_let_go_of(paths: Paths, data: bytes) -> None:
    Path(paths.home).mkdir()
    Path(paths.store).write_bytes(data)
    with pytest.raises(StorageError, match=f"the store {paths.store} cannot be used: .*crannog store restore"):
        OfflineClient(paths)
    assert Path(paths.store).read_bytes() == data
    lock = StoreLock(paths.store + ".lock")
    lock.acquire("a-test", wait=0)
    lock.release()


def test_the_lock_is_kept_until_the_client_is_closed(client: OfflineClient) -> None:
    other = StoreLock(client.paths.store + ".lock")
    with pytest.raises(StorageError, match=r"a-test .* has been working on the store"):
        other.acquire("another", wait=0.1)
    client.close()
    client.close()
    other.acquire("another", wait=0)
    other.release()


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file/home cannot be used: Not a directory"):
        OfflineClient(Paths(f"{tmp_path}/file/home", str(tmp_path)))


def test_what_an_old_file_cannot_keep_is_told(paths: Paths, caplog: pytest.LogCaptureFixture) -> None:
    Path(paths.home).mkdir()
    Path(paths.store).write_text(
        '<QubesVmCollection><QubesAppVm qid="2" name="work" label="red" nonsense="1"/></QubesVmCollection>'
    )
    client = OfflineClient(paths)
    client.close()
    assert client.store.remarks
    assert all(remark in caplog.text for remark in client.store.remarks)


def test_a_change_that_cannot_be_saved_is_told_as_that(client: OfflineClient) -> None:
    Path(client.paths.store).write_bytes(Path(client.paths.store).read_bytes() + b"\n")
    with pytest.raises(StorageError, match="was written by another program"):
        client.text("admin.vm.tag.Set", "work", "mine")
    assert client.text("admin.vm.tag.Get", "work", "mine") == "0"


def test_the_logs_of_a_removed_vm_are_gone(client: OfflineClient) -> None:
    logs = {vm: [Path(client.paths.console_log(vm)), Path(client.paths.rpc_log(vm))] for vm in ("work", "debian")}
    for log in [*logs["work"], *logs["debian"]]:
        log.parent.mkdir(exist_ok=True)
        log.write_text("what the VM said")
    with pytest.raises(InUseError):
        client.text("admin.vm.Remove", "debian")
    client.text("admin.vm.Remove", "work")
    assert not [log for log in logs["work"] if log.exists()]
    assert all(log.read_text() == "what the VM said" for log in logs["debian"])
