"""Building kernels and templates, the real way but with a few small files in place of a distribution."""

import json
import os
import re
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from crannog.errors import StorageError
from crannog.images.basetree import read_packages
from crannog.images.bootloader import PARTITION_START
from crannog.images.builder import TemplateImage, build_template
from crannog.images.digest import digest_sparse
from crannog.images.kernel import KERNELOPTS, build_kernel
from crannog.images.modules import choose_for_boot, choose_for_images, close_over
from crannog.images.vmlinux import extract_vmlinux, read_banner
from tests.unit.image_world import (
    BANNER,
    ELF,
    RELEASE,
    FakeMirror,
    compress,
    debugfs,
    ignore,
    list_initramfs,
    make_bzimage,
    put_mirror,
)


@pytest.fixture(name="mirror")
def make_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMirror:
    return put_mirror(tmp_path, monkeypatch)


Build = Callable[..., TemplateImage]


@pytest.fixture
def build(tmp_path: Path, mirror: FakeMirror) -> Build:
    def run(virt_mode: str = "pv", agent: str = "pass\n", size: int = 2**30, refresh: bool = False) -> TemplateImage:
        path = tmp_path / "agent.py"
        path.write_text(agent)
        return build_template(
            "debian-12", virt_mode, str(tmp_path), ignore, size=size, agent_path=str(path), refresh=refresh
        )

    return run


def test_kernel_is_complete(tmp_path: Path, mirror: FakeMirror) -> None:
    told: list[str] = []
    image = build_kernel(str(tmp_path), told.append)
    assert image.release == RELEASE
    assert image.name == f"{RELEASE}-{image.path[-16:-8]}"
    assert sorted(os.listdir(image.path)) == ["initramfs", "kernel.json", "modules.img", "vmlinux"]
    assert Path(image.path, "vmlinux").read_bytes() == ELF
    facts = json.loads(Path(image.path, "kernel.json").read_text())
    assert facts == {
        "release": RELEASE,
        "version": BANNER,
        "format": "elf",
        "kernelopts": KERNELOPTS,
        "layers": True,
    }
    assert told == ["debian-12: downloading packages (0 s)"] * 2


def test_initramfs_holds_only_what_boots(tmp_path: Path, mirror: FakeMirror) -> None:
    path = build_kernel(str(tmp_path), ignore).path + "/initramfs"
    lines = list_initramfs(path)
    modes = {re.sub(" -> .*", "", line).split()[-1]: line.split()[0] for line in lines}
    assert modes["init"] == "-rwxr-xr-x"
    assert modes["bin/busybox"].endswith("x")
    assert modes["bin/sh"].startswith("l")
    assert {"lib/crannog/layers.sh", "sbin/dmsetup", "lib/libc.so.6", "lib64/ld-linux-x86-64.so.2"} <= set(modes)
    assert {"dev", "proc", "sys", "newroot", "lib/modules/wanted"} <= set(modes)
    assert {line.split()[2] for line in lines} == {"root"}
    modules = {os.path.basename(name) for name in modes if name.endswith(".ko")}
    assert modules == {"virtio_pci.ko", "virtio_blk.ko", "virtio_console.ko"}
    wanted = subprocess.run(
        ["cpio", "-i", "--to-stdout", "--quiet", "-F", path, "lib/modules/wanted"],
        capture_output=True,
        check=False,
    )
    assert wanted.stdout == b"virtio_pci virtio_blk virtio_console\n"


def test_kernel_that_cannot_be_unpacked_is_used_as_it_is(tmp_path: Path, mirror: FakeMirror) -> None:
    packed = make_bzimage(b"\x1f\x8b unknown")
    (mirror.folder / f"extract/boot/vmlinuz-{RELEASE}").write_bytes(packed)
    told: list[str] = []
    image = build_kernel(str(tmp_path), told.append)
    assert Path(image.path, "vmlinux").read_bytes() == packed
    assert json.loads(Path(image.path, "kernel.json").read_text())["format"] == "bzimage"
    assert "compressed in a way that is not known" in told[-1]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (bytes(2048), "not a bzImage"),
        (b"", "not a bzImage"),
        (make_bzimage(compress(ELF))[:-200], "cut short"),
        (make_bzimage(compress(b"#!/bin/sh")), "holds no ELF file"),
        (make_bzimage(b"\x02\x21\x4c\x18garbage"), "unpacking the kernel"),
    ],
)
def test_broken_kernels_are_named(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=cause):
        extract_vmlinux(str(path), str(tmp_path / "vmlinux"))


