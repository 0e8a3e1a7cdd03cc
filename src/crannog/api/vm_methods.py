"""Methods that make and remove VMs (Admin API, section 6)."""

from crannog.api.table import Access, Call, Destination, Presence, Scope, method
from crannog.core.vms import CLASSES, AdminVM
from crannog.editing.population import NewVM
from crannog.errors import ProtocolError

VM, ADMIN, ANY = Destination.VM, Destination.ADMIN, Destination.ANY


async def _create(call: Call, klass: str) -> None:
    options = {}
    for word in call.text().split(" "):
        key, separator, value = word.partition("=")
        if not separator or key not in ("name", "label") or key in options:
            raise ProtocolError(f"the payload has a malformed word '{word[:80]}'")
        options[key] = value
    if "name" not in options:
        raise ProtocolError("the payload names no VM")
    template = call.backend.registry.find_vm(call.argument) if call.argument else None
    wanted = NewVM(klass, options["name"], options.get("label", ""), template)
    await call.backend.population.create(wanted, created_by=call.source.name)


def _declare_create(klass: str) -> None:
    @method(
        f"admin.vm.Create.{klass}",
        ADMIN,
        argument=Presence.OPTIONAL,
        payload=Presence.REQUIRED,
        access=Access.WRITE,
        scope=Scope.GLOBAL,
    )
    async def create(call: Call) -> None:
        await _create(call, klass)


for _klass, _cls in CLASSES.items():
    if _cls is not AdminVM:
        _declare_create(_klass)


@method("crannog.vm.Clone", VM, argument=Presence.OPTIONAL, payload=Presence.REQUIRED, access=Access.WRITE)
async def clone(call: Call) -> None:
    """Make a VM with all settings and data of this one. The payload is its name, the argument its class if another."""
    await call.backend.population.clone(call.vm, call.text(), klass=call.argument, created_by=call.source.name)


@method("admin.vm.Remove", ANY, access=Access.WRITE, scope=Scope.GLOBAL)
async def remove(call: Call) -> None:
    """Remove a halted VM."""
    await call.backend.population.remove(call.vm)
