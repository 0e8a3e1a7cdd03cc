"""The methods about pools: bytes for bytes, over the real inventory and store, online, offline and after a restart."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from crannog.adapters.storage.drivers import open_pools
from crannog.adapters.storage.pool_driver import find_drivers
from crannog.adapters.store import file as store_file
from crannog.api.framing import Request
from crannog.api.methods import answer
from crannog.config import Paths
from crannog.core.events import Event
from crannog.core.pools import PoolConfig
from crannog.errors import (
    CrannogError,
    DeniedError,
    NotFoundError,
    NotYetError,
    PoolInUseError,
    ProtocolError,
    StorageError,
    ValueRefusedError,
)
from crannog.offline.client import OfflineClient
from tests.fakes import KERNEL, Inside, build_inside, short_folder

Told = list[tuple[str, str, dict[str, str]]]


async def call(inside: Inside, method: str, argument: str = "", payload: str | bytes = "", vm: str = "dom0") -> str:
    data = payload.encode() if isinstance(payload, str) else payload
    return (await answer(inside.inventory, Request(method, argument, "dom0", vm, data))).decode()


@pytest.fixture
def inside(tmp_path: Path) -> Inside:
    return build_inside(tmp_path / "home")


@pytest.fixture
def told(inside: Inside) -> Told:
    told: Told = []

    def hear(event: Event) -> None:
        told.append((event.subject, event.name, event.arguments))

    inside.inventory.editor.listen(hear)
    return told


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function from whose call on the store cannot be written."""

    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return lambda: monkeypatch.setattr(store_file, "write_whole", refuse)


def saved(inside: Inside) -> bytes:
    path = Path(inside.paths.store)
    return path.read_bytes() if path.exists() else b""


def without_space(text: str) -> str:
    """Return what is told of a pool, with numbers for the sizes of the file system: they change while we look."""
    return re.sub(r"(size|usage)=[0-9]+\n", r"\1=N\n", text)


async def test_lists(inside: Inside) -> None:
    assert await call(inside, "admin.pool.List") == "vm-pool\nlinux-kernel\n"
    drivers = await call(inside, "admin.pool.ListDrivers")
    assert [line.split(" ")[0] for line in drivers.splitlines()] == sorted(find_drivers())
    for driver in ("qcow2", "reflink", "plain"):
        assert f"{driver} dir_path revisions_to_keep ephemeral_volatile\n" in drivers
    assert drivers.endswith("\n")
    assert await call(inside, "admin.pool.volume.List", "linux-kernel") == f"{KERNEL}\n"
    assert await call(inside, "admin.pool.volume.List", "vm-pool") == ""
    await call(inside, "admin.vm.Create.StandaloneVM", payload="name=alone label=red")
    folder = f"alone-{inside.registry.find_vm('alone').uuid[:8]}"
    assert await call(inside, "admin.pool.volume.List", "vm-pool") == (
        f"{folder}/private\n{folder}/root\n{folder}/volatile\n"
    )


async def test_info(inside: Inside) -> None:
    await call(inside, "admin.vm.Create.StandaloneVM", payload="name=alone label=red")
    info = await call(inside, "admin.pool.Info", "vm-pool")
    assert without_space(info) == (
        f"dir_path={inside.paths.pools}/vm-pool\ndriver=qcow2\nephemeral_volatile=False\nname=vm-pool\n"
        "revisions_to_keep=1\nsize=N\nusage=N\n"
    )
    status = os.statvfs(inside.paths.pools)
    assert f"\nsize={status.f_blocks * status.f_frsize}\n" in info
    assert without_space(await call(inside, "admin.pool.Info", "linux-kernel")) == (
        f"dir_path={inside.paths.kernels}\ndriver=linux-kernel\nname=linux-kernel\nsize=N\nusage=N\n"
    )
    details = await call(inside, "admin.pool.UsageDetails", "vm-pool")
    assert re.fullmatch("data_size=[0-9]+\ndata_usage=[0-9]+\n", details)


