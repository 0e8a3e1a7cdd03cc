"""Methods about pools and kernels (Admin API, section 6)."""

from crannog.api.table import Access, Call, Destination, Presence, method
from crannog.core.pools import EPHEMERAL_VOLATILE, REVISIONS_TO_KEEP
from crannog.errors import DeniedError, NotFoundError, ProtocolError

ADMIN, NEEDED = Destination.ADMIN, Presence.REQUIRED


@method("admin.pool.List", ADMIN)
def list_pools(call: Call) -> str:
    """Return the names of the pools, a line each."""
    return "".join(f"{name}\n" for name in call.backend.registry.pools)


@method("admin.pool.ListDrivers", ADMIN)
def list_drivers(call: Call) -> str:
    """Return the drivers, a line each: the name, and the names of its options."""
    drivers = sorted(call.backend.pools.drivers().items())
    return "".join(f"{' '.join([name, *options])}\n" for name, options in drivers)


@method("admin.pool.Info", ADMIN, argument=NEEDED)
def pool_info(call: Call) -> str:
    """Return the configuration of a pool as `key=value` lines, and `size` and `usage` of its file system in bytes."""
    name = _pool(call)
    lines = sorted(call.backend.pools.settings(name).items())
    space = call.backend.pools.space(name)
    lines += [("size", str(space[0])), ("usage", str(space[1]))] if space else []
    return "".join(f"{key}={value}\n" for key, value in lines)


@method("admin.pool.UsageDetails", ADMIN, argument=NEEDED)
def usage_details(call: Call) -> str:
    """Return size and usage of a pool's file system in bytes; nothing when that is not known."""
    space = call.backend.pools.space(_pool(call))
    return f"data_size={space[0]}\ndata_usage={space[1]}\n" if space else ""


def _pool(call: Call) -> str:
    """Return the pool that the argument names; raises DeniedError when there is no such one."""
    if call.argument not in call.backend.registry.pools:
        raise DeniedError("Argument not in 'pools'")
    return call.argument


@method("admin.pool.Add", ADMIN, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
def add_pool(call: Call) -> None:
    """Make a pool. The argument is its driver, the payload its name and options, as `key=value` lines."""
    drivers = call.backend.pools.drivers()
    if call.argument not in drivers:
        raise NotFoundError(f"there is no driver '{call.argument[:80]}' for pools (there: {', '.join(drivers)})")
    options = _parse_options(call.text())
    if "name" not in options:
        raise ProtocolError("the payload names no pool")
    call.backend.pools.add(options.pop("name"), call.argument, options)


def _parse_options(text: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for line in text.removesuffix("\n").split("\n"):
        key, separator, value = line.partition("=")
        if not separator or not key.isidentifier() or not value.isprintable() or key in options:
            raise ProtocolError(f"the payload has a malformed line '{line[:80]}'")
        options[key] = value
    return options


@method("admin.pool.Remove", ADMIN, argument=NEEDED, access=Access.WRITE)
def remove_pool(call: Call) -> None:
    """Forget a pool that no volume is in and that is no default. Files stay where they are."""
    call.backend.pools.remove(_pool(call))


@method(f"admin.pool.Set.{REVISIONS_TO_KEEP}", ADMIN, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
def set_revisions_to_keep(call: Call) -> None:
    """Say how many former contents the roots of new TemplateVMs keep in a pool; -1 or 0 means none."""
    name, count = _pool(call), call.number(may_be_negative=True)
    call.backend.pools.set_option(name, REVISIONS_TO_KEEP, str(count))


@method(f"admin.pool.Set.{EPHEMERAL_VOLATILE}", ADMIN, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
def set_ephemeral_volatile(call: Call) -> None:
    """Say that what is dropped at a stop need not be unreadable then: `False`. `True` is not served yet."""
    call.backend.pools.set_option(_pool(call), EPHEMERAL_VOLATILE, call.text())


@method("admin.pool.volume.List", ADMIN, argument=NEEDED)
def list_pool_volumes(call: Call) -> str:
    """Return the ids of a pool's volumes, a line each; those of linux-kernel are the kernels' names."""
    return "".join(f"{vid}\n" for vid in call.backend.pools.volumes(_pool(call)))


@method("crannog.kernel.Import", ADMIN, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
async def import_kernel(call: Call) -> None:
    """Add the kernel in the folder whose absolute path is in the payload to pool linux-kernel."""
    await call.backend.kernels.add(call.argument, call.path())


@method("crannog.kernel.Remove", ADMIN, argument=NEEDED, access=Access.WRITE)
async def remove_kernel(call: Call) -> None:
    """Remove a kernel that nobody uses from pool linux-kernel."""
    await call.backend.kernels.remove(call.argument)
