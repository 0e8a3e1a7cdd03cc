"""The methods over the real inventory, store and pool: what they answer, and that failures change nothing."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from crannog.adapters.store import file as store_file
from crannog.api.framing import Request
from crannog.api.server import Server
from crannog.api.table import answer
from crannog.core.startup import StartRequest
from crannog.errors import (
    CrannogError,
    DeniedError,
    DisplayError,
    FeatureNotFoundError,
    HypervisorError,
    InUseError,
    NotFoundError,
    PropertyNotFoundError,
    ProtocolError,
    StorageError,
    ValueRefusedError,
    VMNotFoundError,
    VMNotHaltedError,
    VMNotRunningError,
)
from tests.fakes import KERNEL, Inside, build_inside

assert Server.__name__ == "Server"  # importing the server declares all methods
WORK = "name=work label=green"


async def call(inside: Inside, method: str, vm: str = "dom0", argument: str = "", payload: str | bytes = "") -> str:
    data = payload.encode() if isinstance(payload, str) else payload
    return (await answer(inside.inventory, Request(method, argument, "dom0", vm, data))).decode()


@pytest.fixture
async def inside(tmp_path: Path) -> Inside:
    """Return a daemon's inside with a template `debian` that has content, and an AppVM `work`."""
    inside = build_inside(tmp_path)
    await call(inside, "admin.vm.Create.TemplateVM", payload="name=debian label=black")
    image = tmp_path / "image"
    image.write_bytes(b"t" * 2**20)
    await call(inside, "crannog.vm.volume.ImportFile", "debian", "root", str(image))
    await call(inside, "admin.vm.Create.AppVM", argument="debian", payload=WORK)
    return inside