async def test_a_pool_of_another_host(inside: Inside) -> None:
    """What a file brought here says of it is shown; nothing is served."""
    options = (
        ("volume_group", "dom0"),
        ("thin_pool", "vm"),
        ("revisions_to_keep", "2"),
        ("ephemeral_volatile", "True"),
    )
    inside.registry.add_pool(PoolConfig("lvm", "lvm_thin", options))
    assert await call(inside, "admin.pool.Info", "lvm") == (
        "driver=lvm_thin\nephemeral_volatile=True\nname=lvm\nrevisions_to_keep=2\nthin_pool=vm\nvolume_group=dom0\n"
    )
    assert await call(inside, "admin.pool.UsageDetails", "lvm") == ""
    with pytest.raises(NotYetError, match="lvm_thin"):
        await call(inside, "admin.pool.Set.revisions_to_keep", "lvm", "3")
    await call(inside, "admin.pool.Remove", "lvm")
    assert "lvm" not in inside.reloaded().pools


@pytest.mark.parametrize(
    ("method", "payload"),
    [
        ("Info", ""), ("UsageDetails", ""), ("Remove", ""), ("Set.revisions_to_keep", "1"), ("volume.List", ""),
        ("Set.ephemeral_volatile", "False"),
    ],
)  # fmt: skip
async def test_pools_that_are_not_there(inside: Inside, method: str, payload: str) -> None:
    before = saved(inside)
    for name in ("odd", "..", "vm-pool.", "VM-POOL"):
        with pytest.raises(DeniedError) as caught:
            await call(inside, f"admin.pool.{method}", name, payload)
        assert str(caught.value) == "Argument not in 'pools'"
    with pytest.raises(ProtocolError, match=r"^expected an argument$"):
        await call(inside, f"admin.pool.{method}", "", payload)
    with pytest.raises(ProtocolError, match=r"payload$"):
        await call(inside, f"admin.pool.{method}", "vm-pool", "" if payload else "x")
    assert saved(inside) == before


async def test_pools_are_of_dom0(inside: Inside) -> None:
    await call(inside, "admin.vm.Create.StandaloneVM", payload="name=alone label=red")
    for method, argument, payload in (("List", "", ""), ("Info", "vm-pool", ""), ("Add", "qcow2", "name=x\n")):
        with pytest.raises(ProtocolError, match=r"^expected destination to be AdminVM$"):
            await call(inside, f"admin.pool.{method}", argument, payload, vm="alone")


async def test_a_new_pool(inside: Inside, told: Told, tmp_path: Path) -> None:
    folder = tmp_path / "disk" / "vms"
    assert await call(inside, "admin.pool.Add", "qcow2", f"name=big\ndir_path=/{folder}//\nrevisions_to_keep=3\n") == ""
    assert told == [("", "pool-add", {"pool": "big"})]
    assert (folder.stat().st_mode & 0o777, os.listdir(folder)) == (0o700, [".crannog-pool"])
    assert await call(inside, "admin.pool.List") == "vm-pool\nlinux-kernel\nbig\n"
    assert without_space(await call(inside, "admin.pool.Info", "big")) == (
        f"dir_path={folder}\ndriver=qcow2\nephemeral_volatile=False\nname=big\nrevisions_to_keep=3\nsize=N\nusage=N\n"
    )
    assert f'<pool name="big" driver="qcow2" dir_path="{folder}" revisions_to_keep="3"/>'.encode() in saved(inside)


@pytest.mark.parametrize("end", ["", "\n"])
async def test_the_last_line_of_a_new_pools_options_need_not_end(inside: Inside, end: str) -> None:
    assert await call(inside, "admin.pool.Add", "qcow2", f"name=big\nrevisions_to_keep=3{end}") == ""
    assert "\nname=big\nrevisions_to_keep=3\n" in await call(inside, "admin.pool.Info", "big")


async def test_a_driver_that_there_is_not(inside: Inside) -> None:
    words = rf"^there is no driver 'lvm_thin' for pools \(there: {', '.join(sorted(find_drivers()))}\)$"
    with pytest.raises(NotFoundError, match=words):
        await call(inside, "admin.pool.Add", "lvm_thin", "name=x\n")


