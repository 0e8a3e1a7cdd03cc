"""Methods about features, tags, labels and notes (Admin API, section 6)."""

from crannog.api.table import Access, Call, Destination, Presence, method
from crannog.core.features import find_feature, require
from crannog.core.tags import check_tag
from crannog.errors import ProtocolError

VM, ADMIN, ANY = Destination.VM, Destination.ADMIN, Destination.ANY
NEEDED, OPTIONAL = Presence.REQUIRED, Presence.OPTIONAL


@method("admin.vm.feature.List", ANY)
def list_features(call: Call) -> str:
    """Return the names of the VM's own features, a line each."""
    return "".join(f"{name}\n" for name in call.vm.features)


def _declare_lookup(name: str, via: str, *, with_admin: bool) -> None:
    @method(f"admin.vm.feature.{name}", ANY, argument=NEEDED)
    def look_up(call: Call) -> str:
        return require(call.vm, call.argument, find_feature(call.vm, call.argument, via=via, with_admin=with_admin))

    where = [word for word in (via, "dom0" if with_admin else "") if word]
    look_up.__doc__ = f"Return the value of a feature of the VM itself{''.join(f', else of its {w}' for w in where)}."


_declare_lookup("Get", "", with_admin=False)
_declare_lookup("CheckWithTemplate", "template", with_admin=False)
_declare_lookup("CheckWithNetvm", "netvm", with_admin=False)
_declare_lookup("CheckWithAdminVM", "", with_admin=True)
_declare_lookup("CheckWithTemplateAndAdminVM", "template", with_admin=True)


@method("admin.vm.feature.Set", ANY, argument=NEEDED, payload=OPTIONAL, access=Access.WRITE)
def set_feature(call: Call) -> None:
    """Set a feature to printable ASCII."""
    call.backend.editor.set_feature(call.vm, call.argument, call.text())


@method("admin.vm.feature.Remove", ANY, argument=NEEDED, access=Access.WRITE)
def remove_feature(call: Call) -> None:
    """Remove a feature."""
    call.backend.editor.remove_feature(call.vm, call.argument)


@method("admin.vm.tag.List", ANY)
def list_tags(call: Call) -> str:
    """Return the VM's tags, sorted, a line each."""
    return "".join(f"{tag}\n" for tag in sorted(call.vm.tags))


@method("admin.vm.tag.Get", ANY, argument=NEEDED)
def get_tag(call: Call) -> str:
    """Return `1` when the VM has the tag, else `0`."""
    return "1" if check_tag(call.argument) in call.vm.tags else "0"


@method("admin.vm.tag.Set", ANY, argument=NEEDED, access=Access.WRITE)
def set_tag(call: Call) -> None:
    """Give the VM a tag."""
    call.backend.editor.add_tag(call.vm, call.argument)


@method("admin.vm.tag.Remove", ANY, argument=NEEDED, access=Access.WRITE)
def remove_tag(call: Call) -> None:
    """Take a tag from the VM."""
    call.backend.editor.remove_tag(call.vm, call.argument)


@method("admin.label.List", ADMIN)
def list_labels(call: Call) -> str:
    """Return the label names, a line each."""
    return "".join(f"{name}\n" for name in call.backend.registry.labels)


@method("admin.label.Get", ADMIN, argument=NEEDED)
def get_label(call: Call) -> str:
    """Return a label's colour as 0xRRGGBB."""
    return call.backend.registry.find_label(call.argument).color


@method("admin.label.Index", ADMIN, argument=NEEDED)
def get_label_index(call: Call) -> str:
    """Return a label's number."""
    return str(call.backend.registry.find_label(call.argument).index)


@method("admin.label.Create", ADMIN, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
def create_label(call: Call) -> None:
    """Add a label with the colour 0xRRGGBB."""
    call.backend.editor.create_label(call.argument, call.text())


@method("admin.label.Remove", ADMIN, argument=NEEDED, access=Access.WRITE)
def remove_label(call: Call) -> None:
    """Remove a label that is not built in and that no VM has."""
    call.backend.editor.remove_label(call.argument)


@method("admin.vm.notes.Get", VM)
def get_notes(call: Call) -> str:
    """Return the VM's notes."""
    return call.backend.editor.notes(call.vm)


@method("admin.vm.notes.Set", VM, payload=OPTIONAL, access=Access.WRITE)
def set_notes(call: Call) -> None:
    """Keep the VM's notes: UTF-8, in which characters that could deceive a reader become `_`."""
    try:
        text = call.payload.decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError("the notes are not UTF-8") from None
    call.backend.editor.set_notes(call.vm, text)
