"""The picture of a domain's emulated screen."""

from typing import TYPE_CHECKING

from crannog.errors import HypervisorError

if TYPE_CHECKING:
    import libvirt

PICTURE_MAX = 32 << 20
"""Bytes; a screen of 3840 x 2160 is 24 MiB as PPM."""

_CHUNK = 256 << 10


def take_screenshot(connection: "libvirt.virConnect", domain: "libvirt.virDomain") -> bytes:
    """Return the picture as libvirt sends it (PPM from QEMU). Blocks.

    Raises libvirtError, and HypervisorError for a picture of more than `PICTURE_MAX` bytes.
    """
    stream = connection.newStream(0)
    domain.screenshot(stream, 0, 0)
    chunks = []
    size = 0
    while untrusted_chunk := stream.recv(_CHUNK):
        size += len(untrusted_chunk)
        if size > PICTURE_MAX:
            stream.abort()
            raise HypervisorError(
                f"the screen of {domain.name()} is too large a picture (over {PICTURE_MAX >> 20} MiB)"
            )
        chunks.append(untrusted_chunk)
    stream.finish()
    return b"".join(chunks)