async def test_a_new_pool_is_served_at_once_and_after_a_restart(inside: Inside, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    await call(inside, "admin.pool.Add", "qcow2", f"name=big\ndir_path={folder}\nrevisions_to_keep=3\n")
    await call(inside, "admin.pool.Add", "qcow2", "name=other\n")
    await call(inside, "admin.property.Set", "default_pool", "big")
    await call(inside, "admin.vm.Create.TemplateVM", payload="name=debian label=black")
    vm = inside.registry.find_vm("debian")
    assert [(volume.pool, volume.revisions_to_keep) for volume in vm.volumes.values()] == [
        ("big", 3), ("big", 0), ("big", 0), ("linux-kernel", 0),
    ]  # fmt: skip
    await call(inside, "admin.vm.Start", vm="debian")
    assert all(disk.path.startswith(f"{folder}/debian-") for disk in inside.hypervisor.specs[-1].disks)
    await call(inside, "admin.vm.Kill", vm="debian")
    pools = open_pools(inside.paths, inside.reloaded().pools.values())
    assert sorted(pools) == ["big", "other", "vm-pool"]
    assert pools["big"].newest(vm.volumes["root"].vid).path.startswith(f"{folder}/debian-")
    assert await pools["big"].recover(frozenset(volume.vid for volume in vm.volumes.values())) == []


async def test_a_pool_whose_disk_is_not_there(inside: Inside, tmp_path: Path) -> None:
    """The daemon starts all the same, and nothing is written to the folder that the disk would be mounted at."""
    folder = tmp_path / "disk"
    await call(inside, "admin.pool.Add", "qcow2", f"name=big\ndir_path={folder}\n")
    (folder / ".crannog-pool").unlink()
    pools = open_pools(inside.paths, inside.reloaded().pools.values())
    for is_there in (True, False):
        assert await pools["big"].recover(frozenset()) == [
            f"pool big is not in {folder} now; mount its disk there and try again"
        ]
        with pytest.raises(StorageError, match="mount its disk"):
            await call(inside, "admin.vm.CreateInPool.StandaloneVM", payload="name=new label=red pool=big")
        if is_there:
            folder.rmdir()
            assert "size=" not in await call(inside, "admin.pool.Info", "big")
    assert not folder.exists()
    assert inside.registry.by_name("new") is None


@pytest.mark.parametrize(
    ("driver", "payload", "kind"),
    [
        ("lvm_thin", "name=x\n", NotFoundError),
        ("linux-kernel", "name=x\n", ValueRefusedError),
        ("qcow2", "\n", ProtocolError),
        ("qcow2", "name=x\n\n", ProtocolError),
        ("qcow2", "name\n", ProtocolError),
        ("qcow2", "revisions_to_keep=1\n", ProtocolError),
        ("qcow2", "name=x\nname=x\n", ProtocolError),
        ("qcow2", "name=x\ndir_path=/a\ndir_path=/a\n", ProtocolError),
        ("qcow2", "name=x\n=1\n", ProtocolError),
        ("qcow2", "name=x\ndir_path=/a\tb\n", ProtocolError),
        ("qcow2", "name=x\u00e9\n", ProtocolError),
        ("qcow2", "name=x\0\n", ProtocolError),
        ("qcow2", "name=\n", ValueRefusedError),
        ("qcow2", "name=../x\n", ValueRefusedError),
        ("qcow2", "name=a b\n", ValueRefusedError),
        ("qcow2", f"name={'x' * 65}\n", ValueRefusedError),
        ("qcow2", "name=x\nsize=1\n", ValueRefusedError),
        ("qcow2", "name=x\ndriver=qcow2\n", ValueRefusedError),
        ("qcow2", "name=x\ndir_path=vms\n", ValueRefusedError),
        ("qcow2", "name=x\ndir_path=\n", ValueRefusedError),
        ("qcow2", "name=x\ndir_path=/srv/../etc\n", ValueRefusedError),
        ("qcow2", "name=x\ndir_path=/etc\n", StorageError),
        ("qcow2", "name=x\ndir_path=/dev/null/vms\n", StorageError),
        ("qcow2", "name=x\nrevisions_to_keep=-2\n", ValueRefusedError),
        ("qcow2", "name=x\nrevisions_to_keep=\n", ValueRefusedError),
        ("qcow2", "name=x\nephemeral_volatile=maybe\n", ValueRefusedError),
        ("qcow2", "name=x\nephemeral_volatile=True\n", NotYetError),
        ("qcow2", "name=vm-pool\n", PoolInUseError),
        ("qcow2", "name=linux-kernel\n", PoolInUseError),
    ],
)
async def test_pools_that_are_refused(
    inside: Inside, told: Told, driver: str, payload: str, kind: type[CrannogError]
) -> None:
    before = saved(inside), dict(inside.registry.pools), sorted(os.listdir(inside.paths.pools))
    with pytest.raises(kind):
        await call(inside, "admin.pool.Add", driver, payload)
    assert (saved(inside), inside.registry.pools, sorted(os.listdir(inside.paths.pools))) == before
    assert told == []


async def test_pools_are_never_in_one_another(inside: Inside, tmp_path: Path) -> None:
    await call(inside, "admin.pool.Add", "qcow2", f"name=a\ndir_path={tmp_path}/a\n")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for folder in (f"{tmp_path}/a", f"{tmp_path}/a/b", str(tmp_path), f"{tmp_path}/link/b", inside.paths.pools):
        with pytest.raises((ValueRefusedError, StorageError), match=r"one another|not empty"):
            await call(inside, "admin.pool.Add", "qcow2", f"name=b\ndir_path={folder}\n")
    await call(inside, "admin.pool.Add", "qcow2", f"name=b\ndir_path={tmp_path}/ab\n")


async def test_a_pool_that_cannot_be_saved_is_not_there(
    inside: Inside, told: Told, full_disk: Callable[[], None], tmp_path: Path
) -> None:
    full_disk()
    for line in (f"dir_path={tmp_path}/big\n", ""):
        with pytest.raises(StorageError, match="intact"):
            await call(inside, "admin.pool.Add", "qcow2", f"name=big\n{line}")
    assert await call(inside, "admin.pool.List") == "vm-pool\nlinux-kernel\n"
    assert (told, os.path.exists(tmp_path / "big"), "big" in os.listdir(inside.paths.pools)) == ([], False, False)
    inside.registry.add_pool(PoolConfig("big", "qcow2"))
    with pytest.raises(StorageError, match="cannot be served"):
        await call(inside, "admin.vm.CreateInPool.StandaloneVM", payload="name=new label=red pool=big")


async def test_settings(inside: Inside) -> None:
    for value in ("-1", "0", "7"):
        assert await call(inside, "admin.pool.Set.revisions_to_keep", "vm-pool", value) == ""
        assert inside.reloaded().pools["vm-pool"].option("revisions_to_keep") == value
        assert f"\nrevisions_to_keep={value}\n" in await call(inside, "admin.pool.Info", "vm-pool")
        await call(inside, "admin.vm.Create.TemplateVM", payload=f"name=t{value} label=black")
        assert inside.registry.find_vm(f"t{value}").volumes["root"].revisions_to_keep == int(value)
        assert inside.registry.find_vm(f"t{value}").volumes["private"].revisions_to_keep == 0
    assert await call(inside, "admin.pool.Set.ephemeral_volatile", "vm-pool", "off") == ""
    assert inside.reloaded().pools["vm-pool"].options == (("revisions_to_keep", "7"), ("ephemeral_volatile", "False"))


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("revisions_to_keep", "-2", ValueRefusedError),
        ("revisions_to_keep", "x", ProtocolError),
        ("revisions_to_keep", "1.5", ProtocolError),
        ("ephemeral_volatile", "True", NotYetError),
        ("ephemeral_volatile", "x", ValueRefusedError),
        ("ephemeral_volatile", "\xff", ProtocolError),
    ],
)
async def test_settings_that_are_refused(inside: Inside, key: str, value: str, kind: type[CrannogError]) -> None:
    before = saved(inside)
    with pytest.raises(kind):
        await call(inside, f"admin.pool.Set.{key}", "vm-pool", value)
    with pytest.raises(CrannogError):
        await call(inside, f"admin.pool.Set.{key}", "linux-kernel", "0")
    assert saved(inside) == before


