"""The methods about volumes, and those that make VMs in pools: bytes for bytes, over the real store and pool."""

import asyncio
import errno
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from crannog.adapters.store import file as store_file
from crannog.api.framing import Request
from crannog.api.methods import METHODS, answer
from crannog.api.table import Family
from crannog.core.events import Event
from crannog.core.volumes import MAX_SIZE, Volume
from crannog.errors import (
    CrannogError,
    DeniedError,
    NotFoundError,
    NotYetError,
    ProtocolError,
    RevisionNotFoundError,
    StateError,
    StorageError,
    TokenNotFoundError,
    ValueRefusedError,
    VMNotHaltedError,
)
from tests.fakes import KERNEL, Inside, build_inside

MIB = 2**20
VOLUME = "admin.vm.volume."
BEGIN, END = "internal.vm.volume.ImportBegin", "internal.vm.volume.ImportEnd"


async def call(
    inside: Inside, method: str, vm: str = "dom0", argument: str = "", payload: str | bytes = "", source: str = "dom0"
) -> str:
    data = payload.encode() if isinstance(payload, str) else payload
    family = Family.INTERNAL if method.startswith("internal") else Family.PUBLIC
    return (await answer(inside.inventory, Request(method, argument, source, vm, data), family)).decode()


@pytest.fixture
async def inside(tmp_path: Path) -> Inside:
    """Return a daemon's inside with a template `debian` whose root is all `t`, an AppVM and a StandaloneVM."""
    inside = build_inside(tmp_path)
    await call(inside, "admin.vm.Create.TemplateVM", payload="name=debian label=black")
    await call(inside, "crannog.vm.volume.ImportFile", "debian", "root", image(tmp_path, "t"))
    await call(inside, "admin.vm.Create.AppVM", argument="debian", payload="name=work label=green")
    await call(inside, "admin.vm.Create.StandaloneVM", payload="name=alone label=red")
    await call(inside, "crannog.vm.volume.ImportFile", "alone", "private", image(tmp_path, "p"))
    return inside


def image(folder: Path, letter: str, size: int = MIB) -> str:
    path = folder / f"image-{letter}"
    path.write_bytes(letter.encode() * size)
    return str(path)


@pytest.fixture
def told(inside: Inside) -> list[tuple[str, str, dict[str, str]]]:
    """Return the list of what is told from now on."""
    told: list[tuple[str, str, dict[str, str]]] = []

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


def volume_of(inside: Inside, vm: str, name: str) -> Volume:
    return inside.registry.find_vm(vm).volumes[name]


def content(inside: Inside, vm: str, name: str, count: int = 4) -> bytes:
    with open(inside.pool.newest(volume_of(inside, vm, name).vid).path, "rb") as file:
        return file.read(count)


def snapshot(inside: Inside) -> object:
    files = [path for path in Path(inside.pool.folder).rglob("*") if path.is_file()]
    return Path(inside.paths.store).read_bytes(), sorted((str(path), path.stat().st_size) for path in files)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout


async def write_as_guest(inside: Inside, vm: str, name: str, letter: str) -> None:
    """Have a VM run, write, and stop."""
    await call(inside, "admin.vm.Start", vm)
    location = inside.pool.locate(volume_of(inside, vm, name))
    command = ["qemu-io", "-f", location.format, "-c", f"write -P {ord(letter)} 0 4096", location.path]
    run(*command)
    await call(inside, "admin.vm.Kill", vm)


async def test_lists(inside: Inside) -> None:
    for vm in ("debian", "work", "alone"):
        assert await call(inside, VOLUME + "List", vm) == "root\nprivate\nvolatile\nkernel\n"
    await call(inside, "admin.vm.Create.RemoteVM", payload="name=far label=red")
    assert await call(inside, VOLUME + "List", "dom0") == await call(inside, VOLUME + "List", "far") == ""
    volumes = inside.registry.find_vm("alone").volumes
    for name in ("odd", "kernel", "volatile"):  # as a file from elsewhere may have them
        volumes[name] = replace(volumes.pop(name, volumes["root"]), name=name)
    assert await call(inside, VOLUME + "List", "alone") == "root\nprivate\nvolatile\nkernel\nodd\n"


async def test_info_of_a_volume_of_its_own(inside: Inside) -> None:
    folder = f"alone-{inside.registry.find_vm('alone').uuid[:8]}"
    assert await call(inside, VOLUME + "Info", "alone", "private") == (
        f"pool=vm-pool\nvid={folder}/private\nsize={MIB}\nusage={MIB}\nrw=True\nsource=\n"
        f"path={inside.pool.folder}/{folder}/private.img\nsave_on_stop=True\nsnap_on_start=False\n"
        "revisions_to_keep=0\nephemeral=False\n"
    )


