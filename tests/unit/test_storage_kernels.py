"""Pool linux-kernel: a kernel is added whole or not at all, and never outside its folder."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from crannog.adapters.storage import kernels
from crannog.adapters.storage.kernels import KernelPool
from crannog.adapters.store.file import FileStore
from crannog.core.kernels import KernelFiles
from crannog.errors import CrannogError, StorageError, ValueRefusedError

FILES = ("vmlinuz", "initramfs")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for file in FILES:
        (folder / file).write_text(file)
    return folder


@pytest.fixture
def pool(tmp_path: Path) -> KernelPool:
    return KernelPool(str(tmp_path / "pools" / "linux-kernel"))


def entries(pool: KernelPool) -> list[str]:
    return sorted(path.name for path in Path(pool.folder).iterdir())


async def test_an_added_kernel_is_found(pool: KernelPool, source: Path) -> None:
    await pool.add("6.1.0-44-cloud-amd64", str(source))
    kernel, initramfs = (f"{pool.folder}/6.1.0-44-cloud-amd64/{file}" for file in FILES)
    assert pool.files("6.1.0-44-cloud-amd64") == KernelFiles(kernel, initramfs)
    assert entries(pool) == ["6.1.0-44-cloud-amd64"]


async def test_an_extracted_kernel_comes_first(pool: KernelPool, source: Path) -> None:
    (source / "vmlinux").touch()
    await pool.add("6.1", str(source))
    assert pool.files("6.1").kernel.endswith("/vmlinux")


async def test_a_kernel_is_replaced(pool: KernelPool, source: Path) -> None:
    await pool.add("6.1", str(source))
    (source / "initramfs").write_text("newer")
    await pool.add("6.1", str(source))
    assert Path(pool.files("6.1").initrd).read_text() == "newer"
    assert entries(pool) == ["6.1"]


async def test_the_image_of_modules_comes_along(pool: KernelPool, source: Path) -> None:
    (source / "modules.img").write_text("modules")
    await pool.add("6.1", str(source))
    assert pool.files("6.1").modules == f"{pool.folder}/6.1/modules.img"
    (source / "modules.img").unlink()
    await pool.add("6.1", str(source))
    assert pool.files("6.1").modules == ""


async def test_a_link_is_no_image_of_modules(pool: KernelPool, source: Path, tmp_path: Path) -> None:
    """A guest would get what it leads to."""
    (tmp_path / "secret").touch()
    await pool.add("6.1", str(source))
    Path(pool.folder, "6.1", "modules.img").symlink_to(tmp_path / "secret")
    assert pool.files("6.1").modules == ""


@pytest.mark.parametrize(
    ("facts", "has_layers"),
    [
        ('{"layers": true}', True),
        ('{"layers": false}', False),
        ('{"layers": "true"}', False),
        ('{"layers": 1}', False),
        ("{}", False),
        ('["layers"]', False),
        ("{", False),
        ("", False),
        (None, False),
        (b"\xff", False),
    ],
)
async def test_only_a_kernel_that_says_so_of_its_initramfs_has_layers(
    pool: KernelPool, source: Path, facts: str | bytes | None, *, has_layers: bool
) -> None:
    if facts is not None:
        (source / "kernel.json").write_bytes(facts.encode() if isinstance(facts, str) else facts)
    await pool.add("6.1", str(source))
    assert pool.files("6.1").has_layers is has_layers


@pytest.mark.parametrize("missing", FILES)
async def test_half_a_kernel_is_refused_and_the_old_one_stays(pool: KernelPool, source: Path, missing: str) -> None:
    await pool.add("6.1", str(source))
    (source / missing).unlink()
    with pytest.raises(StorageError, match="missing"):
        await pool.add("6.1", str(source))
    assert entries(pool) == ["6.1"]
    assert pool.files("6.1")


async def test_a_source_that_is_not_there(pool: KernelPool, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"kernel 6\.1 cannot be added"):
        await pool.add("6.1", str(tmp_path / "absent"))
    assert entries(pool) == []


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "../x", "a/b", "a" * 30 + "/../../x", "a b", "a\0b", "\u00e9"]
)
async def test_a_name_that_leaves_the_pool_is_refused(pool: KernelPool, source: Path, name: str) -> None:
    await pool.add("6.1", str(source))
    other = Path(pool.folder).parent / "vm-pool"
    other.mkdir()
    with pytest.raises(CrannogError):
        await pool.add(name, str(source))
    assert entries(pool) == ["6.1"]
    assert sorted(path.name for path in other.parent.iterdir()) == ["linux-kernel", "vm-pool"]


@pytest.mark.parametrize("name", ["", "6.2", "."])
def test_a_missing_kernel_is_named_with_the_next_step(pool: KernelPool, name: str) -> None:
    with pytest.raises(CrannogError) as caught:
        pool.files(name)
    assert f"'{name}'" in str(caught.value)


async def test_a_removed_kernel_is_gone_and_others_stay(pool: KernelPool, source: Path) -> None:
    for name in ("6.1", "6.10"):
        await pool.add(name, str(source))
    await pool.remove("6.1")
    assert entries(pool) == ["6.10"]
    assert pool.files("6.10")
    with pytest.raises(StorageError, match=r"kernel '6\.1' is missing"):
        pool.files("6.1")
    await pool.add("6.1", str(source))
    assert pool.files("6.1")


async def test_removing_what_is_not_there_is_no_error(pool: KernelPool, source: Path) -> None:
    await pool.remove("6.1")
    await pool.add("6.1", str(source))
    await pool.remove("6.2")
    assert entries(pool) == ["6.1"]


async def test_a_kernel_is_never_there_by_half(pool: KernelPool, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a crash leaves while a kernel is deleted is no kernel, and goes with the next removal."""
    await pool.add("6.1", str(source))
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "shutil", Crashing())
        with pytest.raises(ZeroDivisionError):
            await pool.remove("6.1")
    left = entries(pool)
    assert all(name.startswith(".") for name in left)
    assert FileStore("/absent", pool.folder).kernels() == set()
    await pool.add("6.1", str(source))
    await pool.remove("6.1")
    assert entries(pool) == []


class Crashing:
    """A shutil in whose rmtree the power fails, but where a leftover may be missing."""

    @staticmethod
    def rmtree(path: str, *, ignore_errors: bool = False) -> None:
        del path
        if not ignore_errors:
            raise ZeroDivisionError


@pytest.mark.parametrize("failing", ["rename", "rmtree"])
async def test_a_kernel_that_cannot_be_deleted_is_named(
    pool: KernelPool, source: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pool.add("6.1", str(source))
    with monkeypatch.context() as patch:
        patch.setattr(os if failing == "rename" else shutil, failing, refuse)
        with pytest.raises(StorageError, match=r"kernel 6\.1 cannot be deleted: Permission denied"):
            await pool.remove("6.1")
    assert (entries(pool) == ["6.1"]) is (failing == "rename")


def refuse(*_arguments: object, ignore_errors: bool = False) -> None:
    if not ignore_errors:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize("name", ["", ".", "..", ".old-6.1", "../vm-pool", "a/b", "/etc", "6.1/..", "6.1\n"])
async def test_a_removal_never_leaves_the_pool(pool: KernelPool, source: Path, name: str) -> None:
    await pool.add("6.1", str(source))
    other = Path(pool.folder).parent / "vm-pool"
    other.mkdir()
    with pytest.raises(ValueRefusedError, match="cannot be the name of a kernel"):
        await pool.remove(name)
    assert entries(pool) == ["6.1"]
    assert other.is_dir()
