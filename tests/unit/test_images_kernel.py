"""Kernels from any source: a distribution's package, a file, this host; and what is made of them for guests."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from crannog.errors import CrannogError, NotFoundError, StorageError
from crannog.images.boottools import BootTools, provide_tools
from crannog.images.cache import ImageCache
from crannog.images.kernel import KernelImage, build_kernel
from crannog.images.kernelparts import KernelParts, provide_parts
from crannog.images.kernelsource import FileSource, HostSource, KernelSource, RecipeSource
from crannog.images.recipe import find_recipe
from tests.unit.image_world import BANNER, RELEASE, FakeMirror, debugfs, ignore, list_initramfs, put_mirror

MODULES = f"lib/modules/{RELEASE}"


@pytest.fixture(name="mirror")
def make_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMirror:
    return put_mirror(tmp_path, monkeypatch)


@pytest.fixture
def tools(tmp_path: Path, mirror: FakeMirror) -> BootTools:
    return provide_tools(ImageCache(str(tmp_path), ignore), find_recipe("debian-12"))


@pytest.fixture
def host(tmp_path: Path, mirror: FakeMirror) -> Path:
    """Return the root folder of a host that has the mirror's kernel installed."""
    root = tmp_path / "host"
    shutil.copytree(mirror.folder / "extract", root)
    (root / MODULES / "modules.dep").write_text("")
    (root / MODULES / "build").symlink_to("/usr/src/headers")
    return root


@pytest.fixture
def package(tmp_path: Path, mirror: FakeMirror) -> str:
    """Return a real Debian package with the mirror's kernel, its modules below usr/ as newer packages have them."""
    tree = tmp_path / "package"
    (tree / "DEBIAN").mkdir(parents=True)
    control = "Package: linux-image-test\nVersion: 1\nArchitecture: amd64\nMaintainer: a <a@b.c>\nDescription: test\n"
    (tree / "DEBIAN/control").write_text(control)
    shutil.copytree(mirror.folder / "extract/boot", tree / "boot")
    shutil.copytree(mirror.folder / "extract/lib/modules", tree / "usr/lib/modules")
    path = str(tmp_path / "linux-image.deb")
    subprocess.run(["dpkg-deb", "--build", str(tree), path], check=True, capture_output=True)
    return path


Take = Callable[..., KernelParts]


@pytest.fixture
def take(tmp_path: Path, tools: BootTools) -> Take:
    def run(source: KernelSource, *, has_all_modules: bool = False) -> KernelParts:
        return provide_parts(ImageCache(str(tmp_path), ignore), source, tools, has_all_modules=has_all_modules)

    return run


def list_modules(parts: KernelParts) -> set[str]:
    listing = subprocess.run(["tar", "-tf", f"{parts.path}/modules.tar"], capture_output=True, text=True, check=True)
    return {os.path.basename(name) for name in listing.stdout.splitlines()}


def test_every_source_has_the_same_kernel(take: Take, host: Path, package: str) -> None:
    sources = (RecipeSource(find_recipe("debian-12")), FileSource(package), HostSource(RELEASE, str(host)))
    found = [take(source) for source in sources]
    assert [(parts.release, parts.version) for parts in found] == [(RELEASE, BANNER)] * 3
    assert len({Path(parts.path, "vmlinuz").read_bytes() for parts in found}) == 1
    for parts in found:
        modules = list_modules(parts)
        assert {"virtio_blk.ko", "modules.dep"} <= modules
        assert not modules & {"odd.ko", "build"}


def test_a_source_is_taken_apart_once_and_again_when_it_changes(take: Take, package: str) -> None:
    first = take(FileSource(package))
    assert take(FileSource(package)).path == first.path
    with open(package, "ab") as file:
        file.write(b"\n")
    assert take(FileSource(package)).path != first.path


def test_all_modules_when_they_are_wanted(take: Take, host: Path) -> None:
    few, all_of_them = (take(HostSource(RELEASE, str(host)), has_all_modules=which) for which in (False, True))
    assert list_modules(all_of_them) - list_modules(few) == {"odd.ko"}
    assert few.identity != all_of_them.identity


