"""Where a VM's layers are, and which of them stay when it ends (design.md, B1 and B2)."""

from dataclasses import replace

from crannog.core.kernels import KernelFiles
from crannog.core.templates import origin
from crannog.core.vms import LocalVM
from crannog.core.volumes import ORDER, ROOT, VOLATILE, Volume


def keeps_layer(vm: LocalVM, volume: Volume) -> bool:
    """Tell whether what the VM writes to a layer is there at its next start: in debug mode, where there is one layer.

    A disposable keeps nothing whatever its mode.
    """
    is_layer = volume.snap_on_start and volume.rw and vm.mode.has_one_layer
    return is_layer and not vm.is_disposable and bool(vm.get("debug"))


def in_session(vm: LocalVM, volume: Volume) -> Volume:
    """Return the volume as the sessions of its VM treat it now."""
    return replace(volume, keeps_layer=keeps_layer(vm, volume))


def used_volumes(vm: LocalVM) -> list[Volume]:
    """Return the volumes that pools make ready for a start, in the order in which the guest sees them.

    A VM that boots by itself has one layer, on the host, and no use for a volatile disk (B1).
    """
    used = [volume for volume in vm.pool_volumes() if vm.mode.has_host_kernel() or not volume.is_volatile]
    return sorted(used, key=lambda volume: ORDER.index(volume.name) if volume.name in ORDER else len(ORDER))


def ready_volumes(vm: LocalVM, kernel: KernelFiles | None = None) -> list[Volume]:
    """Return those volumes as a start with that kernel would prepare them."""
    ready = [in_session(vm, _ready(vm, volume)) for volume in used_volumes(vm)]
    if has_second_layer(vm, kernel):
        # What is below is read-only: the guest itself puts its volatile disk over it.
        return [replace(volume, rw=False) if volume.name == ROOT else volume for volume in ready]
    return ready


def has_second_layer(vm: LocalVM, kernel: KernelFiles | None) -> bool:
    """Tell whether what the VM writes to its template's root goes to its volatile disk, in the guest (B1)."""
    root = vm.volumes.get(ROOT)
    is_layer = bool(root and root.snap_on_start) and VOLATILE in vm.volumes
    return is_layer and vm.mode.has_host_kernel() and bool(kernel and kernel.has_layers)


def _ready(vm: LocalVM, volume: Volume) -> Volume:
    """Return the volume with its source as it is now: a layer follows its template's current size."""
    owner, source = origin(vm, volume.name)
    if owner is not vm:
        return volume.with_source(source.vid, max(source.size, volume.size))
    return replace(volume, source="")
