"""Methods about volumes, pools and kernels (Admin API, section 6)."""

from crannog.api.table import Access, Call, Destination, Presence, method
from crannog.core.templates import origin
from crannog.errors import DeniedError

VM, ADMIN, ANY = Destination.VM, Destination.ADMIN, Destination.ANY
NEEDED = Presence.REQUIRED


@method("admin.vm.volume.List", ANY)
def list_volumes(call: Call) -> str:
    """Return the names of the VM's volumes, a line each."""
    return "".join(f"{name}\n" for name in call.vm.volumes)


@method("admin.vm.volume.Info", VM, argument=NEEDED)
def volume_info(call: Call) -> str:
    """Return what is known of a volume, as `key=value` lines."""
    _check_volume(call)
    volume = call.vm.volumes[call.argument]
    owner, held = origin(call.vm, volume.name)
    source = held.vid if owner is not call.vm else ""
    keys = ("pool", "vid", "size", "rw", "save_on_stop", "snap_on_start", "revisions_to_keep")
    return "".join(f"{key}={getattr(volume, key)}\n" for key in keys) + f"source={source}\n"


def _check_volume(call: Call) -> None:
    if call.argument not in call.vm.volumes:
        raise DeniedError(f"Argument not in '{call.vm.name} volumes'")


@method("crannog.vm.volume.ImportFile", VM, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
async def import_file(call: Call) -> None:
    """Make the raw image at the absolute path in the payload the content of a halted VM's volume."""
    _check_volume(call)
    await call.backend.volumes.import_file(call.local_vm, call.argument, call.path())


@method("crannog.kernel.Import", ADMIN, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
async def import_kernel(call: Call) -> None:
    """Add the kernel in the folder whose absolute path is in the payload to pool linux-kernel."""
    await call.backend.kernels.add(call.argument, call.path())


@method("crannog.kernel.Remove", ADMIN, argument=NEEDED, access=Access.WRITE)
async def remove_kernel(call: Call) -> None:
    """Remove a kernel that nobody uses from pool linux-kernel."""
    await call.backend.kernels.remove(call.argument)


@method("admin.pool.volume.List", ADMIN, argument=NEEDED)
def list_pool_volumes(call: Call) -> str:
    """Return the ids of a pool's volumes, a line each; those of linux-kernel are the kernels' names."""
    registry = call.backend.registry
    if call.argument == "linux-kernel":
        return "".join(f"{name}\n" for name in sorted(registry.kernels))
    ids = [volume.vid for vm in registry for volume in vm.volumes.values() if volume.pool == call.argument]
    return "".join(f"{vid}\n" for vid in sorted(ids))
