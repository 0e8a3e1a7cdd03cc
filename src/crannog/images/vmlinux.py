"""The ELF kernel inside a bzImage: QEMU can enter it at once (PVH), without real mode and self-extraction."""

import dataclasses
import lzma
import os
import struct

from crannog.errors import StorageError
from crannog.images.tools import run_tool

# Linux Documentation/arch/x86/boot.rst: the setup header's fields.
_SETUP_SECTORS = 0x1F1
_MAGIC_OFFSET = 0x202
_MAGIC = b"HdrS"
_BANNER_POINTER = 0x20E
_BANNER_BASE = 0x200
_PAYLOAD_OFFSET = 0x248
_SECTOR = 512
_SIZE_TRAILER = 4
"""The kernel's build appends the uncompressed size to the payload: no part of the compressed stream."""
_XZ = b"\xfd7zXZ\0"
"""The .xz File Format, section 2.1.1. Debian's general kernels are packed so."""


@dataclasses.dataclass(frozen=True)
class _Compression:
    magic: bytes
    arguments: tuple[str, ...]


_COMPRESSIONS = (
    _Compression(b"\x02\x21\x4c\x18", ("lz4", "-d", "-f", "-q")),
    _Compression(b"\x28\xb5\x2f\xfd", ("zstd", "-d", "-f", "-q", "-o")),
)


def extract_vmlinux(bzimage: str, vmlinux: str) -> None:
    """Write the ELF kernel that the file `bzimage` holds to `vmlinux`.

    Raises StorageError when it is not a bzImage, or compressed in an unknown way, or holds no ELF file.
    """
    with open(bzimage, "rb") as file:
        image = file.read()
    payload = _find_payload(image, bzimage)
    if payload.startswith(_XZ):
        _unpack_xz(payload[:-_SIZE_TRAILER], bzimage, vmlinux)
    else:
        _unpack_with_tool(payload, bzimage, vmlinux)
    with open(vmlinux, "rb") as file:
        if file.read(4) != b"\x7fELF":
            raise StorageError(f"the kernel {bzimage} holds no ELF file")


def _unpack_xz(stream: bytes, bzimage: str, vmlinux: str) -> None:
    try:
        kernel = lzma.decompress(stream)
    except lzma.LZMAError as error:
        raise StorageError(f"the kernel {bzimage} cannot be unpacked: {error}") from error
    with open(vmlinux, "wb") as file:
        file.write(kernel)


def _unpack_with_tool(payload: bytes, bzimage: str, vmlinux: str) -> None:
    for compression in _COMPRESSIONS:
        if payload.startswith(compression.magic):
            break
    else:
        raise StorageError(f"the kernel {bzimage} is compressed in a way that is not known here")
    packed = vmlinux + ".packed"
    with open(packed, "wb") as file:
        file.write(payload[:-_SIZE_TRAILER])
    tool, *options = compression.arguments
    target = [packed, vmlinux] if tool == "lz4" else [vmlinux, packed]
    run_tool([tool, *options, *target], f"unpacking the kernel {bzimage}")
    os.unlink(packed)


def read_banner(bzimage: str) -> str:
    """Return the kernel's own version text: release, builder, and the distribution's package version."""
    with open(bzimage, "rb") as file:
        header = file.read(1 << 16)
    if header[_MAGIC_OFFSET : _MAGIC_OFFSET + 4] != _MAGIC:
        raise StorageError(f"the kernel {bzimage} is not a bzImage")
    (pointer,) = struct.unpack_from("<H", header, _BANNER_POINTER)
    return header[_BANNER_BASE + pointer :].split(b"\0", 1)[0].decode(errors="replace")


def _find_payload(image: bytes, name: str) -> bytes:
    if image[_MAGIC_OFFSET : _MAGIC_OFFSET + 4] != _MAGIC:
        raise StorageError(f"the kernel {name} is not a bzImage")
    offset, length = struct.unpack_from("<II", image, _PAYLOAD_OFFSET)
    start = (image[_SETUP_SECTORS] + 1) * _SECTOR + offset
    if not _SIZE_TRAILER < length <= len(image) - start:
        raise StorageError(f"the kernel {name} is cut short")
    return image[start : start + length]