@pytest.mark.parametrize(("suffix", "command"), [("xz", ["xz"]), ("zst", ["zstd", "-q", "--rm"]), ("gz", ["gzip"])])
def test_compressed_modules_are_unpacked(take: Take, host: Path, suffix: str, command: list[str]) -> None:
    module = host / MODULES / "kernel/drivers/block/virtio_blk.ko"
    subprocess.run([*command, str(module)], check=True)
    assert module.with_suffix(f".ko.{suffix}").exists()
    parts = take(HostSource(RELEASE, str(host)))
    assert "virtio_blk.ko" in list_modules(parts)
    assert f"virtio_blk.ko.{suffix}" not in list_modules(parts)


@pytest.mark.parametrize("release", ["6.0", "", "../../etc/passwd", "a b"])
def test_a_release_that_is_not_there_is_named_with_those_that_are(take: Take, host: Path, release: str) -> None:
    with pytest.raises(NotFoundError, match=f"'{re.escape(release)}' in {host}/boot: it has {RELEASE}"):
        take(HostSource(release, str(host)))


def test_a_host_without_kernels_says_what_to_do(take: Take, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="it has none, name a package with --package"):
        take(HostSource(RELEASE, str(tmp_path / "empty")))


@pytest.mark.parametrize("content", [None, b"", b"no package"])
def test_what_is_no_package_is_named(take: Take, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "odd.deb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StorageError, match=re.escape(str(path))):
        take(FileSource(str(path)))


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda tree: shutil.rmtree(tree / "boot"), "holds 0 kernels"),
        (lambda tree: (tree / "boot/vmlinuz-2").touch(), "holds 2 kernels"),
        (lambda tree: shutil.rmtree(tree / MODULES), f"kernel {RELEASE} holds no modules"),
    ],
)
def test_a_package_that_is_no_kernel_is_refused(
    take: Take, mirror: FakeMirror, spoil: Callable[[Path], None], cause: str
) -> None:
    spoil(mirror.folder / "extract")
    (mirror.folder / "extract/lib/modules/other").mkdir(parents=True)
    with pytest.raises(StorageError, match=cause):
        take(RecipeSource(find_recipe("debian-12")))


def build(tmp_path: Path, source: KernelSource | None = None) -> KernelImage:
    return build_kernel(str(tmp_path), ignore, source=source)


def test_the_modules_are_a_disk(tmp_path: Path, mirror: FakeMirror) -> None:
    image = f"{build(tmp_path).path}/modules.img"
    subprocess.run(["/sbin/e2fsck", "-fn", image], check=True, capture_output=True)
    assert "modules.dep" in debugfs(image, "ls /")
    assert debugfs(image, "cat /kernel/drivers/block/virtio_blk.ko").startswith("not really code")
    inode = debugfs(image, "stat /kernel/drivers/block/virtio_blk.ko")
    assert re.search(r"User: +0 +Group: +0 ", inode)
    assert "has_journal" not in debugfs(image, "features")


def test_a_kernel_from_a_file_has_its_own_name(tmp_path: Path, package: str) -> None:
    images = [build(tmp_path), build(tmp_path, FileSource(package))]
    names = [image.name for image in images]
    assert len(set(names)) == 2
    assert all(re.fullmatch(f"{re.escape(RELEASE)}-[0-9a-f]{{8}}", name) for name in names)
    for image in images:
        assert any(line.endswith("sbin/dmsetup") for line in list_initramfs(f"{image.path}/initramfs"))


@pytest.mark.parametrize(
    ("missing", "cause"),
    [("sbin/dmsetup", "no program dmsetup"), ("bin/busybox", "no program busybox"),
     ("lib/x86_64-linux-gnu/libc.so.6", "do not hold all libraries of dmsetup: .*libc.so.6")],
)  # fmt: skip
def test_missing_programs_are_named(tmp_path: Path, mirror: FakeMirror, missing: str, cause: str) -> None:
    (mirror.folder / "extract" / missing).unlink()
    with pytest.raises(CrannogError, match=cause):
        build(tmp_path)
    assert not list(tmp_path.glob("images/*/"))
