"""Methods about features, tags, volumes, pools and the host (Admin API, section 6)."""

import re

from crannog.api.table import Call, Destination, Presence, method
from crannog.errors import DeniedError, FeatureNotFoundError, ProtocolError

VM, ADMIN, ANY = Destination.VM, Destination.ADMIN, Destination.ANY
_FEATURE = re.compile(r"[A-Za-z0-9_.-]+")
NEEDED, OPTIONAL = Presence.REQUIRED, Presence.OPTIONAL


@method("admin.vm.feature.List", ANY)
async def list_features(call: Call) -> str:
    """Return the names of the VM's own features, a line each."""
    return "".join(f"{name}\n" for name in call.vm.features)


def _found(call: Call, value: str | None) -> str:
    if value is None:
        raise FeatureNotFoundError(f"{call.vm.name} has no feature '{call.argument}'")
    return value


@method("admin.vm.feature.Get", ANY, argument=NEEDED)
async def get_feature(call: Call) -> str:
    """Return the value of a feature of the VM itself."""
    return _found(call, call.vm.features.get(call.argument))


@method("admin.vm.feature.CheckWithTemplate", ANY, argument=NEEDED)
async def check_feature(call: Call) -> str:
    """Return the value of a feature of the VM or else of its template."""
    return _found(call, call.vm.feature(call.argument))


@method("admin.vm.feature.Set", ANY, argument=NEEDED, payload=OPTIONAL, is_writing=True)
async def set_feature(call: Call) -> None:
    """Set a feature to printable ASCII."""
    if not _FEATURE.fullmatch(call.argument):
        raise ProtocolError("the name of a feature holds letters, digits and . _ - only")
    value = call.text()
    if value and not value.isprintable():
        raise ProtocolError("the value of a feature must be printable ASCII")
    await call.backend.set_feature(call.vm, call.argument, value)


@method("admin.vm.feature.Remove", ANY, argument=NEEDED, is_writing=True)
async def remove_feature(call: Call) -> None:
    """Remove a feature."""
    _found(call, call.vm.features.get(call.argument))
    await call.backend.set_feature(call.vm, call.argument, None)


@method("admin.vm.tag.List", ANY)
async def list_tags(call: Call) -> str:
    """Return the VM's tags, sorted, a line each."""
    return "".join(f"{tag}\n" for tag in sorted(call.vm.tags))


@method("admin.vm.volume.List", ANY)
async def list_volumes(call: Call) -> str:
    """Return the names of the VM's volumes, a line each."""
    return "".join(f"{name}\n" for name in call.vm.volumes)


@method("admin.vm.volume.Info", VM, argument=NEEDED)
async def volume_info(call: Call) -> str:
    """Return what is known of a volume, as `key=value` lines."""
    _check_volume(call)
    volume = call.vm.volumes[call.argument]
    source = call.vm.template.volumes[volume.name].vid if volume.snap_on_start and call.vm.template else ""
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
