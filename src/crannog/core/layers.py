"""Which layers stay when their VM ends (design.md, B2)."""

from dataclasses import replace

from crannog.core.vms import LocalVM
from crannog.core.volumes import Volume


def keeps_layer(vm: LocalVM, volume: Volume) -> bool:
    """Tell whether what the VM writes to a layer is there at its next start: in debug mode, where there is one layer.

    A disposable keeps nothing whatever its mode.
    """
    is_layer = volume.snap_on_start and volume.rw and vm.mode.has_one_layer
    return is_layer and not vm.is_disposable and bool(vm.get("debug"))


def in_session(vm: LocalVM, volume: Volume) -> Volume:
    """Return the volume as the sessions of its VM treat it now."""
    return replace(volume, keeps_layer=keeps_layer(vm, volume))
