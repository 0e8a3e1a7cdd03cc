"""Methods about the volumes of VMs (Admin API, section 6)."""

from collections.abc import Awaitable
from typing import NoReturn

from crannog.api.table import Access, Call, Destination, Presence, method
from crannog.core.kinds import BOOL
from crannog.core.volumes import ORDER
from crannog.errors import DeniedError, ProtocolError, RevisionNotFoundError

ANY = Destination.ANY
NEEDED = Presence.REQUIRED
TOKEN_LENGTH = 32


@method("admin.vm.volume.List", ANY)
def list_volumes(call: Call) -> str:
    """Return the names of the VM's volumes, a line each."""
    known = [name for name in ORDER if name in call.vm.volumes]
    return "".join(f"{name}\n" for name in known + [name for name in call.vm.volumes if name not in ORDER])


@method("admin.vm.volume.Info", ANY, argument=NEEDED)
def volume_info(call: Call) -> str | Awaitable[str]:
    """Return what is known of a volume, as `key=value` lines; sizes are in bytes."""
    name, volumes = _volume(call), call.backend.volumes
    volume = volumes.describe(call.vm, name)
    values: dict[str, object] = {
        "pool": volume.pool,
        "vid": volume.vid,
        "size": volume.size,
        "usage": volumes.usage(call.vm, name),
        "rw": volume.rw,
        "source": volume.source,
        "path": volumes.locate(call.vm, name),
    }
    for key in ("save_on_stop", "snap_on_start", "revisions_to_keep", "ephemeral"):
        values[key] = getattr(volume, key)
    text = "".join(f"{key}={value}\n" for key, value in values.items())
    # Clients ask for this more than for anything else of a volume: only what may take its time is waited for.
    return _add_outdated(call, name, text) if volume.snap_on_start else text


async def _add_outdated(call: Call, name: str, text: str) -> str:
    return f"{text}is_outdated={await call.backend.volumes.is_outdated(call.vm, name)}\n"


def _volume(call: Call) -> str:
    """Return the volume that the argument names; raises DeniedError when the VM has no such one."""
    if call.argument not in call.vm.volumes:
        raise DeniedError(f"Argument not in '{call.vm.name} volumes'")
    return call.argument


@method("admin.vm.volume.ListSnapshots", ANY, argument=NEEDED)
def list_snapshots(call: Call) -> str:
    """Return the revisions that a volume can go back to, oldest first, a line each."""
    return "".join(f"{revision}\n" for revision in call.backend.volumes.revisions(call.vm, _volume(call)))


@method("admin.vm.volume.Revert", ANY, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
async def revert(call: Call) -> None:
    """Make the revision in the payload the content of a halted VM's volume; the present content becomes a revision."""
    name, revision = _volume(call), call.text()
    if not all(char.isalnum() or char in ":._-" for char in revision):
        raise ProtocolError("the payload is not the name of a revision")
    if revision not in call.backend.volumes.revisions(call.vm, name):
        raise RevisionNotFoundError(
            f"volume {name} of {call.vm.name} has no revision '{revision[:80]}'; "
            f"'qvm-volume info {call.vm.name}:{name}' lists those that it has"
        )
    await call.backend.volumes.revert(call.vm, name, revision)


# Whoever may only read settings must not get at the data in a volume, so this counts as more than reading.
@method("admin.vm.volume.CloneFrom", ANY, argument=NEEDED, access=Access.WRITE)
def clone_from(call: Call) -> str:
    """Return a token of 32 characters that CloneTo takes: it is good once, for five minutes."""
    return call.backend.volumes.offer(call.vm, _volume(call))


@method("admin.vm.volume.CloneTo", ANY, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
async def clone_to(call: Call) -> None:
    """Copy the volume that the token in the payload stands for into a halted VM's volume."""
    token = call.text()
    if len(token) != TOKEN_LENGTH:
        raise ProtocolError("the payload is not a token")
    await call.backend.volumes.copy(call.vm, _volume(call), token)


@method("admin.vm.volume.Resize", ANY, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
async def resize(call: Call) -> None:
    """Make a halted VM's volume larger: the payload is its new size in bytes."""
    name, size = _volume(call), call.number()
    await call.backend.volumes.resize(call.vm, name, size)


@method("admin.vm.volume.Clear", ANY, argument=NEEDED, access=Access.WRITE)
async def clear(call: Call) -> None:
    """Make the content of a halted VM's volume all zeros."""
    await call.backend.volumes.clear(call.vm, _volume(call))


@method("admin.vm.volume.Set.revisions_to_keep", ANY, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
async def set_revisions_to_keep(call: Call) -> None:
    """Say how many former contents a volume keeps; with 0 or -1 a running VM writes to its content in place."""
    name, count = _volume(call), call.number(may_be_negative=True)
    await call.backend.volumes.set_revisions_to_keep(call.vm, name, count)


@method("admin.vm.volume.Set.rw", ANY, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
async def set_rw(call: Call) -> None:
    """Say whether a VM, halted now, can write to a volume: `True` or `False`."""
    name, value = _volume(call), BOOL.parse(call.text())
    await call.backend.volumes.set_rw(call.vm, name, value=value)


@method("admin.vm.volume.Set.ephemeral", ANY, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
def set_ephemeral(call: Call) -> None:
    """Say that what is written to a volume need not be unreadable later: `False`. `True` is not served yet."""
    name, value = _volume(call), BOOL.parse(call.text())
    call.backend.volumes.set_ephemeral(call.vm, name, value=value)


@method("crannog.vm.volume.ImportFile", ANY, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
async def import_file(call: Call) -> None:
    """Make the raw image at the absolute path in the payload the content of a halted VM's volume."""
    name, path = _volume(call), call.path()
    await call.backend.volumes.import_file(call.vm, name, path)


def _refuse_stream(call: Call) -> NoReturn:
    raise ProtocolError(
        f"{call.method} takes its data as a stream, for which a request is too short: call it by qrexec, or use "
        "'qvm-volume import'"
    )


@method("admin.vm.volume.Import", ANY, argument=NEEDED, payload=Presence.OPTIONAL, access=Access.WRITE)
def import_stream(call: Call) -> None:
    """Take the data by a program of that name, not on the socket, where it answers ProtocolError."""
    _refuse_stream(call)


@method("admin.vm.volume.ImportWithSize", ANY, argument=NEEDED, payload=Presence.OPTIONAL, access=Access.WRITE)
def import_stream_with_size(call: Call) -> None:
    """Take the data by a program as well; a line before them is their size in bytes."""
    _refuse_stream(call)
