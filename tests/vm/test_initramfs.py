"""The second layer of a pv guest's root, made by the initramfs (design.md, B1), under plain QEMU."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from crannog.config import Paths
from crannog.images.builder import TemplateImage, build_template
from crannog.images.kernel import KernelImage, build_kernel
from tests.vm.guest import AGENT, boot, boot_options, make_disk, make_overlay

pytestmark = pytest.mark.vm

MIB = 2**20
WORDS = "crannog.volatile=/dev/vdc crannog.modules=/dev/vdd"
NO_MARK = "test ! -e /usr/bin/mark && test ! -e /root/mark"
WRITE = "dd if=/dev/urandom of=/root/mark bs=1M count=24 status=none && touch /usr/bin/mark && sync"


@pytest.fixture(scope="module")
def agent_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("agent") / "agent.py"
    path.write_text(AGENT)
    return str(path)


@pytest.fixture(scope="module")
def kernel() -> KernelImage:
    return build_kernel(Paths().cache, print)


@pytest.fixture(scope="module")
def pv(agent_path: str) -> TemplateImage:
    return build_template("debian-12", "pv", Paths().cache, print, agent_path=agent_path)


@pytest.fixture
def root(tmp_path: Path, pv: TemplateImage) -> Path:
    return make_overlay(tmp_path / "root.qcow2", pv.root_img)


@pytest.fixture
def volatile(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "volatile", 2**30)


def list_disks(root: Path, volatile: Path, kernel: KernelImage, *, is_readonly: bool = True) -> list[str]:
    """Return root, private, volatile and modules, in the order in which VMs have them."""
    private = make_disk(root.parent / "private", 2**28)
    return [
        f"file={root},format=qcow2,readonly={'on' if is_readonly else 'off'}",
        f"file={private},format=raw",
        f"file={volatile},format=raw",
        f"file={kernel.path}/modules.img,format=raw,readonly=on",
    ]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def allocated(path: Path) -> int:
    return os.stat(path).st_blocks * 512


def test_writes_to_root_land_on_the_volatile_disk_alone(root: Path, volatile: Path, kernel: KernelImage) -> None:
    """Neither a reset nor a start with a new volatile disk finds anything of them."""
    before, disks = digest(root), list_disks(root, volatile, kernel)
    with boot(root.parent / "1", disks, *boot_options(kernel, WORDS)) as guest:
        guest.wait_for_agent()
        assert guest.run("findmnt -n -o SOURCE,OPTIONS /").startswith("/dev/mapper/crannog-root rw,")
        assert guest.run("dmsetup status crannog-root").split()[:3] == ["0", str(10 * 2**21), "snapshot"]
        swap = guest.run("cat /proc/swaps").splitlines()
        assert len(swap) == 2
        assert int(swap[1].split()[2]) == 256 * 1024 - 4  # KiB: a quarter, less the page with its signature
        guest.run(f"{NO_MARK} && {WRITE}")
        assert 24 * MIB <= allocated(volatile) < 64 * MIB
        guest.run("touch /home/user/kept && sync")
        guest.restart()
        guest.wait_for_agent()
        guest.run(NO_MARK)
        assert guest.run("findmnt -n -o SOURCE /") == "/dev/mapper/crannog-root\n"
        guest.run("grep -q ^/ /proc/swaps")
        guest.run(WRITE)
        guest.power_off()
    volatile.unlink()
    make_disk(volatile)
    with boot(root.parent / "2", disks, *boot_options(kernel, WORDS)) as guest:
        guest.wait_for_agent()
        guest.run(f"{NO_MARK} && touch /usr/bin/mark && test -e /home/user/kept")
        guest.power_off()
    assert digest(root) == before


@pytest.mark.slow
def test_a_volatile_disk_full_of_anything_is_as_good(root: Path, volatile: Path, kernel: KernelImage) -> None:
    volatile.write_bytes(b"SnAp" + os.urandom(80 * MIB - 4))
    with boot(root.parent / "1", list_disks(root, volatile, kernel), *boot_options(kernel, WORDS)) as guest:
        guest.wait_for_agent()
        assert guest.run("findmnt -n -o SOURCE /") == "/dev/mapper/crannog-root\n"
        guest.run(WRITE)
        guest.power_off()


@pytest.mark.parametrize(
    ("size", "words", "cause"),
    [
        (8 * MIB, WORDS, "the volatile disk /dev/vdc has 8 MiB and needs 64"),
        (2**30, "crannog.volatile=/dev/vdz", "there is no volatile disk /dev/vdz"),
        (2**30, "", "there is no volatile disk on the kernel command line"),
        (2**30, "crannog.volatile=/dev/vda", "the volatile disk /dev/vda is read-only"),
    ],
)
def test_without_a_layer_memory_is_put_over_root(
    root: Path, volatile: Path, kernel: KernelImage, size: int, words: str, cause: str
) -> None:
    before = digest(root)
    os.truncate(volatile, size)
    with boot(root.parent / "1", list_disks(root, volatile, kernel), *boot_options(kernel, words)) as guest:
        guest.wait_for_agent()
        assert guest.run("findmnt -n -o FSTYPE /") == "overlay\n"
        guest.run("touch /usr/bin/mark")
        guest.power_off()
        lines = [line.strip() for line in guest.console().splitlines() if line.startswith("crannog: the")]
        assert len([line for line in lines if cause in line]) == 1, guest.console()
        assert next(line for line in lines if cause in line).endswith("writes to its root is kept in memory")
    assert digest(root) == before
    assert allocated(volatile) == 0


@pytest.mark.slow
def test_without_its_driver_memory_is_put_over_root(
    root: Path, volatile: Path, kernel: KernelImage, tmp_path: Path
) -> None:
    options = boot_options(kernel, WORDS)
    options[3] = remove_from_initramfs(Path(options[3]), tmp_path, "dm-snapshot.ko")
    with boot(root.parent / "1", list_disks(root, volatile, kernel), *options) as guest:
        guest.wait_for_agent()
        assert guest.run("findmnt -n -o FSTYPE /; ls /dev/mapper") == "overlay\ncontrol\n"
        assert "the volatile disk cannot be used (device-mapper: " in guest.console()


def test_without_either_driver_root_is_readonly(
    root: Path, volatile: Path, kernel: KernelImage, tmp_path: Path
) -> None:
    options = boot_options(kernel, WORDS)
    options[3] = remove_from_initramfs(Path(options[3]), tmp_path, "dm-snapshot.ko", "overlay.ko")
    with boot(root.parent / "1", list_disks(root, volatile, kernel), *options) as guest:
        guest.wait_for_agent()
        assert guest.run("findmnt -n -o SOURCE,OPTIONS /").startswith("/dev/vda ro,")
        assert "and there is no overlay: root is read-only" in guest.console()


def remove_from_initramfs(path: Path, tmp_path: Path, *names: str) -> str:
    """Return a copy of an initramfs without files of these names, as a kernel's that has no such drivers."""
    tree, changed = tmp_path / "initramfs.tree", tmp_path / "initramfs"
    tree.mkdir()
    subprocess.run(["cpio", "-id", "--quiet", "-F", str(path)], cwd=tree, check=True)
    for found in [found for name in names for found in tree.rglob(name)]:
        found.unlink()
    listing = "\n".join(str(found.relative_to(tree)) for found in sorted(tree.rglob("*"))).encode()
    subprocess.run(["cpio", "-o", "--quiet", "-H", "newc", "-F", str(changed)], cwd=tree, input=listing, check=True)
    return str(changed)


