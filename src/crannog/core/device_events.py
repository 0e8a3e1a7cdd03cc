"""Events about devices (Admin API, section 9); the keys are those that clients look for."""

from crannog.core.devices import Assignment
from crannog.core.events import Event


def assigned(vm: str, assignment: Assignment) -> list[Event]:
    """Return what is told when a VM is assigned a device."""
    arguments = _device(assignment) | _options(assignment)
    return [Event(vm, f"device-{when}:{assignment.devclass}", arguments) for when in ("pre-assign", "assign")]


def mode_changed(vm: str, assignment: Assignment) -> list[Event]:
    """Return what is told when an assignment gets another mode."""
    device = _device(assignment)
    return [
        Event(vm, f"device-pre-assign:{assignment.devclass}", device | _options(assignment)),
        Event(vm, f"device-assignment-changed:{assignment.devclass}", device),
    ]


def unassigned(vm: str, assignment: Assignment) -> list[Event]:
    """Return what is told when an assignment is gone."""
    return [Event(vm, f"device-unassign:{assignment.devclass}", _device(assignment))]


def _device(assignment: Assignment) -> dict[str, str]:
    return {"device": str(assignment.device)}


def _options(assignment: Assignment) -> dict[str, str]:
    return {"options": str(dict(assignment.user_options))}
