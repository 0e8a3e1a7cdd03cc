"""Methods about properties, of VMs and global (Admin API, section 6)."""

from collections.abc import Callable
from functools import partial, wraps

from crannog.api.table import Access, Call, Destination, Presence, method
from crannog.core.properties import Holder

PropertyHandler = Callable[[Call, Holder], str | None]


def _property_method(
    name: str, argument: Presence, payload: Presence = Presence.NONE, *, access: Access = Access.READ
) -> Callable[[PropertyHandler], PropertyHandler]:
    """Declare the decorated function twice: for the properties of a VM and for the global ones."""

    def register(handler: PropertyHandler) -> PropertyHandler:
        declare = partial(method, argument=argument, payload=payload, access=access)

        @declare(f"admin.vm.property.{name}", Destination.ANY)
        @wraps(handler)
        def on_vm(call: Call) -> str | None:
            return handler(call, call.vm)

        @declare(f"admin.property.{name}", Destination.ADMIN)
        @wraps(handler)
        def on_registry(call: Call) -> str | None:
            return handler(call, call.backend.registry)

        del on_vm, on_registry
        return handler

    return register


@_property_method("List", Presence.NONE)
def list_properties(call: Call, holder: Holder) -> str:
    """Return the names, a line each."""
    del call
    return "".join(f"{name}\n" for name in holder.declared())


@_property_method("Get", Presence.REQUIRED)
def get_property(call: Call, holder: Holder) -> str:
    """Return `default=... type=... VALUE`."""
    return holder.describe(call.argument)


@_property_method("GetAll", Presence.NONE)
def get_all_properties(call: Call, holder: Holder) -> str:
    """Return `NAME default=... type=... VALUE` lines, with backslash and newline escaped."""
    del call
    return "".join([f"{name} {_escape(text)}\n" for name, text in holder.describe_all()])


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n") if "\\" in text or "\n" in text else text


@_property_method("GetDefault", Presence.REQUIRED)
def get_default(call: Call, holder: Holder) -> str:
    """Return `type=... VALUE` of the default, or nothing when there is none."""
    declared = holder.find_property(call.argument)
    if declared.default is None:
        return ""
    return f"type={declared.kind.name} {declared.kind.format(holder.default(declared.name))}"


@_property_method("Help", Presence.REQUIRED)
def get_help(call: Call, holder: Holder) -> str:
    """Return what the property means."""
    return holder.find_property(call.argument).help


@_property_method("Set", Presence.REQUIRED, Presence.OPTIONAL, access=Access.WRITE)
def set_property(call: Call, holder: Holder) -> None:
    """Give the property the value that the payload means."""
    call.backend.editor.set_property(holder, call.argument, call.text())


@_property_method("Reset", Presence.REQUIRED, access=Access.WRITE)
def reset_property(call: Call, holder: Holder) -> None:
    """Give the property its default again."""
    call.backend.editor.reset_property(holder, call.argument)