async def test_a_setting_that_cannot_be_saved_is_taken_back(inside: Inside, full_disk: Callable[[], None]) -> None:
    full_disk()
    with pytest.raises(StorageError):
        await call(inside, "admin.pool.Set.revisions_to_keep", "vm-pool", "7")
    assert inside.registry.pools["vm-pool"].options == ()


async def test_a_removed_pool(inside: Inside, told: Told, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    await call(inside, "admin.pool.Add", "qcow2", f"name=big\ndir_path={folder}\n")
    told.clear()
    assert await call(inside, "admin.pool.Remove", "big") == ""
    assert told == [("", "pool-pre-delete", {"pool": "big"}), ("", "pool-delete", {"pool": "big"})]
    assert "big" not in inside.reloaded().pools
    assert not folder.exists()
    with pytest.raises(ValueRefusedError, match="no pool 'big'"):
        await call(inside, "admin.vm.CreateInPool.StandaloneVM", payload="name=new label=red pool=big")
    with pytest.raises(DeniedError):
        await call(inside, "admin.pool.Remove", "big")


async def test_files_that_nobody_refers_to_stay_when_a_pool_goes_and_come_back_with_it(
    inside: Inside, tmp_path: Path
) -> None:
    folder = tmp_path / "disk"
    await call(inside, "admin.pool.Add", "qcow2", f"name=big\ndir_path={folder}\n")
    (folder / "old-1").mkdir()
    (folder / "old-1" / "root.img").touch()
    await call(inside, "admin.pool.Remove", "big")
    assert (folder / "old-1" / "root.img").exists()
    await call(inside, "admin.pool.Add", "qcow2", f"name=again\ndir_path={folder}\n")
    assert await inside.inventory.pools._pools["again"].recover(frozenset()) == []
    assert (folder / "old-1" / "root.img").exists()


async def test_pools_in_use_stay(inside: Inside, told: Told) -> None:
    await call(inside, "admin.pool.Add", "qcow2", "name=big\n")
    await call(inside, "admin.vm.CreateInPool.StandaloneVM", payload="name=alone label=red pool:private=big")
    told.clear()
    before = saved(inside)
    with pytest.raises(PoolInUseError, match="pool 'big' is in use by alone"):
        await call(inside, "admin.pool.Remove", "big")
    with pytest.raises(PoolInUseError, match="global property default_pool"):
        await call(inside, "admin.pool.Remove", "vm-pool")
    # Whatever uses it: nothing that could be changed makes a difference.
    with pytest.raises(PoolInUseError, match=r"^pool 'linux-kernel' is built in: VMs get their kernels from it$"):
        await call(inside, "admin.pool.Remove", "linux-kernel")
    assert (saved(inside), told) == (before, [])


async def test_a_removal_that_cannot_be_saved(inside: Inside, full_disk: Callable[[], None], tmp_path: Path) -> None:
    await call(inside, "admin.pool.Add", "qcow2", f"name=big\ndir_path={tmp_path}/big\n")
    full_disk()
    with pytest.raises(StorageError):
        await call(inside, "admin.pool.Remove", "big")
    assert "big" in await call(inside, "admin.pool.List")
    assert "big" in inside.inventory.pools._pools
    assert os.listdir(tmp_path / "big") == [".crannog-pool"]


async def test_a_pool_that_goes_while_a_vm_is_made_in_it(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    await call(inside, "admin.pool.Add", "qcow2", "name=big\n")
    big = inside.inventory.pools._pools["big"]
    create = big.create

    async def remove_pool_first(volumes: object) -> None:
        await create(volumes)  # type: ignore[arg-type]
        await call(inside, "admin.pool.Remove", "big")

    monkeypatch.setattr(big, "create", remove_pool_first)
    with pytest.raises(StorageError, match="cannot be served"):
        await call(inside, "admin.vm.CreateInPool.StandaloneVM", payload="name=new label=red pool=big")
    assert [vm.name for vm in inside.reloaded()] == ["dom0"]
    assert inside.registry.by_name("new") is None


def test_offline() -> None:
    with short_folder() as folder:
        paths = Paths(str(folder / "home"), str(folder / "cache"))
        client = OfflineClient(paths)
        client.text("admin.pool.Add", argument="qcow2", payload=f"name=big\ndir_path={folder}/disk\n")
        client.text("admin.vm.CreateInPool.StandaloneVM", payload="name=alone label=red pool=big")
        client.text("admin.vm.volume.Resize", "alone", "private", str(3 * 2**30))
        client.close()
        again = OfflineClient(paths)
        try:
            assert again.text("admin.pool.List") == "vm-pool\nlinux-kernel\nbig\n"
            info = again.text("admin.vm.volume.Info", "alone", "private")
            assert f"\nsize={3 * 2**30}\n" in info
            path = re.findall("\npath=(.*)\n", info)[0]
            assert path.startswith(f"{folder}/disk/alone-")
            assert os.stat(path).st_size == 3 * 2**30
            token = again.text("admin.vm.volume.CloneFrom", "alone", "root")
            again.text("admin.vm.volume.CloneTo", "alone", "private", token)
            again.text("admin.vm.volume.Clear", "alone", "root")
            with pytest.raises(ProtocolError, match="no such method"):
                again.text("internal.vm.volume.ImportBegin", "alone", "root")
        finally:
            again.close()