async def test_info_of_a_layer(inside: Inside) -> None:
    folders = {vm: f"{vm}-{inside.registry.find_vm(vm).uuid[:8]}" for vm in ("work", "debian")}
    expected = (
        f"pool=vm-pool\nvid={folders['work']}/root\nsize={10 * 2**30}\nusage=0\nrw=True\n"
        f"source={folders['debian']}/root\npath={inside.pool.folder}/{folders['work']}/root.volatile.qcow2\n"
        "save_on_stop=False\nsnap_on_start=True\nrevisions_to_keep=0\nephemeral=False\nis_outdated=False\n"
    )
    assert await call(inside, VOLUME + "Info", "work", "root") == expected
    await call(inside, "admin.vm.Start", "work")
    running = await call(inside, VOLUME + "Info", "work", "root")
    assert int(re.findall("usage=(.*)", running)[0]) > 0
    await write_as_guest(inside, "debian", "root", "n")
    assert (await call(inside, VOLUME + "Info", "work", "root")).endswith("is_outdated=True\n")
    await call(inside, "admin.vm.Kill", "work")
    assert await call(inside, VOLUME + "Info", "work", "root") == expected


async def test_info_of_what_is_on_another_host(inside: Inside) -> None:
    volumes = inside.registry.find_vm("alone").volumes
    volumes["root"] = replace(volumes["root"], pool="lvm", vid="vg/x-root", extra=(("ephemeral", "True"),))
    info = await call(inside, VOLUME + "Info", "alone", "root")
    assert "usage=0\n" in info
    assert "path=\n" in info
    assert info.endswith("ephemeral=True\n")
    assert await call(inside, VOLUME + "ListSnapshots", "alone", "root") == ""
    await call(inside, VOLUME + "Set.ephemeral", "alone", "root", "no")
    assert inside.reloaded().find_vm("alone").volumes["root"].extra == ()


async def test_info_of_the_kernels_volume(inside: Inside) -> None:
    """It is the image of modules, where there is one; a read says nothing of a kernel that is missing (B3)."""
    folder = Path(inside.paths.kernels, KERNEL)
    (folder / "modules.img").write_bytes(b"m" * 5)
    info = await call(inside, VOLUME + "Info", "work", "kernel")
    assert info.startswith(f"pool=linux-kernel\nvid={KERNEL}\nsize=5\nusage=0\nrw=False\nsource=\n")
    assert f"\npath={folder}/modules.img\n" in info
    assert await call(inside, VOLUME + "ListSnapshots", "work", "kernel") == ""
    (folder / "modules.img").unlink()
    assert "size=0\nusage=0\nrw=False\nsource=\npath=\n" in await call(inside, VOLUME + "Info", "work", "kernel")
    (folder / "initramfs").unlink()
    info = await call(inside, VOLUME + "Info", "work", "kernel")
    assert info.startswith(f"pool=linux-kernel\nvid={KERNEL}\nsize=0\n")
    await call(inside, "admin.vm.property.Set", "alone", "virt_mode", "hvm")
    assert (await call(inside, VOLUME + "Info", "alone", "kernel")).startswith("pool=linux-kernel\nvid=\nsize=0\n")


async def test_the_volatile_volume_of_sessions(inside: Inside) -> None:
    """An empty file while a VM runs that has a kernel from the host; no other VM has one."""
    for vm in ("work", "alone"):
        await call(inside, VOLUME + "Resize", vm, "volatile", str(11 * 2**30))
        path = Path(inside.pool.locate(volume_of(inside, vm, "volatile")).path)
        for _ in range(2):
            await call(inside, "admin.vm.Start", vm)
            assert inside.hypervisor.specs[-1].disks[2].path == str(path)
            assert (path.stat().st_size, path.stat().st_blocks) == (11 * 2**30, 0)
            run("dd", "if=/dev/urandom", f"of={path}", "bs=4096", "count=1", "conv=notrunc")
            assert "\nusage=4096\n" in await call(inside, VOLUME + "Info", vm, "volatile")
            await call(inside, "admin.vm.Kill", vm)
            assert not path.exists()
    await call(inside, "admin.vm.property.Set", "alone", "virt_mode", "hvm")
    await call(inside, "admin.vm.Start", "alone")
    assert [disk.path.rpartition("/")[2] for disk in inside.hypervisor.specs[-1].disks] == ["root.img", "private.img"]
    assert not path.exists()


async def test_a_start_that_fails_leaves_no_volatile_volume(inside: Inside) -> None:
    before = snapshot(inside)
    inside.hypervisor.failing = {"create_paused"}
    with pytest.raises(CrannogError, match="on purpose"):
        await call(inside, "admin.vm.Start", "work")
    assert snapshot(inside) == before


PAYLOADS = {
    "Info": "", "ListSnapshots": "", "CloneFrom": "", "Clear": "", "Revert": "1", "CloneTo": "x" * 32, "Resize": "9",
    "Set.revisions_to_keep": "1", "Set.rw": "True", "Set.ephemeral": "False", "Import": "", "ImportWithSize": "",
}  # fmt: skip
WRITING = ["Clear", "Resize", "Set.rw", "Set.revisions_to_keep"]


