"""The stream of events (Admin API, section 9)."""

from collections.abc import Callable

from crannog.api.table import Call, Destination, Follow, Permission, Scope, method
from crannog.core.events import Event, Listener


@method("admin.Events", Destination.ANY, scope=Scope.GLOBAL, permission=Permission.EACH_EVENT)
def events(call: Call) -> Follow:
    """Send every event of a VM, or of the whole system for dom0, as it happens."""

    def start(listener: Listener) -> Callable[[], None]:
        def pass_on(event: Event) -> None:
            is_asked = call.vm.klass == "AdminVM" or event.subject == call.vm.name
            if is_asked and _may_hear(call, event):
                listener(event)

        return call.backend.editor.listen(pass_on)

    return Follow(start)


def _may_hear(call: Call, event: Event) -> bool:
    """Tell whether the caller may hear of an event; those of the whole system are about the VM that they name."""
    registry = call.backend.registry
    about = registry.by_name(event.subject or event.arguments.get("vm", "")) or registry.dom0
    return call.may_see(about, event.name.replace(":", "_"))
