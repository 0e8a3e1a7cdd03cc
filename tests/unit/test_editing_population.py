"""VMs that come and go, with the real store and pool: whole in both of them, or in neither."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from crannog.adapters.storage.qcow2 import Qcow2Pool
from crannog.adapters.store.file import FileStore
from crannog.core.events import Event
from crannog.core.pools import DEFAULT_POOL, PoolConfig
from crannog.core.registry import Registry
from crannog.core.vms import QubeBase
from crannog.core.volumes import Volume
from crannog.editing import population
from crannog.editing.editor import Editor
from crannog.editing.population import NewVM, Population
from crannog.errors import (
    CrannogError,
    InUseError,
    LabelNotFoundError,
    StateError,
    StorageError,
    ValueRefusedError,
    VMExistsError,
    VMNotFoundError,
    VMNotHaltedError,
)
from crannog.ports.storage import Pool
from tests.fakes import KERNEL

SIZE = 2**20
needs_qemu = pytest.mark.skipif(not (shutil.which("qemu-img") and shutil.which("qemu-io")), reason="needs qemu-img")


class HookedPool(Qcow2Pool):
    """The real pool; before each of its methods, the hook of that name is called, and others get their turn."""

    def __init__(self, folder: str, name: str = DEFAULT_POOL) -> None:
        super().__init__(name, folder)
        self.hooks: dict[str, Callable[[], object]] = {}
        self.calls: list[str] = []

    async def _call_hook(self, name: str) -> None:
        self.calls.append(name)
        await asyncio.sleep(0)
        self.hooks.get(name, lambda: None)()

    async def create(self, volumes: tuple[Volume, ...]) -> None:
        await self._call_hook("create")
        await super().create(volumes)

    async def clone(self, source: Volume, target: Volume, home: Pool | None = None) -> Volume:
        await self._call_hook("clone")
        return await super().clone(source, target, home)

    async def claim(self, volumes: tuple[Volume, ...]) -> None:
        await self._call_hook("claim")
        await super().claim(volumes)

    async def remove(self, volumes: tuple[Volume, ...]) -> None:
        await self._call_hook("remove")
        await super().remove(volumes)


class World:
    """A population in a folder, and what was told."""

    def __init__(self, home: Path) -> None:
        (home / "kernels" / KERNEL).mkdir(parents=True)
        self.home = home
        self.store = FileStore(str(home / "qubes.xml"), str(home / "kernels"))
        self.registry = self.store.load()
        self.editor = Editor(self.registry, self.store)
        self.pool = HookedPool(str(home / "pool"))
        self.offered: list[list[int]] = []
        self.uuids = iter([f"{number:08x}-0000-4000-8000-000000000000" for number in range(1, 100)])
        self.pools: dict[str, Pool] = {DEFAULT_POOL: self.pool}
        self.population = Population(self.editor, self.pools, new_uuid=self.new_uuid, choose=self.choose)
        self.told: list[tuple[str, str, dict[str, str]]] = []
        self.editor.listen(self.hear)

    def hear(self, event: Event) -> None:
        self.told.append((event.subject, event.name, event.arguments))

    def new_uuid(self) -> str:
        return next(self.uuids)

    def choose(self, numbers: list[int]) -> int:
        self.offered.append(numbers)
        return 6629 if 6629 in numbers else numbers[-1]

    def vm(self, name: str) -> QubeBase:
        return self.registry.find_vm(name)

    async def create(self, klass: str, name: str, template: str = "", label: str = "", by: str = "dom0") -> QubeBase:
        wanted = NewVM(klass, name, label, self.vm(template) if template else None)
        return await self.population.create(wanted, created_by=by)

    async def clone(self, source: str, name: str, klass: str = "", by: str = "dom0") -> QubeBase:
        return await self.population.clone(self.vm(source), name, klass=klass, created_by=by)

    def reloaded(self) -> Registry:
        return FileStore(self.store.path, self.store.kernels_folder).load()

    def files(self) -> list[str]:
        """Return the files of the pool and the notes, with their sizes and times, and empty folders."""
        paths = [path for folder in ("pool", "notes") for path in (self.home / folder).rglob("*")]
        return sorted(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths)

    def snapshot(self) -> object:
        return self.registry.state(), [vm.state() for vm in self.registry], self.files(), self.saved()

    def saved(self) -> bytes:
        return Path(self.store.path).read_bytes()


@pytest.fixture
async def world(tmp_path: Path) -> World:
    """Return a world with a template whose root is all `t`, and VMs of every local class."""
    world = World(tmp_path)
    template = await world.create("TemplateVM", "debian", label="black")
    image = tmp_path / "image"
    image.write_bytes(b"t" * SIZE)
    template.volumes["root"] = await world.pool.import_file(template.volumes["root"], str(image))
    world.editor.set_property(world.registry, "default_template", "debian")
    await world.create("AppVM", "work", label="green")
    dvm = await world.create("AppVM", "dvm", label="red")
    world.editor.set_property(dvm, "template_for_dispvms", "True")
    await world.create("StandaloneVM", "alone")
    world.told.clear()
    return world


def write_private(world: World, vm: str, data: bytes) -> None:
    path = Path(world.pool.locate(world.vm(vm).volumes["private"]).path)
    with path.open("r+b") as file:
        file.write(data)


def read(world: World, vm: QubeBase, volume: str, count: int = 4) -> bytes:
    """Return the beginning of a volume: the rest may be gigabytes without data."""
    with open(world.pools[vm.volumes[volume].pool].newest(vm.volumes[volume].vid).path, "rb") as file:
        return file.read(count)


def names(world: World) -> list[str]:
    return [vm.name for vm in world.registry]


def assert_saved(world: World, vm: QubeBase) -> None:
    """Assert that a VM is in the file as it is in the registry."""
    again = world.reloaded().find_vm(vm.name)
    assert again.describe_all() == vm.describe_all()
    assert (again.features, again.tags, again.volumes, again.devices) == (vm.features, vm.tags, vm.volumes, vm.devices)


FOLLOWING = {"guivm-dom0", "audiovm-dom0"}


@pytest.mark.parametrize(
    ("klass", "template", "files"),
    [
        ("TemplateVM", "", {"root.1.img", "private.img"}),
        ("StandaloneVM", "", {"root.img", "private.img"}),
        ("AppVM", "debian", {"private.img"}),
        ("DispVM", "dvm", set()),
        ("RemoteVM", "", None),
    ],
)
async def test_a_new_vm_of_each_class(world: World, klass: str, template: str, files: set[str] | None) -> None:
    vm = await world.create(klass, "new", template, "blue")
    assert (vm.klass, vm.label_name, vm.template and vm.template.name) == (klass, "blue", template or None)
    assert vm.tags == {"created-by-dom0"} | (FOLLOWING if klass != "RemoteVM" else set())
    assert world.vm("new") is vm
    folder = Path(world.pool.folder, f"new-{vm.uuid[:8]}")
    assert ({path.name for path in folder.iterdir()} if folder.exists() else None) == files
    assert_saved(world, vm)


async def test_what_is_told_of_a_new_vm(world: World) -> None:
    vm = await world.create("AppVM", "new")
    tags = ("audiovm-dom0", "created-by-dom0", "guivm-dom0")
    assert world.told == [
        ("", "domain-add", {"vm": "new"}),
        *(("new", f"domain-tag-add:{tag}", {"tag": tag}) for tag in tags),
        ("new", "domain-create-on-disk", {}),
    ]
    assert vm.template is world.vm("debian")


async def test_a_new_vm_is_saved_and_has_its_volumes_before_it_is_told(world: World) -> None:
    seen: list[tuple[bool, bool]] = []
    folder = Path(world.pool.folder, "new-00000005")
    world.editor.listen(lambda _event: seen.append((b">new<" in world.saved(), folder.is_dir())))
    await world.create("StandaloneVM", "new")
    assert set(seen) == {(True, True)}


async def test_without_a_template_the_default_one_counts(world: World) -> None:
    with pytest.raises(ValueRefusedError, match="DispVM needs a template"):
        await world.create("DispVM", "disp")
    world.editor.set_property(world.registry, "default_dispvm", "dvm")
    assert (await world.create("DispVM", "disp")).template is world.vm("dvm")
    world.editor.reset_property(world.registry, "default_template")
    with pytest.raises(ValueRefusedError, match="AppVM needs a template"):
        await world.create("AppVM", "app")
    assert (await world.create("StandaloneVM", "other")).template is None


async def test_the_label_of_a_new_vm(world: World) -> None:
    assert (await world.create("AppVM", "one")).label_name == "red"
    world.editor.set_property(world.vm("dvm"), "label", "purple")
    assert (await world.create("DispVM", "two", "dvm")).label_name == "purple"
    world.population = Population(world.editor, world.pools, new_uuid=world.new_uuid)
    assert (await world.create("DispVM", "three", "dvm", "blue")).label_name == "blue"


async def test_the_number_of_a_disposable_says_nothing_about_those_before(world: World) -> None:
    vm = await world.create("DispVM", "disp", "dvm")
    assert vm.get("dispid") == 6629
    assert world.offered == [list(range(1, 10000))]
    world.editor.set_feature(vm, "f", "1")
    with pytest.raises(CrannogError):
        await world.create("DispVM", "disp", "dvm")
    assert world.offered[1] == [number for number in range(1, 10000) if number != 6629]


async def test_numbers_differ_by_themselves(world: World) -> None:
    world.population = Population(world.editor, world.pools)
    dispids = {(await world.create("DispVM", f"disp{number}", "dvm")).get("dispid") for number in range(5)}
    assert len(dispids) == 5
    assert dispids != set(range(1, 6))


async def test_who_created_a_vm_is_told_by_its_tags(world: World) -> None:
    world.editor.set_property(world.vm("work"), "name", "sys.admin")
    world.editor.set_feature(world.vm("sys.admin"), "tag-created-vm-with", "one two a.b")
    vm = await world.create("AppVM", "new", by="sys.admin")
    assert vm.tags == {"created-by-sys_admin", "one", "two"} | FOLLOWING
    assert (await world.clone("new", "copy")).tags == {"created-by-dom0", "one", "two"} | FOLLOWING


Prepare = Callable[[World], object]


def refuse_to_save(world: World) -> None:
    """Have the file belong to somebody else from now on."""
    data = world.saved()
    os.unlink(world.store.path)
    Path(world.store.path).write_bytes(data)


def fail_with(error: BaseException) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


def hook(name: str, error: BaseException) -> Prepare:
    return lambda world: world.pool.hooks.update({name: fail_with(error)})


CREATION_FAILURES: list[tuple[Prepare, type[BaseException]]] = [
    (hook("create", StorageError("on purpose")), StorageError),
    (hook("create", asyncio.CancelledError()), asyncio.CancelledError),
    (refuse_to_save, StorageError),
]
CLONE_FAILURES: list[tuple[Prepare, type[BaseException]]] = [
    *CREATION_FAILURES,
    (hook("clone", StorageError("on purpose")), StorageError),
    (hook("clone", KeyboardInterrupt()), KeyboardInterrupt),
]


@pytest.mark.parametrize(("prepare", "kind"), CREATION_FAILURES)
@pytest.mark.parametrize("klass", ["TemplateVM", "StandaloneVM", "AppVM", "DispVM"])
async def test_a_creation_that_fails_leaves_nothing(
    world: World, klass: str, prepare: Prepare, kind: type[BaseException]
) -> None:
    prepare(world)
    before = world.snapshot()
    with pytest.raises(kind):
        await world.create(klass, "new", {"AppVM": "debian", "DispVM": "dvm"}.get(klass, ""))
    assert (world.snapshot(), world.told) == (before, [])


@pytest.mark.parametrize(("prepare", "kind"), CLONE_FAILURES)
async def test_a_clone_that_fails_leaves_nothing(world: World, prepare: Prepare, kind: type[BaseException]) -> None:
    world.editor.set_notes(world.vm("alone"), "text")
    prepare(world)
    before = world.snapshot()
    with pytest.raises(kind):
        await world.clone("alone", "copy")
    assert (world.snapshot(), world.told) == (before, [])


@pytest.mark.parametrize(
    ("klass", "name", "template", "label", "by", "kind"),
    [
        ("AdminVM", "new", "", "", "dom0", ValueRefusedError),
        ("nonsense", "new", "", "", "dom0", ValueRefusedError),
        ("AppVM", "a b", "", "", "dom0", ValueRefusedError),
        ("AppVM", "work", "", "", "dom0", VMExistsError),
        ("AppVM", "new", "work", "", "dom0", ValueRefusedError),
        ("StandaloneVM", "new", "debian", "", "dom0", ValueRefusedError),
        ("DispVM", "new", "work", "", "dom0", ValueRefusedError),
        ("AppVM", "new", "", "pink", "dom0", LabelNotFoundError),
        ("AppVM", "new", "", "", "nobody", VMNotFoundError),
    ],
)
async def test_creations_that_are_refused_leave_nothing(
    world: World, klass: str, name: str, template: str, label: str, by: str, kind: type[CrannogError]
) -> None:
    before = world.snapshot()
    with pytest.raises(kind) as caught:
        await world.create(klass, name, template, label, by)
    assert type(caught.value) is kind
    assert (world.snapshot(), world.told) == (before, [])


async def test_a_mark_that_stays_is_no_failure(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The VM is in the store: the next start of the daemon takes the mark away."""
    hook("claim", StorageError("on purpose"))(world)
    vm = await world.create("StandaloneVM", "new")
    mark = Path(world.pool.folder, "new-00000005", ".provisional")
    assert (world.vm("new"), mark.exists()) == (vm, True)
    assert "new: on purpose; the next start of crannogd tries again" in caplog.text
    assert await world.pool.recover(frozenset(v.vid for vm in world.reloaded() for v in vm.volumes.values())) == []
    assert not mark.exists()
    assert read(world, vm, "root") == b"\0" * 4


