"""crannog.vm.Start with an image: what is attached, what is refused, and who may name one."""

from pathlib import Path

import pytest

from crannog.api.framing import Request
from crannog.api.server import Server
from crannog.api.table import answer
from crannog.core.domain import Boot
from crannog.core.pools import PoolConfig
from crannog.errors import CrannogError, DeniedError, ProtocolError, StartError
from tests.fakes import Inside, add_vm, build_inside

assert Server.__name__ == "Server"  # importing the server declares all methods


@pytest.fixture
async def inside(tmp_path: Path) -> Inside:
    """Return a daemon's inside with the HVM `win`, whose volumes exist."""
    (tmp_path / "home").mkdir()
    inside = build_inside(tmp_path / "home")
    for payload in ("name=win label=red", "name=other label=red"):
        request = Request("admin.vm.Create.StandaloneVM", "", "dom0", "dom0", payload.encode())
        await answer(inside.inventory, request)
    inside.registry.find_vm("win").set("virt_mode", "hvm")
    return inside


@pytest.fixture
def image(tmp_path: Path) -> str:
    (tmp_path / "image").touch()
    return f"{tmp_path}/image"


async def start(inside: Inside, payload: str, argument: str = "nowait", source: str = "dom0") -> str:
    request = Request("crannog.vm.Start", argument, source, "win", payload.encode("utf-8", "surrogateescape"))
    return (await answer(inside.inventory, request)).decode()


@pytest.mark.parametrize(
    ("payload", "device", "is_readonly"),
    [("{}", "cdrom", True), ("cdrom:{}", "cdrom", True), ("hd:{}", "disk", False), ("hd:dom0:{}", "disk", False)],
)
async def test_an_image_is_attached(inside: Inside, image: str, payload: str, device: str, is_readonly: bool) -> None:
    await start(inside, payload.format(image))
    (spec,) = inside.hypervisor.specs
    last = spec.disks[-1]
    assert spec.boot is Boot.DRIVE
    assert (last.path, last.device, last.is_readonly, last.boots_first) == (image, device, is_readonly, True)


async def test_the_next_start_is_without_it(inside: Inside, image: str) -> None:
    await start(inside, f"hd:{image}")
    await answer(inside.inventory, Request("admin.vm.Kill", "", "dom0", "win", b""))
    await start(inside, "")
    assert [spec.boot for spec in inside.hypervisor.specs] == [Boot.DRIVE, Boot.DISK]
    assert len(inside.hypervisor.specs[1].disks) == 2


@pytest.mark.parametrize(
    "payload", ["image", "hd:image", "floppy:/etc/passwd", "cdrom:work:/etc/passwd", "/a\0b", "hd:", ":"]
)
async def test_what_is_no_drive_is_refused(inside: Inside, payload: str) -> None:
    with pytest.raises(ProtocolError, match="the payload is no drive"):
        await start(inside, payload)
    assert inside.hypervisor.specs == []


@pytest.mark.parametrize("argument", ["nowait", "nowait+allow-device", "dry-run"])
@pytest.mark.parametrize(
    ("payload", "problem"),
    [("/nope", "there is no such file"), ("hd:/dev/null", "not a regular file"), ("hd:/srv/\udcff", "no such file")],
)
async def test_images_that_will_not_do(inside: Inside, argument: str, payload: str, problem: str) -> None:
    with pytest.raises(StartError, match=f"win cannot be started with the image .*{problem}"):
        await start(inside, payload, argument)
    assert inside.hypervisor.specs == []
    assert "state=Halted" in (await answer(inside.inventory, Request("admin.vm.List", "", "dom0", "win", b""))).decode()


async def test_no_guest_gets_a_file_of_ours(inside: Inside, tmp_path: Path) -> None:
    """Neither another VM's volume, nor the store, also by a link, nor what is in a pool outside the home."""
    other = inside.pool.locate(inside.registry.find_vm("other").volumes["private"]).path
    link = tmp_path / "link"
    link.symlink_to(inside.paths.store)
    pool = tmp_path / "far"
    pool.mkdir()
    (pool / "image").touch()
    inside.registry.pools["far"] = PoolConfig("far", "qcow2", (("dir_path", str(pool)),))
    for path in (other, inside.paths.store, str(link), f"{pool}/image"):
        for kind in ("hd", "cdrom"):
            with pytest.raises(StartError, match="which Crannog itself keeps; copy it elsewhere first"):
                await start(inside, f"{kind}:{path}")
    assert inside.hypervisor.specs == []


async def test_files_of_the_host_are_for_dom0_to_name(inside: Inside, image: str) -> None:
    """Policy may let a VM start others: by that it must not read this host's files."""
    add_vm(inside.registry, "StandaloneVM", "manager")
    for payload in (image, f"hd:{image}", "/nope", "nonsense"):
        with pytest.raises(DeniedError, match="manager may not start a VM from an image"):
            await start(inside, payload, source="manager")
    await start(inside, "", source="manager")
    assert len(inside.hypervisor.specs) == 1


async def test_a_failed_start_changes_no_image(inside: Inside, image: str) -> None:
    inside.hypervisor.failing = {"create_paused"}
    Path(image).write_bytes(b"content")
    with pytest.raises(CrannogError):
        await start(inside, f"hd:{image}")
    assert Path(image).read_bytes() == b"content"


async def test_a_plan_names_what_is_booted(inside: Inside, image: str) -> None:
    assert "boot from drive\n" in await start(inside, f"hd:{image}", "dry-run")
    vm = inside.registry.find_vm("win")
    vm.features["timezone"] = "Mars"
    assert "(feature 'timezone' is 'mars'" in await start(inside, "", "dry-run")
