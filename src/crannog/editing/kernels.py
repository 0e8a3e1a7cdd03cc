"""The kernels in pool linux-kernel, which pv and pvh VMs get from the host."""

from crannog.core import rules
from crannog.editing.editor import Editor
from crannog.errors import NotFoundError
from crannog.ports.storage import Kernels


class KernelShelf:
    """Takes kernels in and out, for one registry."""

    def __init__(self, editor: Editor, kernels: Kernels) -> None:
        self._editor = editor
        self._kernels = kernels

    async def add(self, name: str, folder: str) -> None:
        """Add the kernel in `folder` (vmlinux or vmlinuz, initramfs); the first one becomes the default."""
        registry = self._editor.registry
        await self._kernels.add(name, folder)
        registry.kernels.add(name)
        if not registry.get("default_kernel"):
            self._editor.set_property(registry, "default_kernel", name)

    async def remove(self, name: str) -> None:
        """Remove a kernel; raises NotFoundError, or InUseError that names who uses it."""
        registry = self._editor.registry
        if name not in registry.kernels:
            raise NotFoundError(f"there is no kernel '{name[:80]}' in pool linux-kernel")
        rules.kernel_removal(registry, name)
        await self._kernels.remove(name)
        registry.kernels.discard(name)