@pytest.mark.parametrize("act", ["create", "clone"])
async def test_of_two_vms_of_one_name_one_wins_and_the_other_leaves_nothing(world: World, act: str) -> None:
    acts = [world.create("StandaloneVM", "new") if act == "create" else world.clone("alone", "new") for _ in range(3)]
    results = await asyncio.gather(*acts, return_exceptions=True)
    winners = [result for result in results if isinstance(result, QubeBase)]
    losers = [result for result in results if not isinstance(result, QubeBase)]
    assert ([type(loser) for loser in losers], len(winners)) == ([VMExistsError, VMExistsError], 1)
    assert names(world).count("new") == 1
    folders = [name for name in os.listdir(world.pool.folder) if "new" in name]
    assert folders == [f"new-{winners[0].uuid[:8]}"]
    assert_saved(world, winners[0])
    assert [name for _, name, _ in world.told].count("domain-add") == 1


async def test_volumes_that_could_not_be_made_are_not_removed(world: World) -> None:
    """What is there under their names belongs to somebody else."""
    hook("create", StorageError("on purpose"))(world)
    world.pool.calls.clear()
    for act in (world.create("StandaloneVM", "new"), world.clone("alone", "copy")):
        with pytest.raises(StorageError, match="on purpose"):
            await act
    assert world.pool.calls == ["create", "create"]