def test_banner(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(make_bzimage(b"whatever"))
    assert read_banner(str(path)) == BANNER


def test_pv_image(build: Build) -> None:
    image = build("pv")
    assert sorted(os.listdir(image.path)) == ["manifest.json", "root.img"]
    subprocess.run(["/sbin/e2fsck", "-fn", image.root_img], check=True, capture_output=True)
    assert debugfs(image.root_img, "cat /usr/lib/crannog/agent.py") == "pass\n"
    assert "Mode:  04755" in debugfs(image.root_img, "stat /usr/bin/su")
    assert "Type: symlink" in debugfs(image.root_img, "stat /sbin")
    assert 'Fast link dest: "../bin/busybox"' in debugfs(image.root_img, "stat /usr/sbin/init")
    assert "left-out" not in debugfs(image.root_img, "ls /dev")
    for script in ("initramfs-tools/hooks/crannog", "initramfs-tools/scripts/local-premount/crannog"):
        assert "Mode:  0755" in debugfs(image.root_img, f"stat /usr/share/{script}")
    assert "Mode:  0755" in debugfs(image.root_img, "stat /usr/lib/dracut/modules.d/90crannog/module-setup.sh")
    assert "crannog_layer()" in debugfs(image.root_img, "cat /usr/lib/crannog/layers.sh")
    modules = debugfs(image.root_img, f"ls /usr/lib/modules/{RELEASE}/kernel/drivers")
    assert "virtio" in modules
    assert "comedi" not in modules


def test_pv_manifest(build: Build) -> None:
    image = build("pv", size=3 * 2**30)
    assert os.path.getsize(image.root_img) == image.manifest["size"] == 3 * 2**30
    assert image.manifest["used"] < 64 * 2**20
    assert image.manifest["digest"] == digest_sparse(image.root_img)
    assert image.manifest["packages"] == {"dash": "0.5.12-2"}
    assert image.manifest["kernel"] == RELEASE
    assert image.manifest["virt_mode"] == "pv"
    assert image.manifest["default_user"] == "user"
    assert image.manifest["features"]["os-version"] == "12"


def test_hvm_image_has_a_boot_loader_and_its_own_kernel(build: Build, tmp_path: Path) -> None:
    image = build("hvm")
    assert image.manifest["kernel"] == ""
    with open(image.root_img, "rb") as file:
        start = file.read(1024)
    assert start[510:512] == b"\x55\xaa"
    assert b"GRUB" in start[:440]
    status, kind, first_sector = start[446], start[450], struct.unpack_from("<I", start, 454)[0]
    assert (status, kind, first_sector) == (0x80, 0x83, PARTITION_START // 512)
    assert start[512:] != bytes(512)
    partition = f"{image.root_img}?offset={PARTITION_START}"
    assert "linux /boot/vmlinuz root=/dev/vda1" in debugfs(partition, "cat /boot/grub/grub.cfg")
    initramfs = tmp_path / "initramfs"
    debugfs(partition, f"dump /boot/initramfs {initramfs}")
    names = [line.split()[-1] for line in list_initramfs(str(initramfs))]
    assert "bin/busybox" in names
    assert not [name for name in names if "dmsetup" in name or ".so" in name]  # its root is written on the host


def test_changed_agent_fetches_nothing(build: Build, mirror: FakeMirror) -> None:
    first = build(agent="one")
    assert mirror.calls() == ["extract", "extract", "apt"]
    assert build(agent="one").path == first.path
    second = build(agent="two")
    assert second.path != first.path
    assert build("hvm", agent="two").path not in {first.path, second.path}
    assert build(agent="two", size=2**31).path != second.path
    assert mirror.calls() == ["extract", "extract", "apt"]


def test_refresh_fetches_again_and_new_packages_make_a_new_image(build: Build, mirror: FakeMirror) -> None:
    first = build()
    (mirror.folder / "apt/usr/bin/new").write_text("")
    assert build().path == first.path
    second = build(refresh=True)
    assert second.path != first.path
    assert mirror.calls() == ["extract", "extract", "apt"] * 2
    assert build().path == second.path


def test_full_disk_leaves_no_image(build: Build, mirror: FakeMirror) -> None:
    program = mirror.folder / "bin/mke2fs"
    program.write_text("#!/bin/sh\necho 'mke2fs: No space left on device while writing' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(StorageError, match=r"making the root file system failed: .* says .*No space left"):
        build()
    names = os.listdir(mirror.folder / "images")
    assert not [name for name in names if name.startswith("debian-12-pv-")]


def test_tree_without_packages_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "empty.tar")
    with tarfile.open(path, "w"):
        pass
    with pytest.raises(StorageError, match="holds no list of packages"):
        read_packages(path)


def test_modules_bring_what_they_need() -> None:
    dependencies = {
        "kernel/drivers/block/virtio_blk.ko": ("kernel/drivers/virtio/virtio.ko",),
        "kernel/drivers/virtio/virtio.ko": ("kernel/odd/ring.ko",),
        "kernel/odd/ring.ko": (),
        "kernel/drivers/comedi/x.ko": (),
    }
    wanted = set(dependencies) - {"kernel/drivers/comedi/x.ko"}
    assert choose_for_images(dependencies) == wanted
    assert choose_for_boot(dependencies) == wanted
    assert close_over(["a"], {"a": ("b",), "b": ("a",)}) == {"a", "b"}


def test_digest_does_not_depend_on_holes(tmp_path: Path) -> None:
    sparse, full = tmp_path / "sparse", tmp_path / "full"
    with open(sparse, "wb") as file:
        file.seek(2**20)
        file.write(b"x" * 5000)
        file.truncate(2**22)
    full.write_bytes(sparse.read_bytes())
    assert sparse.stat().st_blocks < full.stat().st_blocks
    assert digest_sparse(str(sparse)) == digest_sparse(str(full))


def test_digest_depends_on_content_place_and_length(tmp_path: Path) -> None:
    path = tmp_path / "file"
    digests = set()
    for content in (b"", bytes(4096), b"x", b"x" + bytes(4096), bytes(4096) + b"x", b"y"):
        path.write_bytes(content)
        digests.add(digest_sparse(str(path)))
    assert len(digests) == 6
