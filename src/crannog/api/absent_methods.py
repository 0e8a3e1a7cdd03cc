"""Methods that clients know and that this version does not serve: they answer so, with the error for it."""

from crannog.api.table import Access, Call, Destination, Presence, method
from crannog.errors import NotYetError


def _declare(name: str, help_: str, destination: Destination, argument: Presence, access: Access) -> None:
    def refuse(call: Call) -> None:
        raise NotYetError(f"{call.method} is not served by this version of Crannog")

    refuse.__doc__ = f"{help_} Not served yet: answers QubesNotImplementedError."
    method(name, destination, argument=argument, payload=Presence.OPTIONAL, access=access)(refuse)


_ADMIN, _NEEDED, _NONE = Destination.ADMIN, Presence.REQUIRED, Presence.NONE
_declare("admin.backup.Info", "Return what a backup would hold.", _ADMIN, _NEEDED, Access.READ)
_declare("admin.backup.Execute", "Make a backup.", _ADMIN, _NEEDED, Access.READ | Access.EXECUTE)
_declare("admin.backup.Cancel", "Stop a backup.", _ADMIN, _NEEDED, Access.EXECUTE)
_declare("internal.SuspendPre", "Prepare all VMs for the host's sleep.", _ADMIN, _NONE, Access.EXECUTE)
_declare("internal.SuspendPost", "Wake all VMs after the host's sleep.", _ADMIN, _NONE, Access.EXECUTE)