@pytest.mark.parametrize("name", sorted(set(PAYLOADS) - {"Import", "ImportWithSize"}))
async def test_volumes_that_are_not_there(inside: Inside, name: str) -> None:
    before = snapshot(inside)
    for vm, volume in (("work", "odd"), ("dom0", "volatile"), ("dom0", "root"), ("work", "../private")):
        with pytest.raises(DeniedError) as caught:
            await call(inside, VOLUME + name, vm, volume, PAYLOADS[name])
        assert str(caught.value) == f"Argument not in '{vm} volumes'"
    with pytest.raises(ProtocolError, match=r"^expected an argument$"):
        await call(inside, VOLUME + name, "work", "", PAYLOADS[name])
    has_payload = bool(PAYLOADS[name])
    with pytest.raises(ProtocolError, match="^expected payload$" if has_payload else "^unexpected payload$"):
        await call(inside, VOLUME + name, "work", "private", "" if has_payload else "x")
    assert snapshot(inside) == before


@pytest.mark.parametrize(
    ("name", "payload", "kind"),
    [
        *(("Resize", text, ProtocolError) for text in ("-1", "1.5", "01", "1" * 20, "0x10", " 1", "1k", "x", "\u0661")),
        ("Resize", "0", ValueRefusedError),
        ("Resize", str(MIB - 1), ValueRefusedError),
        ("Resize", str(MAX_SIZE + 1), ValueRefusedError),
        *(("Set.revisions_to_keep", text, ProtocolError) for text in ("", "x", "--1", "1.0", "True")),
        ("Set.revisions_to_keep", "-2", ValueRefusedError),
        *((f"Set.{key}", text, CrannogError) for key in ("rw", "ephemeral") for text in ("", "2", "maybe", "\xff")),
        ("Set.ephemeral", "True", NotYetError),
        ("Revert", "../x", ProtocolError),
        ("Revert", "a b", ProtocolError),
        ("Revert", "1", RevisionNotFoundError),
        ("CloneTo", "x" * 31, ProtocolError),
        ("CloneTo", "x" * 33, ProtocolError),
        ("CloneTo", "x" * 32, TokenNotFoundError),
    ],
)
async def test_payloads_that_are_refused_change_nothing(
    inside: Inside, name: str, payload: str, kind: type[CrannogError]
) -> None:
    before = snapshot(inside)
    with pytest.raises(kind):
        await call(inside, VOLUME + name, "alone", "private", payload)
    assert snapshot(inside) == before


@pytest.mark.parametrize("name", WRITING)
async def test_what_a_running_vm_refuses(inside: Inside, name: str) -> None:
    """But what keeps its content can become larger meanwhile."""
    volume = "volatile" if name == "Resize" else "private"
    await call(inside, "admin.vm.Start", "alone")
    before = snapshot(inside)
    with pytest.raises(VMNotHaltedError, match=r"alone cannot .* while it is Running; shut it down"):
        await call(inside, VOLUME + name, "alone", volume, {"Resize": str(2**40)}.get(name, PAYLOADS[name]))
    with pytest.raises(VMNotHaltedError):
        await call(inside, BEGIN, "alone", "private")
    assert snapshot(inside) == before


@pytest.mark.parametrize("name", ["Clear", "Revert", "CloneTo"])
async def test_a_layer_has_no_content_of_its_own(inside: Inside, name: str) -> None:
    token = await call(inside, VOLUME + "CloneFrom", "debian", "root")
    before = snapshot(inside)
    with pytest.raises((ValueRefusedError, RevisionNotFoundError), match=r"made anew|has no revision"):
        await call(inside, VOLUME + name, "work", "root", {"CloneTo": token}.get(name, PAYLOADS[name]))
    with pytest.raises(ValueRefusedError, match="made anew from the template"):
        await call(inside, BEGIN, "work", "root")
    assert snapshot(inside) == before


@pytest.mark.parametrize("method", ["Import", "ImportWithSize"])
async def test_streams_are_not_for_the_socket(inside: Inside, method: str) -> None:
    with pytest.raises(ProtocolError, match="qvm-volume import"):
        await call(inside, VOLUME + method, "alone", "root", b"\0" * 99)


async def test_resize(inside: Inside) -> None:
    assert await call(inside, VOLUME + "Resize", "alone", "private", str(3 * MIB)) == ""
    assert os.stat(inside.pool.locate(volume_of(inside, "alone", "private")).path).st_size == 3 * MIB
    await call(inside, VOLUME + "Resize", "alone", "private", str(3 * MIB))
    assert content(inside, "alone", "private") == b"pppp"
    await call(inside, VOLUME + "Resize", "debian", "root", str(20 * 2**30))
    await call(inside, VOLUME + "Resize", "work", "root", str(30 * 2**30))
    saved = inside.reloaded()
    sizes = [saved.find_vm(vm).volumes[name].size for vm, name in (("alone", "private"), ("debian", "root"))]
    assert (sizes, saved.find_vm("work").volumes["root"].size) == ([3 * MIB, 20 * 2**30], 30 * 2**30)
    await call(inside, "admin.vm.Start", "work")
    path = inside.pool.locate(volume_of(inside, "work", "root")).path
    assert f"({30 * 2**30} bytes)" in run("qemu-img", "info", "-U", path)