@pytest.fixture(scope="module")
def in_use(tmp_path_factory: pytest.TempPathFactory, kernel: KernelImage, pv: TemplateImage) -> Path:
    """Return a root that was not unmounted: its journal is not empty."""
    folder = tmp_path_factory.mktemp("in-use")
    root, volatile = make_overlay(folder / "root.qcow2", pv.root_img), make_disk(folder / "volatile")
    with boot(folder / "1", list_disks(root, volatile, kernel, is_readonly=False), *boot_options(kernel)) as guest:
        guest.wait_for_agent()
        guest.run("touch /usr/bin/below && sync && touch /usr/bin/late && sync /usr/bin/late")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("words", [WORDS, ""])
def test_a_root_that_was_not_unmounted_is_no_obstacle(
    root: Path, volatile: Path, kernel: KernelImage, in_use: Path, words: str
) -> None:
    """What is below must be mended while it cannot be written."""
    shutil.copyfile(in_use, root)
    before = digest(root)
    with boot(root.parent / "1", list_disks(root, volatile, kernel), *boot_options(kernel, words)) as guest:
        guest.wait_for_agent()
        guest.run("touch /usr/bin/mark && test -e /usr/bin/below")
        if words:
            guest.run("test -e /usr/bin/late")
        guest.power_off()
    assert digest(root) == before


@pytest.mark.slow
def test_a_root_that_is_written_on_the_host_has_one_layer_and_swap(
    root: Path, volatile: Path, kernel: KernelImage
) -> None:
    """What starts from it later gets the modules of a kernel that this root knows nothing of any more."""
    folder, disks = f"/usr/lib/modules/{kernel.release}", list_disks(root, volatile, kernel, is_readonly=False)
    options = boot_options(kernel, WORDS)
    with boot(root.parent / "1", disks, *options) as guest:
        guest.wait_for_agent()
        assert guest.run("findmnt -n -o SOURCE /") == "/dev/vda\n"
        swap = guest.run("cat /proc/swaps").splitlines()
        assert [line.split()[0] for line in swap[1:]] == ["/dev/vdc"]
        assert int(swap[1].split()[2]) == 256 * 1024 - 4
        guest.run(f"test ! -e /dev/mapper/crannog-root && {WRITE}")
        assert guest.run("grep -c /lib/modules/ /proc/mounts || true") == "0\n"
        guest.run(f"rm -r {folder}")
        guest.power_off()
    assert allocated(volatile) < MIB
    assert allocated(root) > 24 * MIB
    with boot(root.parent / "2", list_disks(root, volatile, kernel), *options) as guest:
        guest.wait_for_agent()
        assert guest.run(f"findmnt -n -o SOURCE,FSTYPE,OPTIONS {folder}").split() == ["/dev/vdd", "ext4", "ro,relatime"]
        guest.run("modprobe dummy && test -d /sys/module/dummy")
        guest.power_off()