def add_big_pool(world: World) -> HookedPool:
    """Have private volumes be made in a second pool, after the root ones."""
    big = HookedPool(str(world.home / "pool" / "big"), "big")
    world.pools["big"] = big
    world.registry.add_pool(PoolConfig("big", "qcow2"))
    world.editor.set_property(world.registry, "default_pool_private", "big")
    world.told.clear()
    return big


@pytest.mark.parametrize("act", ["create", "clone"])
async def test_when_one_pool_fails_the_volumes_in_the_other_are_removed(world: World, act: str) -> None:
    big = add_big_pool(world)
    big.hooks["create"] = fail_with(StorageError("on purpose"))
    world.pool.calls.clear()
    before = world.snapshot()
    with pytest.raises(StorageError, match="on purpose"):
        await (world.create("StandaloneVM", "new") if act == "create" else world.clone("alone", "new"))
    assert (world.snapshot(), world.told) == (before, [])
    assert (world.pool.calls, big.calls) == (["create", "remove"], ["create"])


async def test_volumes_of_a_failed_creation_that_cannot_be_removed_are_told_and_the_others_are(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    big = add_big_pool(world)
    hook("remove", StorageError("stays on purpose"))(world)
    big.hooks["create"] = lambda: refuse_to_save(world)
    with pytest.raises(StorageError, match="was written by another program"):
        await world.create("StandaloneVM", "new")
    assert "new: stays on purpose" in caplog.text
    assert (big.calls, os.listdir(big.folder), "new" in names(world)) == (["create", "remove"], [], False)


@pytest.mark.parametrize("act", ["create", "clone"])
async def test_a_pool_that_cannot_be_served_is_named(world: World, act: str) -> None:
    world.registry.add_pool(PoolConfig("big", "lvm_thin"))
    world.editor.set_property(world.registry, "default_pool_private", "big")
    world.told.clear()
    before = world.snapshot()
    words = r"volume new-00000005/private is in pool 'big', which cannot be served on this host \(there: vm-pool\)"
    with pytest.raises(StorageError, match=words):
        await (world.create("StandaloneVM", "new") if act == "create" else world.clone("alone", "new"))
    assert (world.snapshot(), world.told) == (before, [])


async def test_a_folder_that_is_there_is_never_removed(world: World) -> None:
    """Two UUIDs that begin alike, and a name that was taken over: rare, but it is the user's data."""
    old = world.vm("alone")
    write_private(world, "alone", b"mine")
    world.editor.set_property(old, "name", "older")
    world.uuids = iter([old.uuid[:-1] + "9"])
    with pytest.raises(StorageError, match="cannot be made"):
        await world.create("StandaloneVM", "alone")
    assert read(world, old, "private") == b"mine"


async def test_a_clone_has_settings_notes_and_data(world: World) -> None:
    source = world.vm("work")
    world.editor.set_property(source, "memory", "777")
    world.editor.set_property(source, "mac", "00:16:3e:00:00:01")
    world.editor.set_feature(source, "f", "1")
    world.editor.add_tag(source, "mine")
    world.editor.set_notes(source, "line\nline")
    write_private(world, "work", b"mine")
    world.told.clear()
    vm = await world.clone("work", "copy")
    assert (vm.get("memory"), vm.is_default("mac"), vm.label_name, vm.template) == (777, True, "green", source.template)
    assert (vm.features, vm.tags) == (source.features, source.tags)
    assert world.editor.notes(vm) == "line\nline"
    assert read(world, vm, "private") == b"mine"
    write_private(world, "copy", b"own!")
    assert read(world, source, "private") == b"mine"
    assert (world.told[0], world.told[-1]) == (
        ("", "domain-add", {"vm": "copy"}),
        ("copy", "domain-create-on-disk", {}),
    )
    assert not Path(world.pool.folder, "copy-00000005", ".provisional").exists()
    assert_saved(world, vm)


async def test_a_clone_of_a_vm_without_notes_has_none(world: World) -> None:
    await world.clone("work", "copy")
    assert not (world.home / "notes").exists()


async def test_the_clone_of_a_template_with_one_revision(world: World) -> None:
    vm = await world.clone("debian", "other")
    assert (read(world, vm, "root"), vm.volumes["root"].size) == (b"tttt", SIZE)
    assert vm.volumes["root"].revisions_to_keep == 1
    assert sorted(os.listdir(f"{world.pool.folder}/other-00000005")) == ["private.img", "root.2.img", "root.seal"]


def write_root(world: World, letter: str) -> None:
    path = world.pool.locate(world.vm("debian").volumes["root"]).path
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -P {ord(letter)} 0 512", path], check=True, timeout=20,
                   capture_output=True)  # fmt: skip


