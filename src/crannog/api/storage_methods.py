"""Methods about what pools hold, what is wrong in them or unneeded, and images that were changed behind our back."""

import json
from dataclasses import asdict

from crannog.api.table import Access, Call, Destination, Follow, Presence, method
from crannog.core.findings import Finding
from crannog.editing.exports import describe_place
from crannog.editing.upkeep import Waste
from crannog.errors import DeniedError, NotFoundError

ADMIN, ANY, NEEDED = Destination.ADMIN, Destination.ANY, Presence.REQUIRED


@method("crannog.pool.Check", ADMIN, argument=NEEDED)
async def check_pool(call: Call) -> str:
    """Return what is wrong or superfluous in a pool, as JSON: `found`, a list of objects. Nothing is changed.

    Each has `kind` (orphan, half-made, missing, broken, changed, unsafe), `path`, `reason`, which goes on a sentence
    that begins with the path, `vid` and `size` in bytes.
    """
    return _render(await call.backend.upkeep.check(_pool(call)), [])


@method("crannog.pool.FindWaste", ADMIN, argument=NEEDED)
async def find_waste(call: Call) -> str:
    """Return what could be deleted in a pool, like Check does, and `remarks`, sentences. Nothing is changed.

    `size` is what becomes free; kind `unneeded` are former contents that nobody can go back to.
    """
    return _render_waste(await call.backend.upkeep.find_waste(_pool(call)))


@method("crannog.pool.Collect", ADMIN, argument=NEEDED, access=Access.WRITE)
async def collect(call: Call) -> str:
    """Delete what FindWaste finds, and return what is gone, in the same way."""
    return _render_waste(await call.backend.upkeep.collect(_pool(call)))


@method("crannog.pool.Usage", ADMIN, argument=NEEDED)
def pool_usage(call: Call) -> str:
    """Return the driver of a pool and, in bytes, what it is and what is in it, as `key=value` lines.

    `size` and `used` are those of its disk; `volumes` is how many volumes of the store it holds, `virtual` the sum of
    their sizes, `real` what they take. Each is left out where it is not known.
    """
    usage = call.backend.pools.usage(_pool(call))
    size, used = usage.space or (None, None)
    values = {"driver": usage.driver, "size": size, "used": used, "volumes": usage.volumes}
    values |= {"virtual": usage.virtual, "real": usage.real}
    return "".join(f"{key}={value}\n" for key, value in values.items() if value is not None)


@method("crannog.vm.volume.Accept", ANY, argument=NEEDED, access=Access.WRITE)
async def accept(call: Call) -> None:
    """Take a volume's images for what they are now, although somebody changed them behind our back."""
    await call.backend.upkeep.accept(call.vm, _volume(call))


# Whoever may only read settings must not get at the data in a volume, so these count as more than reading.
@method("crannog.vm.volume.Export", ANY, argument=NEEDED, access=Access.WRITE)
def export(call: Call) -> Follow:
    """Tell a program of this host where a volume's newest finished content is, and keep it so until the client goes.

    Event `export-ready` has `place`: raw or qcow2, and the path as in a URL; `export-failed` has `kind` and `reason`.
    A volume without revisions is exported of a halted VM only, which does not start meanwhile.
    """
    vm, name = call.vm, _volume(call)
    return Follow(lambda listener: call.backend.exports.follow(vm, name, listener))


@method("crannog.vm.volume.Locate", ANY, argument=NEEDED, access=Access.WRITE)
async def locate(call: Call) -> str:
    """Return that place. It is good as long as nobody else works with the store: for offline mode."""
    return describe_place(await call.backend.exports.locate(call.vm, _volume(call)))


def _volume(call: Call) -> str:
    if call.argument not in call.vm.volumes:
        raise DeniedError(f"Argument not in '{call.vm.name} volumes'")
    return call.argument


def _pool(call: Call) -> str:
    if call.argument not in call.backend.registry.pools:
        raise NotFoundError(f"there is no pool '{call.argument[:80]}'; 'qvm-pool list' lists the pools")
    return call.argument


def _render(found: list[Finding], remarks: list[str]) -> str:
    return json.dumps({"found": [_describe(finding) for finding in found], "remarks": remarks})


def _render_waste(waste: Waste) -> str:
    return _render(waste.found, waste.remarks)


def _describe(finding: Finding) -> dict[str, object]:
    return {key: value for key, value in asdict(finding).items() if key != "is_fatal"}