async def test_shrinking_says_how(inside: Inside) -> None:
    with pytest.raises(ValueRefusedError, match=r"has 1048576 bytes and cannot get fewer.*by hand.*qvm-volume import"):
        await call(inside, VOLUME + "Resize", "alone", "private", "4096")


async def test_clear(inside: Inside, told: list[tuple[str, str, dict[str, str]]]) -> None:
    assert await call(inside, VOLUME + "Clear", "alone", "private") == ""
    assert content(inside, "alone", "private", MIB + 1) == b"\0" * MIB
    assert told == [
        ("alone", "domain-volume-import-begin", {"volume": "private", "size": str(MIB)}),
        ("alone", "domain-volume-import-end", {"volume": "private", "success": "True"}),
    ]


async def test_what_comes_to_nothing_is_told_so(
    inside: Inside, told: list[tuple[str, str, dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_volume: object) -> None:
        raise StorageError("on purpose")

    monkeypatch.setattr(inside.pool, "clear", refuse)
    with pytest.raises(StorageError):
        await call(inside, VOLUME + "Clear", "alone", "private")
    assert told[-1] == ("alone", "domain-volume-import-end", {"volume": "private", "success": "False"})


async def test_revisions(inside: Inside) -> None:
    assert await call(inside, VOLUME + "ListSnapshots", "debian", "root") == ""
    path = inside.pool.newest(volume_of(inside, "debian", "root").vid).path
    os.utime(path, (0, 1234567890))
    await write_as_guest(inside, "debian", "root", "n")
    revision = "2-2009-02-13T23:31:30Z"
    assert await call(inside, VOLUME + "ListSnapshots", "debian", "root") == f"{revision}\n"
    await call(inside, "admin.vm.Start", "debian")
    with pytest.raises(VMNotHaltedError):
        await call(inside, VOLUME + "Revert", "debian", "root", revision)
    await call(inside, "admin.vm.Kill", "debian")
    words = "^volume root of debian has no revision '2'; 'qvm-volume info debian:root' lists those that it has$"
    with pytest.raises(RevisionNotFoundError, match=words):
        await call(inside, VOLUME + "Revert", "debian", "root", "2")


async def test_going_back(inside: Inside) -> None:
    await write_as_guest(inside, "debian", "root", "n")
    await call(inside, VOLUME + "Set.revisions_to_keep", "debian", "root", "3")
    (revision,) = (await call(inside, VOLUME + "ListSnapshots", "debian", "root")).splitlines()
    assert await call(inside, VOLUME + "Revert", "debian", "root", revision) == ""
    token = await call(inside, VOLUME + "CloneFrom", "debian", "root")
    await call(inside, VOLUME + "CloneTo", "alone", "private", token)
    assert content(inside, "alone", "private", MIB + 1) == b"t" * MIB
    assert len((await call(inside, VOLUME + "ListSnapshots", "debian", "root")).splitlines()) == 2
    assert inside.reloaded().find_vm("debian").volumes["root"].revisions_to_keep == 3


async def test_settings_are_saved(inside: Inside) -> None:
    await call(inside, VOLUME + "Set.rw", "alone", "private", "no")
    await call(inside, VOLUME + "Set.revisions_to_keep", "alone", "private", "5")
    await call(inside, VOLUME + "Set.revisions_to_keep", "alone", "root", "-1")
    await call(inside, VOLUME + "Set.ephemeral", "alone", "root", "False")
    volumes = inside.reloaded().find_vm("alone").volumes
    assert (volumes["private"].rw, volumes["private"].revisions_to_keep) == (False, 5)
    assert volumes["root"].revisions_to_keep == -1
    await call(inside, "admin.vm.Start", "alone")
    disks = inside.hypervisor.specs[-1].disks
    assert [(disk.is_readonly, disk.path.rpartition("/")[2]) for disk in disks] == [
        (False, "root.img"), (True, "private.dirty.qcow2"), (False, "volatile.img"),
    ]  # fmt: skip
    await call(inside, VOLUME + "Set.revisions_to_keep", "alone", "private", "6")
    with pytest.raises(VMNotHaltedError, match="alone cannot begin or cease to keep revisions while it is Running"):
        await call(inside, VOLUME + "Set.revisions_to_keep", "alone", "private", "0")


@pytest.mark.parametrize("name", ["Resize", "Set.rw", "Set.revisions_to_keep"])
async def test_a_setting_that_cannot_be_saved_is_taken_back(
    inside: Inside, full_disk: Callable[[], None], name: str
) -> None:
    before = volume_of(inside, "debian", "root")
    full_disk()
    payload = {"Resize": str(2**40), "Set.rw": "False"}.get(name, "7")
    with pytest.raises(StorageError, match="intact"):
        await call(inside, VOLUME + name, "debian", "root", payload)
    assert volume_of(inside, "debian", "root") == before == inside.reloaded().find_vm("debian").volumes["root"]


# -- copies


async def test_a_token_is_good_once(inside: Inside) -> None:
    token = await call(inside, VOLUME + "CloneFrom", "alone", "private")
    assert re.fullmatch("[0-9a-zA-Z]{32}", token)
    assert await call(inside, VOLUME + "CloneTo", "work", "private", token) == ""
    assert content(inside, "work", "private", MIB + 1) == b"p" * MIB
    assert inside.reloaded().find_vm("work").volumes["private"].size == MIB
    with pytest.raises(TokenNotFoundError, match="good once"):
        await call(inside, VOLUME + "CloneTo", "work", "private", token)


async def test_a_token_is_void_also_when_the_copy_fails(inside: Inside) -> None:
    token = await call(inside, VOLUME + "CloneFrom", "alone", "private")
    await call(inside, "admin.vm.Start", "work")
    with pytest.raises(VMNotHaltedError):
        await call(inside, VOLUME + "CloneTo", "work", "private", token)
    await call(inside, "admin.vm.Kill", "work")
    with pytest.raises(TokenNotFoundError):
        await call(inside, VOLUME + "CloneTo", "work", "private", token)


async def test_what_is_written_in_place_is_copied_of_a_halted_vm_only(inside: Inside) -> None:
    await call(inside, "admin.vm.Start", "alone")
    token = await call(inside, VOLUME + "CloneFrom", "alone", "private")
    with pytest.raises(VMNotHaltedError, match="alone cannot have its volume private copied while it is Running"):
        await call(inside, VOLUME + "CloneTo", "work", "private", token)
    await call(inside, "admin.vm.Start", "debian")
    token = await call(inside, VOLUME + "CloneFrom", "debian", "root")
    await call(inside, VOLUME + "CloneTo", "work", "private", token)
    assert content(inside, "work", "private") == b"tttt"


async def test_the_root_of_an_appvm_is_its_templates(inside: Inside) -> None:
    token = await call(inside, VOLUME + "CloneFrom", "work", "root")
    await call(inside, VOLUME + "CloneTo", "alone", "root", token)
    assert content(inside, "alone", "root") == b"tttt"


async def test_a_volume_is_not_copied_onto_itself(inside: Inside) -> None:
    token = await call(inside, VOLUME + "CloneFrom", "alone", "root")
    with pytest.raises(ValueRefusedError, match="onto itself"):
        await call(inside, VOLUME + "CloneTo", "alone", "root", token)


async def test_a_source_that_is_gone(inside: Inside) -> None:
    token = await call(inside, VOLUME + "CloneFrom", "alone", "root")
    await call(inside, "admin.vm.Remove", "alone")
    with pytest.raises(NotFoundError):
        await call(inside, VOLUME + "CloneTo", "work", "private", token)


async def test_copies_both_ways_at_once_never_wait_for_each_other(inside: Inside) -> None:
    await call(inside, "crannog.vm.volume.ImportFile", "work", "private", image(Path(inside.paths.home), "w"))
    there = await call(inside, VOLUME + "CloneFrom", "alone", "private")
    back = await call(inside, VOLUME + "CloneFrom", "work", "private")
    async with asyncio.timeout(30):
        await asyncio.gather(
            call(inside, VOLUME + "CloneTo", "work", "private", there),
            call(inside, VOLUME + "CloneTo", "alone", "private", back),
        )
    assert content(inside, "work", "private") == content(inside, "alone", "private")


# -- imports


def place(reply: str) -> tuple[int, Path]:
    size, _, path = reply.partition(" ")
    return int(size), Path(path)


@pytest.mark.parametrize(("payload", "size"), [("", MIB), (str(2 * MIB), 2 * MIB)])
async def test_an_import(inside: Inside, told: list[tuple[str, str, dict[str, str]]], payload: str, size: int) -> None:
    reply = await call(inside, BEGIN, "alone", "private", payload)
    expected, path = place(reply)
    assert (expected, path.stat().st_size, content(inside, "alone", "private")) == (size, size, b"pppp")
    path.write_bytes(b"i" * size)
    assert await call(inside, END, "alone", "private", "ok") == ""
    assert content(inside, "alone", "private", size + 1) == b"i" * size
    assert inside.reloaded().find_vm("alone").volumes["private"].size == size
    assert told == [
        ("alone", "domain-volume-import-begin", {"volume": "private", "size": str(size)}),
        ("alone", "domain-volume-import-end", {"volume": "private", "success": "True"}),
    ]
    await call(inside, "admin.vm.Start", "alone")


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ("fail\nno more data", "no more data"),
        ("fail", ""),
        (b"fail\n\x1b[1m\xff%s\nx", r" [1m\xff%s x"),
    ],
)
async def test_a_failed_import(
    inside: Inside, told: list[tuple[str, str, dict[str, str]]], payload: str | bytes, text: str
) -> None:
    before = snapshot(inside)
    await call(inside, BEGIN, "alone", "private")
    with pytest.raises(CrannogError) as caught:
        await call(inside, END, "alone", "private", payload)
    assert (type(caught.value), str(caught.value).strip()) == (
        CrannogError,
        f"Data import failed: {text.strip()}".strip(),
    )
    assert (snapshot(inside), told[-1][2]) == (before, {"volume": "private", "success": "False"})
    await call(inside, "admin.vm.Start", "alone")


