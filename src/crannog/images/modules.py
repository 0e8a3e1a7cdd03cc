"""Kernel modules: which of a kernel's modules an image gets, and what they depend on."""

import os
from collections.abc import Iterable

DRIVERS_AT_BOOT = ("virtio_pci", "virtio_blk", "virtio_console", "virtio-rng", "crc32c_generic", "ext4")
"""What the initramfs loads: the disk, the agent's port, entropy, without which Python waits a second, and the file
system, which needs a checksum that it names nowhere. What a kernel has built in is left out."""

DRIVERS_FOR_XEN = ("xen-blkfront",)
"""What every initramfs has besides, and loads on Xen."""

DRIVERS_FOR_LAYERS = ("dm-snapshot", "overlay")
"""What an initramfs for kernels from the host has besides, and loads when it is needed."""

KEPT = (
    "arch/",
    "crypto/",
    "lib/",
    "drivers/acpi/button.ko",
    "drivers/block/loop.ko",
    "drivers/block/nbd.ko",
    "drivers/block/virtio_blk.ko",
    "drivers/block/xen-blkfront.ko",
    "drivers/block/zram/",
    "drivers/cdrom/",
    "drivers/char/",
    "drivers/input/evdev.ko",
    "drivers/md/dm-crypt.ko",
    "drivers/md/dm-mod.ko",
    "drivers/md/dm-snapshot.ko",
    "drivers/md/dm-thin-pool.ko",
    "drivers/net/bonding/",
    "drivers/net/dummy.ko",
    "drivers/net/ifb.ko",
    "drivers/net/macvlan.ko",
    "drivers/net/tun.ko",
    "drivers/net/veth.ko",
    "drivers/net/virtio_net.ko",
    "drivers/net/vxlan/",
    "drivers/net/wireguard/",
    "drivers/net/xen-netfront.ko",
    "drivers/scsi/sd_mod.ko",
    "drivers/scsi/sr_mod.ko",
    "drivers/scsi/virtio_scsi.ko",
    "drivers/virtio/",
    "drivers/xen/",
    "fs/autofs/",
    "fs/ext4/",
    "fs/fat/",
    "fs/fuse/",
    "fs/isofs/",
    "fs/nls/",
    "fs/overlayfs/",
    "fs/squashfs/",
    "fs/udf/",
    "net/802/",
    "net/8021q/",
    "net/bridge/",
    "net/core/",
    "net/ipv4/",
    "net/ipv6/",
    "net/llc/",
    "net/netfilter/",
    "net/packet/",
    "net/sched/",
    "net/vmw_vsock/",
    "net/xdp/",
)
"""What a guest of this hypervisor can have a use for. Everything that these depend on is added."""

Dependencies = dict[str, tuple[str, ...]]
"""Module path -> the paths of what it needs, as in modules.dep(5): relative to /lib/modules/<release>."""


def read_dependencies(path: str) -> Dependencies:
    """Parse a modules.dep file."""
    found: Dependencies = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            module, _, needed = line.partition(":")
            found[module] = tuple(needed.split())
    return found


def close_over(wanted: Iterable[str], dependencies: Dependencies) -> set[str]:
    """Return the paths `wanted` and everything they need, however far away."""
    closed: set[str] = set()
    waiting = list(wanted)
    while waiting:
        module = waiting.pop()
        if module not in closed:
            closed.add(module)
            waiting.extend(dependencies.get(module, ()))
    return closed


def choose_for_images(dependencies: Dependencies) -> set[str]:
    """Return the paths of the modules that images get."""
    prefixes = tuple("kernel/" + kept for kept in KEPT)
    return close_over((module for module in dependencies if module.startswith(prefixes)), dependencies)


def choose_for_boot(dependencies: Dependencies, drivers: Iterable[str] = DRIVERS_AT_BOOT) -> set[str]:
    """Return the paths of the modules that an initramfs gets; a driver that is built in has none."""
    names = {driver + ".ko" for driver in drivers}
    return close_over((module for module in dependencies if os.path.basename(module) in names), dependencies)