@needs_qemu
async def test_the_clone_of_a_template_with_layers_stands_alone(world: World) -> None:
    template = world.vm("debian")
    for letter in "ab":
        await world.pool.start(template.volumes["root"])
        write_root(world, letter)
        await world.pool.stop(template.volumes["root"])
    assert world.pool.newest(template.volumes["root"].vid).format == "qcow2"
    vm = await world.clone("debian", "other")
    assert (read(world, vm, "root", 513), vm.volumes["root"].size) == (b"b" * 512 + b"t", SIZE)
    app = await world.create("AppVM", "app", "other")
    world.editor.set_property(world.registry, "default_template", "other")
    for name in ("work", "dvm"):
        world.editor.set_property(world.vm(name), "template", "other")
    await world.population.remove(template)
    await world.pool.start(app.volumes["root"].with_source(vm.volumes["root"].vid, SIZE))
    assert world.pool.newest(vm.volumes["root"].vid).format == "raw"


@needs_qemu
async def test_what_a_template_writes_right_now_is_not_cloned(world: World) -> None:
    await world.pool.start(world.vm("debian").volumes["root"])
    write_root(world, "x")
    assert read(world, await world.clone("debian", "other"), "root") == b"tttt"


async def test_an_appvm_becomes_a_standalone_vm_with_its_templates_root(world: World) -> None:
    write_private(world, "work", b"mine")
    world.editor.set_property(world.vm("work"), "memory", "777")
    vm = await world.clone("work", "free", "StandaloneVM")
    assert (vm.klass, vm.template, vm.get("memory"), vm.label_name) == ("StandaloneVM", None, 777, "green")
    assert (read(world, vm, "root"), read(world, vm, "private")) == (b"tttt", b"mine")
    assert (vm.volumes["root"].size, vm.volumes["root"].snap_on_start) == (SIZE, False)
    assert_saved(world, vm)


