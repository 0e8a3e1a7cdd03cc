"""Packages, kernels and images for tests: the real programs at work on a few small files in place of a distribution."""

import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

RELEASE = "6.1.0-0-test"
BANNER = f"{RELEASE} (builder) #1 SMP Debian 6.1.0-1"
ELF = b"\x7fELF" + bytes(range(256)) * 64
STATUS = """Package: dash
Status: install ok installed
Version: 0.5.12-2

Package: gone
Status: deinstall ok config-files
Version: 1
Description: not here
 Version: 7
"""


def ignore(text: str) -> None:
    pass


def make_bzimage(payload: bytes) -> bytes:
    sectors = 2
    header = bytearray((sectors + 1) * 512)
    header[0x1F1] = sectors
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", header, 0x20E, 0x300 - 0x200)
    header[0x300 : 0x300 + len(BANNER) + 1] = BANNER.encode() + b"\0"
    struct.pack_into("<II", header, 0x248, 16, len(payload))
    return bytes(header) + bytes(16) + payload + bytes(32)


def compress(data: bytes) -> bytes:
    packed = subprocess.run(["lz4", "-l", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout
    return packed + struct.pack("<I", len(data))


class FakeMirror:
    """A mmdebstrap that hands out two prepared trees, and notes its calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kernel = folder / "extract"
        for module in (
            "virtio/virtio",
            "virtio/virtio_pci",
            "block/virtio_blk",
            "char/virtio_console",
            "comedi/odd",
        ):
            path = kernel / f"lib/modules/{RELEASE}/kernel/drivers/{module}.ko"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"not really code: " + module.encode())
        (kernel / "boot").mkdir()
        (kernel / f"boot/vmlinuz-{RELEASE}").write_bytes(make_bzimage(compress(ELF)))
        (kernel / "bin").mkdir()
        (kernel / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
        (kernel / "bin/busybox").chmod(0o755)
        self.add_program("dmsetup", "/bin/true")
        base = folder / "apt"
        for name in (
            "etc/systemd/system",
            "usr/bin",
            "usr/sbin",
            "usr/lib/systemd/system",
            "var/lib/dpkg",
            "home/user",
            "dev",
        ):
            (base / name).mkdir(parents=True)
        (base / "sbin").symlink_to("usr/sbin")
        (base / "dev/left-out").write_text("")
        (base / "var/lib/dpkg/status").write_text(STATUS)
        (base / "usr/bin/su").write_text("")
        (base / "usr/bin/su").chmod(0o4755)
        self.write_program()

    def add_program(self, name: str, program: str) -> None:
        """Have the packages hold a program of this host, with its loader and libraries."""
        tree = self.folder / "extract"
        listing = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        libraries = tree / "lib/x86_64-linux-gnu"
        for folder in (tree / "sbin", libraries):
            folder.mkdir(parents=True, exist_ok=True)
        for path in re.findall(r"/\S+", listing):
            shutil.copy(path, libraries)
        shutil.copy(program, tree / "sbin" / name)

    def write_program(self) -> None:
        bin_folder = self.folder / "bin"
        bin_folder.mkdir()
        program = bin_folder / "mmdebstrap"
        program.write_text(
            f"""#!/bin/sh
for word; do case $word in --variant=*) variant=${{word#*=}} ;; *.tar) target=$word ;; esac; done
echo "$variant" >>{self.folder}/calls
echo "I: downloading packages with apt..."
exec tar -C {self.folder}/$variant -cf "$target" .
"""
        )
        program.chmod(0o755)

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().split() if path.exists() else []


def put_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMirror:
    """Have mmdebstrap be the fake one."""
    found = FakeMirror(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return found


def debugfs(image: str, request: str) -> str:
    done = subprocess.run(["/sbin/debugfs", "-R", request, image], capture_output=True, text=True, check=True)
    return done.stdout


def list_initramfs(path: str) -> list[str]:
    with open(path, "rb") as file:
        done = subprocess.run(["cpio", "-itv", "--quiet"], stdin=file, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
