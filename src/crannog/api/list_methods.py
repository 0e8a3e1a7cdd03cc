"""Methods that list VMs (Admin API, section 6)."""

from crannog.api.table import Call, Destination, Permission, Presence, Scope, method
from crannog.core.registry import Listed
from crannog.core.vms import CLASSES, QubeBase
from crannog.errors import ValueRefusedError

ADMIN, ANY = Destination.ADMIN, Destination.ANY
FEATURE = "features."
_COLUMNS = frozenset(name for cls in CLASSES.values() for name in cls.declared()) | {"state", "tags"}


@method("admin.vmclass.List", ADMIN)
def list_classes(call: Call) -> str:
    """Return the class names, a line each."""
    del call
    return "".join(f"{name}\n" for name in CLASSES)


def _visible(call: Call) -> list[Listed]:
    """Return the VMs that are asked about and that the caller may see, dom0 first, then by name."""
    listing = call.backend.registry.listing()
    asked = listing if call.vm.klass == "AdminVM" else [listed for listed in listing if listed[0] is call.vm]
    return asked if call.source.klass == "AdminVM" else [listed for listed in asked if call.may_see(listed[0])]


@method("admin.vm.List", ANY, scope=Scope.GLOBAL, permission=Permission.EACH_VM)
def list_vms(call: Call) -> str:
    """Return name, class, state and UUID of all VMs, or of the one addressed, a line each."""
    states = call.backend.registry.runtime.active_states()
    # A list, not a generator, and the states looked up in one go: this is what clients call most.
    return "".join(
        [f"{head}{vm.fixed_state or states.get(uuid, 'Halted')}{tail}" for vm, uuid, head, tail in _visible(call)]
    )


@method("crannog.vm.Table", ANY, argument=Presence.REQUIRED, scope=Scope.GLOBAL, permission=Permission.EACH_VM)
def list_table(call: Call) -> str:
    """Return one line a VM with the asked columns, tab-separated.

    The argument is a list of columns joined by `+`: property names, `state`, `tags`, `features.NAME`. What a VM does
    not have is `-`. One call instead of one for each VM and property is what keeps qvm-ls quick.
    """
    columns = call.argument.split("+")
    unknown = [column for column in columns if column not in _COLUMNS and not column.startswith(FEATURE)]
    if unknown:
        raise ValueRefusedError(f"'{unknown[0][:80]}' is not a column; the columns are {', '.join(sorted(_COLUMNS))}")
    lines = ["\t".join(_cell(vm, column) for column in columns) for vm, _, _, _ in _visible(call)]
    return "".join(line + "\n" for line in lines)


def _cell(vm: QubeBase, column: str) -> str:
    if column == "state":
        return vm.power_state
    if column == "tags":
        return " ".join(sorted(vm.tags))
    if column.startswith(FEATURE):
        return vm.features.get(column.removeprefix(FEATURE), "-")
    declared = vm.declared().get(column)
    return declared.kind.format(vm.get(column)).replace("\t", " ").replace("\n", " ") if declared else "-"