async def test_an_appvm_that_becomes_a_standalone_vm_still_starts_the_same_way(world: World) -> None:
    template, source = world.vm("debian"), world.vm("work")
    world.editor.set_property(template, "virt_mode", "hvm")
    world.editor.set_feature(template, "qrexec", "1")
    vm = await world.clone("work", "free", "StandaloneVM")
    assert vm.get("virt_mode") == source.get("virt_mode") == "hvm"
    assert vm.feature("qrexec") == source.feature("qrexec") == "1"
    world.editor.remove_feature(template, "qrexec")
    assert (vm.feature("qrexec"), source.feature("qrexec")) == ("1", None)
    assert_saved(world, vm)


async def test_the_clone_of_a_disposable(world: World) -> None:
    source = await world.create("DispVM", "disp", "dvm")
    vm = await world.clone("disp", "disp2")
    assert (vm.klass, vm.template) == ("DispVM", world.vm("dvm"))
    assert (source.get("dispid"), vm.get("dispid")) == (6629, 9999)
    assert os.listdir(f"{world.pool.folder}/disp2-{vm.uuid[:8]}") == []
    write_private(world, "dvm", b"mine")
    free = await world.clone("disp", "free", "StandaloneVM")
    assert (read(world, free, "root"), read(world, free, "private")) == (b"tttt", b"mine")


async def test_the_number_of_a_cloned_disposable_says_nothing_either(world: World) -> None:
    await world.create("DispVM", "disp", "dvm")
    vm = await world.clone("disp", "disp2")
    assert world.offered[1:] == [[number for number in range(1, 10000) if number != 6629]]
    assert vm.get("dispid") == 9999
    await world.clone("disp", "free", "StandaloneVM")
    assert len(world.offered) == 2


@pytest.mark.parametrize("act", ["create", "clone"])
async def test_disposables_that_are_made_at_once_get_different_numbers(world: World, act: str) -> None:
    await world.create("DispVM", "disp", "dvm")
    names = ("one", "two")
    acts = [world.create("DispVM", name, "dvm") if act == "create" else world.clone("disp", name) for name in names]
    await asyncio.gather(*acts, return_exceptions=True)
    numbers = [vm.get("dispid") for vm in world.registry if vm.klass == "DispVM"]
    assert len(set(numbers)) == len(numbers) >= 2


