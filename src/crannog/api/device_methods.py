"""Methods about devices, those of each class declared for it (Admin API, sections 6 and 7)."""

from collections.abc import Iterable

from crannog.api.table import Access, Call, Destination, Presence, method
from crannog.core.device_names import ANY, DEVCLASSES, parse_port_argument, parse_qarg
from crannog.core.device_text import format_assignment, format_device, parse_assignment, parse_filter, parse_mode
from crannog.errors import NotYetError

ADMIN, ANYWHERE = Destination.ADMIN, Destination.ANY
NEEDED, OPTIONAL = Presence.REQUIRED, Presence.OPTIONAL


@method("admin.deviceclass.List", ADMIN)
def list_classes(call: Call) -> str:
    """Return the device classes, a line each."""
    del call
    return "".join(f"{name}\n" for name in DEVCLASSES)


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in sorted(lines))


def _declare_lists(devclass: str) -> None:
    @method(f"admin.vm.device.{devclass}.Available", ANYWHERE, argument=OPTIONAL)
    def list_available(call: Call) -> str:
        port = parse_port_argument(call.argument) if call.argument else ""
        devices = call.backend.devices.available(call.vm, devclass)
        return _lines(format_device(device, call.vm.name) for device in devices if port in ("", device.port))

    @method(f"admin.vm.device.{devclass}.Assigned", ANYWHERE, argument=OPTIONAL)
    def list_assigned(call: Call) -> str:
        asked = parse_filter(call.argument)
        return _lines(
            format_assignment(assignment, call.vm.name)
            for assignment in call.backend.devices.assigned(call.vm, devclass)
            if asked in (None, (assignment.backend, assignment.device.port))
        )

    @method(f"admin.vm.device.{devclass}.Attached", ANYWHERE, argument=OPTIONAL)
    def list_attached(call: Call) -> str:
        parse_filter(call.argument)
        return ""

    list_available.__doc__ = f"Return the {devclass} devices that the VM could give to others, a line each, sorted."
    list_assigned.__doc__ = f"Return the {devclass} devices that are assigned to the VM, a line each, sorted."
    list_attached.__doc__ = f"Return the {devclass} devices that the VM has now: none, as nothing is attached yet."


def _declare_changes(devclass: str) -> None:
    prefix = f"admin.vm.device.{devclass}"

    @method(f"{prefix}.Assign", ANYWHERE, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
    def assign(call: Call) -> None:
        device = parse_qarg(call.argument)
        call.backend.devices.assign(call.vm, parse_assignment(call.text(), devclass, device, call.vm.name))

    @method(f"{prefix}.Unassign", ANYWHERE, argument=NEEDED, access=Access.WRITE)
    def unassign(call: Call) -> None:
        call.backend.devices.unassign(call.vm, devclass, parse_qarg(call.argument))

    @method(f"{prefix}.Set.assignment", ANYWHERE, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
    def set_assignment(call: Call) -> None:
        mode = parse_mode(call.text())
        call.backend.devices.set_mode(call.vm, devclass, parse_qarg(call.argument), mode)

    assign.__doc__ = f"Assign the {devclass} device of the argument to the VM, in the mode that the payload says."
    unassign.__doc__ = f"Take the {devclass} device of the argument from those that are assigned to the VM."
    set_assignment.__doc__ = f"Give the assignment of the {devclass} device of the argument another mode."


def _declare_attachments(devclass: str) -> None:
    @method(f"admin.vm.device.{devclass}.Attach", ANYWHERE, argument=NEEDED, payload=OPTIONAL, access=Access.EXECUTE)
    def attach(call: Call) -> None:
        raise _not_yet(call, devclass, "attached to")

    @method(f"admin.vm.device.{devclass}.Detach", ANYWHERE, argument=NEEDED, access=Access.EXECUTE)
    def detach(call: Call) -> None:
        raise _not_yet(call, devclass, "detached from")

    attach.__doc__ = f"Attach the {devclass} device of the argument to the running VM. Not served yet."
    detach.__doc__ = f"Detach the {devclass} device of the argument from the running VM. Not served yet."


def _not_yet(call: Call, devclass: str, what: str) -> NotYetError:
    device = parse_qarg(call.argument)
    name = f"{device.backend}:{device.port}" if device.ident == ANY else str(device)
    return NotYetError(
        f"{devclass} device {name} cannot be {what} {call.vm.name}: this version of Crannog only assigns"
    )


for _devclass in DEVCLASSES:
    _declare_lists(_devclass)
    _declare_changes(_devclass)
    _declare_attachments(_devclass)


@method("admin.vm.device.denied.List", ANYWHERE)
def list_denied(call: Call) -> str:
    """Return the codes of the device interfaces that the VM never gets, a line each, the last one without its end."""
    return "\n".join(call.backend.devices.denied(call.vm))


@method("admin.vm.device.denied.Add", ANYWHERE, payload=OPTIONAL, access=Access.WRITE)
def deny(call: Call) -> None:
    """Add to the device interfaces that the VM never gets: codes of seven characters, one after the other."""
    call.backend.devices.deny(call.vm, call.text())


@method("admin.vm.device.denied.Remove", ANYWHERE, payload=OPTIONAL, access=Access.WRITE)
def allow(call: Call) -> None:
    """Take from the device interfaces that the VM never gets: codes one after the other, or `all`."""
    call.backend.devices.allow(call.vm, call.text())
