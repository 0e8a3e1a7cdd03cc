"""How the program behind admin.vm.volume.Import has its data taken over (Admin API, section 6)."""

from crannog.api.table import Access, Call, Destination, Presence, method
from crannog.errors import CrannogError, DeniedError, ProtocolError

ANY, NEEDED = Destination.ANY, Presence.REQUIRED
_FAIL = "fail\n"
_LONGEST = 1000


@method("internal.vm.volume.ImportBegin", ANY, argument=NEEDED, payload=Presence.OPTIONAL, access=Access.WRITE)
async def begin_import(call: Call) -> str:
    """Make a file for new content of a halted VM's volume; return `SIZE PATH`. The payload is the size, if another."""
    _check_volume(call)
    wanted = call.number() if call.payload else None
    size, path = await call.backend.volumes.begin_import(call.vm, call.argument, wanted)
    return f"{size} {path}"


@method("internal.vm.volume.ImportEnd", ANY, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
async def end_import(call: Call) -> None:
    """Make what was written the volume's content (`ok`), or forget it and answer so (`fail`, a line, the reason)."""
    _check_volume(call)
    text = call.payload.decode("ascii", "backslashreplace")
    if text != "ok" and text != _FAIL.strip() and not text.startswith(_FAIL):
        raise ProtocolError("the payload is neither 'ok' nor 'fail' with a reason")
    await call.backend.volumes.end_import(call.vm, call.argument, success=text == "ok")
    if text != "ok":
        reason = "".join(char if char.isprintable() else " " for char in text.partition("\n")[2])
        raise CrannogError(f"Data import failed: {reason[:_LONGEST].strip()}")


def _check_volume(call: Call) -> None:
    if call.argument not in call.vm.volumes:
        raise DeniedError(f"Argument not in '{call.vm.name} volumes'")