async def test_an_import_of_too_few_bytes_is_told_as_failed(
    inside: Inside, told: list[tuple[str, str, dict[str, str]]]
) -> None:
    before = snapshot(inside)
    _, path = place(await call(inside, BEGIN, "alone", "private"))
    path.write_bytes(b"x")
    with pytest.raises(StorageError, match="1 bytes were written, not 1048576"):
        await call(inside, END, "alone", "private", "ok")
    assert (snapshot(inside), told[-1][2]) == (before, {"volume": "private", "success": "False"})
    await call(inside, BEGIN, "alone", "private")


async def test_meanwhile_everything_else_is_refused_at_once(inside: Inside) -> None:
    await call(inside, BEGIN, "alone", "private")
    token = await call(inside, VOLUME + "CloneFrom", "alone", "root")
    words = "alone cannot .*: an import into its volume private goes on; wait until it is over, or give it up with"
    for method, vm, argument, payload in (
        ("admin.vm.Start", "alone", "", ""),
        ("admin.vm.Remove", "alone", "", ""),
        ("crannog.vm.Clone", "alone", "", "copy"),
        (BEGIN, "alone", "private", ""),
        (VOLUME + "Clear", "alone", "root", ""),
        (VOLUME + "CloneTo", "work", "private", token),
        ("crannog.vm.volume.ImportFile", "alone", "root", "/dev/null"),
    ):
        async with asyncio.timeout(30):
            with pytest.raises(StateError, match=words):
                await call(inside, method, vm, argument, payload)
    with pytest.raises(CrannogError, match="Data import failed"):
        await call(inside, END, "alone", "private", "fail\n")
    await call(inside, "admin.vm.Start", "alone")