@pytest.mark.parametrize(
    ("source", "klass", "kind"),
    [
        ("debian", "AppVM", ValueRefusedError),
        ("work", "DispVM", ValueRefusedError),
        ("work", "AdminVM", ValueRefusedError),
        ("dom0", "", ValueRefusedError),
    ],
)
async def test_clones_that_are_refused_leave_nothing(
    world: World, source: str, klass: str, kind: type[CrannogError]
) -> None:
    before = world.snapshot()
    with pytest.raises(kind):
        await world.clone(source, "copy", klass)
    assert (world.snapshot(), world.told) == (before, [])


async def test_a_vm_on_another_host_is_cloned_without_volumes(world: World) -> None:
    await world.create("RemoteVM", "far")
    world.editor.set_property(world.vm("far"), "remote_name", "work")
    vm = await world.clone("far", "farther")
    assert (vm.klass, vm.get("remote_name"), vm.volumes) == ("RemoteVM", "work", {})


async def test_a_vm_on_another_host_does_not_become_a_local_one(world: World) -> None:
    await world.create("RemoteVM", "far")
    world.told.clear()
    before = world.snapshot()
    with pytest.raises(
        ValueRefusedError, match="near: a StandaloneVM has a volume root, and far, a RemoteVM, has none"
    ):
        await world.clone("far", "near", "StandaloneVM")
    assert (world.snapshot(), world.told) == (before, [])


async def test_a_source_whose_data_is_missing_is_named(world: World) -> None:
    os.unlink(world.pool.locate(world.vm("work").volumes["private"]).path)
    before = world.snapshot()
    with pytest.raises(StorageError, match="volume work-00000002/private of pool vm-pool has no content"):
        await world.clone("work", "copy")
    assert world.snapshot() == before


