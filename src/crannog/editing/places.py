"""Where volumes are: the pool that serves one, the pools that a new VM's volumes go to, and when one can be copied."""

from collections.abc import Mapping
from dataclasses import replace

from crannog.core.pools import KERNEL_POOL, PoolConfig
from crannog.core.templates import origin
from crannog.core.vms import QubeBase
from crannog.core.volumes import Volume
from crannog.editing.editor import Editor
from crannog.errors import StorageError, ValueRefusedError
from crannog.ports.storage import Pool


def choose_pools(vm: QubeBase, pools: Mapping[str, str]) -> dict[str, Volume]:
    """Return the volumes of a new VM in the pools that were chosen (see NewVM); raises ValueRefusedError."""
    known = vm.registry.pools
    for name, pool in pools.items():
        if pool not in known:
            raise ValueRefusedError(f"there is no pool '{pool[:80]}' (there: {', '.join(known)})")
        if name and name not in vm.volumes:
            raise ValueRefusedError(
                f"VMs of class {vm.klass} have no volume '{name[:40]}' (there: {', '.join(vm.volumes)})"
            )
        if name and vm.volumes[name].is_kernel and pool != KERNEL_POOL:
            raise ValueRefusedError(
                f"volume {name} is the host's, in pool {KERNEL_POOL}; 'qvm-prefs {vm.name} kernel' says which it is"
            )
        if name and vm.volumes[name].snap_on_start and vm.volumes[name].pool != pool:
            raise ValueRefusedError(
                f"volume {name} of class {vm.klass} is a layer, in the pool of its template's volume"
            )
    chosen = {}
    for name, volume in vm.volumes.items():
        pool = pools.get(name) or (pools.get("", "") if volume.save_on_stop or volume.is_volatile else "")
        chosen[name] = move_to(volume, known[pool]) if pool else volume
    return chosen


def move_to(volume: Volume, pool: PoolConfig) -> Volume:
    """Return a new volume in another pool, which says how many revisions are kept of one that keeps any."""
    keeps = pool.revisions_to_keep if volume.save_on_stop and not volume.is_in_place else volume.revisions_to_keep
    return replace(volume, pool=pool.name, revisions_to_keep=keeps)


def check_steady(editor: Editor, vm: QubeBase, name: str, pools: Mapping[str, Pool] | None = None) -> None:
    """Raise VMNotHaltedError while somebody writes to what a VM's volume shows, in place.

    `pools` are those that are served; without them their drivers are taken for ones that keep former content apart.
    """
    owner, held = origin(vm, name)
    if not is_steady(held, pools or {}):
        editor.check_halted(owner, f"have its volume {name} copied")


def is_steady(held: Volume, pools: Mapping[str, Pool]) -> bool:
    """Tell whether the content of a volume that is no layer can be copied while its own VM runs."""
    pool = pools.get(held.pool)
    return held.can_be_used_beside(shares_live=pool.shares_live if pool else True)


def find_pool(pools: Mapping[str, Pool], volume: Volume) -> Pool:
    """Return the pool of a volume; raises StorageError when this host cannot serve it."""
    try:
        return pools[volume.pool]
    except KeyError:
        raise StorageError(
            f"volume {volume.vid} is in pool '{volume.pool}', which cannot be served on this host (there: "
            f"{', '.join(pools)}); 'qubes-prefs default_pool' says where new volumes go"
        ) from None