async def test_two_volumes_of_a_vm_are_imported_at_once(inside: Inside) -> None:
    """A backup that is restored; the VM starts after the end of both."""
    paths = [place(await call(inside, BEGIN, "alone", name, "4096"))[1] for name in ("private", "root")]
    assert paths[0] != paths[1]
    for path, name in zip(paths, ("private", "root"), strict=True):
        path.write_bytes(name[:1].encode() * 4096)
        with pytest.raises(StateError, match=f"alone cannot be started: an import into its volume {name} goes on"):
            await call(inside, "admin.vm.Start", "alone")
        with pytest.raises(StateError):
            await call(inside, BEGIN, "alone", name)
        await call(inside, END, "alone", name, "ok")
        assert content(inside, "alone", name) == name[:1].encode() * 4
    await call(inside, "admin.vm.Start", "alone")


async def test_settings_that_change_meanwhile_stay(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = inside.pool.finish_import

    async def change_first(volume: Volume, size: int) -> Volume:
        await call(inside, VOLUME + "Set.revisions_to_keep", "debian", "root", "7")
        return await finish(volume, size)

    monkeypatch.setattr(inside.pool, "finish_import", change_first)
    await call(inside, BEGIN, "debian", "root", "4096")
    await call(inside, END, "debian", "root", "ok")
    volume = inside.reloaded().find_vm("debian").volumes["root"]
    assert (volume.size, volume.revisions_to_keep) == (4096, 7)


@pytest.mark.parametrize("payload", ["maybe", "OK", "ok\n", "failure", b"\xff"])
async def test_an_end_that_says_neither(inside: Inside, payload: str | bytes) -> None:
    await call(inside, BEGIN, "alone", "private")
    with pytest.raises(ProtocolError):
        await call(inside, END, "alone", "private", payload)
    with pytest.raises(StateError):
        await call(inside, "admin.vm.Start", "alone")


async def test_an_end_without_a_beginning(inside: Inside) -> None:
    for payload in ("ok", "fail\nx"):
        with pytest.raises(ValueRefusedError, match="no import into volume private of alone was begun"):
            await call(inside, END, "alone", "private", payload)
    for method in (BEGIN, END):
        with pytest.raises(DeniedError, match="Argument not in 'alone volumes'"):
            await call(inside, method, "alone", "odd", "1" if method is BEGIN else "ok")
    for payload in ("x", "-1", "0"):
        with pytest.raises((ProtocolError, ValueRefusedError)):
            await call(inside, BEGIN, "alone", "private", payload)


async def test_of_two_imports_at_once_one_wins(inside: Inside) -> None:
    begun = await asyncio.gather(*(call(inside, BEGIN, "alone", "private") for _ in range(3)), return_exceptions=True)
    assert sorted(isinstance(reply, StateError) for reply in begun) == [False, True, True]
    ended = await asyncio.gather(
        *(call(inside, END, "alone", "private", "ok") for _ in range(3)), return_exceptions=True
    )
    assert sorted(isinstance(reply, ValueRefusedError) for reply in ended) == [False, True, True]


async def test_imports_are_for_the_internal_socket(inside: Inside) -> None:
    for name in (BEGIN, END):
        assert METHODS[name].family is Family.INTERNAL
        with pytest.raises(ProtocolError, match="no such method"):
            await answer(inside.inventory, Request(name, "private", "dom0", "alone", b"ok"))


# -- new VMs


async def add_pool(inside: Inside, name: str = "big") -> None:
    await call(inside, "admin.pool.Add", argument="qcow2", payload=f"name={name}\n")


@pytest.mark.parametrize(
    ("words", "pools"),
    [
        ("pool=big", ["big", "big", "big"]),
        ("pool:root=big", ["big", "vm-pool", "vm-pool"]),
        ("pool:private=big", ["vm-pool", "big", "vm-pool"]),
        ("pool:private=big pool:root=vm-pool", ["vm-pool", "big", "vm-pool"]),
        ("pool:volatile=big pool:kernel=linux-kernel", ["vm-pool", "vm-pool", "big"]),
        ("", ["vm-pool", "vm-pool", "vm-pool"]),
    ],
)
async def test_vms_in_pools(inside: Inside, words: str, pools: list[str]) -> None:
    await add_pool(inside)
    await call(inside, "admin.vm.CreateInPool.StandaloneVM", payload=f"name=new label=blue {words}".strip())
    vm = inside.reloaded().find_vm("new")
    assert ([volume.pool for volume in vm.volumes.values()], vm.label_name) == ([*pools, "linux-kernel"], "blue")
    await call(inside, "admin.vm.Start", "new")
    assert all(os.path.exists(disk.path) for disk in inside.hypervisor.specs[-1].disks)
    assert {f"{inside.paths.pools}/{pool}/" for pool in pools} == {
        disk.path.partition("new-")[0] for disk in inside.hypervisor.specs[-1].disks
    }


async def test_layers_lie_beside_their_source(inside: Inside) -> None:
    await add_pool(inside)
    await call(inside, "admin.vm.CreateInPool.AppVM", argument="debian", payload="name=new label=blue pool=big")
    volumes = inside.registry.find_vm("new").volumes
    assert [volume.pool for volume in volumes.values()] == ["vm-pool", "big", "big", "linux-kernel"]
    await call(inside, "admin.vm.CreateInPool.TemplateVM", payload="name=other label=black pool=big")
    await call(inside, "admin.vm.property.Set", "new", "template", "other")
    assert inside.reloaded().find_vm("new").volumes["root"].pool == "big"
    await call(inside, "admin.vm.Start", "new")
    await call(inside, "admin.vm.Kill", "new")
    await call(inside, "admin.vm.Create.AppVM", argument="other", payload="name=third label=red")
    volumes = inside.registry.find_vm("third").volumes
    assert [volume.pool for volume in volumes.values()] == ["big", "vm-pool", "vm-pool", "linux-kernel"]


@pytest.mark.parametrize(
    ("klass", "words", "kind"),
    [
        ("StandaloneVM", "pool=big pool:root=big", ProtocolError),
        ("StandaloneVM", "pool=big pool=big", ProtocolError),
        ("StandaloneVM", "pool:root=big pool:root=big", ProtocolError),
        ("StandaloneVM", "pool:=big", ProtocolError),
        ("StandaloneVM", "pools=big", ProtocolError),
        ("StandaloneVM", "pool", ProtocolError),
        ("StandaloneVM", "pool=", ValueRefusedError),
        ("StandaloneVM", "pool=odd", ValueRefusedError),
        ("StandaloneVM", "pool:odd=big", ValueRefusedError),
        ("StandaloneVM", "pool:kernel=big", ValueRefusedError),
        ("AppVM", "pool:root=big", ValueRefusedError),
        ("StandaloneVM", "pool=linux-kernel", StorageError),
        ("RemoteVM", "pool:root=big", ValueRefusedError),
    ],
)
async def test_pools_that_are_refused(inside: Inside, klass: str, words: str, kind: type[CrannogError]) -> None:
    await add_pool(inside)
    before = snapshot(inside)
    argument = "debian" if klass == "AppVM" else ""
    with pytest.raises(kind):
        await call(inside, f"admin.vm.CreateInPool.{klass}", argument=argument, payload=f"name=new label=red {words}")
    assert snapshot(inside) == before


@pytest.mark.parametrize("klass", ["AdminVM", "nonsense", ""])
async def test_classes_of_which_there_are_none(inside: Inside, klass: str) -> None:
    for method in (f"admin.vm.Create.{klass}", f"admin.vm.CreateInPool.{klass}"):
        with pytest.raises(ProtocolError, match=f"^no such method: '{method}'$"):
            await call(inside, method, payload="name=new label=red")


async def test_a_plain_creation_takes_no_pool(inside: Inside) -> None:
    with pytest.raises(ProtocolError, match="malformed word 'pool=vm-pool'"):
        await call(inside, "admin.vm.Create.StandaloneVM", payload="name=new label=red pool=vm-pool")


@pytest.fixture
async def disposables(inside: Inside) -> Inside:
    """Return the inside, where disposables come from `work`."""
    await call(inside, "admin.vm.property.Set", "work", "template_for_dispvms", "True")
    return inside


@pytest.mark.parametrize("payload", ["", "uuid"])
async def test_a_disposable(disposables: Inside, told: list[tuple[str, str, dict[str, str]]], payload: str) -> None:
    inside = disposables
    reply = await call(inside, "admin.vm.CreateDisposable", "work", payload=payload)
    vm = inside.reloaded().find_vm(reply)
    assert reply == (f"uuid:{vm.uuid}" if payload else vm.name)
    assert (vm.klass, vm.name, vm.label_name) == ("DispVM", f"disp{vm.get('dispid')}", "green")
    assert (vm.template and vm.template.name, vm.get("auto_cleanup")) == ("work", True)
    assert vm.tags == {"created-by-dom0", "disp-created-by-dom0", "audiovm-dom0", "guivm-dom0"}
    assert [name for _, name, _ in told] == [
        "domain-add", *(f"domain-tag-add:{tag}" for tag in sorted(vm.tags)), "domain-create-on-disk",
    ]  # fmt: skip
    await call(inside, "admin.vm.Start", vm.name)
    await call(inside, "admin.vm.Kill", vm.name)
    async with asyncio.timeout(30):
        while inside.registry.by_name(vm.name):  # noqa: ASYNC110 - there is no event to wait for in here
            await asyncio.sleep(0.01)


async def test_dom0_means_the_callers_default(disposables: Inside) -> None:
    inside = disposables
    for source in ("dom0", "alone"):
        with pytest.raises(ValueRefusedError, match=f"{source} has no default_dispvm"):
            await call(inside, "admin.vm.CreateDisposable", source=source)
    await call(inside, "admin.vm.property.Set", "alone", "default_dispvm", "work")
    name = await call(inside, "admin.vm.CreateDisposable", source="alone")
    assert {"created-by-alone", "disp-created-by-alone"} < inside.registry.find_vm(name).tags
    await call(inside, "admin.property.Set", argument="default_dispvm", payload="work")
    assert (await call(inside, "admin.vm.CreateDisposable")).startswith("disp")


async def test_disposables_that_are_made_at_once(disposables: Inside) -> None:
    inside = disposables
    await call(inside, "admin.vm.Create.StandaloneVM", payload="name=disp7 label=red")
    inside.inventory.population._choose = min  # the most that can clash
    names = await asyncio.gather(*(call(inside, "admin.vm.CreateDisposable", "work") for _ in range(10)))
    assert sorted(names, key=lambda name: int(name[4:])) == [f"disp{n}" for n in (1, 2, 3, 4, 5, 6, 8, 9, 10, 11)]
    assert all(inside.registry.find_vm(name).get("dispid") == int(name[4:]) for name in names)
    assert inside.inventory.population._dispids == set()


@pytest.mark.parametrize(
    ("vm", "argument", "payload", "kind"),
    [
        ("work", "preload", "", StateError),
        ("work", "odd", "", ProtocolError),
        ("work", "", "UUID", ProtocolError),
        ("work", "", "uuid\n", ProtocolError),
        ("debian", "", "", ValueRefusedError),
        ("alone", "", "", ValueRefusedError),
        ("nobody", "", "", NotFoundError),
    ],
)
async def test_disposables_that_are_refused(
    disposables: Inside, vm: str, argument: str, payload: str, kind: type[CrannogError]
) -> None:
    before = snapshot(disposables)
    with pytest.raises(kind):
        await call(disposables, "admin.vm.CreateDisposable", vm, argument, payload)
    assert snapshot(disposables) == before


def test_every_method_says_what_it_does() -> None:
    names = [name for name in METHODS if ".volume." in name or ".pool." in name or ".Create" in name]
    assert len(names) > 30
    assert not [name for name in names if not METHODS[name].help]