def on_disk(inside: Inside) -> list[str]:
    """Return the names in the file, and the folders of the pool."""
    return [vm.name for vm in inside.reloaded()] + sorted(
        folder.rpartition("-")[0] for folder in os.listdir(inside.pool.folder)
    )


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function from whose call on the store cannot be written."""

    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return lambda: monkeypatch.setattr(store_file, "write_whole", refuse)


async def test_a_created_vm_is_listed_and_saved(inside: Inside) -> None:
    work = inside.registry.find_vm("work")
    assert on_disk(inside) == ["dom0", "debian", "work", "debian", "work"]
    listed = (await call(inside, "admin.vm.List")).splitlines()
    assert listed[0] == "dom0 class=AdminVM state=Running uuid=00000000-0000-0000-0000-000000000000"
    assert listed[2] == f"work class=AppVM state=Halted uuid={work.uuid}"
    assert await call(inside, "admin.vm.List", f"uuid:{work.uuid}") == listed[2] + "\n"
    assert await call(inside, "admin.vm.tag.List", "work") == "audiovm-dom0\ncreated-by-dom0\nguivm-dom0\n"
    assert await call(inside, "admin.vm.volume.List", "work") == "root\nprivate\nvolatile\nkernel\n"


async def test_the_default_template_counts_when_none_is_named(inside: Inside) -> None:
    with pytest.raises(ValueRefusedError, match="needs a template"):
        await call(inside, "admin.vm.Create.AppVM", payload="name=desk label=red")
    await call(inside, "admin.property.Set", argument="default_template", payload="debian")
    await call(inside, "admin.vm.Create.AppVM", payload="name=desk")
    assert (await call(inside, "admin.vm.property.Get", "desk", "template")) == "default=False type=vm debian"
    with pytest.raises(InUseError, match="work"):
        await call(inside, "admin.vm.Remove", "debian")


@pytest.mark.parametrize(
    ("argument", "payload", "kind"),
    [
        ("debian", "", ProtocolError),
        ("debian", "label=red", ProtocolError),
        ("debian", "name=a  label=red", ProtocolError),
        ("debian", "name=a name=b", ProtocolError),
        ("debian", "name=a pool=x", ProtocolError),
        ("debian", "name", ProtocolError),
        ("debian", "name=caf\u00e9", ProtocolError),
        ("debian", "name=", ValueRefusedError),
        ("debian", "name=a/b", ValueRefusedError),
        ("debian", "name=work", InUseError),
        ("debian", "name=a label=pink", NotFoundError),
        ("nobody", "name=a", VMNotFoundError),
        ("work", "name=a", ValueRefusedError),
        ("dom0", "name=a", ValueRefusedError),
    ],
)
async def test_a_refused_creation_leaves_nothing(
    inside: Inside, argument: str, payload: str, kind: type[CrannogError]
) -> None:
    before = on_disk(inside)
    with pytest.raises(kind):
        await call(inside, "admin.vm.Create.AppVM", argument=argument, payload=payload)
    assert on_disk(inside) == before == [*(vm.name for vm in inside.registry), "debian", "work"]


async def test_a_creation_that_cannot_be_saved_leaves_nothing(inside: Inside, full_disk: Callable[[], None]) -> None:
    before = on_disk(inside)
    full_disk()
    with pytest.raises(StorageError, match="intact"):
        await call(inside, "admin.vm.Create.StandaloneVM", payload="name=alone")
    assert on_disk(inside) == before
    assert "alone" not in [vm.name for vm in inside.registry]


async def test_a_creation_without_volumes_leaves_nothing(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    before = on_disk(inside)

    async def refuse(_volumes: object) -> None:
        raise StorageError("no room")

    monkeypatch.setattr(inside.pool, "create", refuse)
    with pytest.raises(StorageError, match="no room"):
        await call(inside, "admin.vm.Create.StandaloneVM", payload="name=alone")
    assert on_disk(inside) == before


async def test_removal(inside: Inside) -> None:
    Path(inside.paths.console_log("work")).touch()
    with pytest.raises(InUseError, match=r"debian is in use by work \(template\)"):
        await call(inside, "admin.vm.Remove", "debian")
    await call(inside, "admin.vm.Remove", "work")
    assert on_disk(inside) == ["dom0", "debian", "debian"]
    assert os.listdir(inside.paths.logs) == []


async def test_a_removal_that_cannot_be_saved_removes_nothing(inside: Inside, full_disk: Callable[[], None]) -> None:
    before = on_disk(inside)
    full_disk()
    with pytest.raises(StorageError):
        await call(inside, "admin.vm.Remove", "work")
    assert on_disk(inside) == before
    assert inside.registry.find_vm("work").name == "work"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("memory", "640", "default=False type=int 640"),
        ("debug", "YES", "default=False type=bool True"),
        ("label", "blue", "default=False type=label blue"),
        ("default_user", "", "default=False type=str "),
        ("kernel", KERNEL, f"default=False type=str {KERNEL}"),
    ],
)
async def test_properties_are_set_saved_shown_and_reset(inside: Inside, name: str, value: str, shown: str) -> None:
    before = await call(inside, "admin.vm.property.Get", "work", name)
    await call(inside, "admin.vm.property.Set", "work", name, value)
    assert await call(inside, "admin.vm.property.Get", "work", name) == shown
    assert f"{name} {shown}\n" in await call(inside, "admin.vm.property.GetAll", "work")
    assert inside.reloaded().find_vm("work").get(name) == inside.registry.find_vm("work").get(name)
    await call(inside, "admin.vm.property.Reset", "work", name)
    if name != "label":
        assert await call(inside, "admin.vm.property.Get", "work", name) == before


async def test_get_all_escapes_backslashes(inside: Inside) -> None:
    await call(inside, "admin.vm.property.Set", "work", "kernelopts", "a\\nb")
    assert "kernelopts default=False type=str a\\\\nb\n" in await call(inside, "admin.vm.property.GetAll", "work")


async def test_get_all_and_list_name_the_same(inside: Inside) -> None:
    for prefix, vm in (("admin.vm.property", "work"), ("admin.vm.property", "dom0"), ("admin.property", "dom0")):
        lines = (await call(inside, f"{prefix}.GetAll", vm)).splitlines()
        assert [line.partition(" ")[0] for line in lines] == (await call(inside, f"{prefix}.List", vm)).split()
        assert all(line.split(" ")[1] in ("default=True", "default=False") for line in lines)
        for line in lines:
            assert (await call(inside, f"{prefix}.Help", vm, line.partition(" ")[0])).endswith(".")


async def test_defaults(inside: Inside) -> None:
    assert await call(inside, "admin.vm.property.GetDefault", "work", "memory") == "type=int 400"
    assert await call(inside, "admin.vm.property.GetDefault", "work", "name") == ""
    assert await call(inside, "admin.vm.property.Get", "work", "xid") == "default=True type=int -1"


@pytest.mark.parametrize(
    ("vm", "name", "value", "kind"),
    [
        ("work", "memory", "lots", ValueRefusedError),
        ("work", "memory", "1", ValueRefusedError),
        ("work", "memory", b"\xff", ProtocolError),
        ("work", "default_user", "a\nb", ValueRefusedError),
        ("work", "uuid", "x", ValueRefusedError),
        ("work", "template", "work", ValueRefusedError),
        ("work", "template", "", ValueRefusedError),
        ("work", "template", "nobody", VMNotFoundError),
        ("work", "nonsense", "1", PropertyNotFoundError),
        ("work", "name", "debian", InUseError),
        ("work", "name", "../x", ValueRefusedError),
        ("dom0", "name", "other", CrannogError),
        ("dom0", "memory", "400", PropertyNotFoundError),
    ],
)
async def test_a_refused_value_changes_nothing(
    inside: Inside, vm: str, name: str, value: str | bytes, kind: type[CrannogError]
) -> None:
    before = await call(inside, "admin.vm.property.GetAll", vm)
    file = Path(inside.paths.store).read_bytes()
    with pytest.raises(kind):
        await call(inside, "admin.vm.property.Set", vm, name, value)
    assert await call(inside, "admin.vm.property.GetAll", vm) == before
    assert Path(inside.paths.store).read_bytes() == file


@pytest.mark.parametrize(("name", "value"), [("memory", "640"), ("name", "desk"), ("label", "blue")])
async def test_a_value_that_cannot_be_saved_is_taken_back(
    inside: Inside, full_disk: Callable[[], None], name: str, value: str
) -> None:
    before = await call(inside, "admin.vm.property.GetAll", "work")
    full_disk()
    with pytest.raises(StorageError):
        await call(inside, "admin.vm.property.Set", "work", name, value)
    assert await call(inside, "admin.vm.property.GetAll", "work") == before
    with pytest.raises(VMNotFoundError):
        inside.registry.find_vm("desk")


async def test_a_renamed_vm_keeps_its_volumes(inside: Inside) -> None:
    before = await call(inside, "admin.vm.volume.Info", "work", "private")
    await call(inside, "admin.vm.property.Set", "work", "name", "desk")
    assert await call(inside, "admin.vm.volume.Info", "desk", "private") == before
    await call(inside, "admin.vm.Start", "desk")
    await call(inside, "admin.vm.Kill", "desk")


async def test_features(inside: Inside) -> None:
    await call(inside, "admin.vm.feature.Set", "debian", "os", "Linux")
    await call(inside, "admin.vm.feature.Set", "work", "empty")
    assert await call(inside, "admin.vm.feature.List", "work") == "empty\n"
    assert await call(inside, "admin.vm.feature.Get", "work", "empty") == ""
    assert await call(inside, "admin.vm.feature.CheckWithTemplate", "work", "os") == "Linux"
    for method in ("Get", "Remove"):
        with pytest.raises(FeatureNotFoundError, match="work has no feature 'os'"):
            await call(inside, f"admin.vm.feature.{method}", "work", "os")
    await call(inside, "admin.vm.feature.Remove", "work", "empty")
    assert inside.reloaded().find_vm("work").features == {}


@pytest.mark.parametrize(("name", "value"), [("a+b", "1"), ("a:b", "1"), ("a", "\n"), ("a", "\x7f"), ("a", b"\xff")])
async def test_malformed_features_are_refused(inside: Inside, name: str, value: str | bytes) -> None:
    with pytest.raises(CrannogError):
        await call(inside, "admin.vm.feature.Set", "work", name, value)
    assert inside.registry.find_vm("work").features == {}


async def test_a_feature_that_cannot_be_saved_is_taken_back(inside: Inside, full_disk: Callable[[], None]) -> None:
    full_disk()
    with pytest.raises(StorageError):
        await call(inside, "admin.vm.feature.Set", "work", "a", "1")
    assert inside.registry.find_vm("work").features == {}


async def test_volume_info(inside: Inside) -> None:
    lines = dict(line.split("=") for line in (await call(inside, "admin.vm.volume.Info", "work", "root")).splitlines())
    template = inside.registry.find_vm("debian").volumes["root"]
    assert lines["source"] == template.vid
    assert (lines["snap_on_start"], lines["save_on_stop"], lines["rw"]) == ("True", "False", "True")
    assert "size=1048576\n" in await call(inside, "admin.vm.volume.Info", "debian", "root")
    with pytest.raises(DeniedError, match="Argument not in 'work volumes'"):
        await call(inside, "admin.vm.volume.Info", "work", "odd")


@pytest.mark.parametrize("path", ["image", "./image", "a\0b", "/tmp/a\0b"])
async def test_an_import_needs_an_absolute_path(inside: Inside, path: str) -> None:
    with pytest.raises(ProtocolError):
        await call(inside, "crannog.vm.volume.ImportFile", "work", "private", path)
    with pytest.raises(ProtocolError):
        await call(inside, "crannog.vm.Start", "work", "dry-run", path)


async def test_the_table(inside: Inside) -> None:
    table = await call(inside, "crannog.vm.Table", argument="name+state+memory+template")
    assert table.splitlines() == ["dom0\tRunning\t-\t-", "debian\tHalted\t400\t-", "work\tHalted\t400\tdebian"]
    with pytest.raises(ValueRefusedError, match="'odd' is not a column"):
        await call(inside, "crannog.vm.Table", argument="name+odd")


async def test_start_state_and_kill(inside: Inside) -> None:
    state = "mem=409600 mem_static_max=409600 cputime=5000 power_state=Running"
    await call(inside, "admin.vm.Start", "work")
    assert await call(inside, "admin.vm.CurrentState", "work") == state
    assert await call(inside, "admin.vm.property.Get", "work", "xid") == "default=True type=int 1"
    with pytest.raises(VMNotHaltedError, match="Running"):
        await call(inside, "admin.vm.Start", "work")
    await call(inside, "admin.vm.Kill", "work")
    assert "power_state=Halted" in await call(inside, "admin.vm.CurrentState", "work")
    for method in ("Kill", "Shutdown"):
        with pytest.raises(VMNotRunningError, match="work is not running"):
            await call(inside, f"admin.vm.{method}", "work")
    with pytest.raises(VMNotRunningError):
        await call(inside, "crannog.vm.Screenshot", "work")


@pytest.mark.parametrize(
    ("method", "argument", "payload"),
    [
        ("admin.vm.Remove", "", ""),
        ("admin.vm.property.Set", "name", "desk"),
        ("admin.vm.property.Set", "virt_mode", "pv"),
        ("admin.vm.property.Reset", "virt_mode", ""),
        ("admin.vm.property.Set", "template", "debian"),
        ("crannog.vm.volume.ImportFile", "private", "/etc/hostname"),
    ],
)
async def test_what_a_running_vm_refuses(inside: Inside, method: str, argument: str, payload: str) -> None:
    await call(inside, "admin.vm.Start", "work")
    file = Path(inside.paths.store).read_bytes()
    with pytest.raises(VMNotHaltedError, match="qvm-shutdown work"):
        await call(inside, method, "work", argument, payload)
    assert Path(inside.paths.store).read_bytes() == file


@pytest.mark.parametrize("failing", ["create_paused", "resume"])
async def test_a_failed_start_leaves_a_halted_vm(inside: Inside, failing: str) -> None:
    pool = sorted(path.name for path in Path(inside.pool.folder).rglob("*"))
    inside.hypervisor.failing = {failing}
    with pytest.raises(CrannogError, match=r"work was not started: .*failed on purpose"):
        await call(inside, "admin.vm.Start", "work")
    assert "state=Halted" in await call(inside, "admin.vm.List", "work")
    assert (inside.hypervisor.domain_states, inside.agents.running) == ({}, set())
    assert sorted(path.name for path in Path(inside.pool.folder).rglob("*")) == pool
    inside.hypervisor.failing = set()
    await call(inside, "admin.vm.Start", "work")


async def test_a_dry_run_does_nothing(inside: Inside) -> None:
    lines = (await call(inside, "crannog.vm.Start", "work", "dry-run+wait")).splitlines()
    assert lines[-1] == "wait up to 60 s for the agent"
    assert len(lines) == 9
    assert [line.rpartition("/")[2] for line in lines if line.startswith("prepare")] == ["root", "private", "volatile"]
    assert "state=Halted" in await call(inside, "admin.vm.List", "work")
    assert inside.hypervisor.specs == []


@pytest.mark.parametrize("argument", ["odd", "wait+nowait", "wait+odd"])
async def test_malformed_start_options(inside: Inside, argument: str) -> None:
    with pytest.raises(ProtocolError, match="malformed"):
        await call(inside, "crannog.vm.Start", "work", argument)


async def test_stages_of_a_start(inside: Inside) -> None:
    lines = (await call(inside, "crannog.vm.Start", "work", "nowait")).splitlines()
    assert [line.partition("\t")[2] for line in lines][-2:] == ["domain created, paused", "running"]
    assert all(float(line.partition("\t")[0]) >= 0 for line in lines)


async def test_a_screenshot_is_handed_on(inside: Inside) -> None:
    vm = inside.registry.local_vms()[1]
    await inside.inventory.power.start(vm, StartRequest())
    with pytest.raises(DisplayError, match="work has no emulated screen"):
        await call(inside, "crannog.vm.Screenshot", "work")
    vm.values["virt_mode"] = "hvm"
    assert (await call(inside, "crannog.vm.Screenshot", "work")).startswith("P6 ")
    inside.hypervisor.failing = {"screenshot"}
    with pytest.raises(HypervisorError):
        await call(inside, "crannog.vm.Screenshot", "work")


async def test_the_first_kernel_becomes_the_default(inside: Inside, tmp_path: Path) -> None:
    source = tmp_path / "kernel"
    source.mkdir()
    for file in ("vmlinuz", "initramfs"):
        (source / file).touch()
    await call(inside, "admin.property.Set", argument="default_kernel", payload="")
    await call(inside, "crannog.kernel.Import", argument="6.12", payload=str(source))
    await call(inside, "crannog.kernel.Import", argument="6.13", payload=str(source))
    assert await call(inside, "admin.property.Get", argument="default_kernel") == "default=False type=str 6.12"
    listed = await call(inside, "admin.pool.volume.List", argument="linux-kernel")
    assert listed == f"{KERNEL}\n6.12\n6.13\n"
    for name in ("..", "."):
        with pytest.raises(CrannogError):
            await call(inside, "crannog.kernel.Import", argument=name, payload=str(source))
    assert await call(inside, "admin.pool.volume.List", argument="linux-kernel") == listed


async def test_lists_of_the_host(inside: Inside) -> None:
    assert (await call(inside, "admin.vmclass.List")).split() == [
        "AdminVM", "AppVM", "DispVM", "RemoteVM", "StandaloneVM", "TemplateVM",
    ]  # fmt: skip
    labels = ["red", "orange", "yellow", "green", "gray", "blue", "purple", "black"]
    assert (await call(inside, "admin.label.List")).split() == labels
    volumes = (await call(inside, "admin.pool.volume.List", argument="vm-pool")).split()
    assert [vid.rpartition("/")[2] for vid in volumes] == ["private", "root", "volatile"] * 2
    diagnosis = (await call(inside, "crannog.Diagnose")).splitlines()
    assert diagnosis == ["everything here is a stand-in", "VMs are not shown: this host keeps what would be shown."]
