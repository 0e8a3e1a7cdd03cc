"""What is known of the volumes of VMs, without changing any."""

import logging
import os
from collections.abc import Mapping
from dataclasses import replace

from crannog.core.templates import origin
from crannog.core.vms import QubeBase
from crannog.core.volumes import Volume
from crannog.errors import StorageError, ValueRefusedError
from crannog.ports.storage import Kernels, Pool

log = logging.getLogger(__name__)


class VolumeFacts:
    """Answers questions about the volumes of one registry's VMs. Methods raise KeyError for one that a VM has not."""

    def __init__(self, pools: Mapping[str, Pool], kernels: Kernels) -> None:
        self._pools = pools
        self._kernels = kernels

    def describe(self, vm: QubeBase, name: str) -> Volume:
        """Return a volume as a start would use it: with its source as it is now."""
        owner, held = origin(vm, name)
        volume = vm.volumes[name]
        if volume.is_kernel:
            return replace(volume, vid=_kernel_of(vm), size=_size_of(self._modules(vm)))
        return replace(volume, source="" if owner is vm else held.vid)

    def locate(self, vm: QubeBase, name: str) -> str:
        """Return the path that a start would use; empty where this host does not serve the pool."""
        if vm.volumes[name].is_kernel:
            return self._modules(vm)
        pool = self._pools.get(vm.volumes[name].pool)
        return pool.locate(vm.volumes[name]).path if pool else ""

    def _modules(self, vm: QubeBase) -> str:
        """Return the image with the modules of the VM's kernel; empty where there is none."""
        try:
            return self._kernels.files(_kernel_of(vm)).modules if _kernel_of(vm) else ""
        except (StorageError, ValueRefusedError):
            return ""  # a kernel that is missing is told at the start

    def usage(self, vm: QubeBase, name: str) -> int:
        """Return the bytes that a volume takes on this host."""
        pool = self._pools.get(vm.volumes[name].pool)
        return pool.usage(vm.volumes[name]) if pool else 0

    def revisions(self, vm: QubeBase, name: str) -> list[str]:
        """Return what a volume can go back to, oldest first."""
        pool = self._pools.get(vm.volumes[name].pool)
        return pool.revisions(vm.volumes[name]) if pool and vm.volumes[name].save_on_stop else []

    async def is_outdated(self, vm: QubeBase, name: str) -> bool:
        """Tell whether a running VM uses content of its template that is not the newest any more."""
        pool = self._pools.get(vm.volumes[name].pool)
        if pool is None or vm.power_state == "Halted":
            return False
        try:
            return await pool.is_outdated(self.describe(vm, name))
        except StorageError as error:
            log.warning("%s: whether its volume %s is outdated is not known: %s", vm.name, name, error)
            return False


def _kernel_of(vm: QubeBase) -> str:
    return str(vm.get("kernel") or "") if "kernel" in vm.declared() else ""


def _size_of(path: str) -> int:
    """Return the bytes of a file; 0 for none, or one that has just gone."""
    try:
        return os.stat(path).st_size if path else 0
    except OSError:
        return 0
