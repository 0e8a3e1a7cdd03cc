"""What is handed in from files: images for volumes, kernels for the pool linux-kernel."""

from collections.abc import Mapping

from crannog.core import rules
from crannog.core.vms import QubeBase
from crannog.editing.editor import Editor
from crannog.editing.population import find_pool
from crannog.errors import NotFoundError, ValueRefusedError
from crannog.ports.storage import Kernels, Pool


class Images:
    """Takes images and kernels in, for one registry."""

    def __init__(self, editor: Editor, pools: Mapping[str, Pool], kernels: Kernels) -> None:
        self._editor = editor
        self._pools = pools
        self._kernels = kernels

    async def import_volume(self, vm: QubeBase, name: str, path: str) -> None:
        """Make the raw image at `path` the content of a halted VM's volume; raises VMNotHaltedError or StorageError."""
        self._editor.check_halted(vm, "get another image")
        volume = vm.volumes[name]
        if not volume.save_on_stop:
            raise ValueRefusedError(
                f"volume {name} of {vm.name} cannot be given an image: it is made anew from the template at each "
                f"start; create the VM with '--class StandaloneVM' instead"
            )
        imported = await find_pool(self._pools, volume).import_file(volume, path)
        with self._editor.change(vm):
            vm.volumes[name] = imported

    async def import_kernel(self, name: str, folder: str) -> None:
        """Add a kernel to pool linux-kernel; the first one becomes the default."""
        registry = self._editor.registry
        await self._kernels.add(name, folder)
        registry.kernels.add(name)
        if not registry.get("default_kernel"):
            self._editor.set_property(registry, "default_kernel", name)

    async def remove_kernel(self, name: str) -> None:
        """Remove a kernel from pool linux-kernel; raises NotFoundError, or InUseError that names who uses it."""
        registry = self._editor.registry
        if name not in registry.kernels:
            raise NotFoundError(f"there is no kernel '{name[:80]}' in pool linux-kernel")
        rules.kernel_removal(registry, name)
        await self._kernels.remove(name)
        registry.kernels.discard(name)
