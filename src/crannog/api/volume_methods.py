"""Methods about volumes, pools, kernels and the host (Admin API, section 6)."""

from crannog.api.table import Call, Destination, Presence, method
from crannog.core.templates import origin
from crannog.errors import DeniedError

VM, ADMIN, ANY = Destination.VM, Destination.ADMIN, Destination.ANY
NEEDED = Presence.REQUIRED


@method("admin.vm.volume.List", ANY)
async def list_volumes(call: Call) -> str:
    """Return the names of the VM's volumes, a line each."""
    return "".join(f"{name}\n" for name in call.vm.volumes)


@method("admin.vm.volume.Info", VM, argument=NEEDED)
async def volume_info(call: Call) -> str:
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


@method("crannog.vm.volume.ImportFile", VM, argument=NEEDED, payload=NEEDED, is_writing=True)
async def import_file(call: Call) -> None:
    """Make the raw image at the absolute path in the payload the content of a halted VM's volume."""
    _check_volume(call)
    await call.backend.import_volume(call.local_vm, call.argument, call.path())


@method("crannog.kernel.Import", ADMIN, argument=NEEDED, payload=NEEDED, is_writing=True)
async def import_kernel(call: Call) -> None:
    """Add the kernel in the folder whose absolute path is in the payload to pool linux-kernel."""
    await call.backend.import_kernel(call.argument, call.path())


@method("crannog.kernel.Remove", ADMIN, argument=NEEDED, is_writing=True)
async def remove_kernel(call: Call) -> None:
    """Remove a kernel that nobody uses from pool linux-kernel."""
    await call.backend.remove_kernel(call.argument)


@method("crannog.Capabilities", ADMIN)
async def capabilities(call: Call) -> str:
    """Return what the host can run, as `key=value` lines."""
    found = await call.backend.capabilities()
    return f"accel={found.accel}\nhvm={found.has_hvm}\nemulator={found.emulator}\n"


@method("crannog.Diagnose", ADMIN)
async def diagnose(call: Call) -> str:
    """Return what the host can and cannot do, a sentence a line."""
    return "".join(line + "\n" for line in await call.backend.diagnose())


@method("admin.pool.volume.List", ADMIN, argument=NEEDED)
async def list_pool_volumes(call: Call) -> str:
    """Return the ids of a pool's volumes, a line each; those of linux-kernel are the kernels' names."""
    registry = call.backend.registry
    if call.argument == "linux-kernel":
        return "".join(f"{name}\n" for name in sorted(registry.kernels))
    ids = [volume.vid for vm in registry for volume in vm.volumes.values() if volume.pool == call.argument]
    return "".join(f"{vid}\n" for vid in sorted(ids))