@pytest.mark.parametrize("method", ["notes", "save_notes"])
async def test_a_clone_whose_notes_cannot_be_kept_leaves_nothing(
    world: World, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.editor.set_notes(world.vm("work"), "text")
    world.told.clear()
    before = world.snapshot()
    monkeypatch.setattr(world.store, method, lambda *_arguments: fail_with(StorageError("on purpose"))())
    with pytest.raises(StorageError):
        await world.clone("work", "copy")
    assert (world.snapshot(), world.told) == (before, [])


async def test_a_clone_has_its_notes_before_it_is_told(world: World) -> None:
    world.editor.set_notes(world.vm("work"), "text")
    seen: list[str] = []
    world.editor.listen(lambda _event: seen.append(world.editor.notes(world.vm("copy"))))
    await world.clone("work", "copy")
    assert set(seen) == {"text"}


def lose_network(world: World) -> None:
    for name in ("work", "alone"):
        world.editor.set_property(world.vm(name), "netvm", "")
    world.editor.set_property(world.vm("dvm"), "provides_network", "False")


def lose_label(world: World) -> None:
    world.editor.set_property(world.vm("work"), "label", "red")
    world.editor.remove_label("pink")


@pytest.mark.parametrize("lose", [lose_network, lose_label])
async def test_what_changes_while_a_clone_is_made_does_not_spoil_the_store(
    world: World, lose: Callable[[World], None]
) -> None:
    world.editor.set_property(world.vm("dvm"), "provides_network", "True")
    world.editor.create_label("pink", "0xff00ff")
    world.editor.set_property(world.vm("work"), "netvm", "dvm")
    world.editor.set_property(world.vm("work"), "label", "pink")
    world.pool.hooks["clone"] = lambda: lose(world)
    try:
        await world.clone("work", "copy")
    except CrannogError:
        assert "copy" not in names(world)
        assert not [name for name in os.listdir(world.pool.folder) if "copy" in name]
    assert [vm.name for vm in world.reloaded()] == names(world)


async def test_a_template_that_goes_while_its_vm_is_made_takes_the_vm_with_it(world: World) -> None:
    other = await world.clone("debian", "other")
    world.pool.hooks["create"] = lambda: world.registry.remove(other)
    with pytest.raises(VMNotFoundError):
        await world.create("AppVM", "new", "other")
    assert "new" not in names(world)
    assert not [name for name in os.listdir(world.pool.folder) if name.startswith(("new", ".new"))]


async def test_a_removed_vm_leaves_nothing(world: World) -> None:
    vm = world.vm("alone")
    world.editor.set_notes(vm, "text")
    kept = [line for line in world.files() if "alone-" not in line and vm.uuid not in line]
    world.told.clear()
    await world.population.remove(vm)
    assert "alone" not in names(world)
    assert [vm.name for vm in world.reloaded()] == names(world)
    assert [line.split()[0] for line in world.files()] == [line.split()[0] for line in kept]
    assert world.editor.notes(vm) == ""
    assert world.told == [
        ("", "domain-pre-delete", {"vm": "alone"}),
        ("", "domain-delete", {"vm": "alone"}),
        ("alone", "domain-remove-from-disk", {}),
    ]


async def test_that_volumes_are_gone_is_told_when_they_are(world: World) -> None:
    vm = world.vm("alone")
    folder = Path(world.pool.folder, f"alone-{vm.uuid[:8]}")
    there: list[tuple[str, bool]] = []
    world.editor.listen(lambda event: there.append((event.name, folder.exists())))
    await world.population.remove(vm)
    assert there == [("domain-pre-delete", True), ("domain-delete", True), ("domain-remove-from-disk", False)]


async def test_that_volumes_are_gone_is_not_told_when_they_stay(world: World) -> None:
    hook("remove", StorageError("on purpose"))(world)
    with pytest.raises(StorageError, match="on purpose"):
        await world.population.remove(world.vm("alone"))
    assert [name for _, name, _ in world.told] == ["domain-pre-delete", "domain-delete"]
    assert [vm.name for vm in world.reloaded()] == names(world)
    assert "alone" not in names(world)


async def test_a_removal_that_cannot_be_saved_removes_nothing(world: World) -> None:
    world.editor.set_notes(world.vm("alone"), "text")
    refuse_to_save(world)
    before = world.snapshot()
    with pytest.raises(StorageError):
        await world.population.remove(world.vm("alone"))
    assert (world.snapshot(), world.told) == (before, [])


async def test_a_vm_in_use_keeps_its_volumes(world: World) -> None:
    before = world.snapshot()
    with pytest.raises(InUseError, match="debian is in use by work"):
        await world.population.remove(world.vm("debian"))
    with pytest.raises(InUseError, match="dom0 cannot be removed"):
        await world.population.remove(world.registry.dom0)
    assert (world.snapshot(), world.told) == (before, [])


async def test_volumes_in_a_pool_that_is_not_there_stay_and_that_is_told(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    vm = world.vm("alone")
    vm.volumes["root"] = Volume("root", "big", "vg/alone-root", SIZE, save_on_stop=True)
    await world.population.remove(vm)
    assert "alone: its volume vg/alone-root stays: no pool 'big' here" in caplog.text
    assert not Path(world.pool.folder, f"alone-{vm.uuid[:8]}").exists()


async def test_a_crash_right_after_the_removal_leaves_files_that_nobody_refers_to(world: World) -> None:
    hook("remove", KeyboardInterrupt())(world)
    with pytest.raises(KeyboardInterrupt):
        await world.population.remove(world.vm("alone"))
    assert "alone" not in [vm.name for vm in world.reloaded()]
    assert any("alone" in line for line in world.files())


class Runs:
    """A runtime in which every VM is paused."""

    def power_state(self, uuid: str) -> str:
        del uuid
        return "Paused"

    def xid(self, uuid: str) -> int:
        del uuid
        return 7

    def stubdom_xid(self, uuid: str) -> int:
        del uuid
        return -1

    def active_states(self) -> dict[str, str]:
        raise NotImplementedError


async def test_a_vm_that_is_not_halted_is_neither_cloned_nor_removed(world: World) -> None:
    world.registry.runtime = Runs()
    before = world.snapshot()
    with pytest.raises(VMNotHaltedError, match="work cannot be cloned while it is Paused"):
        await world.clone("work", "copy")
    with pytest.raises(VMNotHaltedError, match="work cannot be removed while it is Paused"):
        await world.population.remove(world.vm("work"))
    assert (world.snapshot(), world.told) == (before, [])


@pytest.mark.parametrize("act", ["create", "clone"])
@pytest.mark.parametrize(
    ("chosen", "pools"),
    [
        ({}, [DEFAULT_POOL] * 3),
        ({"": "big"}, ["big"] * 3),
        ({"root": "big"}, ["big", DEFAULT_POOL, DEFAULT_POOL]),
        ({"private": "big", "root": DEFAULT_POOL}, [DEFAULT_POOL, "big", DEFAULT_POOL]),
        ({"volatile": "big", "kernel": "linux-kernel"}, [DEFAULT_POOL, DEFAULT_POOL, "big"]),
    ],
)
async def test_a_new_vm_in_chosen_pools(world: World, act: str, chosen: dict[str, str], pools: list[str]) -> None:
    add_big_pool(world)
    world.editor.reset_property(world.registry, "default_pool_private")
    write_private(world, "alone", b"mine")
    if act == "create":
        wanted = NewVM("StandaloneVM", "new", "", None, chosen)
        vm = await world.population.create(wanted, created_by="dom0")
    else:
        vm = await world.population.clone(world.vm("alone"), "new", klass="", created_by="dom0", pools=chosen)
    assert [volume.pool for volume in vm.volumes.values()] == [*pools, "linux-kernel"]
    kept = [volume for volume in vm.volumes.values() if volume.save_on_stop]
    found = [Path(world.pools[volume.pool].newest(volume.vid).path) for volume in kept]
    assert all(path.exists() for path in found)
    assert read(world, vm, "private") == (b"mine" if act == "clone" else b"\0" * 4)
    assert not list(world.home.rglob(".provisional"))
    assert_saved(world, vm)


@needs_qemu
async def test_a_clone_in_another_pool_stands_alone(world: World) -> None:
    add_big_pool(world)
    template = world.vm("debian")
    for letter in "ab":
        await world.pool.start(template.volumes["root"])
        write_root(world, letter)
        await world.pool.stop(template.volumes["root"])
    vm = await world.population.clone(template, "other", klass="", created_by="dom0", pools={"": "big"})
    newest = world.pools["big"].newest(vm.volumes["root"].vid)
    assert (newest.format, read(world, vm, "root")) == ("raw", b"bbbb")
    app = await world.create("AppVM", "app", "other")
    assert [volume.pool for volume in app.volumes.values()] == ["big", "big", DEFAULT_POOL, "linux-kernel"]


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"": "odd"}, "there is no pool 'odd'"),
        ({"odd": DEFAULT_POOL}, "VMs of class AppVM have no volume 'odd'"),
        ({"root": "big"}, "is a layer, in the pool of its template's volume"),
    ],
)
async def test_pools_that_do_not_fit_leave_nothing(world: World, chosen: dict[str, str], words: str) -> None:
    add_big_pool(world)
    before = world.snapshot()
    with pytest.raises(ValueRefusedError, match=words):
        await world.population.create(NewVM("AppVM", "new", "", None, chosen), created_by="dom0")
    with pytest.raises(ValueRefusedError, match=words):
        await world.population.clone(world.vm("work"), "new", klass="", created_by="dom0", pools=chosen)
    assert (world.snapshot(), world.told) == (before, [])


async def test_what_a_template_writes_in_place_is_not_copied_meanwhile(world: World) -> None:
    template = world.vm("debian")
    template.volumes["root"] = replace(template.volumes["root"], revisions_to_keep=0)
    world.registry.runtime = RunsOnly(template.uuid)
    before = world.snapshot()
    with pytest.raises(VMNotHaltedError, match="debian cannot have its volume root copied while it is Running"):
        await world.clone("work", "free", "StandaloneVM")
    assert (world.snapshot(), world.told) == (before, [])
    await world.clone("work", "copy")


class RunsOnly:
    """A runtime in which one VM runs."""

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid

    def power_state(self, uuid: str) -> str:
        return "Running" if uuid == self._uuid else "Halted"

    def xid(self, uuid: str) -> int:
        return 7 if uuid == self._uuid else -1

    def stubdom_xid(self, uuid: str) -> int:
        del uuid
        return -1

    def active_states(self) -> dict[str, str]:
        return {self._uuid: "Running"}


async def test_a_busy_vm_is_neither_cloned_nor_removed(world: World) -> None:
    vm = world.vm("alone")
    world.population = Population(world.editor, world.pools, busy={vm.uuid: "something goes on"})
    before = world.snapshot()
    with pytest.raises(StateError, match="alone cannot be cloned: something goes on"):
        await world.clone("alone", "copy")
    with pytest.raises(StateError, match="alone cannot be removed: something goes on"):
        await world.population.remove(vm)
    assert (world.snapshot(), world.told) == (before, [])


async def test_a_disposable_that_is_named_after_its_number(world: World) -> None:
    vm = await world.population.create_disposable(world.vm("dvm"), created_by="work")
    assert (vm.name, vm.get("dispid"), vm.label_name) == ("disp6629", 6629, "red")
    assert (vm.get("auto_cleanup"), {"created-by-work", "disp-created-by-work"} < vm.tags) == (True, True)
    assert_saved(world, vm)
    world.editor.set_property(world.vm("alone"), "name", "disp9999")
    assert (await world.population.create_disposable(world.vm("dvm"), created_by="work")).name == "disp9998"


@pytest.mark.parametrize("prepare", [prepare for prepare, _ in CREATION_FAILURES])
async def test_a_disposable_that_cannot_be_made_gives_its_number_back(world: World, prepare: Prepare) -> None:
    prepare(world)
    before = world.snapshot()
    for _ in range(2):
        with pytest.raises((CrannogError, asyncio.CancelledError)):
            await world.population.create_disposable(world.vm("dvm"), created_by="dom0")
    assert (world.snapshot(), world.told) == (before, [])
    assert all(6629 in offered for offered in world.offered)


async def test_when_all_numbers_are_taken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population, "MAX_DISPID", 3)
    for _ in range(2):
        await world.population.create_disposable(world.vm("dvm"), created_by="dom0")
    with pytest.raises(InUseError, match="all 2 numbers of disposables are in use"):
        await world.population.create_disposable(world.vm("dvm"), created_by="dom0")
